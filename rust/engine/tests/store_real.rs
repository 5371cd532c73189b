//! The store on a real file system with its flusher thread: group commit, rolling files, many queues.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerobee_engine::clock::SystemClock;
use aerobee_engine::disk::RealDisk;
use aerobee_engine::error::Error;
use aerobee_engine::record::NewRecord;
use aerobee_engine::store::{FlushMode, Staged, Store, StoreOptions};

fn open(options: &StoreOptions) -> Result<Store, Error> {
    Store::open(options.clone(), Arc::new(RealDisk), Arc::new(SystemClock), &|_, line| println!("{line}"))
}

fn stage(store: &mut Store, topic: &str, queue_id: u32, body: &[u8]) -> Staged {
    let queue = store.queue(topic, queue_id);
    let record = NewRecord {
        topic,
        queue_id,
        flag: 0,
        sys_flag: 0,
        born_timestamp: 1,
        born_host: "10.1.2.3:4567".parse().unwrap(),
        reconsume_times: 0,
        prepared_offset: 0,
        body,
        properties: b"UNIQ_KEY\x010123456789\x02TAGS\x01a",
        tags_code: None,
        known: None,
    };
    store.stage(queue, &record).unwrap()
}

fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !test() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_flusher_commits_a_group_and_says_so_on_the_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        StoreOptions { flush_mode: FlushMode::Sync, log_file_bytes: 1 << 20, ..StoreOptions::new(dir.path()) };
    let mut store = open(&options).unwrap();
    let queue = store.queue("t", 0);
    for round in 1..=200 {
        for _ in 0..10 {
            stage(&mut store, "t", 0, &[7; 1000]);
        }
        let commit = store.commit().unwrap();
        assert!(commit.touched.is_empty());
        if round % 10 != 0 {
            continue;
        }
        // SAFETY: the store outlives the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(store.notify_fd()) };
        while store.durable() < commit.end {
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1, "nothing was flushed");
            store.settle();
        }
        store.settle();
        assert_eq!(store.bounds(queue), (0, round * 10));
    }
    assert!(store.stats().log_files > 1);
    assert_eq!(store.health(), None);
    store.close().unwrap();
    assert!(!dir.path().join("abort").exists());
    let mut files: Vec<_> = std::fs::read_dir(dir.path().join("commitlog")).unwrap().map(|e| e.unwrap()).collect();
    files.sort_by_key(|f| f.file_name());
    assert!(files.iter().all(|f| f.metadata().unwrap().len() == 1 << 20));
    let mut store = open(&options).unwrap();
    let queue = store.queue("t", 0);
    assert_eq!(store.bounds(queue), (0, 2000));
}

#[test]
fn entries_move_from_memory_to_files_while_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        queue_flush_interval_ms: 1,
        log_flush_interval_ms: 1,
        queue_file_units: 1000,
        ..StoreOptions::new(dir.path())
    };
    let mut store = open(&options).unwrap();
    let queue = store.queue("t", 3);
    let mut staged = Vec::new();
    let mut out = Vec::new();
    for round in 0..300 {
        for n in 0..50u8 {
            staged.push(stage(&mut store, "t", 3, &[n; 10]));
        }
        store.commit().unwrap();
        let from = (round * 37) % staged.len();
        out.clear();
        store.entries(queue, from as i64, 100, &mut out).unwrap();
        assert_eq!(out.len(), 100.min(staged.len() - from));
        for (entry, staged) in out.iter().zip(&staged[from..]) {
            assert_eq!((entry.position, entry.size), (staged.position, staged.size));
        }
    }
    eventually("the tail is written", || store.stats().queue_tail_bytes < 409 * 20);
    drop(store);
    let mut store = open(&options).unwrap();
    let queue = store.queue("t", 3);
    assert_eq!(store.bounds(queue), (0, 15_000));
    out.clear();
    store.entries(queue, 14_990, 100, &mut out).unwrap();
    assert_eq!(out.last().unwrap().position, staged.last().unwrap().position);
}

#[test]
fn thousands_of_queues_need_few_descriptors_and_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { background: false, ..StoreOptions::new(dir.path()) };
    let mut store = open(&options).unwrap();
    let topics = 500;
    for n in 0..topics {
        for queue_id in 0..8 {
            stage(&mut store, &format!("topic-{n}"), queue_id, b"hello");
        }
        store.commit().unwrap();
    }
    store.flush().unwrap();
    assert!(store.stats().open_files <= 256, "{:?}", store.stats());
    store.close().unwrap();
    let mut store = open(&options).unwrap();
    assert_eq!(store.stats().queues, topics * 8);
    assert!(store.stats().open_files <= 256, "{:?}", store.stats());
    for n in 0..topics {
        let queue = store.find_queue(&format!("topic-{n}"), 7).unwrap();
        assert_eq!(store.bounds(queue), (0, 1));
    }
}

#[test]
fn the_lock_keeps_a_second_store_out_and_goes_with_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(dir.path());
    let mut store = open(&options).unwrap();
    assert!(matches!(open(&options), Err(Error::Locked(_))));
    assert!(matches!(open(&options), Err(Error::Locked(_))), "a refused opening does not free the lock");
    store.close().unwrap();
    assert!(matches!(store.flush(), Err(Error::Closed)));
    open(&options).unwrap();
}

#[test]
fn blocks_are_reserved_ahead_of_a_busy_log_and_not_of_an_idle_one() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { log_file_bytes: 64 << 20, ..StoreOptions::new(dir.path()) };
    let mut store = open(&options).unwrap();
    let taken = |name: &str| {
        let found = std::fs::metadata(dir.path().join("commitlog").join(name)).unwrap();
        assert_eq!(found.len(), 64 << 20, "reserving changes no size");
        found.blocks() * 512
    };
    stage(&mut store, "t", 0, &[7; 1000]);
    store.commit().unwrap();
    eventually("the next file is prepared", || dir.path().join("commitlog/00000000000067108864").exists());
    assert!(taken("00000000000000000000") <= 64 << 10);
    let mut written = 0;
    while written < 40 << 20 {
        for _ in 0..1000 {
            written = stage(&mut store, "t", 0, &[7; 4000]).position;
        }
        store.commit().unwrap();
    }
    // The flusher reserves as much again: the rest of this file and a part of the next.
    eventually("reserved", || taken("00000000000000000000") >= 63 << 20 && taken("00000000000067108864") >= 8 << 20);
    let kept = stage(&mut store, "t", 0, b"last");
    store.commit().unwrap();
    store.close().unwrap();
    let mut store = open(&options).unwrap();
    assert_eq!(store.stats().max_position, kept.position + u64::from(kept.size));
}

#[test]
fn zeros_that_fill_up_a_block_stay_in_their_file_and_under_what_comes_next() {
    let dir = tempfile::tempdir().unwrap();
    // No multiple of a block, so that the last one of each file is a short one.
    let options = StoreOptions { log_file_bytes: 100_000, ..StoreOptions::new(dir.path()) };
    let mut store = open(&options).unwrap();
    for number in 0..200_u64 {
        stage(&mut store, "t", 0, &[7; 1500]);
        if number % 3 != 0 {
            continue; // of one, of two and of three records, over the end of files too
        }
        store.commit().unwrap();
    }
    store.commit().unwrap();
    let log = dir.path().join("commitlog");
    let mut bodies = 0;
    for entry in std::fs::read_dir(&log).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert_eq!(bytes.len(), 100_000);
        bodies += bytes.windows(1500).filter(|w| w.iter().all(|b| *b == 7)).count();
    }
    assert_eq!(bodies, 200);
    let end = store.stats().max_position;
    store.close().unwrap();
    let mut store = open(&options).unwrap();
    assert_eq!(store.stats().max_position, end, "zeros are no messages");
}

#[test]
fn a_log_file_that_was_cut_costs_what_was_in_it_and_not_the_process() {
    const CUT_AT: u64 = 64 * 1024; // in the middle of a record
    let dir = tempfile::tempdir().unwrap();
    let options =
        StoreOptions { log_file_bytes: 1 << 20, compaction_topics: vec!["t".into()], ..StoreOptions::new(dir.path()) };
    let mut store = open(&options).unwrap();
    let staged: Vec<Staged> = (0..30).map(|_| stage(&mut store, "t", 0, &[7; 5000])).collect();
    store.commit().unwrap();
    let mut out = Vec::new();
    assert!(store.copy_record(staged[29].position, staged[29].size, &mut out));
    let path = dir.path().join("commitlog").join(format!("{:020}", 0));
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(CUT_AT).unwrap();
    out.clear();
    for one in &staged {
        let whole = one.position + u64::from(one.size) <= CUT_AT;
        assert_eq!(store.copy_record(one.position, one.size, &mut out), whole, "{one:?}");
        assert_eq!(store.record(one.position).is_some(), whole, "{one:?}");
        assert_eq!(store.with_record(one.position, one.size, |bytes| bytes[bytes.len() - 1]).is_some(), whole);
    }
    assert!(staged[12].position < CUT_AT && staged[13].position > CUT_AT && out.len() == 12 * staged[0].size as usize);
    let mut said = Vec::new();
    eventually("the file is named", || {
        said.extend(store.notices());
        said.iter().any(|line| line.contains(path.to_str().unwrap()) && line.contains("cannot be read in places"))
    });
    drop(store);
    let mut store = open(&options).unwrap();
    assert!(store.copy_record(staged[11].position, staged[11].size, &mut out));
    assert!(!store.copy_record(staged[12].position, staged[12].size, &mut out));
}
