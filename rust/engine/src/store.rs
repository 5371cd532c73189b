//! The store: commit log, consume queues and index behind one face.
//!
//! [`Store`] has one owner, who stages records, commits them with one positioned write, and reads. Beside it works the
//! flusher ([`crate::flush`]), the only thread, which syncs the log, writes queue and index entries out of memory,
//! prepares the next file and watches the space left. Both share [`Shared`]; the owner holds its lock once per commit, for the
//! time it takes to push the entries, and the flusher only to copy or swap what it writes.
//!
//! A message is visible to consumers when its queue's `visible` mark passes it: at the commit with asynchronous flush, in
//! [`Store::settle`] after the sync with synchronous flush.
//!
//! Here it is opened and closed and knows its topics and queues; `store/staging.rs` writes, `store/reading.rs` reads,
//! `store/retention.rs` removes what is too old, `store/shared.rs` is what owner and threads both hold.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::batch_queue;
use crate::chunk::Chunk;
use crate::clock::Clock;
use crate::commit_log::{CommitLog, LogReader, LogWriter};
use crate::compaction::{self, Compaction, Compactor, Truth};
use crate::consume_queue::{can_be, Queue, QueueFiles, UNIT_BYTES};
use crate::disk::Disk;
use crate::entries::Entries;
use crate::error::Error;
use crate::flush::{Threads, Wake, Worker};
use crate::index::{prefix_hash, Geometry, Index, KeyHash};
use crate::light_queue;
use crate::record;
use crate::recovery;
use crate::snapshot::Look;

mod reading;
mod retention;
mod shared;
mod staging;

pub use crate::consume_queue::Entry;
pub use crate::index::IndexHits;
pub use retention::{DeletePolicy, Deleted, Expired};
pub(crate) use shared::{lock, Counters, Shared, State};
use staging::{PendingBatch, PendingUnit};

/// Physical offset in the commit log.
pub type Position = u64;

/// Queue files the owner keeps open for reading.
const READ_FILES_MAX: usize = 128;
/// Queue files the flusher keeps open.
const WRITE_FILES_MAX: usize = 128;
/// Queue ids up to here are found by index, larger ones in a map.
pub(crate) const DENSE_QUEUES: u32 = 1024;

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

/// How the log is to say a line of an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// How far it is.
    Info,
    /// Something was repaired, set aside or lost.
    Warning,
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

    /// True if the queue is a batch queue.
    #[inline]
    pub fn is_batch(&self, queue: QueueRef) -> bool {
        self.slots.get(queue.0 as usize).is_some_and(|slot| slot.batch)
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

    /// Entries a consume queue file holds; an existing store keeps its own.
    pub fn queue_file_units(&self) -> u64 {
        self.shared.options.queue_file_units
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
