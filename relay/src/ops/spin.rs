//! Waiting for another thread without going to sleep, for as long as it usually takes.
//!
//! A thread that sleeps until another one has committed is woken by way of the kernel, on a core that has halted
//! meanwhile (some 70 µs on a virtual machine), and runs what comes next with cold caches. Where nothing else is to
//! be done, and there is a core to spare, looking again and again costs nobody anything and saves both.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;
use tokio::time::Instant;

/// A commit takes less on most disks; one that takes more is slept through.
const LONGEST: Duration = Duration::from_micros(1500);
/// The clock is looked at so seldom.
const LOOK: u32 = 64;
/// And, whatever it says, looks at the most.
const MOST: u32 = 200_000;

/// Waits for a future; if `spins`, awake for a while.
pub(crate) async fn spin<F: Future>(future: F, spins: bool) -> F::Output {
    let mut future = pin!(future);
    let (mut left, mut looks) = (spins, 0u32);
    let began = Instant::now();
    poll_fn(move |cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && left {
            looks += 1;
            left = looks < MOST && (looks % LOOK != 0 || began.elapsed() < LONGEST);
            // To be polled again at once; others that have something to do are not kept from it.
            cx.waker().wake_by_ref();
        }
        polled
    })
    .await
}

/// True where a core is left for the other thread.
pub(crate) fn has_spare_core() -> bool {
    use std::sync::LazyLock;
    static SPARE: LazyLock<bool> =
        LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1));
    *SPARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_soon_and_what_comes_late_is_waited_for() {
        for spins in [true, false] {
            for wait in [Duration::ZERO, Duration::from_millis(20)] {
                let (told, hears) = tokio::sync::oneshot::channel();
                let thread = std::thread::spawn(move || {
                    std::thread::sleep(wait);
                    told.send(7)
                });
                assert_eq!(spin(hears, spins).await, Ok(7));
                thread.join().expect("ended").expect("heard");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_stands_still_does_not_keep_it_awake_for_ever() {
        let slept = spin(tokio::time::sleep(Duration::from_secs(3600)), true);
        tokio::time::timeout(Duration::from_secs(7200), slept).await.expect("it sleeps in the end");
    }
}
