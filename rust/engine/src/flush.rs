//! The store's threads. The flusher syncs the log, has queue and index entries written, keeps the checkpoint, has the next log
//! file ready, and watches the space left. With asynchronous flush nobody waits for its syncs, which may take seconds each on a
//! busy device; a second thread, the writer, goes on with what must not wait so long: entries out of memory into their files, and
//! the log, part by part, out of the system's memory to the device.
//!
//! The flusher's work is in [`Worker`], which does one round at a time and can be driven without the thread (tests by seed,
//! `flush`, `close`), the writer's in [`Entries`](crate::entries::Entries) and `CommitLog::write_back`. With synchronous flush
//! a round's first and most frequent duty is the group commit: one sync for everything written so far; longer duties look at
//! it again between their files.
//!
//! Order of a checkpoint: log synced, entries written, their files synced, then the checkpoint. So it never claims more
//! than is on the device.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::checkpoint::Checkpoint;
use crate::commit_log::failed_sync;
use crate::consume_queue::QueueKey;
use crate::disk::{DiskFile, Mode};
use crate::error::{is_full, too_many_files, Error};
use crate::guard;
use crate::store::{lock, FlushMode, Shared};

/// More files than this are synced with one call for the whole file system.
const SYNC_FILES_MAX: usize = 32;
/// A checkpoint comes this long after the last append, so that a quiet store is soon completely on the device.
const QUIET_MS: i64 = 5_000;
/// The index gives its memory back after so long without a new key.
const INDEX_IDLE_MS: i64 = 60_000;
/// How often the space left is looked at.
const SPACE_INTERVAL_MS: i64 = 1_000;
/// How often the index's slots are written (they can be rebuilt from its entries).
const SLOTS_INTERVAL_MS: i64 = 60_000;
/// A full disk counts as usable again with so much free.
const FREE_BYTES_MIN: u64 = 4 << 20;

/// How the owner wakes a thread: cheap when it is awake anyway.
#[derive(Default)]
pub(crate) struct Wake {
    pending: AtomicBool,
    stop: AtomicBool,
    mutex: Mutex<()>,
    condition: Condvar,
}

impl Wake {
    /// There is something to do.
    #[inline]
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            let _held = lock(&self.mutex);
            self.condition.notify_one();
        }
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let _held = lock(&self.mutex);
        self.condition.notify_one();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wait(&self, timeout: Duration) {
        let held = lock(&self.mutex);
        if !self.pending.load(Ordering::Acquire) && !self.stopped() {
            let _ = self.condition.wait_timeout(held, timeout);
        }
        self.pending.store(false, Ordering::Release);
    }
}

/// The threads; they end when dropped.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    running: Vec<JoinHandle<()>>,
}

impl Threads {
    pub fn start(shared: Arc<Shared>) -> io::Result<Threads> {
        let mut threads = Threads { shared, running: Vec::new() };
        threads.spawn("aerobee-flusher", flush)?;
        if threads.shared.options.flush_mode == FlushMode::Async {
            threads.spawn("aerobee-writer", write)?;
        }
        Ok(threads)
    }

    fn spawn(&mut self, name: &str, work: fn(&Shared)) -> io::Result<()> {
        let shared = self.shared.clone();
        self.running.push(std::thread::Builder::new().name(name.into()).spawn(move || work(&shared))?);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.flusher.stop();
        self.shared.writer.stop();
        for thread in self.running.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How often the threads look for work by the clock.
fn interval(shared: &Shared) -> Duration {
    Duration::from_millis(shared.options.log_flush_interval_ms.clamp(1, SPACE_INTERVAL_MS) as u64)
}

fn flush(shared: &Shared) {
    while !shared.flusher.stopped() {
        // Errors are in the store's health and its notices.
        let _ = lock(&shared.worker).round(shared);
        shared.flusher.wait(interval(shared));
    }
}

fn write(shared: &Shared) {
    while !shared.writer.stopped() {
        let went_on = !shared.has_failed()
            && write_round(shared).unwrap_or_else(|error| {
                shared.report(&error);
                false
            });
        if went_on {
            shared.let_go();
        }
        // What failed is tried again after a while.
        if !went_on || !shared.log.wants_write_back() {
            shared.writer.wait(interval(shared));
        }
    }
}

/// Writes what is due; false if there was nothing, or nothing that could be done.
fn write_round(shared: &Shared) -> Result<bool, Error> {
    shared.reserve();
    let wrote = lock(&shared.entries).round(shared, &mut || Ok(()))?;
    Ok((shared.log.wants_write_back() && shared.log.write_back()?) || wrote)
}

/// What the flusher remembers between rounds.
pub(crate) struct Worker {
    pub checkpoint: Checkpoint,
    log_flushed_at: i64,
    checkpoint_at: i64,
    slots_written_at: i64,
    space_checked_at: i64,
    /// End of the log at the last checkpoint, and when it last moved.
    checkpointed: u64,
    seen_end: u64,
    seen_end_at: i64,
    index_unloaded: bool,
}

impl Worker {
    pub fn new(now_ms: i64) -> Worker {
        Worker {
            checkpoint: Checkpoint::default(),
            log_flushed_at: now_ms,
            checkpoint_at: now_ms,
            slots_written_at: now_ms,
            space_checked_at: 0,
            checkpointed: 0,
            seen_end: 0,
            seen_end_at: now_ms,
            index_unloaded: false,
        }
    }

    /// Recovery ended: up to here nothing needs to be written.
    pub fn start_at(&mut self, end: u64) {
        self.checkpointed = end;
        self.seen_end = end;
    }

    /// Does what is due by the clock.
    pub fn round(&mut self, shared: &Shared) -> Result<(), Error> {
        guard::take_lines(&shared.options.root).into_iter().for_each(|line| shared.notice(line));
        let result = self.round_parts(shared);
        if let Err(error) = &result {
            shared.report(error);
        }
        shared.let_go();
        if result.is_err() && shared.options.flush_mode == FlushMode::Sync {
            shared.notify();
        }
        result
    }

    fn round_parts(&mut self, shared: &Shared) -> Result<(), Error> {
        let options = &shared.options;
        let now = shared.clock.now_ms();
        if due(now, self.space_checked_at, SPACE_INTERVAL_MS) {
            self.space_checked_at = now;
            self.check_space(shared);
        }
        if shared.has_failed() {
            // After a failed write or sync nothing may be written that claims more than the device has.
            return Ok(());
        }
        shared.reserve();
        self.sync_log_if_due(shared, now)?;
        if shared.log.wants_next() {
            if let Err(e) = shared.log.prepare_next() {
                // The owner makes the file itself when it needs it; only then does a failure count.
                if !is_full(&e) && !too_many_files(&e) {
                    shared.notice(format!("the next commit log file could not be prepared: {e}"));
                }
            }
        }
        let end = shared.state().last_end;
        if end != self.seen_end {
            self.seen_end = end;
            self.seen_end_at = now;
            self.index_unloaded = false;
        }
        // Where the writer is at it they are in good hands.
        if let Ok(mut entries) = shared.entries.try_lock() {
            entries.round(shared, &mut || self.sync_between(shared))?;
        }
        self.retire_index(shared)?;
        let behind = end.saturating_sub(self.checkpointed);
        if behind > 0 {
            let quiet = due(now, self.seen_end_at, QUIET_MS);
            if quiet || behind > options.checkpoint_bytes || due(now, self.checkpoint_at, options.queue_flush_forced_ms)
            {
                self.write_checkpoint(shared, quiet || due(now, self.slots_written_at, SLOTS_INTERVAL_MS))?;
            }
        } else if !self.index_unloaded && due(now, self.seen_end_at, INDEX_IDLE_MS) {
            self.index_unloaded = true;
            if let Some(index) = shared.state().index.as_mut() {
                index.unload();
            }
        }
        Ok(())
    }

    /// Everything to the device now, checkpoint included; `last` also writes the index's slots.
    pub fn flush_all(&mut self, shared: &Shared, last: bool) -> Result<(), Error> {
        if shared.has_failed() {
            return shared.health().map_or(Ok(()), Err);
        }
        let result = self.write_checkpoint(shared, last);
        if let Err(error) = &result {
            shared.report(error);
        }
        shared.let_go();
        result
    }

    fn sync_log_if_due(&mut self, shared: &Shared, now: i64) -> Result<(), Error> {
        let options = &shared.options;
        let target = shared.log.written();
        let behind = target.saturating_sub(shared.log.flushed());
        if behind == 0 {
            return Ok(());
        }
        let is_due = match options.flush_mode {
            FlushMode::Sync => true,
            FlushMode::Async => {
                let enough = behind >= options.log_flush_bytes_min
                    && due(now, self.log_flushed_at, options.log_flush_interval_ms);
                enough
                    || due(now, self.log_flushed_at, options.log_flush_forced_ms)
                    || behind > options.unflushed_bytes_max / 2
            }
        };
        if !is_due {
            return Ok(());
        }
        self.log_flushed_at = now;
        self.sync_log(shared, target)
    }

    /// Brings the log up to `target` onto the device.
    pub fn sync_log(&mut self, shared: &Shared, target: u64) -> Result<(), Error> {
        if target <= shared.log.flushed() {
            return Ok(());
        }
        let started = Instant::now();
        shared.log.sync_to(target)?;
        let counters = &shared.counters;
        counters.flushes.fetch_add(1, Ordering::Relaxed);
        counters.flush_max_us.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        if shared.options.flush_mode == FlushMode::Sync {
            shared.notify();
        }
        Ok(())
    }

    /// The group commit again, in the middle of something long.
    fn sync_between(&mut self, shared: &Shared) -> Result<(), Error> {
        match shared.options.flush_mode {
            FlushMode::Sync => self.sync_log(shared, shared.log.written()),
            FlushMode::Async => Ok(()),
        }
    }

    /// Completes the index's full files.
    pub fn retire_index(&mut self, shared: &Shared) -> Result<(), Error> {
        while shared.state().index.as_ref().is_some_and(|i| i.has_full()) {
            self.write_slots(shared, true)?;
            let retired = shared.state().index.as_mut().and_then(|i| i.retire_full());
            let Some(file) = retired else { break };
            file.sync_data().map_err(|e| failed_sync(&shared.options.root.join("index"), &e))?;
        }
        Ok(())
    }

    fn write_slots(&mut self, shared: &Shared, full: bool) -> Result<(), Error> {
        let mut page = 0;
        loop {
            let taken = shared.state().index.as_mut().and_then(|i| i.take_slots(full, page));
            let Some((file, offset, bytes, next)) = taken else { return Ok(()) };
            if let Err(e) = file.write_at(offset, &bytes) {
                if let Some(index) = shared.state().index.as_mut() {
                    index.slots_not_written(full, offset, bytes.len());
                }
                return Err(Error::write("writing a file in", &shared.options.root.join("index"), &e));
            }
            page = next;
            self.sync_between(shared)?;
        }
    }

    /// Brings everything up to now onto the device and says so in the checkpoint.
    pub fn write_checkpoint(&mut self, shared: &Shared, with_slots: bool) -> Result<(), Error> {
        let now = shared.clock.now_ms();
        // Taken before anything is written: what comes in meanwhile is not claimed.
        let (end, last_position, last_timestamp, indexed_timestamp, index_files) = {
            let state = shared.state();
            let index = state.index.as_ref();
            let (timestamp, files) = index.map_or((0, Vec::new()), |i| (i.end_timestamp(), i.unsynced_files()));
            (state.last_end, state.last_position, state.last_timestamp, timestamp, files)
        };
        self.sync_log(shared, shared.log.written())?;
        lock(&shared.entries).write(shared, 1, &mut || self.sync_between(shared))?;
        self.retire_index(shared)?;
        if with_slots {
            self.slots_written_at = now;
            self.write_slots(shared, false)?;
        }
        self.sync_files(shared, &index_files)?;
        for compaction in lock(&shared.compactions).values().cloned().collect::<Vec<_>>() {
            compaction.sync()?;
            self.sync_between(shared)?;
        }
        if let Some(position) = last_position {
            self.checkpoint.queue_position = position as i64;
            self.checkpoint.log_timestamp = last_timestamp;
            self.checkpoint.queue_timestamp = last_timestamp;
        }
        self.checkpoint.index_timestamp = shared.state().index.as_ref().map_or(0, |i| i.full_end_timestamp());
        self.checkpoint.indexed_timestamp = indexed_timestamp;
        let path = shared.options.root.join("checkpoint");
        self.checkpoint.save(shared.disk.as_ref(), &path).map_err(|e| Error::write("writing", &path, &e))?;
        self.checkpointed = end;
        self.checkpoint_at = now;
        shared.counters.dispatched.store(end, Ordering::Release);
        Ok(())
    }

    /// Syncs queue and index files.
    fn sync_files(&mut self, shared: &Shared, index_files: &[Arc<dyn DiskFile>]) -> Result<(), Error> {
        let unsynced = std::mem::take(&mut lock(&shared.entries).unsynced);
        let result = self.sync_these(shared, &unsynced, index_files);
        if result.is_err() {
            // The next checkpoint must not claim them: what could not be opened is tried again.
            lock(&shared.entries).unsynced.extend(unsynced);
        }
        result
    }

    fn sync_these(
        &mut self,
        shared: &Shared,
        unsynced: &HashSet<(u32, u64)>,
        index_files: &[Arc<dyn DiskFile>],
    ) -> Result<(), Error> {
        let root = &shared.options.root;
        if unsynced.len() > SYNC_FILES_MAX {
            return shared.disk.sync_all(root).map_err(|e| failed_sync(root, &e));
        }
        for (number, file) in unsynced {
            self.sync_queue_file(shared, *number, *file)?;
            self.sync_between(shared)?;
        }
        for file in index_files {
            file.sync_data().map_err(|e| failed_sync(&root.join("index"), &e))?;
        }
        if !index_files.is_empty() {
            shared.disk.sync_dir(&root.join("index")).map_err(|e| failed_sync(&root.join("index"), &e))?;
        }
        shared.disk.sync_dir(root).map_err(|e| failed_sync(root, &e))
    }

    fn sync_queue_file(&mut self, shared: &Shared, number: u32, file: u64) -> Result<(), Error> {
        let (topic, queue_id, is_batch) = {
            let state = shared.state();
            let queue = &state.queues[number as usize];
            if queue.deleted {
                return Ok(());
            }
            (queue.topic.clone(), queue.queue_id, queue.batches.is_some())
        };
        let mut files = lock(if is_batch { &shared.batch_files } else { &shared.queue_files });
        let key = QueueKey { number, topic: &topic, queue_id };
        let path = files.path(&topic, queue_id, file);
        if !shared.disk.exists(&path) {
            return Ok(());
        }
        let open = files.open_for_writing(key, file).map_err(|e| Error::write("opening", &path, &e))?.0;
        let dirs = [files.queue_dir(&topic, queue_id), files.root.join(&*topic), files.root.clone()];
        drop(files);
        open.sync_data().map_err(|e| failed_sync(&path, &e))?;
        for dir in dirs {
            match shared.disk.sync_dir(&dir) {
                // The topic was deleted meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|e| failed_sync(&dir, &e))?,
            }
        }
        Ok(())
    }

    /// Compares the space left with what has to be, and ends a refusal for which there is no reason any more.
    pub fn check_space(&mut self, shared: &Shared) {
        let root = &shared.options.root;
        let space = match shared.disk.space(root) {
            Ok(space) => space,
            Err(e) => {
                shared.notice(format!("the space left for {} is unknown: {e}", root.display()));
                return;
            }
        };
        shared.counters.free.store(space.free, Ordering::Relaxed);
        let used = 1.0 - space.free as f64 / space.total.max(1) as f64;
        shared.counters.used_ppm.store((used * 1e6) as u64, Ordering::Relaxed);
        let ratio_max = shared.disk_used_ratio_max();
        let too_much = used > ratio_max;
        let usable = space.free >= FREE_BYTES_MIN.min(space.total / 4);
        // Whether a file may be opened is asked where somebody could not; any file will do.
        let usable = usable
            && (!shared.is_full()
                || !shared.disk.open(&root.join("abort"), Mode::Read).is_err_and(|e| too_many_files(&e)));
        shared.change_health(|health| {
            if usable {
                health.full = None;
            }
            health.ratio = too_much.then(|| {
                Error::DiskFull(format!(
                    "{:.1} % of the disk of {} is used, writes stop at {:.1} %",
                    used * 100.0,
                    root.display(),
                    ratio_max * 100.0
                ))
            });
        });
    }
}

/// True if `interval_ms` has passed since `then`; also when the clock went back, so that a correction stops nothing.
pub(crate) fn due(now: i64, then: i64, interval_ms: i64) -> bool {
    now.abs_diff(then) as i64 >= interval_ms
}
