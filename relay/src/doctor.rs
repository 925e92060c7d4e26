//! What may be wrong with a node, looked at one after the other: what was found, and what to do about it.
//!
//! Most of it is looked at where the relay runs, by the relay itself ([`AdminService::doctor`](crate::admin)): it has the
//! sockets, the providers' keys and the clock. What can be seen from outside, the command looks at.

use crate::providers::{Looked, ProviderError, Providers};
use belay_protocol::calendar::{DAY_MS, day, day_text};
pub use belay_protocol::finding::{Finding, Health};
use belay_traces::Counts;
use belay_transport::env::Clock;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Certificates that end within so many days are told of.
pub const WARN_DAYS: u64 = 14;
/// An authority outlives what it signs, and takes longest to be replaced.
const AUTHORITY_DAYS: u64 = 365;
/// What a relay's socket should be given.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Clocks that differ by more are told of.
const CLOCK_MS: u64 = 30_000;
/// Spans that were lost longer ago are not told of.
const LATELY: Duration = Duration::from_secs(600);
/// A backup that is older is told of.
const BACKUP_DAYS: u64 = 7;

/// The bytes that the kernel keeps for the relay until it reads them.
#[must_use]
pub fn receive_buffer(bytes: usize) -> Finding {
    let found = format!("the kernel keeps {} KiB until the relay reads them", bytes >> 10);
    if bytes >= RECEIVE_BUFFER {
        return Finding::good("UDP buffer", found);
    }
    let remedy =
        "datagrams are lost when many come at once: start it by belayd.socket, or sysctl -w net.core.rmem_max=16777216";
    Finding::warn("UDP buffer", found, remedy)
}

/// What became of spans.
#[must_use]
pub fn traces(counts: &Counts) -> Finding {
    let (told, lost) = (counts.exported_so_far(), counts.dropped_so_far());
    let found = format!("{told} spans were told; {lost} a collector did not take, or were too many");
    if !counts.has_dropped_within(LATELY) {
        return Finding::good("traces", found);
    }
    Finding::warn("traces", found, "is one at traces.endpoint, and does it take the key in traces.headers_file?")
}

/// How many files and sockets the process may have open.
#[must_use]
pub fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let found = limit.map_or_else(|| "as many as wanted".to_owned(), |limit| format!("at most {limit}"));
    match limit {
        Some(limit) if limit < 65_536 => {
            Finding::warn("open files", found, "each connection over TCP takes one: LimitNOFILE=1048576 in the unit")
        }
        _ => Finding::good("open files", found),
    }
}

/// Room on the disk of the state directory.
#[must_use]
pub fn disk(state: &Path) -> Finding {
    let found = match rustix::fs::statvfs(state) {
        Ok(found) => found,
        Err(error) => return Finding::bad("disk", format!("{}: {error}", state.display()), "is the directory there?"),
    };
    let (free, all) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
    let text = format!("{} of {} free at {}", size(free), size(all), state.display());
    let remedy = "make room: without any, new requests are refused, and running ones use the last reserve";
    match free {
        0..0x1000_0000 => Finding::bad("disk", text, remedy),
        _ if free < all / 20 && free < 8 << 30 => Finding::warn("disk", text, remedy),
        _ => Finding::good("disk", text),
    }
}

fn size(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// How long the disk takes to keep something: each request waits for it.
#[must_use]
pub fn sync_time(state: &Path) -> Finding {
    let mut times = [Duration::ZERO; 21];
    let measured = tried(state, &mut times);
    if let Err(error) = measured {
        return Finding::bad("disk sync", error.to_string(), "can the relay write to its state directory?");
    }
    times.sort_unstable();
    let middle = times[times.len() / 2];
    let found = format!("keeping something takes {:.1} ms", middle.as_secs_f64() * 1000.0);
    let remedy = "each first token waits for it: use a faster disk for the state directory";
    if middle > Duration::from_millis(10) {
        Finding::warn("disk sync", found, remedy)
    } else {
        Finding::good("disk sync", found)
    }
}

fn tried(state: &Path, times: &mut [Duration]) -> std::io::Result<()> {
    // Made anew, never what somebody has put there.
    let path = state.join(format!("doctor-{}.tmp", std::process::id()));
    let mut file = File::options().write(true).create_new(true).open(&path)?;
    let measured = times.iter_mut().try_for_each(|time| {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        *time = began.elapsed();
        Ok(())
    });
    std::fs::remove_file(&path)?;
    measured
}

/// A certificate that ends then, milliseconds since 1970.
#[must_use]
pub fn certificate(what: &str, ends_ms: u64, now_ms: u64, remedy: &str) -> Finding {
    let left = ends_ms.saturating_sub(now_ms) / DAY_MS;
    let found = format!("holds until {}, {left} days", day_text(day(ends_ms)));
    match left {
        0 if ends_ms <= now_ms => Finding::bad(what, format!("ended on {}", day_text(day(ends_ms))), remedy),
        0..WARN_DAYS => Finding::warn(what, found, remedy),
        _ => Finding::good(what, found),
    }
}

/// The relay's authority: it must be replaced long before its end.
#[must_use]
pub fn authority(ends_ms: u64, now_ms: u64, is_prepared: bool) -> Finding {
    let remedy = "let another take its place: belayd authority prepare";
    let found = certificate("authority", ends_ms, now_ms, remedy);
    let left = ends_ms.saturating_sub(now_ms) / DAY_MS;
    if found.health == Health::Good && left < AUTHORITY_DAYS && !is_prepared {
        return Finding::warn(found.what, found.found, remedy);
    }
    found
}

/// When a backup was last taken, milliseconds since 1970.
#[must_use]
pub fn backup(last_ms: Option<u64>, now_ms: u64) -> Finding {
    let remedy = "belayd backup DIR, from a timer";
    let Some(last_ms) = last_ms else { return Finding::warn("backup", "none was ever taken", remedy) };
    let days = now_ms.saturating_sub(last_ms) / DAY_MS;
    let ago = match days {
        0 => "less than a day ago".to_owned(),
        1 => "a day ago".to_owned(),
        days => format!("{days} days ago"),
    };
    let found = format!("the last was taken {ago}");
    if days > BACKUP_DAYS { Finding::warn("backup", found, remedy) } else { Finding::good("backup", found) }
}

/// Whether each provider is reached and takes the relay's key; and how far the relay's clock is from theirs.
pub async fn providers(providers: &Providers, clock: &dyn Clock) -> Vec<Finding> {
    let mut findings = vec![];
    let mut furthest: Option<(u64, String)> = None;
    for (name, provider) in providers {
        let began = Instant::now();
        let looked = provider.look().await;
        if let Ok(Looked { date_ms: Some(date_ms), .. }) = looked {
            // Theirs is of a whole second.
            let apart = clock.now_ms().abs_diff(date_ms + 500);
            if furthest.as_ref().is_none_or(|(most, _)| apart > *most) {
                furthest = Some((apart, name.clone()));
            }
        }
        findings.push(provider_finding(name, looked, began.elapsed()));
    }
    if let Some((apart, name)) = furthest {
        let found = format!("{:.1} s from that of {name}", apart as f64 / 1000.0);
        findings.push(match apart {
            0..CLOCK_MS => Finding::good("clock", found),
            _ => Finding::warn(
                "clock",
                found,
                "set it: certificates, tokens and webhooks are judged by it (systemd-timesyncd)",
            ),
        });
    }
    findings
}

fn provider_finding(name: &str, looked: Result<Looked, ProviderError>, took: Duration) -> Finding {
    let what = format!("provider {name}");
    match looked {
        Err(error) => {
            Finding::bad(what, error.to_string(), "is its address right, and does a firewall stand in the way?")
        }
        Ok(Looked { status: 401 | 403, .. }) => {
            Finding::bad(what, "it does not take the relay's key", "put the right key in place, then: belayd reload")
        }
        Ok(Looked { status: 0, .. }) => Finding::good(what, "is part of the relay"),
        Ok(Looked { status: status @ 500.., .. }) => {
            Finding::warn(what, format!("it answers with status {status}"), "is it in trouble? see its status page")
        }
        Ok(Looked { status: 200, .. }) => {
            Finding::good(what, format!("takes the relay's key, answers in {} ms", took.as_millis()))
        }
        // Not all that are compatible have a list of models.
        Ok(Looked { status, .. }) => {
            Finding::good(what, format!("is reached in {} ms (status {status} for its models)", took.as_millis()))
        }
    }
}
