//! Small deeds that every device may ask for, and that cost the relay a durable write or somebody else's patience: a new
//! certificate, usage that is handed over, a page to pay at. So many a minute, for each device.

use super::rate::Limit;
use belay_protocol::id::DeviceId;
use belay_protocol::message::{Failed, FailureCode};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// In a minute; a client asks for one of them now and then.
const MOST: u32 = 30;
/// So many devices are remembered before those are forgotten that have not asked for a minute.
const SWEEP_ABOVE: usize = 1024;

/// What devices have asked for in the last minute.
#[derive(Debug, Default)]
pub(crate) struct Chores(Mutex<HashMap<DeviceId, u64>>);

impl Chores {
    /// Lets one through. Errors: `rate_limited`, with a time to come back.
    pub(crate) fn take(&self, device: &DeviceId, now_ms: u64) -> Result<(), Box<Failed>> {
        let now_ns = now_ms.saturating_mul(1_000_000);
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.len() >= SWEEP_ABOVE {
            devices.retain(|_, until_ns| *until_ns > now_ns);
        }
        let until_ns = devices.entry(device.clone()).or_default();
        match Limit::per_minute(MOST).take(*until_ns, now_ns) {
            Ok(next) => {
                *until_ns = next;
                Ok(())
            }
            Err(wait_ns) => Err(Box::new(Failed {
                code: FailureCode::RATE_LIMITED,
                message: format!("this device asks for that more than {MOST} times a minute"),
                remedy: "try again after retry_after_ms".into(),
                request_id: None,
                retry_after_ms: Some(wait_ns.div_ceil(1_000_000)),
                missing: None,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_its_share_of_a_minute() {
        let chores = Chores::default();
        let device = |name: &str| name.parse::<DeviceId>().expect("a name");
        for _ in 0..MOST {
            chores.take(&device("a"), 1_000).expect("within its share");
        }
        let refused = chores.take(&device("a"), 1_000).expect_err("too many");
        assert_eq!((refused.code, refused.retry_after_ms), (FailureCode::RATE_LIMITED, Some(2_000)));
        chores.take(&device("b"), 1_000).expect("another's");
        chores.take(&device("a"), 3_000).expect("later");
        for number in 0..2 * SWEEP_ABOVE {
            chores.take(&device(&format!("d{number}")), 100_000 * number as u64).expect("the first of its");
        }
        assert!(chores.0.lock().expect("sound").len() <= SWEEP_ABOVE);
    }
}
