//! What the store's owner and its threads share.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{FlushMode, Position, StoreOptions};
use crate::clock::Clock;
use crate::commit_log::CommitLog;
use crate::compaction::Compaction;
use crate::consume_queue::{Queue, QueueFiles, UNIT_BYTES};
use crate::disk::Disk;
use crate::entries::Entries;
use crate::error::Error;
use crate::flush::{Wake, Worker};
use crate::index::Index;

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
    pub end: Position,
    pub queue: u32,
    pub visible: i64,
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
    pub(super) disk_used_ratio_max: AtomicU64,
    pub(super) health: Mutex<Health>,
    pub(super) refusing: AtomicBool,
    pub(super) notices: Mutex<Vec<String>>,
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
