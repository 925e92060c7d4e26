//! Histories of sync: devices that edit, delete and rename, go offline, die at any step and lose answers, with clocks
//! that are off by days; a relay that dies, and gets what was sent twice, or late.
//!
//! The client's engine and the relay's service are the real ones; between them is no network but this file, and below
//! the engine no disk. A device keeps in mind what its user wrote and did not overwrite or delete himself: none of it
//! may be lost.

use super::disk::ForgetfulDisk;
use belay_client::ClientError;
use belay_client::sync::cut;
use belay_client::sync::engine::{Engine, Report};
use belay_client::sync::index::Index;
use belay_client::sync::place::{Content, Known, Local, Place, PlaceError, Scan, Sig, Source, Staged, Stamp};
use belay_client::sync::remote::{Answer, Progress, Remote, TransferError};
use belay_protocol::codec::Message;
use belay_protocol::id::{DeviceId, RevisionId, TenantId};
use belay_protocol::item::{Digest, INLINE_BYTES, ItemKey, ItemKind, Part, Parts};
use belay_protocol::message::{
    Encoding, Failed, FailureCode, PushOutcome, SyncChange, SyncContent, SyncGot, SyncPage, SyncPush, SyncPushed,
};
use belay_relay::blobs::Blobs;
use belay_relay::store::executor::{Store, StoreConfig};
use belay_relay::store::schema::Durability;
use belay_relay::store::sync::Content as StoredContent;
use belay_relay::store::sync::push::{Push, Pushed, Source as PushSource};
use belay_relay::sync::{Sync, SyncError};
use belay_transport::env::{Clock, Random};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// The relay, which can be killed.
struct SimRelay {
    sync: Sync,
    store: Store,
    disk: Arc<ForgetfulDisk>,
    clock: Arc<At>,
    dir: PathBuf,
    tenant: TenantId,
}

impl SimRelay {
    fn start(dir: &Path, disk: Arc<ForgetfulDisk>, clock: Arc<At>, seed: u64) -> Self {
        let (durability, idle_close) = (Durability::None, Duration::from_secs(3600));
        let store = Store::start(&StoreConfig { dir: dir.to_owned(), threads: 0, durability, idle_close, max_open: 4 });
        let blobs = Blobs::new(disk.clone(), Random::from_seed(seed), true);
        let sync = Sync::new(store.clone(), blobs, clock.clone(), QUOTA);
        Self { sync, store, disk, clock, dir: dir.to_owned(), tenant: "acme".parse().unwrap() }
    }

    fn restart(&mut self, seed: u64) {
        self.store.close();
        // What was acknowledged was synced.
        self.disk.crash();
        *self = Self::start(&self.dir, self.disk.clone(), self.clock.clone(), seed);
    }
}

/// What is shared by all of a history.
struct World {
    random: Mutex<StdRng>,
    relay: Mutex<SimRelay>,
    tally: Mutex<Tally>,
    /// Faults happen.
    faulty: std::sync::atomic::AtomicBool,
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

#[derive(Debug, Clone)]
struct File {
    content: Bytes,
    stamp: u64,
}

/// The documents, or the settings, of a device; they outlive its process.
#[derive(Debug, Default)]
struct Documents {
    files: BTreeMap<ItemKey, File>,
    stamps: u64,
    /// Content that arrives, by its digest.
    arriving: BTreeMap<Digest, Vec<u8>>,
    /// What the user wrote and has not overwritten or deleted himself.
    written: BTreeMap<ItemKey, Digest>,
}

fn sig(content: &Bytes) -> Sig {
    cut::sig(ItemKind::DOCUMENT, content.len() as u64, &content[..], String::new()).unwrap()
}

impl Documents {
    fn set(&mut self, key: &ItemKey, content: Bytes) -> u64 {
        self.stamps += 1;
        self.files.insert(key.clone(), File { content, stamp: self.stamps });
        self.stamps
    }

    fn write(&mut self, key: &ItemKey, content: Bytes) {
        self.written.insert(key.clone(), sig(&content).digest);
        self.set(key, content);
    }

    fn delete(&mut self, key: &ItemKey) {
        self.files.remove(key);
        self.written.remove(key);
    }

    fn rename(&mut self, from: &ItemKey, to: &ItemKey) {
        let Some(file) = self.files.get(from).cloned() else { return };
        let written = self.written.get(from).copied();
        self.delete(from);
        self.set(to, file.content);
        match written {
            Some(digest) => self.written.insert(to.clone(), digest),
            None => self.written.remove(to),
        };
    }
}

struct SimPlace {
    kind: ItemKind,
    world: Arc<World>,
    documents: Arc<Mutex<Documents>>,
}

struct InMemory(Bytes);

impl Source for InMemory {
    fn read(&mut self, offset: u64, len: u32) -> std::io::Result<Bytes> {
        let from = usize::try_from(offset).unwrap();
        Ok(self.0.slice(from..from + len as usize))
    }
}

struct Arriving {
    digest: Digest,
    world: Arc<World>,
    documents: Arc<Mutex<Documents>>,
}

impl Staged for Arriving {
    fn has(&mut self, offset: u64, part: &Part) -> bool {
        let documents = lock(&self.documents);
        let from = usize::try_from(offset).unwrap();
        let there = documents.arriving.get(&self.digest).and_then(|bytes| bytes.get(from..from + part.size as usize));
        there.is_some_and(|bytes| Digest::of(bytes) == part.digest)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.world.step();
        let mut documents = lock(&self.documents);
        let from = usize::try_from(offset).unwrap();
        let arriving = documents.arriving.get_mut(&self.digest).unwrap();
        arriving[from..from + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn into_content(self: Box<Self>) -> Content {
        let bytes = lock(&self.documents).arriving.get(&self.digest).cloned().unwrap_or_default();
        Content::Bytes(bytes.into())
    }
}

impl SimPlace {
    /// The content of a file that is as it was.
    fn content(&self, key: &ItemKey, local: &Local) -> Result<Bytes, PlaceError> {
        match lock(&self.documents).files.get(key) {
            Some(file) if file.stamp.to_string() == local.stamp.0 => Ok(file.content.clone()),
            _ => Err(PlaceError::Changed),
        }
    }
}

impl Place for SimPlace {
    fn scan(&mut self, known: &Known) -> Result<Scan, PlaceError> {
        self.world.step();
        let mut scan = Scan::default();
        for (key, file) in &lock(&self.documents).files {
            let stamp = Stamp(file.stamp.to_string());
            let sig = match known.get(key) {
                Some((then, sig)) if *then == stamp => sig.clone(),
                _ => sig(&file.content),
            };
            scan.items.insert(key.clone(), Local { sig, stamp, modified_ms: 0 });
        }
        Ok(scan)
    }

    fn open(&mut self, key: &ItemKey, local: &Local) -> Result<Box<dyn Source>, PlaceError> {
        self.world.step();
        Ok(Box::new(InMemory(self.content(key, local)?)))
    }

    fn parts(&mut self, key: &ItemKey, local: &Local) -> Result<Parts, PlaceError> {
        let content = self.content(key, local)?;
        Ok(cut::parts(ItemKind::DOCUMENT, content.len() as u64, &content[..]).unwrap())
    }

    fn stage(&mut self, digest: Digest, size: u64) -> Result<Box<dyn Staged>, PlaceError> {
        let size = usize::try_from(size).unwrap();
        lock(&self.documents).arriving.entry(digest).or_default().resize(size, 0);
        Ok(Box::new(Arriving { digest, world: self.world.clone(), documents: self.documents.clone() }))
    }

    fn put(
        &mut self,
        key: &ItemKey,
        content: Content,
        sig: &Sig,
        expected: Option<&Local>,
        _: u64,
    ) -> Result<Stamp, PlaceError> {
        self.world.step();
        let Content::Bytes(bytes) = content else { panic!("everything is in memory") };
        let stamp = {
            let mut documents = lock(&self.documents);
            let there = documents.files.get(key).map(|file| file.stamp.to_string());
            if there.as_ref() != expected.map(|local| &local.stamp.0) {
                return Err(PlaceError::Changed);
            }
            assert_eq!(self::sig(&bytes), *sig, "what arrives is what was announced");
            documents.arriving.remove(&sig.digest);
            documents.set(key, bytes)
        };
        self.world.step();
        Ok(Stamp(stamp.to_string()))
    }

    fn remove(&mut self, key: &ItemKey, expected: &Local) -> Result<(), PlaceError> {
        self.world.step();
        self.content(key, expected)?;
        lock(&self.documents).files.remove(key);
        self.world.step();
        Ok(())
    }

    fn set_aside(&mut self, key: &ItemKey, to: &ItemKey, expected: &Local) -> Result<Stamp, PlaceError> {
        self.world.step();
        let content = self.content(key, expected)?;
        let stamp = {
            let mut documents = lock(&self.documents);
            if documents.files.contains_key(to) || self.kind == ItemKind::SETTING {
                return Err(PlaceError::Taken("taken".into()));
            }
            documents.files.remove(key);
            documents.set(to, content)
        };
        self.world.step();
        Ok(Stamp(stamp.to_string()))
    }

    fn tidy(&mut self) -> Result<(), PlaceError> {
        Ok(())
    }
}

/// The way of a device to the relay.
#[derive(Clone)]
struct SimRemote {
    world: Arc<World>,
    device: DeviceId,
}

fn failed(error: &SyncError) -> Box<Failed> {
    let code = FailureCode::CONFLICT;
    let message = format!("{error:?}");
    Box::new(Failed { code, message, remedy: String::new(), request_id: None, retry_after_ms: None, missing: None })
}

impl SimRemote {
    fn lost(&self) -> ClientError {
        lock(&self.world.tally).losses += 1;
        ClientError::Lost("lost".into())
    }

    /// The request may not arrive, or the relay die before it does.
    fn way_there(&self) -> Result<(), ClientError> {
        self.world.step();
        if self.world.chance(60) {
            let seed = u64::from(self.world.below(u32::MAX));
            lock(&self.world.tally).restarts += 1;
            lock(&self.world.relay).restart(seed);
        }
        if self.world.chance(15) { Err(self.lost()) } else { Ok(()) }
    }

    /// The answer may not arrive.
    fn way_back(&self) -> Result<(), ClientError> {
        if self.world.chance(15) {
            return Err(self.lost());
        }
        self.world.step();
        Ok(())
    }

    async fn deliver(&self, device: &DeviceId, message: &SyncPush) -> Answer {
        let (sync, tenant) = self.world.sync();
        let source = match message.content {
            SyncContent::NONE => PushSource::None,
            SyncContent::INLINE => PushSource::Inline(message.inline.clone()),
            _ => PushSource::Upload,
        };
        let push = Push {
            revision: message.revision,
            parent: message.parent,
            kind: message.kind,
            key: message.key.clone(),
            source,
            modified_ms: message.modified_ms,
            size: message.size,
            digest: message.digest,
            meta: message.meta.clone(),
            device: device.clone(),
            at_ms: sync.now_ms(),
            push: Digest::of(&message.encode_body().unwrap()),
        };
        let answer = sync.push(&tenant, vec![push]).await.pop().unwrap();
        answer.map_err(|error| failed(&error)).map(|Pushed { outcome, head, number, copy }| {
            lock(&self.world.tally).conflicts += u64::from(outcome == PushOutcome::CONFLICT);
            SyncPushed { revision: message.revision, outcome, head, number, copy }
        })
    }
}

impl Remote for SimRemote {
    async fn pull(&self, cursor: &str) -> Result<(Vec<SyncChange>, SyncPage), ClientError> {
        self.way_there()?;
        let (sync, tenant) = self.world.sync();
        let limit = 1 + self.world.below(5);
        let page = sync.pull(&tenant, cursor.to_owned(), limit).await.unwrap();
        self.way_back()?;
        let changes = page.changes.len() as u64;
        let (cursor, has_more, resync) = (page.cursor, page.has_more, page.resync);
        Ok((page.changes, SyncPage { changes, cursor, has_more, resync }))
    }

    async fn push(&self, pushes: &[SyncPush]) -> Result<Vec<Answer>, ClientError> {
        let mut answers = vec![];
        for push in pushes {
            self.way_there()?;
            // Something that was sent long ago comes now, too.
            if self.world.chance(5) {
                let late = lock(&self.world.delivered).clone();
                if let Some((device, late)) = late.get(self.world.below(late.len().max(1) as u32) as usize) {
                    lock(&self.world.tally).losses += 1;
                    let _ = self.deliver(device, late).await;
                }
            }
            let answer = self.deliver(&self.device, push).await;
            lock(&self.world.delivered).push((self.device.clone(), push.clone()));
            if self.world.chance(5) {
                lock(&self.world.tally).losses += 1;
                assert_eq!(self.deliver(&self.device, push).await, answer, "the same again is answered the same");
            }
            answers.push(answer);
        }
        self.way_back()?;
        Ok(answers)
    }

    async fn content(&self, revision: RevisionId) -> Result<SyncGot, ClientError> {
        self.way_there()?;
        let (sync, tenant) = self.world.sync();
        let stored = match sync.revision(&tenant, revision).await {
            Ok(stored) => stored,
            Err(error) => return Err(ClientError::Failed(failed(&error))),
        };
        self.way_back()?;
        let (content, size) = (stored.content.code(), stored.size);
        let (inline, parts) = match stored.content {
            StoredContent::None => (vec![], vec![]),
            StoredContent::Inline(bytes) => (bytes, vec![]),
            StoredContent::Parts(parts) => (vec![], parts.to_bytes()),
        };
        Ok(SyncGot { content, size, inline, parts })
    }

    async fn upload(
        &self,
        revision: RevisionId,
        kind: ItemKind,
        parts: &Parts,
        source: &mut dyn Source,
        _: &mut Progress<'_>,
    ) -> Result<(), TransferError> {
        self.way_there()?;
        let (sync, tenant) = self.world.sync();
        let needed = sync.begin(&tenant, revision, kind, &parts.to_bytes()).await;
        let needed = needed.map_err(|error| ClientError::Failed(failed(&error)))?;
        for (place, _) in needed {
            self.way_there()?;
            let offset = parts.all()[..place as usize].iter().map(|part| u64::from(part.size)).sum();
            let part = parts.all()[place as usize];
            let bytes = source.read(offset, part.size).unwrap();
            let (sync, tenant) = self.world.sync();
            let (_, is_there) = sync.expected(&tenant, revision, place).await.unwrap();
            if !is_there {
                sync.keep(&tenant, revision, part, (Encoding::PLAIN, bytes), false).await.unwrap();
            }
            self.way_back()?;
        }
        Ok(())
    }

    async fn download(
        &self,
        parts: &[(u64, Part)],
        staged: &mut dyn Staged,
        _: &mut Progress<'_>,
    ) -> Result<(), TransferError> {
        for (offset, part) in parts {
            self.way_there()?;
            let (sync, tenant) = self.world.sync();
            let (_, bytes) = sync.part(&tenant, part.digest).await.unwrap();
            self.way_back()?;
            staged.write(*offset, &bytes).unwrap();
        }
        Ok(())
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
        match world.below(12) {
            0..=3 => lock(&documents).write(&key, content(&world, kind)),
            4 => lock(&documents).delete(&key),
            5 => lock(&documents).rename(&key, &name(world.below(NAMES))),
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
            quiet &= report.pushed + report.pulled == 0;
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
        for (revision, _) in runtime.block_on(sync.log(&tenant, name.0, name.1.clone())).unwrap() {
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
                if !known.contains(digest) {
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
