//! The store: commit log, consume queues and index behind one face.
//!
//! [`Store`] has one owner, who stages records, commits them with one positioned write, and reads. Beside it works the
//! flusher ([`crate::flush`]), the only thread, which syncs the log, writes queue and index entries out of memory,
//! prepares the next file and watches the space left. Both share [`Shared`]; the owner holds its lock once per commit, for the
//! time it takes to push the entries, and the flusher only to copy or swap what it writes.
//!
//! A message is visible to consumers when its queue's `visible` mark passes it: at the commit with asynchronous flush, in
//! [`Store::settle`] after the sync with synchronous flush.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::batch_queue::{self, BatchEntry, BatchUnits, Units};
use crate::chunk::Chunk;
use crate::clock::Clock;
use crate::commit_log::{CommitLog, LogReader, LogWriter};
use crate::compaction::{self, Compaction, Compactor, Truth};
use crate::consume_queue::{can_be, Queue, QueueFiles, QueueKey, Unit, HOLE_SIZE, UNIT_BYTES};
use crate::disk::Disk;
use crate::entries::Entries;
use crate::error::Error;
use crate::flush::{Threads, Wake, Worker};
use crate::index::{each_hash, positive_hash, prefix_hash, Geometry, Index, KeyHash};
use crate::light_queue;
use crate::property::{flag, java_hash, java_hash_on, scan};
use crate::record::{self, has_index_entry, has_queue_entry, NewRecord, Place, RecordView, BLANK_BYTES};
use crate::recovery;
use crate::snapshot::Look;

mod retention;

pub use crate::consume_queue::Entry;
pub use crate::index::IndexHits;
pub use retention::{DeletePolicy, Deleted, Expired};

/// Physical offset in the commit log.
pub type Position = u64;

/// Queue files the owner keeps open for reading.
const READ_FILES_MAX: usize = 128;
/// Queue files the flusher keeps open.
const WRITE_FILES_MAX: usize = 128;
/// Queue ids up to here are found by index, larger ones in a map.
pub(crate) const DENSE_QUEUES: u32 = 1024;
/// When so many bytes of entries wait in memory, the flusher is woken early.
const PENDING_BYTES_WAKE: usize = 4 << 20;
/// With so many the disk is behind, see [`Store::is_behind`].
const PENDING_BYTES_MAX: usize = 64 << 20;

/// When a message counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushMode {
    /// Once the system has it; flushed to the device in the background.
    Async,
    /// Once the device has it; consumers see it only then.
    Sync,
}

/// Everything the store can be told. Sizes in bytes, times in milliseconds; defaults are Apache's.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Directory of the store.
    pub root: PathBuf,
    pub flush_mode: FlushMode,
    /// Size of a commit log file; an existing store keeps its own.
    pub log_file_bytes: u64,
    /// Units of 20 bytes a consume queue file holds; an existing store keeps its own.
    pub queue_file_units: u64,
    /// Units of 46 bytes a batch queue file holds; an existing store keeps its own.
    pub batch_file_units: u64,
    /// Topics with batch queues ([`crate::batch_queue`]); known here, because queues are rebuilt when the store is opened.
    pub batch_topics: Vec<String>,
    /// Topics whose queues are compacted ([`crate::compaction`]).
    pub compaction_topics: Vec<String>,
    /// Sizes of the files compacted queues are kept in, as configured; an existing queue keeps its own.
    pub compaction_log_file_bytes: u64,
    pub compaction_queue_file_bytes: u64,
    /// Memory that compacting a queue takes at most.
    pub compaction_map_bytes: usize,
    pub index_slots: u32,
    pub index_entries: u32,
    pub index_enable: bool,
    /// Written into every record.
    pub store_host: SocketAddr,
    /// Asynchronous flush: how often to look whether enough is dirty.
    pub log_flush_interval_ms: i64,
    /// Asynchronous flush: less than this waits for `log_flush_forced_ms`.
    pub log_flush_bytes_min: u64,
    /// Asynchronous flush: at the latest.
    pub log_flush_forced_ms: i64,
    /// How often queue and index entries are written to their files.
    pub queue_flush_interval_ms: i64,
    /// How often, at the latest, they are synced and the checkpoint is written.
    pub queue_flush_forced_ms: i64,
    /// After so much log the checkpoint is written earlier: what a recovery has to read stays bounded.
    pub checkpoint_bytes: u64,
    /// With more log than this that the device has not taken (synchronous flush: not flushed) the disk is behind, see
    /// [`Store::is_behind`].
    pub unflushed_bytes_max: u64,
    /// Share of the disk in use from which writes are refused; [`Store::set_disk_used_ratio_max`] changes it.
    pub disk_used_ratio_max: f64,
    /// Delay of each level of SCHEDULE_TOPIC_XXXX; level 1 first. Used when queue entries are rebuilt.
    pub delay_levels_ms: Vec<i64>,
    /// Records get entries in the light queues they name ([`crate::light_queue`]).
    pub light_queues: bool,
    /// The zone's offset from UTC, for the names of index files.
    pub utc_offset_ms: i64,
    /// False: no flusher thread; the owner calls [`Store::tick`] (tests by seed).
    pub background: bool,
}

impl StoreOptions {
    /// Apache's defaults below `root`.
    pub fn new(root: impl Into<PathBuf>) -> StoreOptions {
        const MINUTE: i64 = 60_000;
        StoreOptions {
            root: root.into(),
            flush_mode: FlushMode::Async,
            log_file_bytes: 1 << 30,
            queue_file_units: 300_000,
            batch_file_units: 300_000,
            batch_topics: Vec::new(),
            compaction_topics: Vec::new(),
            compaction_log_file_bytes: 100 << 20,
            compaction_queue_file_bytes: 10 << 20,
            compaction_map_bytes: 100 << 20,
            index_slots: 5_000_000,
            index_entries: 20_000_000,
            index_enable: true,
            store_host: SocketAddr::from(([127, 0, 0, 1], 10911)),
            log_flush_interval_ms: 500,
            log_flush_bytes_min: 4 * 4096,
            log_flush_forced_ms: 10_000,
            queue_flush_interval_ms: 1000,
            queue_flush_forced_ms: MINUTE,
            checkpoint_bytes: 256 << 20,
            unflushed_bytes_max: 1 << 30,
            disk_used_ratio_max: 0.90,
            delay_levels_ms: [1, 5, 10, 30]
                .map(|s| s * 1000)
                .into_iter()
                .chain((1..=10).chain([20, 30, 60, 120]).map(|m| m * MINUTE))
                .collect(),
            light_queues: false,
            utc_offset_ms: 0,
            background: true,
        }
    }
}

/// A queue of a topic: dense, stable until the topic is deleted, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueRef(pub u32);

/// One record's place, known before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged {
    pub position: Position,
    pub size: u32,
    pub queue: QueueRef,
    pub queue_offset: i64,
    pub store_timestamp: i64,
}

/// What one commit wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// End of the log now: acknowledge what was staged once `durable() >= end`.
    pub end: Position,
    /// Queues whose visible maximum moved now (with synchronous flush: none, see [`Store::settle`]).
    pub touched: Vec<QueueRef>,
}

/// Counters and sizes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoreStats {
    pub min_position: Position,
    /// End of what was written.
    pub max_position: Position,
    /// End of what is flushed.
    pub flushed_position: Position,
    /// End of what queues and index have on disk, durably.
    pub dispatched_position: Position,
    pub log_files: u64,
    pub queues: u64,
    pub queue_tail_bytes: u64,
    pub index_files: u64,
    pub records_appended: u64,
    pub bytes_appended: u64,
    pub commits: u64,
    pub flushes: u64,
    pub flush_max_us: u64,
    pub commit_max_us: u64,
    pub disk_used_ratio: f64,
    /// Store time of the oldest record, -1 without one.
    pub earliest_store_timestamp: i64,
    pub open_files: u64,
    pub open_maps: u64,
}

/// Why writes are refused.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Sticks until a restart.
    pub failed: Option<Error>,
    /// A write found no space; goes when there is some.
    pub full: Option<Error>,
    /// The configured share of the disk is used; goes when it is not.
    pub ratio: Option<Error>,
    /// What else kept a thread from its work, as it was said last; writes are not refused for it.
    pub unexpected: Option<Error>,
}

/// Written, but not to be seen before the log is flushed to `end`.
pub(crate) struct Unsettled {
    end: Position,
    queue: u32,
    visible: i64,
}

/// What the owner and the flusher both change.
pub(crate) struct State {
    pub queues: Vec<Queue>,
    /// Queues with a tail.
    pub dirty: Vec<u32>,
    pub tail_units: usize,
    pub index: Option<Index>,
    pub unsettled: VecDeque<Unsettled>,
    /// The newest record whose entries are in tail and index.
    pub last_position: Option<Position>,
    pub last_timestamp: i64,
    /// End of the log when those were pushed.
    pub last_end: Position,
}

/// Counters the flusher and the owner keep for [`StoreStats`].
#[derive(Default)]
pub(crate) struct Counters {
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub commits: AtomicU64,
    pub flushes: AtomicU64,
    pub flush_max_us: AtomicU64,
    pub commit_max_us: AtomicU64,
    pub dispatched: AtomicU64,
    /// Share of the disk in use, in millionths.
    pub used_ppm: AtomicU64,
    /// Bytes of the disk that are free.
    pub free: AtomicU64,
}

/// That readers pass over something is said once in this time.
const UNREAD_SAID_MS: i64 = 60_000;

/// How the log is to say a line of an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// How far it is.
    Info,
    /// Something was repaired, set aside or lost.
    Warning,
}

/// Everything owner and threads share. Lock order: worker, entries, a compaction, queue files, state; health and notices are leaves.
pub(crate) struct Shared {
    pub options: StoreOptions,
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub log: CommitLog,
    pub state: Mutex<State>,
    /// The flusher's queue files; held while one queue's entries are written, so that a topic is not deleted meanwhile.
    pub queue_files: Mutex<QueueFiles>,
    /// The same for batch queues.
    pub batch_files: Mutex<QueueFiles>,
    /// Compacted queues by number.
    pub compactions: Mutex<HashMap<u32, Arc<Compaction>>>,
    /// The store is about to be closed.
    pub closing: AtomicBool,
    pub worker: Mutex<Worker>,
    pub entries: Mutex<Entries>,
    pub flusher: Wake,
    pub writer: Wake,
    pub event: OwnedFd,
    /// Somebody waits for the disk to catch up: the threads say after each round that they have been at work.
    pub held_back: AtomicBool,
    pub counters: Counters,
    /// Share of the disk in use from which writes are refused, as the bits of an `f64`.
    disk_used_ratio_max: AtomicU64,
    health: Mutex<Health>,
    refusing: AtomicBool,
    notices: Mutex<Vec<String>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// A line for the log. Kept until fetched; a flood keeps its first hundred.
    pub fn notice(&self, line: String) {
        let mut notices = lock(&self.notices);
        if notices.len() < 100 {
            notices.push(line);
        }
    }

    /// Changes the reasons for refusing writes and says so when it begins or ends.
    pub fn change_health(&self, change: impl FnOnce(&mut Health)) {
        let mut health = lock(&self.health);
        let before = health.reason();
        change(&mut health);
        let now = health.reason();
        self.refusing.store(now.is_some(), Ordering::Release);
        drop(health);
        match (before, now) {
            (None, Some(reason)) => self.notice(format!("writes are refused: {reason}")),
            (Some(_), None) => self.notice("writes are accepted again".into()),
            (Some(before), Some(now)) if std::mem::discriminant(&before) != std::mem::discriminant(&now) => {
                self.notice(format!("writes are still refused: {now}"));
            }
            _ => {}
        }
    }

    /// Share of the disk in use from which writes are refused.
    pub fn disk_used_ratio_max(&self) -> f64 {
        f64::from_bits(self.disk_used_ratio_max.load(Ordering::Relaxed))
    }

    /// A write or flush failed: remembers why, so that further writes are refused. Of another failure there is a notice.
    pub fn report(&self, error: &Error) {
        match error {
            Error::DiskFull(_) => self.change_health(|health| health.full = Some(error.clone())),
            Error::DiskFailed(_) => self.change_health(|health| {
                health.failed.get_or_insert_with(|| error.clone());
            }),
            _ => {
                let before = lock(&self.health).unexpected.replace(error.clone());
                if before.as_ref() != Some(error) {
                    self.notice(format!("the store's threads could not go on, they will try again: {error}"));
                }
            }
        }
    }

    /// Why writes are refused.
    pub fn health(&self) -> Option<Error> {
        if !self.refusing.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.health).reason()
    }

    pub fn has_failed(&self) -> bool {
        self.refusing.load(Ordering::Acquire) && lock(&self.health).failed.is_some()
    }

    /// A write has found no room, or no file to open, and that may be over.
    pub fn is_full(&self) -> bool {
        self.refusing.load(Ordering::Acquire) && lock(&self.health).full.is_some()
    }

    /// Makes [`Store::notify_fd`] readable.
    pub fn notify(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Has the owner ask again whether the disk is behind, if it waits for that.
    pub fn let_go(&self) {
        if self.held_back.swap(false, Ordering::AcqRel) {
            self.notify();
        }
    }

    /// There is something to do before it is due by the clock.
    pub fn wake(&self) {
        match self.options.flush_mode {
            FlushMode::Sync => self.flusher.wake(),
            FlushMode::Async => self.writer.wake(),
        }
    }

    /// Reserves blocks for the log, if it is time.
    pub fn reserve(&self) {
        if self.log.wants_reserve() {
            self.log.reserve(self.counters.free.load(Ordering::Relaxed));
        }
    }

    /// Entries that wait in memory, in bytes: of queues, of the index.
    pub fn waiting_bytes(&self) -> (usize, usize) {
        let state = self.state();
        (state.tail_units * UNIT_BYTES, state.index.as_ref().map_or(0, |i| i.pending_bytes()))
    }
}

impl Health {
    fn reason(&self) -> Option<Error> {
        self.failed.clone().or_else(|| self.full.clone()).or_else(|| self.ratio.clone())
    }
}

/// A topic's queues by their id.
#[derive(Default)]
struct TopicQueues {
    dense: Vec<Option<QueueRef>>,
    sparse: BTreeMap<u32, QueueRef>,
}

impl TopicQueues {
    fn get(&self, queue_id: u32) -> Option<QueueRef> {
        if queue_id < DENSE_QUEUES {
            self.dense.get(queue_id as usize).copied().flatten()
        } else {
            self.sparse.get(&queue_id).copied()
        }
    }

    fn insert(&mut self, queue_id: u32, queue: QueueRef) {
        if queue_id < DENSE_QUEUES {
            let at = queue_id as usize;
            if self.dense.len() <= at {
                self.dense.resize(at + 1, None);
            }
            self.dense[at] = Some(queue);
        } else {
            self.sparse.insert(queue_id, queue);
        }
    }

    fn all(&self) -> impl Iterator<Item = (u32, QueueRef)> + '_ {
        let dense = self.dense.iter().enumerate().filter_map(|(id, q)| q.map(|q| (id as u32, q)));
        dense.chain(self.sparse.iter().map(|(id, q)| (*id, *q)))
    }
}

struct Topic {
    name: Arc<str>,
    prefix_hash: i32,
    queues: TopicQueues,
}

/// What the owner alone needs of a queue while staging.
struct Slot {
    next: i64,
    prefix_hash: i32,
    deleted: bool,
    light: bool,
    batch: bool,
    compaction: Option<Arc<Compaction>>,
}

struct PendingUnit {
    queue: u32,
    unit: Unit,
}

struct PendingBatch {
    queue: u32,
    entry: BatchEntry,
}

/// The store. One owner calls it; the flusher thread works beside it. Dropping it without [`Store::close`] is
/// like a kill: the next open recovers.
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: LogWriter,
    pub(crate) reader: LogReader,
    pub(crate) queue_reader: Mutex<QueueFiles>,
    pub(crate) batch_reader: Mutex<QueueFiles>,
    batch_topics: HashSet<String>,
    compaction_topics: HashSet<String>,
    /// Recovery is over.
    opened: bool,
    topics: HashMap<Arc<str>, Topic>,
    slots: Vec<Slot>,
    store_host: SocketAddr,
    index_enable: bool,
    sync: bool,
    light_queues: bool,
    light_queues_max: usize,
    // The chunk being staged.
    chunk: Chunk,
    pending: Vec<PendingUnit>,
    pending_batches: Vec<PendingBatch>,
    keys: Vec<KeyHash>,
    staged_end: Position,
    staged_last: Position,
    now_ms: i64,
    staged_records: u64,
    commit_number: u32,
    /// Bytes of entries that waited in memory after the last commit.
    waiting: usize,
    behind: bool,
    scratch: Vec<u8>,
    /// When it was last said that a queue does not lead to its records, and how often it was not said since.
    unread: (Option<i64>, u64),
    threads: Option<Threads>,
    lock: Option<Box<dyn Any + Send>>,
    closed: bool,
}

impl Store {
    /// Opens and recovers. `progress` gets one line for everything repaired or set aside, and one a second when it takes longer.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has the store, [`Error::Unusable`] when it cannot be read,
    /// [`Error::DiskFull`] or [`Error::DiskFailed`] when repairs cannot be written.
    pub fn open(
        options: StoreOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        progress: &dyn Fn(Level, &str),
    ) -> Result<Store, Error> {
        Store::open_looked_at(options, None, disk, clock, progress)
    }

    /// The same; somebody has begun to look at the queues.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_looked_at(
        options: StoreOptions,
        look: Option<Look>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        progress: &dyn Fn(Level, &str),
    ) -> Result<Store, Error> {
        let mut options = options;
        let root = options.root.clone();
        disk.create_dirs(&root).map_err(|e| Error::open("making", &root, &e))?;
        let lock_path = root.join("lock");
        let held = disk.lock(&lock_path).map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => {
                Error::Locked(format!("the store {} is in use by another broker", root.display()))
            }
            _ => Error::open("locking", &lock_path, &e),
        })?;
        recovery::adopt_sizes(&mut options, disk.as_ref(), progress)?;
        let event =
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK)
                .map_err(|e| Error::open("making an event for", &root, &e.into()))?;
        let queue_root = root.join("consumequeue");
        let files = |max| QueueFiles::new(queue_root.clone(), options.queue_file_units, UNIT_BYTES, disk.clone(), max);
        let batch_root = root.join("batchconsumequeue");
        let batch_files = |max| {
            let unit_bytes = batch_queue::UNIT_BYTES;
            QueueFiles::new(batch_root.clone(), options.batch_file_units, unit_bytes, disk.clone(), max)
        };
        let geometry = Geometry { slots: options.index_slots.max(1), entries: options.index_entries.max(2) };
        let index =
            options.index_enable.then(|| Index::new(root.join("index"), geometry, disk.clone(), options.utc_offset_ms));
        let shared = Arc::new(Shared {
            log: CommitLog::new(root.join("commitlog"), options.log_file_bytes, disk.clone()),
            state: Mutex::new(State {
                queues: Vec::new(),
                dirty: Vec::new(),
                tail_units: 0,
                index,
                unsettled: VecDeque::new(),
                last_position: None,
                last_timestamp: 0,
                last_end: 0,
            }),
            queue_files: Mutex::new(files(WRITE_FILES_MAX)),
            batch_files: Mutex::new(batch_files(WRITE_FILES_MAX)),
            compactions: Mutex::default(),
            closing: AtomicBool::new(false),
            worker: Mutex::new(Worker::new(clock.now_ms())),
            entries: Mutex::new(Entries::new(clock.now_ms())),
            flusher: Wake::default(),
            writer: Wake::default(),
            event,
            held_back: AtomicBool::new(false),
            counters: Counters::default(),
            disk_used_ratio_max: AtomicU64::new(options.disk_used_ratio_max.to_bits()),
            health: Mutex::default(),
            refusing: AtomicBool::new(false),
            notices: Mutex::default(),
            options: options.clone(),
            disk: disk.clone(),
            clock,
        });
        let mut store = Store {
            writer: LogWriter::default(),
            reader: LogReader::default(),
            queue_reader: Mutex::new(files(READ_FILES_MAX).mapped()),
            batch_reader: Mutex::new(batch_files(READ_FILES_MAX)),
            batch_topics: options.batch_topics.iter().cloned().collect(),
            compaction_topics: options.compaction_topics.iter().cloned().collect(),
            opened: false,
            topics: HashMap::new(),
            slots: Vec::new(),
            store_host: options.store_host,
            index_enable: options.index_enable,
            sync: options.flush_mode == FlushMode::Sync,
            light_queues: options.light_queues,
            light_queues_max: usize::MAX,
            chunk: Chunk::default(),
            pending: Vec::new(),
            pending_batches: Vec::new(),
            keys: Vec::new(),
            staged_end: 0,
            staged_last: 0,
            now_ms: 0,
            staged_records: 0,
            commit_number: 0,
            waiting: 0,
            behind: false,
            scratch: Vec::new(),
            unread: (None, 0),
            threads: None,
            lock: Some(held),
            closed: false,
            shared: shared.clone(),
        };
        recovery::recover(&mut store, look, progress)?;
        store.adopt_state();
        lock(&shared.worker).check_space(&shared);
        if options.background {
            store.threads =
                Some(Threads::start(shared).map_err(|e| Error::open("starting the flusher of", &root, &e))?);
        }
        Ok(store)
    }

    /// Takes over what recovery left in the shared state.
    fn adopt_state(&mut self) {
        let state = lock(&self.shared.state);
        for (slot, queue) in self.slots.iter_mut().zip(&state.queues) {
            slot.next = queue.next();
        }
        drop(state);
        self.staged_end = self.shared.log.written();
        self.opened = true;
    }

    /// As [`Store::queue`], when topic and number are somebody else's word.
    ///
    /// # Errors
    /// [`Error::BadRecord`] when there can be no such queue.
    pub fn queue_named(&mut self, topic: &str, queue_id: u32) -> Result<QueueRef, Error> {
        match self.find_queue(topic, queue_id) {
            Some(queue) => Ok(queue),
            None if can_be(topic, queue_id) => Ok(self.queue(topic, queue_id)),
            None => Err(Error::BadRecord(format!("there can be no queue {queue_id} of a topic with this name"))),
        }
    }

    /// The queue's handle; made in memory when new (files come when written).
    pub fn queue(&mut self, topic: &str, queue_id: u32) -> QueueRef {
        if let Some(queue) = self.find_queue(topic, queue_id) {
            return queue;
        }
        let queue = QueueRef(self.slots.len() as u32);
        if !self.topics.contains_key(topic) {
            let name: Arc<str> = topic.into();
            let entry = Topic { name: name.clone(), prefix_hash: prefix_hash(topic), queues: TopicQueues::default() };
            self.topics.insert(name, entry);
        }
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.queues.insert(queue_id, queue);
            let light = light_queue::is_light(&topic.name);
            let batch = self.batch_topics.contains(&*topic.name);
            let prefix_hash = topic.prefix_hash;
            self.slots.push(Slot { next: 0, prefix_hash, deleted: false, light, batch, compaction: None });
            let mut made = Queue::new(topic.name.clone(), queue_id);
            made.batches = batch.then(Box::default);
            self.shared.state().queues.push(made);
            if self.opened && self.compaction_topics.contains(&*topic.name) {
                self.try_open_compaction(queue);
            }
        }
        queue
    }

    /// Makes room for so many more queues.
    pub(crate) fn reserve_queues(&mut self, count: usize) {
        self.slots.reserve(count);
        self.shared.state().queues.reserve(count);
    }

    /// The queue's handle if it is known.
    pub fn find_queue(&self, topic: &str, queue_id: u32) -> Option<QueueRef> {
        self.topics.get(topic)?.queues.get(queue_id)
    }

    /// Encodes into the chunk and assigns the offsets; no I/O. `record.topic` and `queue_id` are those of `queue`.
    ///
    /// # Errors
    /// [`Error::BadRecord`] when the format cannot hold it, it names impossible light queues or the topic was deleted;
    /// [`Error::TooManyLightQueues`]; what [`Store::health`] says while writes are refused. The chunk is as before then.
    #[inline]
    pub fn stage(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        match record.known {
            Some(known) if !known.any(flag::MULTI_DISPATCH) && !self.is_batch(queue) => self.stage_one(queue, record),
            _ if self.is_batch(queue) => self.stage_batch(queue, record),
            _ => self.stage_with_light_queues(queue, record),
        }
    }

    /// True if the queue is a batch queue.
    #[inline]
    pub fn is_batch(&self, queue: QueueRef) -> bool {
        self.slots.get(queue.0 as usize).is_some_and(|slot| slot.batch)
    }

    /// [`Store::stage`] in a batch queue: the record takes an offset for each of its messages.
    fn stage_batch(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        let count = batch_queue::messages_in(record.sys_flag, record.properties)?;
        let base = self.slots[queue.0 as usize].next;
        let properties = match record.sys_flag & batch_queue::INNER_BATCH {
            0 => record.properties.to_vec(),
            _ => batch_queue::with_base(record.properties, base),
        };
        let known = scan(&properties);
        let staged = self.stage_one(queue, &NewRecord { properties: &properties, known: Some(known), ..*record })?;
        // Its entry is of another kind than the one that was just made for it.
        if has_queue_entry(record.sys_flag) {
            self.pending.pop();
            let (position, size, store_timestamp) = (staged.position, staged.size, staged.store_timestamp);
            let tags_code = record.tags_code.unwrap_or_else(|| i64::from(java_hash(known.tags.of(&properties))));
            let entry = BatchEntry { position, size, tags_code, store_timestamp, base, count };
            self.pending_batches.push(PendingBatch { queue: queue.0, entry });
            self.slots[queue.0 as usize].next = entry.end();
        }
        Ok(staged)
    }

    /// How many messages a record is that was staged there.
    pub fn messages_in(&self, queue: QueueRef, record: &NewRecord<'_>) -> u64 {
        match self.is_batch(queue) {
            true => batch_queue::messages_in(record.sys_flag, record.properties).map_or(1, u64::from),
            false => 1,
        }
    }

    /// True if the topic's new queues are batch queues.
    pub fn is_batch_topic(&self, topic: &str) -> bool {
        self.batch_topics.contains(topic)
    }

    /// Says whether the topic's queues are batch queues. Those that have messages stay what they are.
    pub fn set_batch_topic(&mut self, topic: &str, batch: bool) {
        let changed = match batch {
            true => self.batch_topics.insert(topic.to_owned()),
            false => self.batch_topics.remove(topic),
        };
        if !changed {
            return;
        }
        for queue in self.queues_of(topic) {
            let slot = &mut self.slots[queue.0 as usize];
            if slot.next == 0 {
                slot.batch = batch;
                self.shared.state().queues[queue.0 as usize].batches = batch.then(Box::default);
            }
        }
    }

    /// Says whether the topic's queues are compacted.
    pub fn set_compaction_topic(&mut self, topic: &str, compacted: bool) {
        let changed = match compacted {
            true => self.compaction_topics.insert(topic.to_owned()),
            false => self.compaction_topics.remove(topic),
        };
        if !changed {
            return;
        }
        for queue in self.queues_of(topic) {
            if compacted {
                self.try_open_compaction(queue);
            } else {
                self.slots[queue.0 as usize].compaction = None;
                lock(&self.shared.compactions).remove(&queue.0);
            }
        }
    }

    /// The queue's compacted log, if it has one.
    #[inline]
    pub(crate) fn compaction(&self, queue: QueueRef) -> Option<Arc<Compaction>> {
        self.slots.get(queue.0 as usize)?.compaction.clone()
    }

    /// What compacts queues, in whatever thread.
    pub fn compactor(&self) -> Compactor {
        Compactor::new(self.shared.clone())
    }

    fn try_open_compaction(&mut self, queue: QueueRef) {
        let shared = self.shared.clone();
        if let Err(error) = self.open_compaction(queue, i64::MAX, &|line| shared.notice(line.to_owned())) {
            shared.notice(format!("a compaction topic is not compacted: {error}"));
        }
    }

    /// Opens the compacted logs of all queues there are; recovery's last step. What is newer than `synced_ms` need not be whole.
    pub(crate) fn open_compactions(&mut self, synced_ms: i64, say: &dyn Fn(&str)) -> Result<(), Error> {
        for topic in self.compaction_topics.clone() {
            for queue in self.queues_of(&topic) {
                self.open_compaction(queue, synced_ms, say)?;
            }
        }
        Ok(())
    }

    fn open_compaction(&mut self, queue: QueueRef, synced_ms: i64, say: &dyn Fn(&str)) -> Result<(), Error> {
        let shared = self.shared.clone();
        let (topic, queue_id) = self.name(queue);
        if self.is_batch(queue) {
            return Ok(());
        }
        let next = self.bounds(queue).1;
        let mut store_time = |offset| Some(self.store_time(queue, offset)).filter(|time| *time >= 0);
        let mut truth = Truth { next, synced_ms, store_time: &mut store_time, say };
        let compaction = Arc::new(Compaction::open(&shared, &topic, queue_id, &mut truth)?);
        self.slots[queue.0 as usize].compaction = Some(compaction.clone());
        lock(&shared.compactions).insert(queue.0, compaction);
        Ok(())
    }

    /// [`Store::stage`] of a record that may name light queues: those get an entry too, and the record says at which offsets.
    fn stage_with_light_queues(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        let known = record.known.unwrap_or_else(|| scan(record.properties));
        if !known.any(flag::MULTI_DISPATCH) {
            return self.stage_one(queue, &NewRecord { known: Some(known), ..*record });
        }
        let dispatched =
            self.light_queues && has_queue_entry(record.sys_flag) && light_queue::may_dispatch(record.topic);
        let names = if dispatched { light_queue::names(record.properties)? } else { Vec::new() };
        let next =
            |name: &&str| self.find_queue(name, light_queue::QUEUE_ID).map_or(0, |q| self.slots[q.0 as usize].next);
        let offsets: Vec<String> = names.iter().map(|name| next(name).to_string()).collect();
        let offsets = (!offsets.is_empty()).then(|| offsets.join(","));
        let properties = light_queue::with_offsets(record.properties, offsets.as_deref());
        let known = scan(&properties);
        let record = &NewRecord { properties: &properties, known: Some(known), ..*record };
        // Queues are for good: none is made for a record that is refused.
        self.size_of(queue, record)?;
        let queues = self.light_queues_of(&names)?;
        let staged = self.stage_one(queue, record)?;
        let tags_code = record.tags_code.unwrap_or_else(|| i64::from(java_hash(known.tags.of(&properties))));
        let unit = Entry { position: staged.position, size: staged.size, tags_code }.encode();
        for (number, light) in queues.iter().enumerate() {
            // Named twice it is there once; and it may be the very queue the record was sent to.
            if *light != queue && !queues[..number].contains(light) {
                self.pending.push(PendingUnit { queue: light.0, unit });
                self.slots[light.0 as usize].next += 1;
            }
        }
        Ok(staged)
    }

    /// The queues of these names, made when new.
    fn light_queues_of(&mut self, names: &[&str]) -> Result<Vec<QueueRef>, Error> {
        let is_new = |name: &&str| {
            let queue = self.find_queue(name, light_queue::QUEUE_ID);
            !queue.is_some_and(|queue| self.slots[queue.0 as usize].next > 0)
        };
        if self.light_queues_max < usize::MAX {
            let new: HashSet<&str> = names.iter().copied().filter(is_new).collect();
            if !new.is_empty() {
                let there = self.slots.iter().filter(|slot| slot.light && slot.next > 0 && !slot.deleted).count();
                if there + new.len() > self.light_queues_max {
                    let (new, may_be) = (new.len(), self.light_queues_max);
                    let text =
                        format!("there are {there} light queues, {may_be} may be, the message names {new} new ones");
                    return Err(Error::TooManyLightQueues(text));
                }
            }
        }
        Ok(names.iter().map(|name| self.queue(name, light_queue::QUEUE_ID)).collect())
    }

    /// More light queues than this do not come into being.
    pub fn set_light_queues_max(&mut self, count: usize) {
        self.light_queues_max = count;
    }

    /// Another share of the disk from which writes are refused; the next look at the space left goes by it.
    pub fn set_disk_used_ratio_max(&mut self, ratio: f64) {
        self.shared.disk_used_ratio_max.store(ratio.to_bits(), Ordering::Relaxed);
    }

    /// Queues without a message: they were asked for, or what was staged is not committed.
    pub fn unwritten_queues(&self) -> usize {
        self.slots.iter().filter(|slot| slot.next == 0 && !slot.deleted).count()
    }

    /// True if records get entries in the light queues they name.
    #[inline]
    pub fn has_light_queues(&self) -> bool {
        self.light_queues
    }

    /// True if any record of this topic fits a log file whose body and properties have so many bytes together.
    #[inline]
    pub fn can_hold(&self, topic: &str, bytes: usize) -> bool {
        let size = record::LARGEST_FRAME_BYTES + topic.len() + bytes;
        size as u64 + BLANK_BYTES <= self.shared.log.file_bytes
    }

    /// Bytes of the record, or why it cannot be staged.
    #[inline]
    fn size_of(&self, queue: QueueRef, record: &NewRecord<'_>) -> Result<usize, Error> {
        if self.closed || self.shared.refusing.load(Ordering::Relaxed) {
            return Err(self.refusal());
        }
        if self.slots.get(queue.0 as usize).map_or(true, |slot| slot.deleted) {
            return Err(Error::BadRecord(format!("the topic {} was deleted", record.topic)));
        }
        let size = record::size_of(record, &self.store_host)?;
        let file_bytes = self.shared.log.file_bytes;
        if size as u64 + BLANK_BYTES > file_bytes {
            return Err(Error::BadRecord(format!("a record of {size} bytes does not fit a log file of {file_bytes}")));
        }
        Ok(size)
    }

    #[inline]
    fn stage_one(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        let size = self.size_of(queue, record)?;
        let file_bytes = self.shared.log.file_bytes;
        if self.chunk.is_empty() {
            self.now_ms = self.shared.clock.now_ms();
            self.chunk.begin_run(self.staged_end);
        }
        let mut position = self.staged_end;
        let room = file_bytes - position % file_bytes;
        if size as u64 + BLANK_BYTES > room {
            self.chunk.put(|bytes| record::encode_blank(bytes, room));
            position += room;
            self.chunk.begin_run(position);
        }
        let slot = &mut self.slots[queue.0 as usize];
        let queued = has_queue_entry(record.sys_flag);
        let queue_offset = if queued { slot.next } else { 0 };
        let place = Place { queue_offset, position, store_timestamp: self.now_ms, store_host: self.store_host };
        self.chunk.put(|bytes| record::encode(bytes, record, size, &place));
        let indexed = self.index_enable && has_index_entry(record.sys_flag);
        if indexed || record.tags_code.is_none() {
            let known = match record.known {
                Some(known) => known,
                None => scan(record.properties),
            };
            let tags_code = match record.tags_code {
                Some(code) => code,
                None => i64::from(java_hash(known.tags.of(record.properties))),
            };
            if queued {
                let unit = Entry { position, size: size as u32, tags_code }.encode();
                self.pending.push(PendingUnit { queue: queue.0, unit });
            }
            if indexed {
                let (keys, store_timestamp) = (&mut self.keys, self.now_ms);
                each_hash(slot.prefix_hash, &known, record.properties, |hash| {
                    keys.push(KeyHash { hash, position, store_timestamp });
                });
            }
        } else if queued {
            let unit = Entry { position, size: size as u32, tags_code: record.tags_code.unwrap_or(0) }.encode();
            self.pending.push(PendingUnit { queue: queue.0, unit });
        }
        slot.next += i64::from(queued);
        self.staged_end = position + size as u64;
        self.staged_last = position;
        self.staged_records += 1;
        Ok(Staged { position, size: size as u32, queue, queue_offset, store_timestamp: self.now_ms })
    }

    #[cold]
    fn refusal(&self) -> Error {
        if self.closed {
            return Error::Closed;
        }
        self.shared.health().unwrap_or_else(|| Error::DiskFull("the disk was full a moment ago".into()))
    }

    /// Bytes of records that are staged and not written.
    pub fn staged_bytes(&self) -> usize {
        self.chunk.len()
    }

    /// Writes all that is staged with one positioned write. On an error nothing of it exists.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::DiskFailed`]; further writes are refused then, see [`Store::health`].
    pub fn commit(&mut self) -> Result<Commit, Error> {
        if self.chunk.is_empty() {
            return Ok(Commit { end: self.shared.log.written(), touched: Vec::new() });
        }
        if self.shared.refusing.load(Ordering::Relaxed) {
            let error = self.refusal();
            self.discard();
            return Err(error);
        }
        let started = Instant::now();
        if let Err(error) = self.writer.write(&self.shared.log, &self.chunk) {
            self.shared.report(&error);
            self.discard();
            return Err(error);
        }
        self.commit_number = self.commit_number.wrapping_add(1);
        let mut touched = Vec::with_capacity(8.min(self.pending.len()));
        let end = self.staged_end;
        let waiting = self.commit_push(end, &mut touched);
        let bytes = self.chunk.runs().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        let records = self.staged_records;
        self.clear_chunk();
        let counters = &self.shared.counters;
        counters.records.store(counters.records.load(Ordering::Relaxed) + records, Ordering::Relaxed);
        counters.bytes.store(counters.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        counters.commits.store(counters.commits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if self.sync {
            touched.clear();
        }
        self.waiting = waiting;
        let log = &self.shared.log;
        if self.sync || waiting > PENDING_BYTES_WAKE || log.wants_reserve() || log.wants_write_back() {
            self.shared.wake();
        }
        let took = started.elapsed().as_micros() as u64;
        if took > counters.commit_max_us.load(Ordering::Relaxed) {
            counters.commit_max_us.store(took, Ordering::Relaxed);
        }
        Ok(Commit { end, touched })
    }

    /// Pushes the written chunk's entries; returns the bytes that wait for the flusher.
    fn commit_push(&mut self, end: Position, touched: &mut Vec<QueueRef>) -> usize {
        let number = self.commit_number;
        let state = &mut *lock(&self.shared.state);
        if let Some(index) = &state.index {
            // The slots lie all over 20 MB: ask for the first ones now, so that they arrive while the queues are pushed.
            for key in self.keys.iter().take(16) {
                index.prefetch(key.hash);
            }
        }
        for pending in &self.pending {
            let queue = &mut state.queues[pending.queue as usize];
            if queue.push(pending.unit) {
                state.dirty.push(pending.queue);
            }
            if queue.touched_by != number {
                queue.touched_by = number;
                touched.push(QueueRef(pending.queue));
            }
        }
        for pending in &self.pending_batches {
            let queue = &mut state.queues[pending.queue as usize];
            if batch_queue::push(queue, &pending.entry) {
                state.dirty.push(pending.queue);
            }
            if queue.touched_by != number {
                queue.touched_by = number;
                touched.push(QueueRef(pending.queue));
            }
        }
        for queue in touched.iter() {
            let numbered = &mut state.queues[queue.0 as usize];
            if self.sync {
                state.unsettled.push_back(Unsettled { end, queue: queue.0, visible: numbered.next() });
            } else {
                numbered.visible = numbered.next();
            }
        }
        state.tail_units += self.pending.len() + self.pending_batches.len();
        state.last_position = Some(self.staged_last);
        state.last_timestamp = self.now_ms;
        state.last_end = end;
        let mut waiting = state.tail_units * UNIT_BYTES;
        if let Some(index) = state.index.as_mut() {
            for (at, key) in self.keys.iter().enumerate() {
                if let Some(ahead) = self.keys.get(at + 16) {
                    index.prefetch(ahead.hash);
                }
                index.put(key);
            }
            if let Some(reason) = index.broken.as_mut().filter(|r| !r.is_empty()) {
                let line = std::mem::take(reason);
                self.shared.notice(line);
            }
            waiting += index.pending_bytes();
        }
        waiting
    }

    /// Forgets what is staged.
    pub fn discard(&mut self) {
        for pending in &self.pending {
            self.slots[pending.queue as usize].next -= 1;
        }
        for pending in &self.pending_batches {
            self.slots[pending.queue as usize].next -= i64::from(pending.entry.count);
        }
        self.clear_chunk();
        self.staged_end = self.shared.log.written();
    }

    fn clear_chunk(&mut self) {
        self.chunk.clear();
        self.pending.clear();
        self.pending_batches.clear();
        self.keys.clear();
        self.staged_records = 0;
    }

    /// Entries a consume queue file holds; an existing store keeps its own.
    pub fn queue_file_units(&self) -> u64 {
        self.shared.options.queue_file_units
    }

    /// Acknowledged up to here.
    #[inline]
    pub fn durable(&self) -> Position {
        if self.sync {
            self.shared.log.flushed()
        } else {
            self.shared.log.written()
        }
    }

    /// The disk does not keep up: more is written that the device has not taken (synchronous flush: that is not flushed), or
    /// held in memory for it, than there should be. Who sends is to wait; [`Store::notify_fd`] tells when it is worth
    /// asking again. It ends soon below the limit of the log, so that nobody waits long at a time, at half of memory's, and when
    /// writes are refused: that is to be said, not waited for.
    #[inline]
    pub fn is_behind(&mut self) -> bool {
        let written = self.shared.log.written() + self.chunk.len() as u64;
        let log = &self.shared.log;
        let unflushed = written.saturating_sub(if self.sync { log.flushed() } else { log.written_back() });
        if !self.behind && unflushed <= self.shared.options.unflushed_bytes_max && self.waiting <= PENDING_BYTES_MAX {
            return false;
        }
        self.still_behind(unflushed)
    }

    #[cold]
    fn still_behind(&mut self, unflushed: u64) -> bool {
        let (tails, index) = self.shared.waiting_bytes();
        self.waiting = tails + index;
        let most = self.shared.options.unflushed_bytes_max;
        let room = (most / 16).min(self.shared.log.write_back_bytes());
        self.behind = (unflushed > most - room || self.waiting > PENDING_BYTES_MAX / 2)
            && self.health().is_none()
            && !self.closed;
        if self.behind {
            self.shared.held_back.store(true, Ordering::Release);
            self.shared.wake();
            self.shared.flusher.wake();
        }
        self.behind
    }

    /// Synchronous flush: makes flushed entries visible and returns the queues whose visible maximum moved.
    pub fn settle(&mut self) -> Vec<QueueRef> {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.shared.event, &mut count);
        let mut touched = Vec::new();
        if !self.sync {
            return touched;
        }
        let flushed = self.shared.log.flushed();
        self.commit_number = self.commit_number.wrapping_add(1);
        let state = &mut *lock(&self.shared.state);
        while state.unsettled.front().is_some_and(|u| u.end <= flushed) {
            let Some(settled) = state.unsettled.pop_front() else { break };
            let queue = &mut state.queues[settled.queue as usize];
            queue.visible = queue.visible.max(settled.visible);
            if queue.touched_by != self.commit_number && !queue.deleted {
                queue.touched_by = self.commit_number;
                touched.push(QueueRef(settled.queue));
            }
        }
        touched
    }

    /// Visible (minimum, maximum) of a queue; maximum is the next offset to come. (0, 0) for a deleted one.
    pub fn bounds(&self, queue: QueueRef) -> (i64, i64) {
        let state = &mut *lock(&self.shared.state);
        let Some(queue_state) = state.queues.get_mut(queue.0 as usize) else { return (0, 0) };
        if queue_state.min_position < self.shared.log.min() {
            self.correct_min(queue.0, queue_state);
        }
        (queue_state.min.min(queue_state.visible), queue_state.visible)
    }

    /// One unit, from the tail or its file.
    pub(crate) fn unit_at(&self, number: u32, queue: &Queue, offset: i64) -> Option<Entry> {
        if offset >= queue.tail_base {
            return queue.tail_from(offset).first().map(Entry::decode);
        }
        if offset < 0 {
            return None;
        }
        let key = QueueKey { number, topic: &queue.topic, queue_id: queue.queue_id };
        lock(&self.queue_reader).read_one(key, offset)
    }

    /// A batch queue's units.
    pub(crate) fn units<'a>(&'a self, number: u32, queue: &'a Queue, units: &'a BatchUnits) -> Units<'a> {
        let key = QueueKey { number, topic: &queue.topic, queue_id: queue.queue_id };
        Units { units, files: &self.batch_reader, key }
    }

    /// Moves `min` to the first unit whose record is still in the log.
    #[cold]
    pub(crate) fn correct_min(&self, number: u32, queue: &mut Queue) {
        let log_min = self.shared.log.min();
        if let Some(batches) = &queue.batches {
            let units = self.units(number, queue, batches);
            let first = units.get(units.first_that(|entry| entry.position < log_min));
            (queue.min, queue.min_position) = first.map_or((queue.next(), u64::MAX), |e| (e.base, e.position));
            return;
        }
        let (mut low, mut high) = (queue.min, queue.next());
        while low < high {
            let middle = low + (high - low) / 2;
            // A hole says nothing about where it is: look at the next unit that does.
            let mut at = middle;
            let mut entry = self.unit_at(number, queue, at);
            while at + 1 < high && !entry.is_some_and(|e| !e.is_hole()) {
                at += 1;
                entry = self.unit_at(number, queue, at);
            }
            match entry {
                // Holes only, up to what is known to be there or to the end: the first record may still lie before them.
                Some(entry) if entry.is_hole() || entry.position >= log_min => high = middle,
                _ => low = at + 1,
            }
        }
        while let Some(entry) = self.unit_at(number, queue, low).filter(|_| low < queue.next()) {
            if !entry.is_hole() {
                break;
            }
            low += 1;
        }
        queue.min = low;
        queue.min_position = match self.unit_at(number, queue, low).filter(|_| low < queue.next()) {
            Some(entry) => entry.position,
            None => u64::MAX,
        };
    }

    /// Appends up to `count` visible units of a batch queue to `out`, from the one that has `offset` on; nothing when `offset` is
    /// outside the bounds.
    pub fn batches(&self, queue: QueueRef, offset: i64, count: usize, out: &mut Vec<BatchEntry>) {
        let state = lock(&self.shared.state);
        let Some(queue_state) = state.queues.get(queue.0 as usize) else { return };
        let Some(batches) = queue_state.batches.as_ref().filter(|_| (0..queue_state.visible).contains(&offset)) else {
            return;
        };
        let units = self.units(queue.0, queue_state, batches);
        let first = units.holding(offset);
        let found = (first..batches.next()).take(count).map_while(|number| units.get(number));
        out.extend(found.take_while(|entry| entry.base < queue_state.visible));
    }

    /// Appends up to `count` visible entries from `offset` on to `out`; nothing when `offset` is outside the bounds. Of a batch queue:
    /// one for each unit.
    ///
    /// # Errors
    /// [`Error::Unusable`] when the queue's file cannot be read. One that is missing or too short ends the entries; what is no
    /// entry is given as a hole. Both are said.
    pub fn entries(&mut self, queue: QueueRef, offset: i64, count: usize, out: &mut Vec<Entry>) -> Result<(), Error> {
        if self.is_batch(queue) {
            let mut batches = Vec::new();
            self.batches(queue, offset, count, &mut batches);
            let plain = |e: BatchEntry| Entry { position: e.position, size: e.size, tags_code: e.tags_code };
            out.extend(batches.into_iter().map(plain));
            return Ok(());
        }
        let state = lock(&self.shared.state);
        let Some(queue_state) = state.queues.get(queue.0 as usize) else { return Ok(()) };
        let wanted = queue_state.visible.saturating_sub(offset).clamp(0, count as i64) as usize;
        if wanted == 0 || offset < 0 {
            return Ok(());
        }
        let from_file = (queue_state.tail_base - offset).clamp(0, wanted as i64) as usize;
        let tail = queue_state.tail_from(offset);
        let tail = &tail[..tail.len().min(wanted - from_file)];
        if from_file == 0 {
            out.extend(tail.iter().map(Entry::decode));
            return Ok(());
        }
        // What is not in the tail now is in the file for good, so the file is read without the lock.
        let tail: Vec<Entry> = tail.iter().map(Entry::decode).collect();
        let (topic, queue_id) = (queue_state.topic.clone(), queue_state.queue_id);
        drop(state);
        let key = QueueKey { number: queue.0, topic: &topic, queue_id };
        let mut files = lock(&self.queue_reader);
        let read = files.read(key, offset as u64, from_file, &mut self.scratch);
        let got = self.scratch.len() / UNIT_BYTES;
        let path = || files.path(&topic, queue_id, (offset as u64 + got as u64) / files.units);
        let lacking = match read {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Unusable(format!("reading {} failed: {e}", path().display())));
            }
            _ => (got == 0).then(|| format!("{} is missing or too short", path().display())),
        };
        drop(files);
        let mut no_entry = None;
        for (at, unit) in (offset..).zip(self.scratch.chunks_exact(UNIT_BYTES)) {
            let Ok(unit) = unit.try_into() else { continue };
            let entry = Entry::decode(unit);
            if entry.is_valid() {
                out.push(entry);
            } else {
                no_entry.get_or_insert(at);
                out.push(Entry { position: 0, size: HOLE_SIZE, tags_code: 0 });
            }
        }
        // What lies behind a lack has other offsets.
        if got == from_file {
            out.extend(tail);
        }
        if let Some(lacking) = lacking {
            self.say_unread(queue, &lacking);
        }
        if let Some(at) = no_entry {
            self.say_unread(queue, &format!("what is at offset {at} is no entry"));
        }
        Ok(())
    }

    /// Says, not more than once a minute, that readers of a queue pass over something.
    #[cold]
    pub(crate) fn say_unread(&mut self, queue: QueueRef, what: &str) {
        let now_ms = self.shared.clock.now_ms();
        let (said_ms, more) = self.unread;
        if said_ms.is_some_and(|said| (0..UNREAD_SAID_MS).contains(&(now_ms - said))) {
            self.unread.1 += 1;
            return;
        }
        self.unread = (Some(now_ms), 0);
        let (topic, queue_id) = {
            let state = self.shared.state();
            let queue = &state.queues[queue.0 as usize];
            (queue.topic.clone(), queue.queue_id)
        };
        let more = if more > 0 { format!(" ({more} more such reads since it was last said)") } else { String::new() };
        self.shared.notice(format!("readers of consume queue {topic}/{queue_id} pass over messages: {what}{more}"));
    }

    /// Says that an entry leads to no record, unless that record is too old.
    #[cold]
    pub(crate) fn say_no_record(&mut self, queue: QueueRef, position: Position) {
        if position >= self.shared.log.min() {
            self.say_unread(queue, &format!("no whole record is at {position}, where an entry leads"));
        }
    }

    /// Appends the record's bytes to `out`; false (and nothing appended) when it is damaged, deleted or a hole.
    #[inline]
    pub fn copy_record(&mut self, position: Position, size: u32, out: &mut Vec<u8>) -> bool {
        let Some(bytes) = self.reader.record(&self.shared.log, position, size) else { return false };
        out.extend_from_slice(bytes);
        if self.reader.is_damaged(&self.shared.log, position, size) {
            out.truncate(out.len() - size as usize);
            return false;
        }
        true
    }

    /// The record at `position` will be copied soon.
    #[inline]
    pub fn prefetch_record(&self, position: Position, size: u32) {
        self.reader.prefetch(&self.shared.log, position, size as usize);
    }

    /// Shows the record's bytes to `look` without copying; `None` as `copy_record` says false.
    #[inline]
    pub fn with_record<R>(&mut self, position: Position, size: u32, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let seen = self.reader.record(&self.shared.log, position, size).map(look)?;
        (!self.reader.is_damaged(&self.shared.log, position, size)).then_some(seen)
    }

    /// The record at `position`, its size read from the log; checked by its CRC. `None` when there is none or it is not acknowledged.
    pub fn record(&mut self, position: Position) -> Option<Vec<u8>> {
        if position >= self.durable() {
            return None;
        }
        let size = self.reader.size_at(&self.shared.log, position)?;
        let bytes = self.reader.record(&self.shared.log, position, size)?;
        RecordView::parse(bytes).filter(RecordView::is_intact)?;
        let copy = bytes.to_vec();
        (!self.reader.is_damaged(&self.shared.log, position, size)).then_some(copy)
    }

    /// Store time of the first record at or behind `offset` that can be read, with its offset.
    fn time_from(&mut self, queue: QueueRef, offset: i64, end: i64) -> Option<(i64, i64)> {
        let mut entries = Vec::new();
        let mut at = offset;
        while at < end {
            entries.clear();
            self.entries(queue, at, 1, &mut entries).ok()?;
            let entry = *entries.first()?;
            let time = self.with_record(entry.position, entry.size, record::store_timestamp_of).flatten();
            if let Some(time) = time {
                return Some((at, time));
            }
            at += 1;
        }
        None
    }

    /// First offset stored at or after `timestamp_ms`, the maximum if all are older; `upper`: last offset stored at or before
    /// it, 0 if all are newer. 0 for an empty queue.
    pub fn offset_by_time(&mut self, queue: QueueRef, timestamp_ms: i64, upper: bool) -> i64 {
        let (min, max) = self.bounds(queue);
        if self.is_batch(queue) {
            let state = lock(&self.shared.state);
            let queue_state = &state.queues[queue.0 as usize];
            let Some(batches) = &queue_state.batches else { return 0 };
            return self.units(queue.0, queue_state, batches).offset_by_time(timestamp_ms, upper).clamp(min, max);
        }
        if min >= max {
            return if upper { 0 } else { max };
        }
        let is_before = |time: i64| if upper { time <= timestamp_ms } else { time < timestamp_ms };
        let (mut low, mut high) = (min, max);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.time_from(queue, middle, high) {
                Some((at, time)) if is_before(time) => low = at + 1,
                _ => high = middle,
            }
        }
        match (upper, low > min) {
            (false, _) => low,
            (true, true) => low - 1,
            (true, false) => 0,
        }
    }

    /// Store time of the message at `offset`; -1 when there is none.
    pub fn store_time(&mut self, queue: QueueRef, offset: i64) -> i64 {
        self.time_from(queue, offset, offset.saturating_add(1)).map_or(-1, |(_, time)| time)
    }

    /// Looks `key` up (`kind` "T": as a tag). At most `limit` positions with a store time in `begin_ms..=end_ms`.
    pub fn search_index(
        &mut self,
        topic: &str,
        key: &str,
        kind: &str,
        limit: usize,
        begin_ms: i64,
        end_ms: i64,
    ) -> IndexHits {
        let mut hash = prefix_hash(topic);
        if kind == "T" {
            hash = java_hash_on(hash, b"T#");
        }
        let hash = positive_hash(java_hash_on(hash, key.as_bytes()));
        match self.shared.state().index.as_mut() {
            Some(index) => index.search(hash, limit, begin_ms, end_ms),
            None => IndexHits::default(),
        }
    }

    /// Topics and their queue ids, sorted.
    pub fn topics(&self) -> Vec<(String, Vec<u32>)> {
        let mut topics: Vec<(String, Vec<u32>)> = self
            .topics
            .values()
            .map(|topic| (topic.name.to_string(), topic.queues.all().map(|(id, _)| id).collect()))
            .collect();
        topics.sort();
        topics
    }

    /// True if a queue of the topic is known.
    pub(crate) fn has_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    /// The topic's queues that are known.
    pub fn queues_of(&self, topic: &str) -> Vec<QueueRef> {
        self.topics.get(topic).map_or_else(Vec::new, |topic| topic.queues.all().map(|(_, queue)| queue).collect())
    }

    /// Topic and queue id of a handle.
    pub fn name(&self, queue: QueueRef) -> (Arc<str>, u32) {
        let state = self.shared.state();
        match state.queues.get(queue.0 as usize) {
            Some(queue) => (queue.topic.clone(), queue.queue_id),
            None => ("".into(), 0),
        }
    }

    /// Forgets the topic's queues and removes their files; its records stay in the log until their file goes.
    /// Nothing of the topic may be staged.
    ///
    /// # Errors
    /// [`Error::DiskFailed`] when the files cannot be removed; the queues are forgotten all the same.
    pub fn delete_topic(&mut self, topic: &str) -> Result<(), Error> {
        let Some(gone) = self.topics.remove(topic) else { return Ok(()) };
        let mut compacted = Vec::new();
        let mut state = lock(&self.shared.state);
        for (_, queue) in gone.queues.all() {
            let slot = &mut self.slots[queue.0 as usize];
            slot.deleted = true;
            compacted.extend(slot.compaction.take());
            let queue = &mut state.queues[queue.0 as usize];
            let units = queue.tail.len() + queue.batches.as_ref().map_or(0, |batches| batches.tail.len());
            *queue = Queue { deleted: true, ..Queue::new(queue.topic.clone(), queue.queue_id) };
            state.tail_units -= units;
        }
        drop(state);
        for (files, reader) in
            [(&self.shared.queue_files, &self.queue_reader), (&self.shared.batch_files, &self.batch_reader)]
        {
            let mut files = lock(files);
            let mut reader = lock(reader);
            for (_, queue) in gone.queues.all() {
                files.forget(queue.0);
                reader.forget(queue.0);
            }
            let dir = files.root.join(topic);
            self.shared
                .disk
                .remove_tree(&dir)
                .map_err(|e| Error::DiskFailed(format!("removing {} failed: {e}", dir.display())))?;
        }
        for compaction in &compacted {
            compaction.delete();
        }
        lock(&self.shared.compactions).retain(|_, compaction| &*compaction.topic != topic);
        compaction::remove_topic(self.shared.disk.as_ref(), &self.shared.options.root, topic)
            .map_err(|e| Error::DiskFailed(format!("removing the compaction logs of {topic} failed: {e}")))
    }

    /// Why writes are refused; `None`: they are not.
    pub fn health(&self) -> Option<Error> {
        self.shared.health()
    }

    /// Counters and sizes.
    pub fn stats(&mut self) -> StoreStats {
        let min_position = self.shared.log.min();
        let earliest = match self.reader.bytes(&self.shared.log, min_position, record::RECORD_BYTES_MIN) {
            Some(head) => record::store_timestamp_of(head).unwrap_or(-1),
            None => -1,
        };
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let readers = [&self.queue_reader, &self.batch_reader, &self.shared.queue_files, &self.shared.batch_files];
        let open_files: usize = readers.iter().map(|files| lock(files).open_files()).sum();
        let state = lock(&self.shared.state);
        StoreStats {
            min_position,
            max_position: self.shared.log.written(),
            flushed_position: self.shared.log.flushed(),
            dispatched_position: get(&counters.dispatched),
            log_files: self.shared.log.files().bases.len() as u64,
            queues: state.queues.iter().filter(|q| !q.deleted).count() as u64,
            queue_tail_bytes: (state.tail_units * UNIT_BYTES) as u64,
            index_files: state.index.as_ref().map_or(0, |i| i.files() as u64),
            records_appended: get(&counters.records),
            bytes_appended: get(&counters.bytes),
            commits: get(&counters.commits),
            flushes: get(&counters.flushes),
            flush_max_us: get(&counters.flush_max_us),
            commit_max_us: get(&counters.commit_max_us),
            disk_used_ratio: get(&counters.used_ppm) as f64 / 1e6,
            earliest_store_timestamp: earliest,
            open_files: open_files as u64,
            open_maps: self.reader.open_maps() as u64,
        }
    }

    /// Lines for the log that the flusher had to say since the last call.
    pub fn notices(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.notices))
    }

    /// The host written into records from now on.
    pub fn set_store_host(&mut self, host: SocketAddr) {
        self.store_host = host;
    }

    /// Flushes log, queues and index to the device now and writes the checkpoint.
    ///
    /// # Errors
    /// What stopped it; it is also the store's health then.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        lock(&self.shared.worker).flush_all(&self.shared, false)
    }

    /// One round of the flusher's duties, for owners without the thread.
    ///
    /// # Errors
    /// What stopped it; it is also the store's health then.
    pub fn tick(&mut self) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        lock(&self.shared.worker).round(&self.shared)
    }

    /// Flushes, writes the checkpoint, removes `abort` and releases the lock. The store refuses everything afterwards.
    ///
    /// # Errors
    /// What could not be flushed; `abort` stays then, and the next open recovers.
    pub fn close(&mut self) -> Result<(), Error> {
        if self.closed {
            return Ok(());
        }
        self.discard();
        self.shared.closing.store(true, Ordering::Release);
        for compaction in lock(&self.shared.compactions).values().cloned().collect::<Vec<_>>() {
            compaction.wait();
        }
        self.threads = None;
        self.closed = true;
        let result = self.close_files();
        self.reader = LogReader::default();
        lock(&self.queue_reader).close_all();
        lock(&self.batch_reader).close_all();
        lock(&self.shared.queue_files).close_all();
        lock(&self.shared.batch_files).close_all();
        self.lock = None;
        result
    }

    fn close_files(&mut self) -> Result<(), Error> {
        if let Some(failed) = self.shared.health().filter(|_| self.shared.has_failed()) {
            return Err(failed);
        }
        lock(&self.shared.worker).flush_all(&self.shared, true)?;
        self.shared.log.drop_spare();
        recovery::save_snapshot(self)?;
        let root = &self.shared.options.root;
        let abort = root.join("abort");
        self.shared.disk.remove_file(&abort).map_err(|e| Error::write("removing", &abort, &e))?;
        self.shared.disk.sync_dir(root).map_err(|e| Error::write("flushing", root, &e))
    }

    /// Readable when the flushed end has moved with synchronous flush, or when it failed; [`Store::settle`] empties it.
    pub fn notify_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The flusher stops where it is; nothing is flushed. Only `close` ends a store properly.
        self.threads = None;
    }
}
