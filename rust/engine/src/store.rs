//! The store: commit log, consume queues and index behind one face.
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::Error;
use crate::record::NewRecord;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

/// Physical offset in the commit log.
pub type Position = u64;

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
    pub root: PathBuf,
    pub flush_mode: FlushMode,
    pub log_file_bytes: u64,
    /// Units of 20 bytes a consume queue file holds.
    pub queue_file_units: u64,
    pub index_slots: u32,
    pub index_entries: u32,
    pub index_enable: bool,
    pub store_host: SocketAddr,
    pub log_flush_interval_ms: i64,
    pub log_flush_bytes_min: u64,
    pub log_flush_forced_ms: i64,
    pub queue_flush_interval_ms: i64,
    pub queue_flush_forced_ms: i64,
    /// Share of the disk in use from which writes are refused (0.90).
    pub disk_used_ratio_max: f64,
    /// Delay of each level of SCHEDULE_TOPIC_XXXX; level 1 first.
    pub delay_levels_ms: Vec<i64>,
    /// False: no flusher thread; the owner calls [`Store::tick`] (tests by seed).
    pub background: bool,
}

impl StoreOptions {
    /// Apache's defaults below `root`.
    pub fn new(root: impl Into<PathBuf>) -> StoreOptions {
        let _ = root.into();
        todo!()
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

/// One consume queue unit. Holes have position 0 and size 0x7FFFFFFF; `copy_record` refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub position: Position,
    pub size: u32,
    pub tags_code: i64,
}

/// What a search of the index found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexHits {
    /// Newest first; hash collisions are possible, so the caller compares the keys of the records.
    pub positions: Vec<Position>,
    pub last_update_timestamp: i64,
    pub last_update_position: Position,
}

/// Which expired files may go. Nothing is ever deleted without this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletePolicy {
    /// Only files whose newest record was stored before this time; `i64::MAX`: any age.
    pub before_ms: i64,
    /// Only files that end at or before this position (what all groups have consumed); `Position::MAX`: do not care.
    pub consumed_position: Position,
    /// At most so many commit log files in this call.
    pub files_max: usize,
}

/// What [`Store::delete_files`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    pub log_files: usize,
    pub queue_files: usize,
    pub index_files: usize,
    /// First position still there.
    pub min_position: Position,
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
    pub earliest_store_timestamp: i64,
    pub open_files: u64,
    pub open_maps: u64,
}

/// The store. One owner calls it; the flusher thread works beside it.
pub struct Store {}

#[allow(unused_variables, clippy::todo)]
impl Store {
    /// Opens and recovers. `progress` gets one line for everything repaired or set aside, and one a second when it takes longer.
    pub fn open(options: StoreOptions, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, progress: &dyn Fn(&str)) -> Result<Store, Error> {
        todo!()
    }
    /// The queue's handle; made in memory when new (files come when written).
    pub fn queue(&mut self, topic: &str, queue_id: u32) -> QueueRef {
        todo!()
    }
    /// The queue's handle if it is known.
    pub fn find_queue(&self, topic: &str, queue_id: u32) -> Option<QueueRef> {
        todo!()
    }
    /// Encodes into the chunk and assigns the offsets; no I/O. `record.topic`/`queue_id` are those of `queue`.
    pub fn stage(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        todo!()
    }
    /// Writes all that is staged with one positioned write. On an error nothing of it exists.
    pub fn commit(&mut self) -> Result<Commit, Error> {
        todo!()
    }
    /// Forgets what is staged.
    pub fn discard(&mut self) {
        todo!()
    }
    /// Acknowledged up to here.
    pub fn durable(&self) -> Position {
        todo!()
    }
    /// Synchronous flush: makes flushed entries visible and returns the queues whose visible maximum moved.
    pub fn settle(&mut self) -> Vec<QueueRef> {
        todo!()
    }
    /// Visible (minimum, maximum) of a queue; maximum is the next offset to come.
    pub fn bounds(&self, queue: QueueRef) -> (i64, i64) {
        todo!()
    }
    /// Appends up to `count` visible entries from `offset` on to `out`.
    pub fn entries(&mut self, queue: QueueRef, offset: i64, count: usize, out: &mut Vec<Entry>) -> Result<(), Error> {
        todo!()
    }
    /// Appends the record's bytes to `out`; false (and nothing appended) when it is damaged, deleted or a hole.
    pub fn copy_record(&mut self, position: Position, size: u32, out: &mut Vec<u8>) -> bool {
        todo!()
    }
    /// Shows the record's bytes to `look` without copying; `None` as `copy_record` says false.
    pub fn with_record<R>(&mut self, position: Position, size: u32, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        todo!()
    }
    /// The record at `position`, its size read from the log; checked by its CRC.
    pub fn record(&mut self, position: Position) -> Option<Vec<u8>> {
        todo!()
    }
    /// First offset stored at or after `timestamp_ms` (`upper`: last one stored at or before).
    pub fn offset_by_time(&mut self, queue: QueueRef, timestamp_ms: i64, upper: bool) -> i64 {
        todo!()
    }
    /// Store time of the message at `offset`; -1 when there is none.
    pub fn store_time(&mut self, queue: QueueRef, offset: i64) -> i64 {
        todo!()
    }
    /// Looks `key` up (`kind` "T": as a tag). At most `limit` positions with a store time in `begin_ms..=end_ms`.
    pub fn search_index(&mut self, topic: &str, key: &str, kind: &str, limit: usize, begin_ms: i64, end_ms: i64) -> IndexHits {
        todo!()
    }
    /// Topics and their queue ids, sorted.
    pub fn topics(&self) -> Vec<(String, Vec<u32>)> {
        todo!()
    }
    /// Topic and queue id of a handle.
    pub fn name(&self, queue: QueueRef) -> (Arc<str>, u32) {
        todo!()
    }
    /// Forgets the topic's queues and removes their files; its records stay in the log until their file goes.
    pub fn delete_topic(&mut self, topic: &str) -> Result<(), Error> {
        todo!()
    }
    /// Removes the oldest commit log files the policy allows, then queue and index files below them. Never the last file.
    pub fn delete_files(&mut self, policy: DeletePolicy) -> Result<Deleted, Error> {
        todo!()
    }
    /// Why writes are refused, in one sentence; `None`: they are not.
    pub fn health(&self) -> Option<Error> {
        todo!()
    }
    /// Counters and sizes.
    pub fn stats(&self) -> StoreStats {
        todo!()
    }
    /// Lines for the log that the flusher had to say since the last call.
    pub fn notices(&self) -> Vec<String> {
        todo!()
    }
    /// The host written into records from now on.
    pub fn set_store_host(&mut self, host: SocketAddr) {
        todo!()
    }
    /// Flushes log, queues and index to the device now and writes the checkpoint.
    pub fn flush(&mut self) -> Result<(), Error> {
        todo!()
    }
    /// One round of the flusher's duties, for owners without the thread.
    pub fn tick(&mut self) -> Result<(), Error> {
        todo!()
    }
    /// Flushes, writes the checkpoint, removes `abort` and the lock. The store refuses everything afterwards.
    pub fn close(&mut self) -> Result<(), Error> {
        todo!()
    }
    /// Readable when the flushed end has moved with synchronous flush; [`Store::settle`] empties it.
    pub fn notify_fd(&self) -> RawFd {
        todo!()
    }
}
