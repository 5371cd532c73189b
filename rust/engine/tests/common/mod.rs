//! A store on a simulated disk, and what tests ask of it.
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aerobee_engine::clock::ManualClock;
use aerobee_engine::disk::{Disk, Mode, SimDisk};
use aerobee_engine::error::Error;
use aerobee_engine::record::{NewRecord, RecordView};
use aerobee_engine::store::{Entry, FlushMode, Level, Staged, Store, StoreOptions};

pub const START_MS: i64 = 1_700_000_000_000;

/// A disk, a clock and what the last opening said.
pub struct Bench {
    pub disk: SimDisk,
    pub clock: Arc<ManualClock>,
    pub options: StoreOptions,
    pub lines: Arc<Mutex<Vec<String>>>,
    /// Those of them that are warnings.
    pub warnings: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    pub fn new(flush_mode: FlushMode) -> Bench {
        let options = StoreOptions {
            flush_mode,
            log_file_bytes: 16 << 10,
            queue_file_units: 50,
            index_slots: 500,
            index_entries: 200,
            background: false,
            ..StoreOptions::new("/store")
        };
        Bench {
            disk: SimDisk::new(),
            clock: Arc::new(ManualClock::new(START_MS)),
            options,
            lines: Arc::default(),
            warnings: Arc::default(),
        }
    }

    pub fn try_open(&self) -> Result<Store, Error> {
        self.lines.lock().unwrap().clear();
        self.warnings.lock().unwrap().clear();
        let say = |level: Level, line: &str| {
            self.lines.lock().unwrap().push(line.to_string());
            if level == Level::Warning {
                self.warnings.lock().unwrap().push(line.to_string());
            }
        };
        Store::open(self.options.clone(), Arc::new(self.disk.clone()), self.clock.clone(), &say)
    }

    pub fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    pub fn said(&self, part: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|l| l.contains(part))
    }

    pub fn warned(&self, part: &str) -> bool {
        self.warnings.lock().unwrap().iter().any(|l| l.contains(part))
    }

    pub fn silent(&self) -> bool {
        self.lines.lock().unwrap().is_empty()
    }

    pub fn log_file(&self, number: u64) -> PathBuf {
        Path::new("/store/commitlog").join(format!("{:020}", number * self.options.log_file_bytes))
    }

    pub fn queue_file(&self, topic: &str, queue_id: u32, number: u64) -> PathBuf {
        let bytes = self.options.queue_file_units * 20;
        PathBuf::from(format!("/store/consumequeue/{topic}/{queue_id}/{:020}", number * bytes))
    }

    pub fn write(&self, path: &Path, offset: u64, bytes: &[u8]) {
        let file = self.disk.open(path, Mode::Create).unwrap();
        file.write_at(offset, bytes).unwrap();
        file.sync_data().unwrap();
        self.disk.sync_all(path).unwrap();
    }
}

pub fn stage(store: &mut Store, topic: &str, queue_id: u32, body: &[u8], key: &str) -> Result<Staged, Error> {
    let properties = format!("UNIQ_KEY\u{1}U-{key}\u{2}KEYS\u{1}{key} other-{key}\u{2}TAGS\u{1}TagA\u{2}");
    let queue = store.queue(topic, queue_id);
    store.stage(
        queue,
        &NewRecord {
            topic,
            queue_id,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 1,
            born_host: "10.1.2.3:4567".parse().unwrap(),
            reconsume_times: 0,
            prepared_offset: 0,
            body,
            properties: properties.as_bytes(),
            tags_code: None,
            known: None,
        },
    )
}

pub fn append(store: &mut Store, topic: &str, queue_id: u32, body: &[u8], key: &str) -> Staged {
    let staged = stage(store, topic, queue_id, body, key).unwrap();
    store.commit().unwrap();
    staged
}

pub fn entry(store: &mut Store, topic: &str, queue_id: u32, offset: i64) -> Option<Entry> {
    let queue = store.find_queue(topic, queue_id)?;
    let mut out = Vec::new();
    store.entries(queue, offset, 1, &mut out).unwrap();
    out.first().copied()
}

pub fn bounds(store: &Store, topic: &str, queue_id: u32) -> (i64, i64) {
    store.find_queue(topic, queue_id).map_or((0, 0), |q| store.bounds(q))
}

/// The body behind a queue's offset, if its record can be read.
pub fn body(store: &mut Store, topic: &str, queue_id: u32, offset: i64) -> Option<Vec<u8>> {
    let entry = entry(store, topic, queue_id, offset)?;
    let mut bytes = Vec::new();
    if !store.copy_record(entry.position, entry.size, &mut bytes) {
        return None;
    }
    let view = RecordView::parse(&bytes)?;
    assert_eq!((view.topic, view.queue_id, view.queue_offset), (topic.as_bytes(), queue_id, offset));
    view.is_intact().then(|| view.body.to_vec())
}

pub fn found_by_key(store: &mut Store, topic: &str, key: &str) -> Vec<u64> {
    store.search_index(topic, key, "", 64, 0, i64::MAX).positions
}

/// Seeds to try: `AEROBEE_SEEDS` of them, without it `count`.
pub fn seeds(from: u64, count: u64) -> std::ops::Range<u64> {
    let count = std::env::var("AEROBEE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(count);
    from..from + count
}
