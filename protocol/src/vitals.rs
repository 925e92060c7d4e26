//! What heartbeats carry beside being heard: a computer's vitals, the wish to be pre-warmed, and the
//! relay's state. They travel as extensions, so that who does not know them skips them.

use crate::message::Extension;

/// Extensions of [`crate::message::Heartbeat`].
pub mod heartbeat {
    /// [`super::Vitals`].
    pub const VITALS: u16 = 1;
    /// The model that the computer has loaded itself, in UTF-8.
    pub const LOADED_MODEL: u16 = 2;
    /// Requests are likely to come: the relay may open what they need. The value is the model that
    /// they will probably ask for, in UTF-8; empty: `auto`.
    pub const PREWARM: u16 = 3;
}

/// Extensions of [`crate::message::HeartbeatAck`].
pub mod heartbeat_ack {
    /// [`super::RelayState`].
    pub const STATE: u16 = 1;
    /// Certificates that were made at that time or before are to be renewed soon, whatever time they have left: the
    /// relay's authority becomes another, or has. Milliseconds since 1970 in eight bytes, little endian.
    pub const RENEW: u16 = 2;
}

/// The longest text in these extensions, in bytes; more is cut.
const MAX_TEXT: usize = 200;

macro_rules! vitals {
    ($($(#[$doc:meta])* $name:ident = $wire:literal;)*) => {
        /// How a computer is. What it cannot tell is `None`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct Vitals { $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<u32>,)* }

        impl Vitals {
            /// As an extension: for each figure its number in one byte and its value in four, little
            /// endian.
            #[must_use]
            pub fn to_extension(&self) -> Extension {
                let mut value = vec![];
                $(if let Some(figure) = self.$name {
                    value.push($wire);
                    value.extend_from_slice(&figure.to_le_bytes());
                })*
                Extension { kind: heartbeat::VITALS, value }
            }

            /// The vitals among the extensions of a heartbeat. Figures that this version does not
            /// know, and what is cut, are skipped.
            #[must_use]
            pub fn among(extensions: &[Extension]) -> Option<Self> {
                let found = extensions.iter().find(|extension| extension.kind == heartbeat::VITALS)?;
                let mut vitals = Self::default();
                for figure in found.value.chunks_exact(5) {
                    let value = u32::from_le_bytes([figure[1], figure[2], figure[3], figure[4]]);
                    match figure[0] {
                        $($wire => vitals.$name = Some(value),)*
                        _ => {}
                    }
                }
                Some(vitals)
            }
        }
    };
}

vitals! {
    /// Load of all processors, in thousandths.
    cpu_permille = 1;
    /// Memory in use, in thousandths.
    memory_permille = 2;
    /// The fullest disk, in thousandths.
    disk_permille = 3;
    /// Load of the busiest GPU, in thousandths.
    gpu_permille = 4;
    /// Memory in use of the fullest GPU, in thousandths.
    gpu_memory_permille = 5;
    /// Temperature of the hottest GPU, in degrees Celsius.
    gpu_celsius = 6;
    /// Requests that wait for their answers.
    active_requests = 7;
    /// Of these, those that wait for a tunnel.
    queued_requests = 8;
}

impl Vitals {
    /// The computer's own GPU is near its limit: requests are likely to go to the relay soon.
    #[must_use]
    pub fn is_hot(&self) -> bool {
        self.gpu_permille.is_some_and(|load| load > 800) || self.gpu_celsius.is_some_and(|celsius| celsius > 80)
    }
}

/// How the relay is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RelayState {
    /// It serves.
    Healthy,
    /// It serves, and something is wrong.
    Degraded {
        /// What, for people.
        reason: String,
    },
    /// It is being worked on: answers may be interrupted.
    Maintenance {
        /// Until then, milliseconds since 1970; 0: unknown.
        until_ms: u64,
        /// Why, for people.
        reason: String,
    },
}

impl RelayState {
    /// In words, at that time.
    #[must_use]
    pub fn describe(&self, now_ms: u64) -> String {
        match self {
            Self::Healthy => "healthy".into(),
            Self::Degraded { reason } => format!("degraded: {reason}"),
            Self::Maintenance { until_ms: 0, reason } => format!("in maintenance: {reason}"),
            Self::Maintenance { until_ms, reason } => {
                let minutes = until_ms.saturating_sub(now_ms).div_ceil(60_000);
                format!("in maintenance for {minutes} more min: {reason}")
            }
        }
    }

    /// As an extension: 0, 1 or 2 in one byte, `until_ms` in eight, little endian, then the reason.
    #[must_use]
    pub fn to_extension(&self) -> Extension {
        let (number, until_ms, reason) = match self {
            Self::Healthy => (0, 0, ""),
            Self::Degraded { reason } => (1, 0, reason.as_str()),
            Self::Maintenance { until_ms, reason } => (2, *until_ms, reason.as_str()),
        };
        let mut value = vec![number];
        value.extend_from_slice(&until_ms.to_le_bytes());
        value.extend_from_slice(cut(reason).as_bytes());
        Extension { kind: heartbeat_ack::STATE, value }
    }

    /// The state among the extensions of an acknowledgement. One that is cut, or newer than this
    /// version, is `None`.
    #[must_use]
    pub fn among(extensions: &[Extension]) -> Option<Self> {
        let found = extensions.iter().find(|extension| extension.kind == heartbeat_ack::STATE)?;
        let (number, rest) = found.value.split_first()?;
        let (until_ms, reason) = rest.split_first_chunk::<8>()?;
        let reason = printable(reason);
        match number {
            0 => Some(Self::Healthy),
            1 => Some(Self::Degraded { reason }),
            2 => Some(Self::Maintenance { until_ms: u64::from_le_bytes(*until_ms), reason }),
            _ => None,
        }
    }
}

/// Asks for the renewal of certificates that were made then or before, milliseconds since 1970.
#[must_use]
pub fn renew(made_ms: u64) -> Extension {
    Extension { kind: heartbeat_ack::RENEW, value: made_ms.to_le_bytes().to_vec() }
}

/// Which certificates are to be renewed, if an acknowledgement says so.
#[must_use]
pub fn renew_among(extensions: &[Extension]) -> Option<u64> {
    let found = extensions.iter().find(|extension| extension.kind == heartbeat_ack::RENEW)?;
    Some(u64::from_le_bytes(found.value.as_slice().try_into().ok()?))
}

/// An extension whose value is a text.
#[must_use]
pub fn text(kind: u16, text: &str) -> Extension {
    Extension { kind, value: cut(text).as_bytes().to_vec() }
}

/// The text of the extension of that kind, fit to be shown.
#[must_use]
pub fn text_among(kind: u16, extensions: &[Extension]) -> Option<String> {
    extensions.iter().find(|extension| extension.kind == kind).map(|extension| printable(&extension.value))
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    cut(&text).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vitals_are_the_documented_bytes_and_come_back() {
        let vitals = Vitals { cpu_permille: Some(1000), gpu_celsius: Some(81), ..Vitals::default() };
        let extension = vitals.to_extension();
        assert_eq!((extension.kind, extension.value.as_slice()), (1, &[1, 0xe8, 3, 0, 0, 6, 81, 0, 0, 0][..]));
        assert_eq!(Vitals::among(std::slice::from_ref(&extension)), Some(vitals));
        // What is newer, or cut, is skipped.
        let mut newer = extension;
        newer.value.extend_from_slice(&[99, 1, 2, 3, 4, 7, 1]);
        assert_eq!(Vitals::among(&[newer]), Some(vitals));
        assert_eq!(Vitals::among(&[]), None);
        assert!(vitals.is_hot() && !Vitals { gpu_permille: Some(800), ..Vitals::default() }.is_hot());
    }

    #[test]
    fn states_and_texts_come_back_short_and_printable() {
        let long = "é".repeat(300);
        for state in [
            RelayState::Healthy,
            RelayState::Degraded { reason: "disk".into() },
            RelayState::Maintenance { until_ms: 1_795_392_000_000, reason: String::new() },
        ] {
            assert_eq!(RelayState::among(&[state.to_extension()]), Some(state));
        }
        let RelayState::Degraded { reason } =
            RelayState::among(&[RelayState::Degraded { reason: long.clone() }.to_extension()]).expect("whole")
        else {
            panic!("another state");
        };
        assert_eq!(reason, "é".repeat(100));
        for cut in [vec![], vec![1], vec![1, 0, 0, 0], vec![9; 9]] {
            assert_eq!(RelayState::among(&[Extension { kind: heartbeat_ack::STATE, value: cut }]), None);
        }
        assert_eq!(text_among(3, &[text(3, "a\u{7}b")]), Some("ab".into()));
        let asked = renew(0x0102);
        assert_eq!((asked.kind, asked.value.as_slice()), (2, &[2, 1, 0, 0, 0, 0, 0, 0][..]));
        assert_eq!((renew_among(&[RelayState::Healthy.to_extension(), asked]), renew_among(&[])), (Some(0x0102), None));
        assert_eq!(renew_among(&[Extension { kind: heartbeat_ack::RENEW, value: vec![1] }]), None);
    }
}
