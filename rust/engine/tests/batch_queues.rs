//! Batch queues: one record with several offsets, through restarts, kills, damage and cleaning.

mod common;

use std::path::PathBuf;

use aerobee_engine::batch_queue::{BatchEntry, INNER_BATCH, NEED_UNWRAP};
use aerobee_engine::clock::SystemClock;
use aerobee_engine::disk::{Disk, Mode, Random};
use aerobee_engine::error::Error;
use aerobee_engine::property::find;
use aerobee_engine::pull::Status;
use aerobee_engine::record::{NewRecord, RecordView};
use aerobee_engine::session::Engine;
use aerobee_engine::store::{DeletePolicy, FlushMode, Staged, Store};
use aerobee_engine::tables::{Filter, Settings};
use common::{append, body, bounds, Bench, START_MS};

const FILE_UNITS: u64 = 20;

fn bench(flush_mode: FlushMode) -> Bench {
    let mut bench = Bench::new(flush_mode);
    bench.options.batch_file_units = FILE_UNITS;
    bench.options.batch_topics = vec!["b".into()];
    bench
}

fn batch_file(number: u64) -> PathBuf {
    PathBuf::from(format!("/store/batchconsumequeue/b/0/{:020}", number * FILE_UNITS * 46))
}

/// A batch of `count` messages, or with 1 a message that is none.
fn stage(store: &mut Store, count: u16, tag: &str, body: &[u8]) -> Result<Staged, Error> {
    match count {
        1 => stage_as(store, 0, "", tag, body),
        count => {
            let number = format!("INNER_NUM\u{1}{count}\u{2}INNER_BASE\u{1}9999\u{2}");
            stage_as(store, INNER_BATCH | NEED_UNWRAP, &number, tag, body)
        }
    }
}

fn stage_as(store: &mut Store, sys_flag: i32, number: &str, tag: &str, body: &[u8]) -> Result<Staged, Error> {
    let properties = format!("{number}KEYS\u{1}k\u{2}TAGS\u{1}{tag}\u{2}");
    let queue = store.queue("b", 0);
    let record = NewRecord {
        topic: "b",
        queue_id: 0,
        flag: 0,
        sys_flag,
        born_timestamp: 1,
        born_host: "10.1.2.3:4567".parse().unwrap(),
        reconsume_times: 0,
        prepared_offset: 0,
        body,
        properties: properties.as_bytes(),
        tags_code: None,
        known: None,
    };
    store.stage(queue, &record)
}

fn send(store: &mut Store, count: u16, body: &[u8]) -> Staged {
    let staged = stage(store, count, "TagA", body).unwrap();
    store.commit().unwrap();
    staged
}

/// First offset, messages and body of every batch, each checked against its record.
fn all(store: &mut Store) -> Vec<(i64, u16, String)> {
    let (low, high) = bounds(store, "b", 0);
    let mut found = Vec::new();
    let mut at = low;
    while at < high {
        let queue = store.find_queue("b", 0).unwrap();
        let mut batches = Vec::new();
        store.batches(queue, at, 7, &mut batches);
        assert!(!batches.is_empty(), "{at} of {low}..{high}");
        for batch in batches {
            assert!(batch.base >= at);
            at = batch.end();
            let Some(body) = body_of(store, &batch) else { continue };
            found.push((batch.base, batch.count, body));
        }
    }
    assert_eq!(at, high.max(low));
    found
}

fn body_of(store: &mut Store, batch: &BatchEntry) -> Option<String> {
    let mut bytes = Vec::new();
    if !store.copy_record(batch.position, batch.size, &mut bytes) {
        return None;
    }
    let view = RecordView::parse(&bytes).filter(RecordView::is_intact)?;
    let property = |name: &[u8]| find(view.properties, name).map(|v| String::from_utf8(v.to_vec()).unwrap());
    assert_eq!(view.queue_offset, batch.base);
    assert_eq!(view.store_timestamp, batch.store_timestamp);
    let base = (batch.count > 1).then(|| batch.base.to_string());
    assert_eq!(property(b"INNER_BASE"), base);
    Some(String::from_utf8(view.body.to_vec()).unwrap())
}

fn fill(bench: &Bench, store: &mut Store, rounds: u32) -> Vec<(i64, u16, String)> {
    let mut expected = Vec::new();
    let mut base = bounds(store, "b", 0).1;
    for n in 0..rounds {
        bench.clock.advance(1000);
        let count = [3, 1, 7][n as usize % 3];
        assert_eq!(send(store, count, format!("{base}").as_bytes()).queue_offset, base);
        expected.push((base, count, format!("{base}")));
        base += i64::from(count);
    }
    expected
}

#[test]
fn offsets_count_messages_and_files_count_batches() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    let mut expected = fill(&bench, &mut store, 50);
    assert_eq!(bounds(&store, "b", 0), (0, 180));
    assert_eq!(all(&mut store), expected);
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(all(&mut store), expected);
    store.close().unwrap();
    assert!(bench.disk.exists(&batch_file(2)) && !bench.disk.exists("/store/consumequeue/b".as_ref()));
    let file = bench.disk.read_file(&batch_file(0)).unwrap();
    assert_eq!(file.len() as u64, FILE_UNITS * 46);
    assert_eq!(file[46 + 28..46 + 38], [0, 0, 0, 0, 0, 0, 0, 3, 0, 1], "the second unit: offset 3, one message");
    let mut store = bench.open();
    assert!(bench.silent(), "{:?}", bench.lines);
    assert_eq!(all(&mut store), expected);
    expected.extend(fill(&bench, &mut store, 30));
    assert_eq!(all(&mut store), expected);
    assert_eq!(store.search_index("b", "k", "", 100, 0, i64::MAX).positions.len(), 80);
}

#[test]
fn a_topic_found_on_the_disk_is_what_it_was() {
    let mut bench = bench(FlushMode::Async);
    let mut store = bench.open();
    let expected = fill(&bench, &mut store, 5);
    store.close().unwrap();
    bench.options.batch_topics.clear();
    let mut store = bench.open();
    assert_eq!(all(&mut store), expected);
    drop(store);
    // Apache's broker would not start: the topic's other queues are not what its configuration says.
    bench.options.batch_topics = vec!["b".into()];
    bench.disk.remove_tree("/store/batchconsumequeue".as_ref()).unwrap();
    bench.disk.create_dirs("/store/consumequeue/b/0".as_ref()).unwrap();
    let mut store = bench.open();
    assert!(bench.said("belongs to a topic with batch queues: moved to"));
    assert_eq!(all(&mut store), expected);
}

#[test]
fn impossible_batches_are_refused_and_discarded_ones_leave_nothing() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    stage(&mut store, 4, "TagA", b"never").unwrap();
    store.discard();
    assert_eq!(send(&mut store, 2, b"0").queue_offset, 0);
    assert!(matches!(stage(&mut store, 0, "TagA", b"x"), Err(Error::BadRecord(_))));
    assert!(matches!(stage(&mut store, 40_000, "TagA", b"x"), Err(Error::BadRecord(_))));
    assert_eq!(bounds(&store, "b", 0), (0, 2));
}

#[test]
fn a_message_that_calls_itself_a_batch_takes_one_offset_also_after_a_kill() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    let batches = |store: &mut Store| {
        let (queue, mut found) = (store.find_queue("b", 0).unwrap(), Vec::new());
        store.batches(queue, 0, 20, &mut found);
        found.iter().map(|batch| (batch.base, batch.count)).collect::<Vec<_>>()
    };
    send(&mut store, 3, b"0");
    for body in ["3", "4"] {
        stage_as(&mut store, 0, "INNER_NUM\u{1}5\u{2}INNER_BASE\u{1}0\u{2}", "A", body.as_bytes()).unwrap();
        store.commit().unwrap();
    }
    send(&mut store, 2, b"5");
    assert_eq!(batches(&mut store), [(0, 3), (3, 1), (4, 1), (5, 2)]);
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(bounds(&store, "b", 0), (0, 7));
    assert_eq!(batches(&mut store), [(0, 3), (3, 1), (4, 1), (5, 2)]);
}

#[test]
fn with_synchronous_flush_a_batch_is_visible_only_once_flushed() {
    let bench = bench(FlushMode::Sync);
    let mut store = bench.open();
    send(&mut store, 5, b"0");
    assert_eq!(bounds(&store, "b", 0), (0, 0));
    store.tick().unwrap();
    store.settle();
    assert_eq!(bounds(&store, "b", 0), (0, 5));
    assert_eq!(all(&mut store).len(), 1);
}

#[test]
fn pulls_give_whole_batches_and_count_messages() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    for (count, tag) in [(10, "A"), (10, "B"), (10, "A"), (40, "A"), (1, "A")] {
        let base = bounds(&store, "b", 0).1;
        stage(&mut store, count, tag, base.to_string().as_bytes()).unwrap();
        store.commit().unwrap();
    }
    let mut engine = Engine::new(store, std::sync::Arc::new(SystemClock), Settings::default());
    let mut read = |offset: i64, count: u32, filter: &Filter| {
        let mut bytes = Vec::new();
        let found = engine.read("b", 0, offset, count, 1 << 20, filter, &mut bytes).unwrap();
        let mut bodies = Vec::new();
        let mut rest = &bytes[..];
        while let Some(view) = RecordView::parse(rest) {
            bodies.push(String::from_utf8(view.body.to_vec()).unwrap());
            rest = &rest[view.raw.len()..];
        }
        (bodies.join(" "), found.count, found.next_offset, found.status)
    };
    assert_eq!(read(0, 32, &Filter::All), ("0 10 20".into(), 30, 30, Status::Found));
    assert_eq!(read(4, 1, &Filter::All), ("0".into(), 10, 10, Status::Found), "the batch that has the offset");
    assert_eq!(read(30, 32, &Filter::All), ("30".into(), 40, 70, Status::Found), "at least one");
    assert_eq!(read(0, 32, &Filter::tags("A")), ("0 20".into(), 20, 30, Status::Found));
    assert_eq!(read(0, 32, &Filter::tags("C")), ("".into(), 0, 71, Status::NoMatchedMessage));
    assert_eq!(read(71, 32, &Filter::All).3, Status::OffsetOverflowOne);
    let sql = engine.program("TAGS = 'B'").unwrap();
    let found = engine.read("b", 0, 0, 100, 1 << 20, &sql, &mut Vec::new()).unwrap();
    assert_eq!((found.count, found.next_offset), (10, 71));
}

#[test]
fn offsets_are_found_by_time() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    fill(&bench, &mut store, 45);
    store.flush().unwrap();
    fill(&bench, &mut store, 5);
    let queue = store.find_queue("b", 0).unwrap();
    let bases: Vec<i64> = all(&mut store).iter().map(|batch| batch.0).collect();
    for n in 0..50i64 {
        let time = START_MS + (n + 1) * 1000;
        assert_eq!(store.offset_by_time(queue, time, false), bases[n as usize]);
        assert_eq!(store.offset_by_time(queue, time - 1, false), bases[n as usize]);
        assert_eq!(store.offset_by_time(queue, time + 1, true), bases[n as usize]);
        assert_eq!(store.store_time(queue, bases[n as usize]), time);
    }
    assert_eq!(store.offset_by_time(queue, i64::MAX, false), bases[49], "the last batch, as Apache's broker says");
    assert_eq!(store.store_time(queue, bases[1] - 1), START_MS + 1000);
}

#[test]
fn cleaning_moves_the_front_and_keeps_the_end() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    for _ in 0..300 {
        bench.clock.advance(1000);
        send(&mut store, 4, &[b'7'; 600]);
    }
    store.flush().unwrap();
    let policy = DeletePolicy { before_ms: START_MS + 250_000, consumed_position: u64::MAX, files_max: 100 };
    let deleted = store.delete_files(policy).unwrap();
    assert!(deleted.log_files > 5 && deleted.queue_files > 5, "{deleted:?}");
    assert!(!bench.disk.exists(&batch_file(0)));
    for _ in 0..2 {
        let (low, high) = bounds(&store, "b", 0);
        assert!(low > 800 && low % 4 == 0 && high == 1200, "{low} {high}");
        assert_eq!(all(&mut store).len() as i64, (high - low) / 4);
        store.close().unwrap();
        store = bench.open();
        assert!(bench.silent(), "{:?}", bench.lines);
    }
    send(&mut store, 4, b"end");
    store.flush().unwrap();
    store.delete_files(DeletePolicy { before_ms: i64::MAX, ..policy }).unwrap();
    assert_eq!(bounds(&store, "b", 0).1, 1204);
    store.delete_topic("b").unwrap();
    assert!(!bench.disk.exists("/store/batchconsumequeue/b".as_ref()));
    assert_eq!(send(&mut store, 3, b"second life").queue_offset, 0);
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    assert_eq!(all(&mut store), [(0, 3, "second life".to_string())]);
}

#[test]
fn one_damaged_batch_costs_that_batch() {
    for (damaged, lost_queue) in [(3, true), (3, false), (19, true), (19, false)] {
        let bench = bench(FlushMode::Async);
        let mut store = bench.open();
        let mut staged = Vec::new();
        for n in 0..20 {
            staged.push(send(&mut store, 5, (n * 5).to_string().as_bytes()));
        }
        if !lost_queue {
            store.flush().unwrap();
        }
        drop(store);
        bench.disk.kill();
        bench.disk.flip_bit(&bench.log_file(0), staged[damaged].position + 88, 1);
        if lost_queue {
            let _ = bench.disk.remove_tree("/store/batchconsumequeue".as_ref());
        }
        let mut store = bench.open();
        let expected: Vec<_> =
            (0..20).filter(|n| *n != damaged).map(|n| (n as i64 * 5, 5, (n * 5).to_string())).collect();
        // Behind the last whole record the log ends.
        let end = if damaged == 19 { 95 } else { 100 };
        assert_eq!(bounds(&store, "b", 0), (0, end), "{damaged} {lost_queue}");
        assert_eq!(all(&mut store), expected, "{damaged} {lost_queue} {:?}", bench.lines);
        assert_eq!(send(&mut store, 2, b"next").queue_offset, end);
    }
}

#[test]
fn what_is_missing_in_the_files_of_a_batch_queue_is_made_again_from_the_log() {
    for clean in [true, false] {
        for (number, bytes) in (0..4).flat_map(|number| [(number, None), (number, Some(0)), (number, Some(100))]) {
            let bench = bench(FlushMode::Async);
            let mut store = bench.open();
            let sent = fill(&bench, &mut store, 70);
            store.flush().unwrap();
            if clean {
                store.close().unwrap();
            }
            drop(store);
            bench.disk.kill();
            let path = batch_file(number);
            match bytes {
                None => bench.disk.remove_file(&path).unwrap(),
                Some(bytes) => bench.disk.open(&path, Mode::Write).unwrap().set_len(bytes).unwrap(),
            }
            let mut store = bench.open();
            assert_eq!(all(&mut store), sent, "file {number}, bytes {bytes:?}, clean {clean}: {:?}", bench.lines);
            store.close().unwrap();
            let mut store = bench.open();
            assert_eq!(all(&mut store), sent);
            assert!(bench.silent(), "file {number}, bytes {bytes:?}, clean {clean}: {:?}", bench.lines);
        }
    }
}

#[test]
fn units_that_a_power_cut_took_from_the_middle_come_back() {
    for (from, to) in [(50, 60), (55, 57), (55, 60)] {
        let bench = bench(FlushMode::Async);
        let mut store = bench.open();
        let mut sent = fill(&bench, &mut store, 50);
        store.flush().unwrap();
        let checkpoint = bench.disk.read_file("/store/checkpoint".as_ref()).unwrap();
        sent.extend(fill(&bench, &mut store, 20));
        store.flush().unwrap();
        drop(store);
        bench.disk.kill();
        // As if the second flush had not come to its end.
        bench.write("/store/checkpoint".as_ref(), 0, &checkpoint);
        bench.write(&batch_file(2), from % FILE_UNITS * 46, &vec![0; (to - from) as usize * 46]);
        assert_eq!(all(&mut bench.open()), sent, "{from}..{to}: {:?}", bench.lines);
    }
}

#[test]
fn consume_queues_that_were_removed_are_made_again_beside_batch_queues() {
    for clean in [true, false] {
        let bench = bench(FlushMode::Async);
        let mut store = bench.open();
        append(&mut store, "t", 0, b"first", "k");
        let sent = fill(&bench, &mut store, 10);
        store.flush().unwrap();
        if clean {
            store.close().unwrap();
        }
        drop(store);
        bench.disk.kill();
        bench.disk.remove_tree("/store/consumequeue".as_ref()).unwrap();
        let mut store = bench.open();
        assert_eq!(body(&mut store, "t", 0, 0).unwrap(), b"first", "clean {clean}");
        assert_eq!(all(&mut store), sent);
        store.close().unwrap();
        let mut store = bench.open();
        assert_eq!(body(&mut store, "t", 0, 0).unwrap(), b"first");
    }
}

#[test]
fn by_seed_what_is_acknowledged_survives() {
    for seed in 0..30 {
        let flush_mode = if seed % 2 == 0 { FlushMode::Async } else { FlushMode::Sync };
        let bench = bench(flush_mode);
        let mut random = Random(seed);
        let mut acknowledged: Vec<(i64, u16, String)> = Vec::new();
        let mut serial = 0;
        for _life in 0..5 {
            let mut store = bench.open();
            let found = all(&mut store);
            for batch in &acknowledged {
                assert!(found.contains(batch), "seed {seed}: {batch:?} is lost, {:?}", bench.lines);
            }
            assert!(found.windows(2).all(|pair| pair[0].0 + i64::from(pair[0].1) <= pair[1].0), "seed {seed}");
            let mut waiting = Vec::new();
            for _ in 0..random.below(60) {
                for _ in 0..=random.below(3) {
                    serial += 1;
                    let count = 1 + random.below(9) as u16;
                    let body = serial.to_string();
                    let staged = stage(&mut store, count, "TagA", body.as_bytes()).unwrap();
                    waiting.push(((staged.queue_offset, count, body), staged.position + u64::from(staged.size)));
                }
                store.commit().unwrap();
                bench.clock.advance(random.below(3000) as i64);
                if random.below(4) == 0 {
                    store.tick().unwrap();
                    store.settle();
                }
            }
            let durable = store.durable();
            acknowledged.extend(waiting.into_iter().filter(|(_, end)| *end <= durable).map(|(batch, _)| batch));
            if random.below(4) == 0 {
                store.close().unwrap();
            }
            drop(store);
            match flush_mode {
                FlushMode::Sync => bench.disk.power_cut(seed),
                FlushMode::Async => bench.disk.kill(),
            }
        }
    }
}
