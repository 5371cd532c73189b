//! The store against a disk that fails by seed, and every recovery rule against the damage it is for.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use aerobee_engine::disk::{Disk, Mode, Random};
use aerobee_engine::error::Error;
use aerobee_engine::pull::{Limits, Reader};
use aerobee_engine::record::NewRecord;
use aerobee_engine::snapshot::Look;
use aerobee_engine::store::{DeletePolicy, FlushMode, Staged, Store};
use aerobee_engine::tables::Filter;
use common::{append, body, bounds, entry, found_by_key, seeds, stage, Bench, START_MS};

/// Thirty messages in two queues, flushed and closed properly.
fn filled() -> Bench {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..30 {
        bench.clock.advance(1000);
        append(&mut store, "t", n % 2, format!("body-{n}").as_bytes(), &format!("k{n}"));
    }
    store.close().unwrap();
    bench
}

fn all_thirty_are_there(store: &mut Store) {
    for n in 0..30u32 {
        let got = body(store, "t", n % 2, i64::from(n / 2));
        assert_eq!(got.as_deref(), Some(format!("body-{n}").as_bytes()), "message {n}");
        assert_eq!(found_by_key(store, "t", &format!("U-k{n}")).len(), 1, "key of message {n}");
    }
    assert_eq!(bounds(store, "t", 0), (0, 15));
    assert_eq!(bounds(store, "t", 1), (0, 15));
}

// ------------------------------------------------------------------------------------------------------- ordinary life

#[test]
fn what_is_committed_is_read_at_once_and_after_a_restart() {
    let bench = filled();
    let mut store = bench.open();
    assert!(bench.silent(), "{:?}", bench.lines);
    all_thirty_are_there(&mut store);
    assert_eq!(append(&mut store, "t", 0, b"next", "n").queue_offset, 15);
    assert_eq!(body(&mut store, "t", 0, 15).unwrap(), b"next");
    assert_eq!(store.search_index("t", "TagA", "T", 64, 0, i64::MAX).positions.len(), 31);
    assert_eq!(found_by_key(&mut store, "t", "other-k7").len(), 1);
    assert_eq!(found_by_key(&mut store, "t", "nothing"), []);
    assert_eq!(store.topics(), [("t".to_string(), vec![0, 1])]);
}

#[test]
fn the_entry_of_a_record_whose_tag_comes_again_without_a_value_is_that_of_its_tag() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let queue = store.queue("t", 0);
    for properties in ["TAGS\u{1}x\u{2}", "TAGS\u{1}x\u{2}TAGS\u{1}\u{2}"] {
        let record = NewRecord {
            topic: "t",
            queue_id: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 1,
            born_host: "10.1.2.3:4567".parse().unwrap(),
            reconsume_times: 0,
            prepared_offset: 0,
            body: b"x",
            properties: properties.as_bytes(),
            tags_code: None,
            known: None,
        };
        store.stage(queue, &record).unwrap();
        store.commit().unwrap();
    }
    let codes = |store: &mut Store| [0, 1].map(|at| entry(store, "t", 0, at).unwrap().tags_code);
    assert_eq!(codes(&mut store), [120, 120]);
    drop(store);
    bench.disk.kill();
    assert_eq!(codes(&mut bench.open()), [120, 120], "rebuilt from the log");
}

#[test]
fn a_record_that_does_not_fit_begins_the_next_file_behind_a_blank() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let body_bytes = 3000;
    let mut staged = Vec::new();
    for n in 0..12 {
        staged.push(stage(&mut store, "t", 0, &vec![n as u8; body_bytes], "k").unwrap());
    }
    let commit = store.commit().unwrap();
    assert_eq!(commit.end, staged[11].position + u64::from(staged[11].size));
    assert_eq!(commit.touched.len(), 1);
    let last = staged.iter().rposition(|s| s.position < 16 << 10).unwrap();
    let blank_at = (staged[last].position + u64::from(staged[last].size)) as usize;
    assert_eq!(staged[last + 1].position, 16 << 10);
    let bytes = bench.disk.read_file(&bench.log_file(0)).unwrap();
    assert_eq!(bytes.len(), 16 << 10);
    assert_eq!(bytes[blank_at..blank_at + 4], ((16 << 10) - blank_at as u32).to_be_bytes());
    assert_eq!(bytes[blank_at + 4..blank_at + 8], (-875_286_124i32).to_be_bytes());
    store.close().unwrap();
    let mut store = bench.open();
    for n in 0..12 {
        assert_eq!(body(&mut store, "t", 0, n).unwrap(), vec![n as u8; body_bytes]);
    }
    let too_big = vec![0; 17 << 10];
    assert!(matches!(stage(&mut store, "t", 0, &too_big, "k"), Err(Error::BadRecord(_))));
    assert_eq!(append(&mut store, "t", 0, b"x", "k").queue_offset, 12);
}

#[test]
fn with_synchronous_flush_a_message_is_visible_only_once_flushed() {
    let bench = Bench::new(FlushMode::Sync);
    let mut store = bench.open();
    let staged = append(&mut store, "t", 0, b"a", "k");
    assert_eq!(bounds(&store, "t", 0), (0, 0));
    assert_eq!(entry(&mut store, "t", 0, 0), None);
    assert!(store.durable() <= staged.position);
    assert_eq!(store.settle(), []);
    store.tick().unwrap();
    assert!(store.durable() > staged.position);
    assert_eq!(bounds(&store, "t", 0), (0, 0));
    assert_eq!(store.settle(), [staged.queue]);
    assert_eq!(bounds(&store, "t", 0), (0, 1));
    assert_eq!(body(&mut store, "t", 0, 0).unwrap(), b"a");
}

#[test]
fn half_messages_have_no_queue_entry_and_rollbacks_no_index_entry() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for (sys_flag, key) in [(1 << 2, "prepared"), (2 << 2, "committed"), (3 << 2, "rolled-back")] {
        let properties = format!("KEYS\u{1}{key}");
        let queue = store.queue("t", 0);
        let record = NewRecord {
            topic: "t",
            queue_id: 0,
            flag: 0,
            sys_flag,
            born_timestamp: 1,
            born_host: "[::1]:1".parse().unwrap(),
            reconsume_times: 0,
            prepared_offset: 0,
            body: b"x",
            properties: properties.as_bytes(),
            tags_code: None,
            known: None,
        };
        store.stage(queue, &record).unwrap();
    }
    store.commit().unwrap();
    for _ in 0..2 {
        assert_eq!(bounds(&store, "t", 0), (0, 1));
        assert_eq!(found_by_key(&mut store, "t", "prepared").len(), 1);
        assert_eq!(found_by_key(&mut store, "t", "committed").len(), 1);
        assert_eq!(found_by_key(&mut store, "t", "rolled-back").len(), 0);
        drop(store);
        bench.disk.kill();
        store = bench.open();
    }
}

#[test]
fn offsets_are_found_by_time() {
    let bench = filled();
    let mut store = bench.open();
    let queue = store.find_queue("t", 1).unwrap();
    // Queue 1 holds messages stored at 2 s, 4 s ... 30 s after the start.
    for (seconds, lower, upper) in
        [(0, 0, 0), (2, 0, 0), (3, 1, 0), (4, 1, 1), (29, 14, 13), (30, 14, 14), (31, 15, 14)]
    {
        let time = START_MS + seconds * 1000;
        assert_eq!(store.offset_by_time(queue, time, false), lower, "{seconds} s");
        assert_eq!(store.offset_by_time(queue, time, true), upper, "{seconds} s, upper");
    }
    assert_eq!(store.store_time(queue, 3), START_MS + 8000);
    assert_eq!(store.store_time(queue, 15), -1);
    let empty = store.queue("empty", 0);
    assert_eq!(store.offset_by_time(empty, START_MS, false), 0);
}

#[test]
fn a_second_broker_on_the_same_store_is_refused() {
    let bench = Bench::new(FlushMode::Async);
    let store = bench.open();
    assert!(matches!(bench.try_open(), Err(Error::Locked(_))));
    drop(store);
    bench.open();
}

#[test]
fn discarded_records_leave_nothing_and_their_offsets_are_used_again() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    append(&mut store, "t", 0, b"a", "k");
    stage(&mut store, "t", 0, b"b", "k").unwrap();
    store.discard();
    assert_eq!(append(&mut store, "t", 0, b"c", "k").queue_offset, 1);
    assert_eq!(body(&mut store, "t", 0, 1).unwrap(), b"c");
}

// ------------------------------------------------------------------------------------------------------------ deleting

#[test]
fn a_deleted_topic_is_gone_and_begins_again_at_zero() {
    let bench = filled();
    let mut store = bench.open();
    append(&mut store, "other", 0, b"o", "o");
    let old = store.find_queue("t", 0).unwrap();
    append(&mut store, "t", 0, b"in memory", "m");
    store.delete_topic("t").unwrap();
    assert_eq!(store.find_queue("t", 0), None);
    assert!(!bench.disk.exists("/store/consumequeue/t".as_ref()));
    assert_eq!(store.bounds(old), (0, 0));
    assert!(matches!(
        store.stage(
            old,
            &NewRecord {
                topic: "t",
                queue_id: 0,
                flag: 0,
                sys_flag: 0,
                born_timestamp: 0,
                born_host: "1.1.1.1:1".parse().unwrap(),
                reconsume_times: 0,
                prepared_offset: 0,
                body: b"",
                properties: b"",
                tags_code: None,
                known: None
            }
        ),
        Err(Error::BadRecord(_))
    ));
    assert_eq!(append(&mut store, "t", 0, b"new life", "n").queue_offset, 0);
    store.flush().unwrap();
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(body(&mut store, "t", 0, 0).unwrap(), b"new life");
    assert_eq!(bounds(&store, "t", 0), (0, 1));
    assert_eq!(bounds(&store, "other", 0), (0, 1));
}

// Claim: a clean restart brings no messages of a deleted topic back, also when they were the newest of all.
#[test]
fn a_deleted_topic_is_still_gone_after_a_clean_restart() {
    let bench = filled();
    let mut store = bench.open();
    append(&mut store, "other", 0, b"o", "o");
    for n in 0..5 {
        append(&mut store, "t", 0, &[n], "k");
    }
    store.delete_topic("t").unwrap();
    store.close().unwrap();
    let mut store = bench.open();
    assert_eq!(store.topics(), [("other".to_owned(), vec![0])]);
    assert_eq!(append(&mut store, "t", 0, b"new life", "n").queue_offset, 0);
    store.close().unwrap();
    let mut store = bench.open();
    assert_eq!((bounds(&store, "t", 0), bounds(&store, "other", 0)), ((0, 1), (0, 1)));
    assert_eq!(body(&mut store, "t", 0, 0).unwrap(), b"new life");
    store.close().unwrap();
}

#[test]
fn the_second_life_of_a_topic_survives_a_recovery_that_reads_both_lives() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..5 {
        append(&mut store, "t", 0, &[n], "k");
    }
    store.delete_topic("t").unwrap();
    for n in 10..13 {
        append(&mut store, "t", 0, &[n], "k");
    }
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(bounds(&store, "t", 0), (0, 3));
    assert_eq!(body(&mut store, "t", 0, 0).unwrap(), [10]);
    assert_eq!(body(&mut store, "t", 0, 2).unwrap(), [12]);
}

#[test]
fn expired_files_go_only_when_asked_and_allowed() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let mut staged = Vec::new();
    for n in 0..400 {
        bench.clock.advance(1000);
        staged.push(append(&mut store, "t", n % 2, &[7; 600], &format!("k{n}")));
    }
    append(&mut store, "quiet", 0, b"q", "q");
    store.flush().unwrap();
    let files = store.stats().log_files;
    assert!(files > 15);
    let policy = DeletePolicy { before_ms: i64::MAX, consumed_position: 0, files_max: 100 };
    assert_eq!(store.delete_files(policy).unwrap().log_files, 0);
    let policy = DeletePolicy { before_ms: START_MS + 1000, consumed_position: u64::MAX, files_max: 100 };
    assert_eq!(store.delete_files(policy).unwrap().log_files, 0);
    let policy = DeletePolicy { before_ms: START_MS + 200_000, consumed_position: u64::MAX, files_max: 3 };
    assert_eq!(store.delete_files(policy).unwrap().log_files, 3);
    let deleted = store.delete_files(DeletePolicy { files_max: 100, ..policy }).unwrap();
    assert!(deleted.log_files > 4 && deleted.queue_files > 0 && deleted.index_files > 0, "{deleted:?}");
    for _ in 0..2 {
        let min = deleted.min_position;
        let (first, last) = bounds(&store, "t", 0);
        assert_eq!(last, 200);
        let oldest = staged.iter().find(|s| s.position >= min && s.queue_offset >= 0).unwrap();
        assert!((first - oldest.queue_offset).abs() <= 1);
        assert!(body(&mut store, "t", 0, first).is_some());
        let gone = entry(&mut store, "t", 0, first - 1);
        assert!(!gone.is_some_and(|e| e.position >= min));
        assert_eq!(bounds(&store, "quiet", 0), (0, 1));
        assert!(!store.copy_record(staged[0].position, staged[0].size, &mut Vec::new()));
        store.close().unwrap();
        store = bench.open();
        assert!(bench.silent(), "{:?}", bench.lines);
    }
    // Everything expired: the newest file and each queue's end stay.
    append(&mut store, "t", 0, b"x", "x");
    store.flush().unwrap();
    let policy = DeletePolicy { before_ms: i64::MAX, consumed_position: u64::MAX, files_max: 100 };
    store.delete_files(policy).unwrap();
    assert_eq!(store.stats().log_files, 1);
    assert_eq!(bounds(&store, "t", 0).1, 201);
    assert_eq!(bounds(&store, "t", 1).1, 200);
}

const EVERYTHING: DeletePolicy = DeletePolicy { before_ms: i64::MAX, consumed_position: u64::MAX, files_max: 100 };

#[test]
fn log_files_stay_until_their_queue_entries_are_on_the_device() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..10 {
        append(&mut store, "orders", 0, b"x", &format!("o{n}"));
    }
    // So few entries wait in memory for the next checkpoint, which is long to come; the log itself is flushed.
    for n in 0..20 {
        append(&mut store, "other", 0, &[0; 3000], &format!("p{n}"));
        bench.clock.advance(1000);
        store.tick().unwrap();
    }
    assert_eq!(store.stats().flushed_position, store.stats().max_position);
    store.delete_files(EVERYTHING).unwrap();
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(bounds(&store, "orders", 0).1, 10);
    assert_eq!(append(&mut store, "orders", 0, b"y", "q").queue_offset, 10);
    // The start has written a checkpoint: up to there they may go, whatever happens then.
    assert!(store.delete_files(EVERYTHING).unwrap().log_files > 2);
    drop(store);
    bench.disk.power_cut(1);
    let mut store = bench.open();
    assert!(bounds(&store, "orders", 0).1 >= 10);
    store.close().unwrap();
    // So has a clean stop.
    let mut store = bench.open();
    for n in 0..10 {
        append(&mut store, "other", 0, &[0; 3000], &format!("r{n}"));
    }
    store.close().unwrap();
    let mut store = bench.open();
    assert!(store.delete_files(EVERYTHING).unwrap().log_files > 1);
    assert!(bounds(&store, "orders", 0).1 >= 10);
}

#[test]
fn a_damaged_first_record_makes_the_file_before_it_neither_older_nor_immortal() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..100 {
        bench.clock.advance(1000);
        append(&mut store, "t", 0, &[7; 600], &format!("k{n}"));
    }
    store.flush().unwrap();
    bench.write(&bench.log_file(1), 0, &[0; 700]);
    let policy = DeletePolicy { before_ms: START_MS, ..EVERYTHING };
    assert_eq!(store.delete_files(policy).unwrap().log_files, 0);
    let policy = DeletePolicy { before_ms: START_MS + 70_000, ..EVERYTHING };
    assert!(store.delete_files(policy).unwrap().log_files > 1);
}

#[test]
fn expired_files_are_removed_while_the_store_is_used() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let first = append(&mut store, "t", 0, &[7; 600], "first");
    for n in 0..100 {
        append(&mut store, "t", 0, &[7; 600], &format!("k{n}"));
    }
    store.flush().unwrap();
    let expired = store.take_expired(EVERYTHING);
    // They are none of the store's any more, and still there: the slow part is to come.
    assert!(!store.copy_record(first.position, first.size, &mut Vec::new()));
    let (low, high) = bounds(&store, "t", 0);
    assert!(low > 50 && high == 101 && store.stats().log_files == 1);
    assert!(bench.disk.exists(&bench.log_file(0)) && bench.disk.exists(&bench.log_file(1)));
    // Somebody else asks meanwhile.
    assert_eq!(append(&mut store, "t", 0, b"meanwhile", "m").queue_offset, 101);
    let deleted = expired.remove().unwrap();
    assert!(deleted.log_files > 2 && deleted.index_files > 0, "{deleted:?}");
    assert!(!bench.disk.exists(&bench.log_file(0)) && !bench.disk.exists(&bench.log_file(1)));
    assert_eq!(body(&mut store, "t", 0, 101).unwrap(), b"meanwhile");
}

#[test]
fn a_log_file_that_cannot_be_removed_is_tried_again_and_no_newer_one_goes_before_it() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..100 {
        append(&mut store, "t", 0, &[7; 600], &format!("k{n}"));
    }
    store.flush().unwrap();
    let path = bench.log_file(1);
    bench.disk.fail_removes(path.to_str());
    for _ in 0..2 {
        let error = store.delete_files(EVERYTHING).unwrap_err();
        assert!(matches!(&error, Error::DiskFailed(text) if text.contains(path.to_str().unwrap())), "{error}");
        assert!(!bench.disk.exists(&bench.log_file(0)) && bench.disk.exists(&bench.log_file(2)));
    }
    assert_eq!(store.health(), None);
    assert!(bounds(&store, "t", 0).0 > 50);
    // A start in between finds a log without a gap.
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert!(bench.silent(), "{:?}", bench.lines);
    assert_eq!(bounds(&store, "t", 0).1, 100);
    assert!(store.delete_files(EVERYTHING).is_err());
    bench.disk.fail_removes(None);
    assert!(store.delete_files(EVERYTHING).unwrap().log_files > 2);
    assert!(!bench.disk.exists(&path));
    assert_eq!(store.stats().log_files, 1);
}

// -------------------------------------------------------------------------------------------------------- a failing disk

#[test]
fn a_full_disk_refuses_with_the_reason_serves_reads_and_recovers_by_itself() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    append(&mut store, "t", 0, b"before", "b");
    store.flush().unwrap();
    bench.disk.set_capacity(Some(bench.disk.used() + 8192));
    let mut stored = 1;
    let error = loop {
        for n in 0..5 {
            stage(&mut store, "t", 0, &[n; 2500], "k").unwrap();
        }
        match store.commit() {
            Ok(_) => stored += 5,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::DiskFull(text) if text.contains("commitlog")), "{error}");
    assert!(matches!(store.health(), Some(Error::DiskFull(_))));
    assert!(matches!(stage(&mut store, "t", 0, b"x", "k"), Err(Error::DiskFull(_))));
    assert_eq!(bounds(&store, "t", 0), (0, stored));
    assert_eq!(body(&mut store, "t", 0, 0).unwrap(), b"before");
    bench.disk.set_capacity(Some(bench.disk.used()));
    bench.clock.advance(2000);
    let _ = store.tick();
    assert!(store.health().is_some());
    bench.disk.set_capacity(None);
    bench.clock.advance(2000);
    store.tick().unwrap();
    assert_eq!(store.health(), None);
    assert!(store.notices().iter().any(|n| n.contains("accepted again")));
    assert_eq!(append(&mut store, "t", 0, b"after", "a").queue_offset, stored);
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(bounds(&store, "t", 0), (0, stored + 1));
    assert_eq!(body(&mut store, "t", 0, stored).unwrap(), b"after");
}

#[test]
fn too_many_open_files_refuse_with_the_reason_and_recover_by_themselves() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    append(&mut store, "t", 0, b"before", "b");
    store.flush().unwrap();
    bench.disk.open_nothing(true);
    let mut stored = 1;
    let error = loop {
        for n in 0..5 {
            stage(&mut store, "t", 0, &[n; 1000], "k").unwrap();
        }
        match store.commit() {
            Ok(_) => stored += 5,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::DiskFull(text) if text.contains("Too many open files")), "{error}");
    assert!(matches!(stage(&mut store, "t", 0, b"x", "k"), Err(Error::DiskFull(_))));
    assert_eq!(bounds(&store, "t", 0), (0, stored));
    store.notices();
    for _ in 0..3 {
        bench.clock.advance(2000);
        let _ = store.tick();
        assert!(matches!(store.health(), Some(Error::DiskFull(_))), "{:?}", store.health());
    }
    assert!(!store.notices().iter().any(|n| n.contains("accepted again")), "there are none yet");
    bench.disk.open_nothing(false);
    bench.clock.advance(2000);
    store.tick().unwrap();
    assert_eq!(store.health(), None);
    assert_eq!(append(&mut store, "t", 0, b"after", "a").queue_offset, stored);
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(bounds(&store, "t", 0), (0, stored + 1));
    assert_eq!(body(&mut store, "t", 0, stored).unwrap(), b"after");
}

/// A directory is opened to be synced: when that cannot be, it is done later, and nobody is told before.
#[test]
fn a_log_directory_that_could_not_be_synced_for_want_of_open_files_is_synced_later() {
    for (seed, operations) in (0..10).flat_map(|seed| (0..16).map(move |operations| (seed, operations))) {
        let bench = Bench::new(FlushMode::Sync);
        let mut store = bench.open();
        append(&mut store, "t", 0, b"old", "o");
        store.flush().unwrap();
        store.settle();
        for n in 0..30 {
            append(&mut store, "t", 0, &[n; 1000], "k"); // into several files
        }
        bench.disk.open_nothing(true);
        let error = store.tick().unwrap_err();
        assert!(matches!(&error, Error::DiskFull(text) if text.contains("Too many open files")), "{error}");
        store.settle();
        assert_eq!(bounds(&store, "t", 0), (0, 1));
        bench.disk.open_nothing(false);
        bench.clock.advance(1000);
        bench.disk.stop_after(operations);
        let _ = store.tick();
        store.settle();
        let told = bounds(&store, "t", 0).1;
        assert!(told == 31 || operations < 6, "{told}");
        drop(store);
        bench.disk.power_cut(seed);
        assert!(bounds(&bench.open(), "t", 0).1 >= told, "seed {seed}, {operations} operations");
    }
}

#[test]
fn queue_files_that_could_not_be_synced_for_want_of_open_files_are_synced_later() {
    for seed in 0..10 {
        let bench = Bench::new(FlushMode::Async);
        let mut store = bench.open();
        for n in 0..1300 {
            append(&mut store, "t", n % 3, &[n as u8; 100], &format!("k{n}"));
        }
        bench.clock.advance(1000);
        store.tick().unwrap(); // syncs the log and writes entries
        assert_eq!(store.stats().flushed_position, store.stats().max_position);
        bench.disk.open_nothing(true);
        let error = store.flush().unwrap_err();
        assert!(matches!(&error, Error::DiskFull(text) if text.contains("Too many open files")), "{error}");
        bench.disk.open_nothing(false);
        bench.clock.advance(1000);
        store.tick().unwrap();
        store.flush().unwrap(); // claims all of it
        drop(store);
        bench.disk.power_cut(seed);
        let mut store = bench.open();
        for n in 0..1300 {
            let found = body(&mut store, "t", n % 3, i64::from(n / 3));
            assert_eq!(found.as_deref(), Some(&[n as u8; 100][..]), "seed {seed}, message {n}");
        }
    }
}

#[test]
fn a_full_disk_does_not_stop_the_start() {
    // Killed with queue and index entries in memory that found no room; started with no more room, often.
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    bench.disk.set_capacity(Some(bench.disk.used() + (64 << 10)));
    let mut stored: i64 = 0;
    while stage(&mut store, "t", (stored % 4) as u32, &[7; 500], &format!("k{stored}")).is_ok()
        && store.commit().is_ok()
    {
        stored += 1;
    }
    assert!(stored > 80, "{stored}");
    for clean in [false, false, true, false] {
        if clean {
            let _ = store.close();
        }
        drop(store);
        bench.disk.kill();
        bench.disk.set_capacity(Some(bench.disk.used()));
        store = bench.open();
        assert!(matches!(store.health(), Some(Error::DiskFull(_))), "{:?}", store.health());
        assert!(matches!(stage(&mut store, "t", 0, b"x", "k"), Err(Error::DiskFull(_))));
        for number in 0..stored {
            assert_eq!(body(&mut store, "t", (number % 4) as u32, number / 4).unwrap(), [7; 500], "{number}");
            assert_eq!(
                store.search_index("t", &format!("k{number}"), "", 10, 0, i64::MAX).positions.len(),
                1,
                "{number}"
            );
        }
        bench.clock.advance(2000);
        let _ = store.tick();
    }
    bench.disk.set_capacity(None);
    bench.clock.advance(2000);
    store.tick().unwrap();
    assert_eq!(store.health(), None);
    let next = append(&mut store, "t", 0, b"after", "after");
    store.close().unwrap();
    drop(store);
    let mut store = bench.open();
    assert!(bench.silent());
    assert_eq!(body(&mut store, "t", 0, next.queue_offset).unwrap(), b"after");
    assert_eq!((0..4).map(|queue| bounds(&store, "t", queue).1).sum::<i64>(), stored + 1);
}

#[test]
fn writes_are_refused_early_by_the_configured_share() {
    let mut bench = Bench::new(FlushMode::Async);
    bench.options.disk_used_ratio_max = 0.5;
    bench.disk.set_capacity(Some(1 << 20));
    let mut store = bench.open();
    let mut n = 0;
    let error = loop {
        n += 1;
        match stage(&mut store, "t", 0, &[1; 3000], "k") {
            Ok(_) => drop(store.commit().unwrap()),
            Err(error) => break error,
        }
        bench.clock.advance(1000);
        let _ = store.tick();
    };
    assert!(error.to_string().contains("writes stop at 50.0 %"), "{error}");
    assert!(n > 50);
    assert!(body(&mut store, "t", 0, 0).is_some());
    store.flush().unwrap();
}

#[test]
fn the_configured_share_can_be_changed_both_ways() {
    let mut bench = Bench::new(FlushMode::Async);
    bench.options.disk_used_ratio_max = 0.99;
    bench.disk.set_capacity(Some(1 << 20));
    let mut store = bench.open();
    append(&mut store, "t", 0, &[1; 3000], "k");
    let looked = |store: &mut Store, ratio| {
        store.set_disk_used_ratio_max(ratio);
        bench.clock.advance(1000);
        store.tick().unwrap();
        store.health().map(|error| error.to_string())
    };
    assert_eq!(looked(&mut store, 0.98), None);
    let reason = looked(&mut store, 0.0).unwrap();
    assert!(reason.contains("writes stop at 0.0 %"), "{reason}");
    assert!(matches!(stage(&mut store, "t", 0, b"x", "k"), Err(Error::DiskFull(_))));
    assert_eq!(looked(&mut store, 0.97), None);
    append(&mut store, "t", 0, b"x", "k");
}

#[test]
fn a_failed_sync_is_an_error_that_only_a_restart_ends() {
    let bench = Bench::new(FlushMode::Sync);
    let mut store = bench.open();
    append(&mut store, "t", 0, b"a", "k");
    store.tick().unwrap();
    store.settle();
    let before = store.durable();
    append(&mut store, "t", 0, b"b", "k");
    bench.disk.fail_syncs(true);
    assert!(matches!(store.tick(), Err(Error::DiskFailed(_))));
    bench.disk.fail_syncs(false);
    bench.clock.advance(100_000);
    let _ = store.tick();
    assert_eq!(store.durable(), before, "what failed to be flushed once is never acknowledged");
    assert_eq!(store.settle(), []);
    assert_eq!(bounds(&store, "t", 0), (0, 1));
    assert!(matches!(stage(&mut store, "t", 0, b"c", "k"), Err(Error::DiskFailed(_))));
    assert!(matches!(store.close(), Err(Error::DiskFailed(_))));
    bench.disk.power_cut(1);
    let mut store = bench.open();
    assert_eq!(body(&mut store, "t", 0, 0).unwrap(), b"a");
    append(&mut store, "t", 0, b"d", "k");
}

#[test]
fn a_failed_write_is_an_error_and_nothing_of_the_chunk_exists() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    append(&mut store, "t", 0, b"a", "k");
    stage(&mut store, "t", 0, b"b", "k").unwrap();
    bench.disk.fail_writes(true);
    assert!(matches!(store.commit(), Err(Error::DiskFailed(_))));
    bench.disk.fail_writes(false);
    assert_eq!(bounds(&store, "t", 0), (0, 1));
    assert!(matches!(store.health(), Some(Error::DiskFailed(_))));
}

// ------------------------------------------------------------------------- one damaged file beside each recovery rule

#[test]
fn a_torn_tail_is_cut_and_what_was_cut_never_comes_back() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..5 {
        append(&mut store, "t", 0, &[n; 100], "k");
    }
    let last = append(&mut store, "t", 0, &[9; 100], "torn");
    store.flush().unwrap();
    drop(store);
    bench.disk.kill();
    bench.write(&bench.log_file(0), last.position + 120, &[0; 200]);
    let mut store = bench.open();
    assert!(bench.said("is cut at"), "{:?}", bench.lines);
    assert_eq!(bounds(&store, "t", 0), (0, 5));
    assert_eq!(found_by_key(&mut store, "t", "torn"), []);
    assert_eq!(store.stats().max_position, last.position);
    assert!(bench.disk.read_file(&bench.log_file(0)).unwrap()[last.position as usize..].iter().all(|b| *b == 0));
    assert_eq!(append(&mut store, "t", 0, b"new", "new").queue_offset, 5);
    assert_eq!(body(&mut store, "t", 0, 5).unwrap(), b"new");
}

#[test]
fn one_damaged_record_costs_that_record() {
    for field in [0u64, 5, 9, 13, 22, 24, 27, 30, 86, 100] {
        let bench = Bench::new(FlushMode::Async);
        let mut store = bench.open();
        let mut staged = Vec::new();
        for n in 0..20 {
            staged.push(append(&mut store, "t", n % 2, &[n as u8; 100], &format!("k{n}")));
        }
        drop(store);
        bench.disk.kill();
        bench.disk.flip_bit(&bench.log_file(0), staged[10].position + field, 6);
        let mut store = bench.open();
        for n in (0..20u32).filter(|n| *n != 10) {
            let got = body(&mut store, "t", n % 2, i64::from(n / 2));
            assert_eq!(got, Some(vec![n as u8; 100]), "byte {field}, message {n}: {:?}", bench.lines);
            assert_eq!(found_by_key(&mut store, "t", &format!("k{n}")).len(), 1);
        }
        assert_eq!(bounds(&store, "t", 0), (0, 10), "byte {field}");
        assert_eq!(append(&mut store, "t", 0, b"new", "k").queue_offset, 10);
    }
}

#[test]
fn one_damaged_record_costs_no_more_when_the_queues_are_lost_as_well() {
    let bench = filled();
    let mut store = bench.open();
    let damaged = entry(&mut store, "t", 0, 4).unwrap();
    store.close().unwrap();
    bench.disk.flip_bit(&bench.log_file(0), damaged.position + 89, 3);
    bench.disk.remove_tree("/store/consumequeue".as_ref()).unwrap();
    let mut store = bench.open();
    let read: Vec<i64> = (0..15).filter(|offset| body(&mut store, "t", 0, *offset).is_some()).collect();
    assert_eq!(read, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], "{:?}", bench.lines);
    assert_eq!(bounds(&store, "t", 1), (0, 15));
}

#[test]
fn a_long_gap_does_not_hide_what_lies_before_it() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let staged: Vec<_> = (0..40).map(|n| append(&mut store, "t", 0, &[n; 100], "k")).collect();
    drop(store);
    bench.disk.kill();
    for damaged in &staged[3..38] {
        bench.disk.flip_bit(&bench.log_file(0), damaged.position + 100, 1);
    }
    bench.disk.remove_tree("/store/consumequeue/t".as_ref()).unwrap();
    let mut store = bench.open();
    assert_eq!(bounds(&store, "t", 0), (0, 40));
    for n in [0, 1, 2, 38, 39] {
        assert_eq!(body(&mut store, "t", 0, n), Some(vec![n as u8; 100]));
    }
}

#[test]
fn the_offset_of_a_damaged_last_record_is_not_given_to_another_message() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    append(&mut store, "t", 0, b"a", "k");
    append(&mut store, "t", 1, b"b", "k");
    store.flush().unwrap();
    let damaged = append(&mut store, "t", 0, &[1; 100], "k");
    append(&mut store, "t", 1, b"c", "k");
    // The entry is in its file, the checkpoint does not know yet.
    bench.clock.advance(1000);
    for _ in 0..500 {
        append(&mut store, "t", 0, b"", "k");
    }
    store.tick().unwrap();
    drop(store);
    bench.disk.kill();
    bench.disk.flip_bit(&bench.log_file(0), damaged.position + 95, 1);
    let mut store = bench.open();
    assert_eq!(body(&mut store, "t", 0, 1), None);
    assert_eq!(body(&mut store, "t", 1, 1).unwrap(), b"c");
    assert_eq!(append(&mut store, "t", 0, b"new", "k").queue_offset, 502);
}

#[test]
fn lost_consume_queues_are_rebuilt_from_the_log() {
    for clean in [true, false] {
        let bench = filled();
        if !clean {
            drop(bench.open());
            bench.disk.kill();
        }
        bench.disk.remove_tree("/store/consumequeue".as_ref()).unwrap();
        let mut store = bench.open();
        all_thirty_are_there(&mut store);
        store.close().unwrap();
        all_thirty_are_there(&mut bench.open());
    }
}

// Claim: a log that has a record for a queue that cannot be opens again, without such a queue.
#[test]
fn a_record_of_a_topic_that_cannot_be_has_no_queue() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    append(&mut store, "t", 0, b"one", "k");
    for topic in ["..", "a/b", &"x".repeat(300)] {
        append(&mut store, topic, 0, b"nowhere", "k");
    }
    append(&mut store, "t", 0, b"two", "k");
    drop(store);
    let mut store = bench.open();
    assert_eq!(store.topics(), [("t".to_owned(), vec![0])]);
    assert_eq!(body(&mut store, "t", 0, 1).unwrap(), b"two");
}

#[test]
fn a_lost_index_is_rebuilt_from_the_log() {
    for clean in [true, false] {
        let bench = filled();
        if !clean {
            drop(bench.open());
            bench.disk.kill();
        }
        bench.disk.remove_tree("/store/index".as_ref()).unwrap();
        let mut store = bench.open();
        all_thirty_are_there(&mut store);
        store.close().unwrap();
        all_thirty_are_there(&mut bench.open());
    }
}

/// A filled store, where its records lie and since when; not `clean`, it was killed with messages behind those the checkpoint vouches for.
fn indexed(clean: bool) -> (Bench, Vec<(u64, i64)>) {
    let bench = filled();
    let mut store = bench.open();
    let record = |n: u32| (entry(&mut store, "t", n % 2, i64::from(n / 2)).unwrap().position, n);
    let records = (0..30).map(record).map(|(position, n)| (position, START_MS + i64::from(n + 1) * 1000)).collect();
    for n in 0..5 {
        append(&mut store, "later", 0, b"later", &format!("later{n}"));
    }
    if clean {
        store.close().unwrap();
    } else {
        bench.clock.advance(2000);
        store.tick().unwrap();
        drop(store);
        bench.disk.kill();
    }
    (bench, records)
}

fn index_file(bench: &Bench) -> std::path::PathBuf {
    let root = std::path::Path::new("/store/index");
    root.join(&bench.disk.list(root).unwrap()[0].name)
}

/// Keys whose record the index does not name, asked for the time when it was stored.
fn keys_without_answer(store: &mut Store, records: &[(u64, i64)]) -> Vec<String> {
    let mut lost = Vec::new();
    for (n, (position, time)) in records.iter().enumerate() {
        for key in [format!("U-k{n}"), format!("k{n}"), format!("other-k{n}")] {
            if !store.search_index("t", &key, "", 64, time - 1000, time + 1000).positions.contains(position) {
                lost.push(key);
            }
        }
    }
    lost
}

#[test]
fn a_flipped_bit_in_the_index_costs_at_most_its_own_key_after_a_kill() {
    let first_entry = 40 + 500 * 4 + 20;
    let header = (0..40 * 8).step_by(3).map(|bit| (bit / 8, bit % 8));
    let entries = (0..125 * 20 * 8).step_by(67).map(|bit| (first_entry + bit / 8, bit % 8));
    for (at, bit) in header.chain(entries) {
        let (bench, records) = indexed(false);
        bench.disk.flip_bit(&index_file(&bench), at, bit as u8);
        let mut store = bench.open();
        let lost = keys_without_answer(&mut store, &records);
        assert!(lost.len() <= usize::from(at >= first_entry), "bit {bit} of byte {at}: {lost:?} {:?}", bench.lines);
        assert_eq!(append(&mut store, "t", 0, b"next", "next").queue_offset, 15);
        store.close().unwrap();
        let mut store = bench.open();
        assert!(bench.silent(), "bit {bit} of byte {at}: {:?}", bench.lines);
        assert_eq!(keys_without_answer(&mut store, &records), lost);
        assert_eq!(found_by_key(&mut store, "t", "next").len(), 1);
    }
}

#[test]
fn an_index_whose_header_is_damaged_is_made_again_after_a_clean_stop_too() {
    for bit in (0..40 * 8).step_by(3) {
        let (bench, records) = indexed(true);
        bench.disk.flip_bit(&index_file(&bench), bit / 8, (bit % 8) as u8);
        let mut store = bench.open();
        assert_eq!(keys_without_answer(&mut store, &records), [""; 0], "bit {bit}: {:?}", bench.lines);
        store.close().unwrap();
        let mut store = bench.open();
        assert!(bench.silent(), "bit {bit}: {:?}", bench.lines);
        assert_eq!(keys_without_answer(&mut store, &records), [""; 0]);
    }
}

#[test]
fn an_index_of_garbage_or_zeros_is_made_again_after_either_stop() {
    for (clean, garbage) in [(true, true), (true, false), (false, true), (false, false)] {
        let (bench, records) = indexed(clean);
        let path = index_file(&bench);
        let bytes = bench.disk.file_len(&path).unwrap() as u32;
        let noise = |n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
        let content: Vec<u8> = (0..bytes).map(|n| if garbage { noise(n) } else { 0 }).collect();
        bench.write(&path, 0, &content);
        let mut store = bench.open();
        assert_eq!(keys_without_answer(&mut store, &records), [""; 0], "{clean} {garbage}: {:?}", bench.lines);
        if garbage {
            let said = bench.lines.lock().unwrap().clone();
            assert!(said.len() == 1 && said[0].ends_with("is damaged: it is made again from the log"), "{said:?}");
        }
        store.close().unwrap();
        let mut store = bench.open();
        assert!(bench.silent(), "{:?}", bench.lines);
        assert_eq!(keys_without_answer(&mut store, &records), [""; 0]);
    }
}

// Claim: the files behind a damaged one go before it does, so that a start that is interrupted there leaves no gap unseen.
#[test]
fn an_index_file_is_made_again_also_after_a_start_that_was_interrupted() {
    for operations in (0..).step_by(2) {
        let mut bench = Bench::new(FlushMode::Async);
        bench.options.index_entries = 100;
        let mut store = bench.open();
        for n in 0..150 {
            append(&mut store, "t", 0, b"body", &format!("key{n}"));
            bench.clock.advance(1000);
        }
        store.close().unwrap();
        let dir = Path::new("/store/index");
        let mut names: Vec<String> = bench.disk.list(dir).unwrap().into_iter().map(|file| file.name).collect();
        names.sort();
        let second = dir.join(&names[1]);
        let zeros = vec![0; bench.disk.file_len(&second).unwrap() as usize];
        bench.write(&second, 0, &zeros);
        bench.disk.stop_after(operations);
        let interrupted = bench.try_open().is_err();
        bench.disk.kill();
        let mut store = bench.open();
        for n in 0..150 {
            let found = found_by_key(&mut store, "t", &format!("key{n}")).len();
            assert_eq!(found, 1, "key{n} after {operations} operations: {:?}", bench.lines);
        }
        if !interrupted {
            break;
        }
    }
}

#[test]
fn a_lost_checkpoint_costs_time_and_nothing_else() {
    for clean in [true, false] {
        let bench = filled();
        if !clean {
            drop(bench.open());
            bench.disk.kill();
        }
        bench.disk.remove_file("/store/checkpoint".as_ref()).unwrap();
        all_thirty_are_there(&mut bench.open());
    }
}

#[test]
fn half_made_files_get_their_size_back_and_foreign_ones_are_set_aside() {
    let bench = filled();
    let empty_log = bench.log_file(1);
    bench.write(&empty_log, 0, b"");
    bench.write("/store/commitlog/notes.txt".as_ref(), 0, b"hello");
    bench.write("/store/commitlog/00000000000000000017".as_ref(), 0, b"misplaced");
    bench.write(&bench.queue_file("t", 0, 1), 0, b"");
    bench.write("/store/consumequeue/t/0/readme".as_ref(), 0, b"hello");
    bench.write("/store/consumequeue/stray".as_ref(), 0, b"hello");
    bench.disk.create_dirs("/store/consumequeue/t/latest".as_ref()).unwrap();
    bench.write("/store/index/20200101000000000".as_ref(), 0, b"short");
    bench.write("/store/index/tmp".as_ref(), 0, b"short");
    let mut store = bench.open();
    all_thirty_are_there(&mut store);
    for part in ["size restored", "is no commit log file", "is no consume queue file", "is no directory of a topic"] {
        assert!(bench.said(part), "{part}: {:?}", bench.lines);
    }
    assert!(bench.said("is no directory of a queue") && bench.said("is no index file"));
    assert_eq!(bench.disk.read_file("/store/set-aside/commitlog-notes.txt".as_ref()).unwrap(), b"hello");
    store.close().unwrap();
    let mut store = bench.open();
    assert!(bench.silent(), "{:?}", bench.lines);
    all_thirty_are_there(&mut store);
}

#[test]
fn a_log_file_that_is_too_long_is_cut_to_its_size() {
    for (clean, newest, more) in [(true, true, 0u8), (false, true, 0), (true, false, 0), (false, true, 7)] {
        let bench = with_full_queues(clean);
        let number = (0..).find(|n| bench.disk.read_file(&bench.log_file(*n)).is_none()).unwrap();
        let path = bench.log_file(if newest { number - 1 } else { 2 });
        bench.write(&path, bench.options.log_file_bytes, &[more; 5]);
        let mut store = bench.open();
        assert!(bench.warned("has 16389 bytes where 16384 belong: the last 5 are cut off"), "{:?}", bench.lines);
        all_of_full_queues_are_there(&mut store, FULL);
        assert_eq!(bench.disk.read_file(&path).unwrap().len(), 16 << 10);
        let rest = format!("/store/set-aside/commitlog-{}.rest", path.file_name().unwrap().to_str().unwrap());
        assert_eq!(bench.disk.read_file(rest.as_ref()), (more != 0).then(|| vec![more; 5]));
        assert_eq!(append(&mut store, "t", 0, b"new", "k").queue_offset, FULL);
        store.close().unwrap();
        let _ = bench.open();
        assert!(bench.silent(), "{:?}", bench.lines);
    }
}

/// Messages in each of the two queues of [`with_full_queues`], whose files hold 50.
const FULL: i64 = 180;

/// A store with two queues of four files, all on the device.
fn with_full_queues(clean: bool) -> Bench {
    with_queues_of(FULL, clean)
}

fn with_queues_of(count: i64, clean: bool) -> Bench {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..count {
        for queue_id in 0..2 {
            append(&mut store, "t", queue_id, format!("body-{queue_id}-{n}").as_bytes(), "k");
        }
    }
    store.flush().unwrap();
    if clean {
        store.close().unwrap();
    } else {
        drop(store);
        bench.disk.kill();
    }
    bench
}

fn all_of_full_queues_are_there(store: &mut Store, count: i64) {
    for queue_id in 0..2 {
        assert_eq!(bounds(store, "t", queue_id), (0, count));
        for n in 0..count {
            let expected = format!("body-{queue_id}-{n}").into_bytes();
            assert_eq!(body(store, "t", queue_id, n), Some(expected), "message {n} of queue {queue_id}");
        }
    }
}

fn set_len(bench: &Bench, file: u64, bytes: u64) {
    bench.disk.open(&bench.queue_file("t", 0, file), Mode::Write).unwrap().set_len(bytes).unwrap();
}

fn remove(bench: &Bench, file: u64) {
    bench.disk.remove_file(&bench.queue_file("t", 0, file)).unwrap();
}

/// Bytes that are no entries, some of which look like some.
fn garbage(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

// Claim: what queue files lack comes back from the log, and the one line that says so is a warning.
#[test]
fn what_is_missing_in_queue_files_is_made_again_from_the_log() {
    type Damage = fn(&Bench);
    let damages: [(&str, Damage); 15] = [
        ("1000 is missing", |bench| remove(bench, 1)),
        ("2000 is missing", |bench| remove(bench, 2)),
        ("1000 is missing", |bench| [1, 2].iter().for_each(|file| remove(bench, *file))),
        ("1000 is missing", |bench| [1, 3].iter().for_each(|file| remove(bench, *file))),
        ("oldest files are missing", |bench| remove(bench, 0)),
        ("1000 is missing, or too short", |bench| set_len(bench, 1, 0)),
        ("1000 is missing, or too short", |bench| set_len(bench, 1, 555)),
        ("2000 is missing, or too short", |bench| set_len(bench, 2, 400)),
        ("0000 is missing, or too short", |bench| set_len(bench, 0, 500)),
        ("1111 bytes where 1000 belong", |bench| set_len(bench, 1, 1111)),
        ("no file follows the full 00000000000000002000", |bench| remove(bench, 3)),
        ("it has no files", |bench| (0..4).for_each(|file| remove(bench, file))),
        ("holds something else than entries", |bench| bench.write(&bench.queue_file("t", 0, 3), 0, &garbage(1000))),
        ("holds something else than entries", |bench| bench.write(&bench.queue_file("t", 0, 3), 0, &[0xFF; 1000])),
        ("holds something else than entries", |bench| bench.write(&bench.queue_file("t", 0, 3), 29 * 20, &[0x40])),
    ];
    for (number, (line, damage)) in damages.into_iter().enumerate() {
        for clean in [true, false] {
            let bench = with_full_queues(clean);
            damage(&bench);
            let mut store = bench.open();
            let case = format!("damage {number}, clean {clean}: {:?}", bench.lines);
            assert!(bench.warned(line) && bench.warnings.lock().unwrap().len() == 1, "{case}");
            all_of_full_queues_are_there(&mut store, FULL);
            assert_eq!(append(&mut store, "t", 0, b"new", "k").queue_offset, FULL, "{case}");
            store.close().unwrap();
            let mut store = bench.open();
            assert!(bench.silent(), "{case}, then {:?}", bench.lines);
            assert_eq!(body(&mut store, "t", 0, 99).unwrap(), b"body-0-99");
        }
    }
}

#[test]
fn a_queue_that_ends_with_a_full_file_lacks_nothing_unless_the_next_one_is_missing() {
    for clean in [true, false] {
        let bench = with_queues_of(100, clean);
        let mut store = bench.open();
        assert!(bench.silent(), "{:?}", bench.lines);
        all_of_full_queues_are_there(&mut store, 100);
        store.close().unwrap();
        // Apache's broker makes no file before there is an entry for it: that is seen once.
        remove(&bench, 2);
        let mut store = bench.open();
        assert!(bench.warned("no file follows the full"), "{:?}", bench.lines);
        all_of_full_queues_are_there(&mut store, 100);
        store.close().unwrap();
        let mut store = bench.open();
        assert!(bench.silent(), "{:?}", bench.lines);
        assert_eq!(append(&mut store, "t", 0, b"new", "k").queue_offset, 100);
    }
}

// Claim: what is left of a queue may be a file that has no entries yet.
#[test]
fn a_queue_of_which_only_the_last_and_empty_file_is_left_is_made_again_from_the_log() {
    for clean in [true, false] {
        let bench = with_queues_of(100, clean);
        [0, 1].iter().for_each(|file| remove(&bench, *file));
        let mut store = bench.open();
        assert!(bench.warned("oldest files are missing"), "{:?}", bench.lines);
        all_of_full_queues_are_there(&mut store, 100);
    }
}

// Claim: a queue whose first messages are lost has holes in their place, also after its file was cut, and units that it has stay.
#[test]
fn a_queue_that_begins_late_is_whole_again_after_its_file_was_cut() {
    for bytes in [0, 15, 20, 30, 15 * 20] {
        let bench = with_queues_of(30, true);
        bench.write(&bench.log_file(0), 0, &[0; 2000]);
        bench.disk.remove_tree("/store/consumequeue".as_ref()).unwrap();
        let mut store = bench.open();
        let (min, _) = bounds(&store, "t", 0);
        assert!((3..15).contains(&min), "{min}");
        store.close().unwrap();
        set_len(&bench, 0, bytes);
        let mut store = bench.open();
        assert!(bench.warned("size restored"), "cut to {bytes}: {:?}", bench.lines);
        store.flush().unwrap();
        drop(store);
        bench.disk.kill();
        let mut store = bench.open();
        assert!(bench.silent(), "cut to {bytes}: {:?}", bench.lines);
        assert_eq!(bounds(&store, "t", 0), (min, 30), "cut to {bytes}");
        for n in min..30 {
            assert_eq!(body(&mut store, "t", 0, n).unwrap(), format!("body-0-{n}").as_bytes());
        }
    }
}

/// Entries of all index files, by what their heads say.
fn index_entries(bench: &Bench) -> u32 {
    let dir = Path::new("/store/index");
    let files = bench.disk.list(dir).unwrap();
    let count = |name: &str| {
        let bytes = bench.disk.read_file(&dir.join(name)).unwrap();
        u32::from_be_bytes(bytes[36..40].try_into().unwrap()) - 1
    };
    files.iter().map(|file| count(&file.name)).sum()
}

// Claim: a queue that ends before the rest of the store is noticed by its next record, and nothing is lost or counted twice.
#[test]
fn a_queue_that_lags_is_made_again_from_its_newest_entry() {
    let keys = [false, true].map(|lags| {
        let bench = with_full_queues(false);
        let mut store = bench.open();
        for (n, key) in [(FULL, "later"), (FULL + 1, "latest")] {
            for queue_id in [1, 0] {
                let body = format!("body-{queue_id}-{n}").into_bytes();
                append(&mut store, "t", queue_id, &body, &format!("{key}{queue_id}"));
            }
        }
        drop(store);
        bench.disk.kill();
        if lags {
            bench.write(&bench.queue_file("t", 0, 3), 0, &[0; 1000]);
        }
        let mut store = bench.open();
        assert_eq!(bench.warned("consume queue t/0 ends at 150, the log goes on at 1"), lags, "{:?}", bench.lines);
        all_of_full_queues_are_there(&mut store, FULL + 2);
        for key in ["later0", "later1", "latest0", "latest1"] {
            assert_eq!(found_by_key(&mut store, "t", key).len(), 1, "{key}");
        }
        store.close().unwrap();
        let keys = index_entries(&bench);
        let _ = bench.open();
        assert!(bench.silent(), "{:?}", bench.lines);
        keys
    });
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn a_deleted_topic_does_not_come_back_because_another_lacks_a_file() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..120 {
        append(&mut store, "t", 0, &[n], "k");
        append(&mut store, "gone", 0, &[n], "k");
    }
    store.delete_topic("gone").unwrap();
    store.close().unwrap();
    remove(&bench, 1);
    let mut store = bench.open();
    assert_eq!(body(&mut store, "t", 0, 77).unwrap(), [77]);
    assert_eq!(store.topics(), [("t".to_owned(), vec![0])]);
}

#[test]
fn files_that_an_interrupted_deletion_has_left_are_no_hole() {
    let bench = with_full_queues(true);
    let mut store = bench.open();
    let _ =
        store.delete_files(DeletePolicy { before_ms: i64::MAX, consumed_position: u64::MAX, files_max: 2 }).unwrap();
    let min = bounds(&store, "t", 0).0;
    assert!((100..150).contains(&min), "{min}");
    store.close().unwrap();
    // Names that were removed may be there again after a power cut.
    bench.write(
        &bench.queue_file("t", 0, 0),
        0,
        &[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 0].repeat(50),
    );
    let mut store = bench.open();
    assert!(bench.silent(), "{:?}", bench.lines);
    assert_eq!(bounds(&store, "t", 0), (min, FULL));
    assert_eq!(body(&mut store, "t", 0, min).unwrap(), format!("body-0-{min}").as_bytes());
}

#[test]
fn entries_of_a_lost_newest_log_file_are_said_to_be_cut() {
    for clean in [true, false] {
        let bench = with_full_queues(clean);
        let newest = (0..).take_while(|n| bench.disk.read_file(&bench.log_file(*n)).is_some()).last().unwrap();
        bench.disk.remove_file(&bench.log_file(newest)).unwrap();
        let store = bench.open();
        let gone = FULL - bounds(&store, "t", 0).1;
        assert!(gone > 0 && bench.warned(&format!("consume queue t/0: {gone} entries beyond")), "{:?}", bench.lines);
    }
}

// Claim: readers get past what is lost in a queue while it is open, and it is said once a minute.
#[test]
fn readers_do_not_stand_still_where_a_queue_leads_nowhere() {
    type Damage = fn(&Bench);
    let damages: [(&str, i64, Damage); 4] = [
        ("1000 is missing or too short", 100, |bench| remove(bench, 1)),
        ("1000 is missing or too short", 100, |bench| set_len(bench, 1, 0)),
        ("what is at offset 50 is no entry", 100, |bench| bench.write(&bench.queue_file("t", 0, 1), 0, &[0; 1000])),
        ("where an entry leads", 51, |bench| bench.write(&bench.queue_file("t", 0, 1), 6, &[0x77])),
    ];
    for (line, behind, damage) in damages {
        let bench = with_full_queues(true);
        let mut store = bench.open();
        damage(&bench);
        let queue = store.find_queue("t", 0);
        let limits = Limits {
            count_max: 32,
            bytes_max: 1 << 20,
            old_count_max: 32,
            old_bytes_max: 1 << 20,
            recent_bytes: 1 << 30,
            filter_entries_max: 800,
        };
        let read_all = |store: &mut Store| {
            let (mut offset, mut read) = (0, 0);
            while offset < FULL {
                let mut out = Vec::new();
                let found = Reader::new(50).read(store, queue, offset, &limits, &Filter::All, 0, &mut out).unwrap();
                assert!(found.next_offset > offset, "{line}: stands still at {offset}");
                (offset, read) = (found.next_offset, read + i64::from(found.count));
            }
            read
        };
        assert_eq!(read_all(&mut store), FULL - (behind - 50), "{line}");
        let notices = store.notices();
        assert!(notices.len() == 1 && notices[0].contains(line) && notices[0].contains("t/0"), "{notices:?}");
        read_all(&mut store);
        assert_eq!(store.notices(), Vec::<String>::new());
        bench.clock.advance(60_000);
        read_all(&mut store);
        let notices = store.notices();
        assert!(notices.len() == 1 && notices[0].contains("more such reads since"), "{notices:?}");
    }
}

#[test]
fn an_empty_queue_file_alone_does_not_stop_the_start() {
    let bench = filled();
    let file = bench.disk.open(&bench.queue_file("t", 0, 0), Mode::Write).unwrap();
    file.set_len(0).unwrap();
    all_thirty_are_there(&mut bench.open());
}

/// A store with a message in each of 1,200 queues, enough for a clean stop to leave their bounds.
fn with_many_queues() -> Bench {
    let mut bench = Bench::new(FlushMode::Async);
    bench.options.index_enable = false;
    let mut store = bench.open();
    for n in 0..1200 {
        stage(&mut store, &format!("t{}", n / 12), n % 12, format!("body-{n}").as_bytes(), "k").unwrap();
    }
    store.commit().unwrap();
    store.close().unwrap();
    bench
}

fn all_many_are_there(store: &mut Store) {
    for n in 0..1200 {
        let topic = format!("t{}", n / 12);
        assert_eq!(bounds(store, &topic, n % 12), (0, 1), "queue {n}");
        assert_eq!(body(store, &topic, n % 12, 0).as_deref(), Some(format!("body-{n}").as_bytes()), "queue {n}");
    }
}

#[test]
fn many_queues_begin_with_the_bounds_that_a_clean_stop_left() {
    let bench = with_many_queues();
    let snapshot = Path::new("/store/queues.snapshot");
    assert!(bench.disk.exists(snapshot));
    // Not looked into: an entry that does not count would not be noticed.
    bench.write(&bench.queue_file("t7", 7, 0), 20, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut store = bench.open();
    assert!(bench.silent() && !bench.disk.exists(snapshot), "{:?}", bench.lines);
    all_many_are_there(&mut store);
    append(&mut store, "t7", 7, b"next", "n");
    bench.disk.kill();
    drop(store);
    let mut store = bench.open();
    assert_eq!(bounds(&store, "t7", 7), (0, 2));
    assert_eq!(body(&mut store, "t7", 7, 1).as_deref(), Some(&b"next"[..]));
}

#[test]
fn somebody_may_have_begun_to_look_at_the_queues() {
    let bench = with_many_queues();
    let disk = || Arc::new(bench.disk.clone());
    let root = Path::new("/store");
    let open = |look| {
        Store::open_looked_at(bench.options.clone(), Some(look), disk(), bench.clock.clone(), &|_, _| ()).unwrap()
    };
    let mut store = open(Look::begin(disk(), root, bench.options.queue_file_units));
    all_many_are_there(&mut store);
    store.close().unwrap();
    // At other sizes than the store has, at another store.
    let mut store = open(Look::begin(disk(), root, 7));
    all_many_are_there(&mut store);
    store.close().unwrap();
    let mut store = open(Look::begin(disk(), Path::new("/other"), bench.options.queue_file_units));
    all_many_are_there(&mut store);
    store.close().unwrap();
    // At a store that somebody else has opened and changed since.
    let look = Look::begin(disk(), root, bench.options.queue_file_units);
    let mut store = bench.open();
    append(&mut store, "t7", 7, b"next", "n");
    store.close().unwrap();
    let mut store = open(look);
    assert_eq!(bounds(&store, "t7", 7), (0, 2));
    assert_eq!(body(&mut store, "t7", 7, 1).as_deref(), Some(&b"next"[..]));
}

#[test]
fn bounds_that_a_clean_stop_left_are_not_believed_beside_other_files() {
    type Damage = fn(&Bench);
    let damages: [Damage; 4] = [
        |bench| bench.disk.open(&bench.queue_file("t50", 3, 0), Mode::Write).unwrap().set_len(30).unwrap(),
        |bench| bench.disk.open(&bench.queue_file("t99", 11, 0), Mode::Write).unwrap().set_len(0).unwrap(),
        |bench| bench.write("/store/queues.snapshot".as_ref(), 100, b"?"),
        |bench| bench.disk.create_dirs("/store/consumequeue/other".as_ref()).unwrap(),
    ];
    for damage in damages {
        let bench = with_many_queues();
        damage(&bench);
        let mut store = bench.open();
        all_many_are_there(&mut store);
        assert_eq!(bounds(&store, "t100", 0), (0, 0));
    }
}

#[test]
fn bounds_that_a_clean_stop_left_are_not_believed_beside_a_hole() {
    type Damage = fn(&Bench);
    let damages: [Damage; 2] = [|bench| remove(bench, 1), |bench| set_len(bench, 0, 555)];
    for damage in damages {
        let bench = with_many_queues();
        let mut store = bench.open();
        for n in 0..FULL {
            append(&mut store, "t", 0, format!("body-{n}").as_bytes(), "k");
        }
        store.close().unwrap();
        assert!(bench.disk.exists("/store/queues.snapshot".as_ref()));
        damage(&bench);
        let mut store = bench.open();
        assert!(bench.warned("is missing, or too short"), "{:?}", bench.lines);
        assert_eq!(bounds(&store, "t", 0), (0, FULL));
        for n in 0..FULL {
            assert_eq!(body(&mut store, "t", 0, n), Some(format!("body-{n}").into_bytes()));
        }
    }
}

#[test]
fn one_cut_queue_file_does_not_change_what_all_hold() {
    let bench = with_full_queues(true);
    set_len(&bench, 0, 500);
    all_of_full_queues_are_there(&mut bench.open(), FULL);
    assert!(!bench.said("keeping"), "{:?}", bench.lines);
}

#[test]
fn a_store_made_with_other_file_sizes_keeps_them() {
    let mut bench = filled();
    bench.options.log_file_bytes = 64 << 10;
    bench.options.queue_file_units = 300;
    let mut store = bench.open();
    assert!(bench.said("keeping 16384") && bench.said("keeping 50"), "{:?}", bench.lines);
    all_thirty_are_there(&mut store);
    for n in 0..200 {
        append(&mut store, "t", 0, &[n; 300], "k");
    }
    store.close().unwrap();
    assert_eq!(bench.disk.read_file(&bench.log_file(0)).unwrap().len(), 16 << 10);
    assert_eq!(bounds(&bench.open(), "t", 0), (0, 215));
}

#[test]
fn a_stale_tail_behind_a_clean_end_is_not_revived() {
    // Apache does not clear what it cuts: an older record may lie behind the end, whole and in its own place.
    let bench = filled();
    let donor = filled();
    let mut store = donor.open();
    for n in 0..3 {
        append(&mut store, "t", 0, &[n; 50], "stale");
    }
    store.close().unwrap();
    let end = { bench.open().stats().max_position } as usize;
    bench.disk.kill();
    bench.disk.remove_file("/store/abort".as_ref()).unwrap();
    let stale = donor.disk.read_file(&donor.log_file(0)).unwrap();
    bench.write(&bench.log_file(0), end as u64 + 40, &stale[end + 40..]);
    let mut store = bench.open();
    assert_eq!(store.stats().max_position, end as u64);
    all_thirty_are_there(&mut store);
    assert_eq!(found_by_key(&mut store, "t", "stale"), []);
}

#[test]
fn missing_newest_log_files_take_their_queue_and_index_entries_with_them() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let mut staged = Vec::new();
    for n in 0..60 {
        staged.push(append(&mut store, "t", 0, &[1; 600], &format!("k{n}")));
    }
    store.close().unwrap();
    let last = staged.last().unwrap().position / (16 << 10);
    assert!(last >= 2);
    bench.disk.remove_file(&bench.log_file(last)).unwrap();
    let left = staged.iter().filter(|s| s.position < last * (16 << 10)).count();
    let mut store = bench.open();
    assert_eq!(bounds(&store, "t", 0), (0, left as i64));
    assert_eq!(found_by_key(&mut store, "t", &format!("k{}", left - 1)).len(), 1);
    assert_eq!(found_by_key(&mut store, "t", &format!("k{left}")).len(), 0);
    assert_eq!(append(&mut store, "t", 0, b"new", "new").queue_offset, left as i64);
    store.close().unwrap();
    let mut store = bench.open();
    assert_eq!(body(&mut store, "t", 0, left as i64).unwrap(), b"new");
    assert_eq!(bounds(&store, "t", 0), (0, left as i64 + 1));
}

#[test]
fn an_index_damaged_as_well_is_made_again_when_the_newest_log_file_is_missing() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let staged: Vec<_> = (0..60).map(|n| append(&mut store, "t", 0, &[1; 600], &format!("k{n}"))).collect();
    store.close().unwrap();
    let last = staged[59].position / (16 << 10);
    bench.disk.remove_file(&bench.log_file(last)).unwrap();
    bench.disk.flip_bit(&index_file(&bench), 40 + 500 * 4 + 50 * 20 + 4, 7);
    let records = staged.iter().map(|s| (s.position, s.store_timestamp));
    let left: Vec<(u64, i64)> = records.filter(|(position, _)| *position < last * (16 << 10)).collect();
    for _ in 0..2 {
        let mut store = bench.open();
        assert_eq!(keys_without_answer(&mut store, &left), [""; 0], "{:?}", bench.lines);
        assert_eq!(found_by_key(&mut store, "t", &format!("k{}", left.len())), []);
        assert_eq!(bounds(&store, "t", 0), (0, left.len() as i64));
        store.close().unwrap();
    }
}

#[test]
fn a_delayed_message_gets_its_delivery_time_back_when_its_queue_is_rebuilt() {
    let bench = Bench::new(FlushMode::Async);
    let mut store = bench.open();
    let queue = store.queue("SCHEDULE_TOPIC_XXXX", 2);
    let record = NewRecord {
        topic: "SCHEDULE_TOPIC_XXXX",
        queue_id: 2,
        flag: 0,
        sys_flag: 0,
        born_timestamp: 0,
        born_host: "1.1.1.1:1".parse().unwrap(),
        reconsume_times: 0,
        prepared_offset: 0,
        body: b"later",
        properties: b"DELAY\x013\x02TAGS\x01x",
        tags_code: Some(START_MS + 10_000),
        known: None,
    };
    store.stage(queue, &record).unwrap();
    store.commit().unwrap();
    for _ in 0..2 {
        assert_eq!(entry(&mut store, "SCHEDULE_TOPIC_XXXX", 2, 0).unwrap().tags_code, START_MS + 10_000);
        drop(store);
        bench.disk.kill();
        let _ = bench.disk.remove_tree("/store/consumequeue".as_ref());
        store = bench.open();
    }
}

// ------------------------------------------------------------------------------------------------------------- crashes

/// What the sender was told is stored.
struct Acknowledged {
    staged: Staged,
    topic: String,
    queue_id: u32,
    body: Vec<u8>,
    key: String,
}

/// Lives through several crashes by one seed and checks after each that what was acknowledged is there, with its queue
/// entry and its index entries, and that every queue is whole.
fn live_through_crashes(seed: u64, flush_mode: FlushMode) {
    let random = &mut Random(seed);
    let bench = Bench::new(flush_mode);
    let mut acknowledged: Vec<Acknowledged> = Vec::new();
    let mut counter = 0;
    for life in 0..4 {
        let mut written: Vec<Acknowledged> = Vec::new();
        let mut store = bench.open();
        check(&mut store, &acknowledged, seed, life);
        if random.below(3) == 0 {
            bench.disk.stop_after(random.below(60));
        }
        'life: for _ in 0..random.below(40) {
            let mut chunk = Vec::new();
            for _ in 0..1 + random.below(8) {
                counter += 1;
                let topic = format!("topic-{}", random.below(3));
                let queue_id = random.below(2) as u32;
                let body = vec![counter as u8; random.below(1200) as usize];
                let key = format!("key-{counter}");
                match stage(&mut store, &topic, queue_id, &body, &key) {
                    Ok(staged) => chunk.push(Acknowledged { staged, topic, queue_id, body, key }),
                    Err(_) => break 'life,
                }
            }
            if store.commit().is_err() {
                break;
            }
            written.extend(chunk);
            bench.clock.advance(random.below(2500) as i64);
            if random.below(2) == 0 && store.tick().is_err() {
                break;
            }
            if random.below(15) == 0 && store.flush().is_err() {
                break;
            }
        }
        let killed = random.below(3) == 0;
        let closed = random.below(5) == 0 && store.close().is_ok();
        let safe = if killed || closed { store.stats().max_position } else { store.stats().flushed_position };
        drop(store);
        if killed {
            bench.disk.kill();
        } else {
            bench.disk.power_cut(random.next_u64());
        }
        acknowledged.extend(written.into_iter().filter(|a| a.staged.position < safe));
    }
    check(&mut bench.open(), &acknowledged, seed, 99);
}

fn check(store: &mut Store, acknowledged: &[Acknowledged], seed: u64, life: u32) {
    for a in acknowledged {
        let about = || format!("seed {seed} life {life}: {} {}/{} {:?}", a.key, a.topic, a.queue_id, a.staged);
        let entry = entry(store, &a.topic, a.queue_id, a.staged.queue_offset);
        let entry = entry.unwrap_or_else(|| panic!("no queue entry: {}", about()));
        assert_eq!((entry.position, entry.size), (a.staged.position, a.staged.size), "{}", about());
        assert_eq!(body(store, &a.topic, a.queue_id, a.staged.queue_offset).as_ref(), Some(&a.body), "{}", about());
        for key in [a.key.clone(), format!("U-{}", a.key), format!("other-{}", a.key)] {
            assert_eq!(found_by_key(store, &a.topic, &key), [a.staged.position], "{key}: {}", about());
        }
    }
    // Every visible offset is a message of that queue or a hole, in the order of the log, and no message is there twice.
    let mut seen: HashMap<u64, String> = HashMap::new();
    for (topic, queues) in store.topics() {
        for queue_id in queues {
            let (min, max) = bounds(store, &topic, queue_id);
            let mut newest = None;
            for offset in min..max {
                let entry = entry(store, &topic, queue_id, offset).unwrap();
                if body(store, &topic, queue_id, offset).is_none() {
                    continue;
                }
                assert!(
                    newest < Some(entry.position),
                    "seed {seed} life {life}: {topic}/{queue_id} {offset} goes back"
                );
                newest = Some(entry.position);
                let place = format!("{topic}/{queue_id}/{offset}");
                assert_eq!(seen.insert(entry.position, place), None, "seed {seed} life {life}");
            }
        }
    }
}

#[test]
fn acknowledged_messages_survive_every_crash_with_synchronous_flush() {
    for seed in seeds(0, 60) {
        live_through_crashes(seed, FlushMode::Sync);
    }
}

#[test]
fn flushed_messages_survive_power_cuts_and_written_ones_kills_with_asynchronous_flush() {
    for seed in seeds(1_000_000, 60) {
        live_through_crashes(seed, FlushMode::Async);
    }
}
