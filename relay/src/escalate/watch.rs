//! Telling what woke a task that waits for many things.
//!
//! A request waits for its provider and, beside it, for all that can end it early: the client's
//! words, revocation, shutdown, timers. Looking at all of these for every token costs more than
//! passing the token on. They are polled with a waker of their own, and only when that was used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

/// Knows whether one of the things that are polled through it has woken the task.
#[derive(Debug, Default)]
pub(super) struct Watch(Option<(Arc<Flag>, Waker)>);

#[derive(Debug)]
struct Flag {
    woken: AtomicBool,
    task: Waker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl Watch {
    /// The waker to poll with, if there is anything to poll for: at first, after a wake, and when
    /// the task's own waker has changed.
    pub(super) fn woken(&mut self, cx: &Context<'_>) -> Option<Waker> {
        match &self.0 {
            Some((flag, waker)) if flag.task.will_wake(cx.waker()) => {
                flag.woken.swap(false, Ordering::AcqRel).then(|| waker.clone())
            }
            _ => {
                let flag = Arc::new(Flag { woken: AtomicBool::new(false), task: cx.waker().clone() });
                let waker = Waker::from(Arc::clone(&flag));
                self.0 = Some((flag, waker.clone()));
                Some(waker)
            }
        }
    }
}

impl Watch {
    /// Makes the task poll everything again.
    pub(super) fn look_again(&self) {
        if let Some((_, waker)) = &self.0 {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_a_wake_through_it_counts_and_the_task_is_woken_each_time() {
        let count = Arc::new(Count(0.into()));
        let task = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&task);
        let mut watch = Watch::default();
        let waker = watch.woken(&cx).expect("the first look");
        assert!(watch.woken(&cx).is_none());
        task.wake_by_ref();
        assert!(watch.woken(&cx).is_none(), "something else has woken the task");
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 3);
        assert!(watch.woken(&cx).is_some() && watch.woken(&cx).is_none());
        // The task has moved: everything must be polled with the new waker.
        assert!(watch.woken(&Context::from_waker(Waker::noop())).is_some());
    }
}
