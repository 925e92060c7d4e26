//! Histories of sync: devices that edit, delete and rename, go offline, die at any step and lose answers, with clocks
//! that are off by days; a relay that dies, and gets what was sent twice, or late.
//!
//! The client's engine and the relay's service are the real ones; between them is no network but this file, and below
//! the engine no disk. A device keeps in mind what its user wrote and did not overwrite or delete himself: none of it
//! may be lost.

mod place;
mod remote;

use self::place::{Documents, SimPlace, sig};
use self::remote::{SimRelay, SimRemote};
use belay_client::ClientError;
use belay_client::sync::engine::{Engine, Report};
use belay_client::sync::index::Index;
use belay_client::sync::place::Place;
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, ItemKind};
use belay_protocol::message::{SyncContent, SyncPush};
use belay_relay::store::sync::Content as StoredContent;
use belay_relay::sync::Sync;
use belay_transport::env::{Clock, Random};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const START_MS: u64 = 1_795_392_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const QUOTA: u64 = 1 << 30;
/// Names of documents.
const NAMES: u32 = 6;

/// What went wrong in a history; it holds if there is nothing.
pub type Wrong = Vec<String>;

/// What happened in a history.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Rounds that ended.
    pub rounds: u64,
    /// Conflicts that were told.
    pub conflicts: u64,
    /// Times that a device died in a round.
    pub crashes: u64,
    /// Answers that were lost, and deliveries that came twice or late.
    pub losses: u64,
    /// Times that the relay died.
    pub restarts: u64,
    /// Contents that users wrote and that had to be there in the end.
    pub kept: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process of a device dies.
struct Crash;

#[derive(Debug, Default)]
struct At(AtomicU64);

impl Clock for At {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A clock that is off.
#[derive(Debug)]
struct Off(Arc<At>, i64);

impl Clock for Off {
    fn now_ms(&self) -> u64 {
        self.0.now_ms().saturating_add_signed(self.1)
    }
}

/// What is shared by all of a history.
struct World {
    random: Mutex<StdRng>,
    relay: Mutex<SimRelay>,
    tally: Mutex<Tally>,
    /// Faults happen.
    faulty: std::sync::atomic::AtomicBool,
    /// Contents that some user has overwritten or deleted himself: they need not be anywhere but in a log.
    discarded: Mutex<BTreeSet<Digest>>,
    /// Pushes that were delivered, to be delivered again.
    delivered: Mutex<Vec<(DeviceId, SyncPush)>>,
}

impl World {
    fn chance(&self, one_in: u32) -> bool {
        self.faulty.load(Ordering::Relaxed) && lock(&self.random).random_ratio(1, one_in)
    }

    fn below(&self, most: u32) -> u32 {
        lock(&self.random).random_range(0..most)
    }

    /// The device may die here.
    fn step(&self) {
        if self.chance(40) {
            lock(&self.tally).crashes += 1;
            resume_unwind(Box::new(Crash));
        }
    }

    fn sync(&self) -> (Sync, TenantId) {
        let relay = lock(&self.relay);
        (relay.sync.clone(), relay.tenant.clone())
    }
}

/// The kinds that a device has.
const KINDS: [ItemKind; 2] = [ItemKind::DOCUMENT, ItemKind::SETTING];

struct Device {
    remote: SimRemote,
    places: BTreeMap<ItemKind, Arc<Mutex<Documents>>>,
    index: PathBuf,
    clock: Arc<Off>,
    online: bool,
}

impl Device {
    /// A round, in which the device may die.
    fn round(&self, runtime: &tokio::runtime::Runtime, seed: u64) -> Result<Report, ClientError> {
        let world = &self.remote.world;
        let place = |(kind, documents): (&ItemKind, &Arc<Mutex<Documents>>)| {
            let place = SimPlace { kind: *kind, world: world.clone(), documents: documents.clone() };
            (*kind, Box::new(place) as Box<dyn Place>)
        };
        let round = || {
            let index = Index::open(&self.index)?;
            let places = self.places.iter().map(place).collect();
            let random = Random::from_seed(seed);
            let mut engine = Engine::new(self.remote.clone(), index, places, self.clock.clone(), random)?;
            runtime.block_on(engine.round(false, &mut |_| {}))
        };
        match catch_unwind(AssertUnwindSafe(round)) {
            Ok(report) => {
                lock(&world.tally).rounds += 1;
                report
            }
            Err(panic) if panic.is::<Crash>() => Err(ClientError::Stopped),
            Err(panic) => resume_unwind(panic),
        }
    }
}

fn content(world: &World, kind: ItemKind) -> Bytes {
    let number = world.below(u32::MAX);
    if kind == ItemKind::SETTING {
        return (number / (1 + world.below(2) * (u32::MAX / 4))).to_string().into();
    }
    let text = format!("{number} ");
    match world.below(10) {
        // Now and then the same as somebody else's.
        0 => Bytes::from(format!("common {}", number % 3)),
        1 => text.repeat((INLINE_BYTES + 30_000) / text.len()).into(),
        _ => text.into(),
    }
}

/// Runs one history, and says what was wrong with its end.
#[must_use]
pub fn history(seed: u64) -> (Tally, Wrong) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let clock = Arc::new(At(AtomicU64::new(START_MS)));
    let relay = SimRelay::start(&dir.path().join("relay"), Arc::default(), clock.clone(), seed);
    let world = Arc::new(World {
        random: Mutex::new(StdRng::seed_from_u64(seed)),
        relay: Mutex::new(relay),
        tally: Mutex::default(),
        faulty: true.into(),
        discarded: Mutex::default(),
        delivered: Mutex::default(),
    });
    let count = 2 + world.below(4);
    let mut devices: Vec<Device> = (0..count)
        .map(|number| Device {
            remote: SimRemote { world: world.clone(), device: format!("d{number}").parse().unwrap() },
            places: KINDS.into_iter().map(|kind| (kind, Arc::default())).collect(),
            index: dir.path().join(format!("index-{number}.db")),
            clock: Arc::new(Off(clock.clone(), (i64::from(world.below(40)) - 20) * DAY_MS as i64)),
            online: true,
        })
        .collect();
    let steps = 20 + world.below(30);
    for _ in 0..steps {
        let device = &mut devices[world.below(count) as usize];
        let name = |number: u32| format!("f{number}.md").parse::<ItemKey>().unwrap();
        let key = name(world.below(NAMES));
        let kind = KINDS[world.below(4) as usize / 3];
        let documents = device.places[&kind].clone();
        let discard = |key: &ItemKey| {
            let there = lock(&documents).files.get(key).map(|file| sig(&file.content).digest);
            lock(&world.discarded).extend(there);
        };
        match world.below(12) {
            0..=3 => {
                discard(&key);
                lock(&documents).write(&key, content(&world, kind));
            }
            4 => {
                discard(&key);
                lock(&documents).delete(&key);
            }
            5 => {
                let to = name(world.below(NAMES));
                if lock(&documents).files.contains_key(&key) && to != key {
                    discard(&to);
                    lock(&documents).rename(&key, &to);
                }
            }
            6 => device.online = !device.online,
            // Of its 30 days, so that what was replaced is still in the log.
            7 => _ = clock.0.fetch_add(u64::from(world.below(12)) * 60 * 60 * 1000, Ordering::Relaxed),
            8 if world.below(4) == 0 => {
                let (sync, tenant) = world.sync();
                runtime.block_on(sync.forget(&tenant)).unwrap();
            }
            _ if device.online => {
                let seed = u64::from(world.below(u32::MAX));
                let _ = device.round(&runtime, seed);
            }
            _ => {}
        }
    }
    world.faulty.store(false, Ordering::Relaxed);
    let wrong = check(&world, &runtime, &devices);
    let tally = *lock(&world.tally);
    (tally, wrong)
}

/// All come together; what all have is the same, and nothing is lost.
fn check(world: &Arc<World>, runtime: &tokio::runtime::Runtime, devices: &[Device]) -> Wrong {
    let mut wrong = vec![];
    let mut rounds = 0;
    loop {
        let mut quiet = true;
        for (number, device) in devices.iter().enumerate() {
            let report = device.round(runtime, u64::from(world.below(u32::MAX))).unwrap();
            quiet &= report.total().pushed + report.total().pulled == 0;
            wrong.extend(report.problems.iter().map(|problem| format!("device {number}: {problem:?}")));
        }
        rounds += 1;
        if quiet || rounds > 12 {
            break;
        }
    }
    if rounds > 12 {
        wrong.push("the devices do not come to rest".into());
    }
    let (sync, tenant) = world.sync();
    let (mut live, mut known) = (BTreeMap::new(), BTreeSet::new());
    for change in runtime.block_on(sync.pull(&tenant, String::new(), 0)).unwrap().changes {
        let name = (change.kind, change.key.parse::<ItemKey>().unwrap());
        for row in runtime.block_on(sync.log(&tenant, name.0, name.1.clone())).unwrap() {
            let revision = runtime.block_on(sync.revision(&tenant, row.revision)).unwrap();
            known.insert(revision.digest);
            let StoredContent::Parts(parts) = &revision.content else { continue };
            if parts.all().iter().any(|part| runtime.block_on(sync.part(&tenant, part.digest)).is_err()) {
                wrong.push(format!("a part of revision {} is gone", revision.revision));
            }
        }
        if change.content != SyncContent::NONE {
            live.insert(name, change.digest);
        }
    }
    for (number, device) in devices.iter().enumerate() {
        let mut here = BTreeMap::new();
        for (kind, documents) in &device.places {
            let documents = lock(documents);
            here.extend(documents.files.iter().map(|(key, file)| ((*kind, key.clone()), sig(&file.content).digest)));
            for (key, digest) in &documents.written {
                lock(&world.tally).kept += 1;
                // A setting's other value is in its log; a document is somewhere, unless somebody wanted otherwise.
                let is_live = live.iter().any(|((of, _), there)| of == kind && there == digest);
                let may_be_gone = *kind == ItemKind::SETTING || lock(&world.discarded).contains(digest);
                if !known.contains(digest) || !is_live && !may_be_gone {
                    wrong.push(format!("what the user of device {number} wrote into {key} is lost"));
                }
            }
            if !documents.arriving.is_empty() && rounds > 12 {
                wrong.push(format!("device {number} has leftovers"));
            }
        }
        if here != live {
            wrong.push(format!("device {number} has {:?}, the relay {:?}", here.keys(), live.keys()));
        }
    }
    wrong
}
