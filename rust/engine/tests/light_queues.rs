//! Light queues: one record in several queues, through restarts, kills, power cuts and cleaning.

mod common;

use std::collections::{BTreeMap, HashSet};

use aerobee_engine::disk::{Disk, Random};
use aerobee_engine::error::Error;
use aerobee_engine::property::find;
use aerobee_engine::record::{NewRecord, RecordView};
use aerobee_engine::store::{DeletePolicy, FlushMode, Staged, Store};
use common::{bounds, entry, Bench, START_MS};

fn bench(flush_mode: FlushMode) -> Bench {
    let mut bench = Bench::new(flush_mode);
    bench.options.light_queues = true;
    bench
}

fn stage(store: &mut Store, topic: &str, names: &str, body: &[u8]) -> Result<Staged, Error> {
    let properties =
        format!("TAGS\u{1}TagA\u{2}INNER_MULTI_DISPATCH\u{1}{names}\u{2}INNER_MULTI_QUEUE_OFFSET\u{1}77\u{2}");
    let queue = store.queue(topic, 1);
    let record = NewRecord {
        topic,
        queue_id: 1,
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
    };
    store.stage(queue, &record)
}

fn send(store: &mut Store, names: &str, body: &[u8]) {
    stage(store, "t", names, body).unwrap();
    store.commit().unwrap();
}

/// Body and told offsets of the record behind an entry.
fn read(store: &mut Store, queue: &str, queue_id: u32, offset: i64) -> Option<(String, String)> {
    let entry = entry(store, queue, queue_id, offset)?;
    let mut bytes = Vec::new();
    assert!(store.copy_record(entry.position, entry.size, &mut bytes), "{queue} {offset}");
    let view = RecordView::parse(&bytes).unwrap();
    let told = find(view.properties, b"INNER_MULTI_QUEUE_OFFSET").unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Some((text(view.body), text(told)))
}

fn found(body: &str, told: &str) -> Option<(String, String)> {
    Some((body.into(), told.into()))
}

fn check_three(store: &mut Store) {
    assert_eq!(
        (bounds(store, "t", 1), bounds(store, "%LMQ%a", 0), bounds(store, "%LMQ%b", 0)),
        ((0, 3), (0, 2), (0, 2))
    );
    assert_eq!(read(store, "t", 1, 0), found("one", "0,0"));
    assert_eq!(read(store, "%LMQ%a", 0, 0), found("one", "0,0"));
    assert_eq!(read(store, "%LMQ%a", 0, 1), found("two", "1"));
    assert_eq!(read(store, "%LMQ%b", 0, 1), found("three", "1"));
    assert_eq!(entry(store, "%LMQ%b", 0, 1), entry(store, "t", 1, 2), "tags and all");
}

#[test]
fn a_record_is_found_in_every_queue_it_names() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    for (names, body) in [("%LMQ%a,%LMQ%b", "one"), ("%LMQ%a", "two"), ("%LMQ%b,", "three")] {
        send(&mut store, names, body.as_bytes());
    }
    check_three(&mut store);
    drop(store);
    bench.disk.kill();
    let mut store = bench.open();
    check_three(&mut store);
    store.close().unwrap();
    let unit = bench.disk.read_file(&bench.queue_file("%LMQ%b", 0, 0)).unwrap();
    assert_eq!(unit[20..40], bench.disk.read_file(&bench.queue_file("t", 1, 0)).unwrap()[40..60]);
    let mut store = bench.open();
    assert!(bench.silent(), "{:?}", bench.lines);
    check_three(&mut store);
    send(&mut store, "%LMQ%b", b"four");
    assert_eq!(read(&mut store, "%LMQ%b", 0, 2), found("four", "2"));
}

#[test]
fn a_name_that_comes_twice_counts_once_and_impossible_ones_are_refused() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    send(&mut store, "%LMQ%a,%LMQ%b,%LMQ%a", b"x");
    assert_eq!(read(&mut store, "%LMQ%a", 0, 0), found("x", "0,0,0"));
    assert_eq!(bounds(&store, "%LMQ%a", 0), (0, 1));
    for names in ["%LMQ%a,b", ",%LMQ%a", "%LMQ%../x"] {
        assert!(matches!(stage(&mut store, "t", names, b"y"), Err(Error::BadRecord(_))), "{names}");
    }
    send(&mut store, "b,c", b"no light queue");
    assert_eq!(read(&mut store, "t", 1, 1), found("no light queue", ""), "offsets are the store's word alone");
    drop(store);
    bench.disk.kill();
    let store = bench.open();
    assert_eq!((bounds(&store, "t", 1), bounds(&store, "%LMQ%a", 0)), ((0, 2), (0, 1)));
    assert_eq!(store.topics().len(), 3);
}

#[test]
fn what_waits_or_comes_again_is_not_dispatched() {
    let mut bench = bench(FlushMode::Async);
    let mut store = bench.open();
    let waiting = ["%RETRY%g", "%DLQ%g", "rmq_sys_wheel_timer", "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC"];
    for topic in waiting {
        stage(&mut store, topic, "%LMQ%a", b"x").unwrap();
    }
    store.commit().unwrap();
    assert_eq!(bounds(&store, "%LMQ%a", 0), (0, 0));
    drop(store);
    bench.options.light_queues = false;
    let mut store = bench.open();
    send(&mut store, "%LMQ%a", b"switched off");
    assert_eq!(read(&mut store, "t", 1, 0), found("switched off", ""));
    drop(store);
    bench.options.light_queues = true;
    bench.disk.kill();
    let store = bench.open();
    assert_eq!(store.find_queue("%LMQ%a", 0), None);
}

#[test]
fn with_synchronous_flush_a_light_queue_shows_only_what_is_flushed() {
    let bench = bench(FlushMode::Sync);
    let mut store = bench.open();
    send(&mut store, "%LMQ%a", b"x");
    assert_eq!(bounds(&store, "%LMQ%a", 0), (0, 0));
    store.tick().unwrap();
    let touched = store.settle();
    assert_eq!(touched.len(), 2);
    assert_eq!(bounds(&store, "%LMQ%a", 0), (0, 1));
}

#[test]
fn discarded_records_give_their_offsets_back() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    stage(&mut store, "t", "%LMQ%a,%LMQ%b", b"never").unwrap();
    store.discard();
    send(&mut store, "%LMQ%a", b"x");
    assert_eq!(read(&mut store, "%LMQ%a", 0, 0), found("x", "0"));
    assert_eq!(bounds(&store, "%LMQ%b", 0), (0, 0));
}

#[test]
fn no_more_queues_than_there_may_be() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    store.set_light_queues_max(2);
    send(&mut store, "%LMQ%a,%LMQ%b", b"x");
    assert!(matches!(stage(&mut store, "t", "%LMQ%a,%LMQ%c", b"y"), Err(Error::TooManyLightQueues(_))));
    send(&mut store, "%LMQ%b,%LMQ%a", b"z");
    store.delete_topic("%LMQ%a").unwrap();
    send(&mut store, "%LMQ%c", b"room again");
    assert_eq!(bounds(&store, "%LMQ%c", 0), (0, 1));
}

#[test]
fn a_refused_record_leaves_no_queue_behind() {
    let mut bench = bench(FlushMode::Async);
    bench.options.log_file_bytes = 64 << 10;
    let mut store = bench.open();
    send(&mut store, "%LMQ%a", b"x");
    let queues = store.stats().queues;
    // With their offsets behind them the names are longer than properties can be.
    let names: Vec<String> = (0..3000).map(|n| format!("%LMQ%{n:05}")).collect();
    assert!(names[..2900].join(",").len() < 32_767);
    for names in [&names[..], &names[..2900]] {
        let refused = stage(&mut store, "t", &names.join(","), b"y");
        assert!(matches!(&refused, Err(Error::BadRecord(reason)) if reason.contains("properties")), "{refused:?}");
    }
    let large = stage(&mut store, "t", "%LMQ%b", &[0; 65 << 10]);
    assert!(matches!(&large, Err(Error::BadRecord(reason)) if reason.contains("log file")), "{large:?}");
    store.set_light_queues_max(3);
    let refused = stage(&mut store, "t", "%LMQ%a,%LMQ%b,%LMQ%c,%LMQ%d", b"y");
    assert!(matches!(refused, Err(Error::TooManyLightQueues(_))), "one is there, three are new: {refused:?}");
    bench.disk.fail_writes(true);
    stage(&mut store, "t", "", b"z").unwrap();
    assert!(store.commit().is_err());
    assert!(stage(&mut store, "t", "%LMQ%b", b"z").is_err(), "nothing is stored any more");
    assert_eq!(store.stats().queues, queues);
}

#[test]
fn new_names_count_once_however_often_they_come() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    store.set_light_queues_max(2);
    send(&mut store, "%LMQ%a,%LMQ%b,%LMQ%a", b"x");
    assert_eq!((bounds(&store, "%LMQ%a", 0), bounds(&store, "%LMQ%b", 0)), ((0, 1), (0, 1)));
    assert!(matches!(stage(&mut store, "t", "%LMQ%c", b"y"), Err(Error::TooManyLightQueues(_))));
}

#[test]
fn cleaning_moves_the_front_and_keeps_the_end() {
    let bench = bench(FlushMode::Async);
    let mut store = bench.open();
    for n in 0..300 {
        bench.clock.advance(1000);
        send(&mut store, if n % 3 == 0 { "%LMQ%a,%LMQ%b" } else { "%LMQ%b" }, &[7; 600]);
    }
    store.flush().unwrap();
    let policy = DeletePolicy { before_ms: START_MS + 250_000, consumed_position: u64::MAX, files_max: 100 };
    let deleted = store.delete_files(policy).unwrap();
    assert!(deleted.log_files > 5 && deleted.queue_files > 5, "{deleted:?}");
    for _ in 0..2 {
        for (queue, id, end) in [("%LMQ%a", 0, 100), ("%LMQ%b", 0, 300), ("t", 1, 300)] {
            let (low, high) = bounds(&store, queue, id);
            assert!(low > 0 && high == end, "{queue} {low} {high}");
            assert!(entry(&mut store, queue, id, low).unwrap().position >= deleted.min_position);
            assert!(!entry(&mut store, queue, id, low - 1).is_some_and(|e| e.position >= deleted.min_position));
        }
        store.close().unwrap();
        store = bench.open();
    }
    store.delete_topic("%LMQ%b").unwrap();
    assert!(!bench.disk.exists("/store/consumequeue/%LMQ%b".as_ref()));
}

#[test]
fn by_seed_every_surviving_record_is_where_it_says() {
    for seed in 0..30 {
        let flush_mode = if seed % 2 == 0 { FlushMode::Async } else { FlushMode::Sync };
        let bench = bench(flush_mode);
        let mut random = Random(seed);
        let mut acknowledged: Vec<(String, u64)> = Vec::new();
        let mut serial = 0;
        for _life in 0..4 {
            let mut store = bench.open();
            check_all(&mut store, &acknowledged, seed);
            let mut waiting = Vec::new();
            for _ in 0..random.below(60) {
                for _ in 0..=random.below(3) {
                    let names: Vec<String> =
                        (0..=random.below(3)).map(|_| format!("%LMQ%{}", random.below(7))).collect();
                    serial += 1;
                    let body = serial.to_string();
                    let staged = stage(&mut store, "t", &names.join(","), body.as_bytes()).unwrap();
                    waiting.push((body, staged.position + u64::from(staged.size)));
                }
                store.commit().unwrap();
                bench.clock.advance(random.below(3000) as i64);
                if random.below(4) == 0 {
                    store.tick().unwrap();
                    store.settle();
                }
            }
            let durable = store.durable();
            acknowledged.extend(waiting.into_iter().filter(|(_, end)| *end <= durable));
            if random.below(4) == 0 {
                store.close().unwrap();
            }
            drop(store);
            match flush_mode {
                FlushMode::Sync => bench.disk.power_cut(seed),
                FlushMode::Async => bench.disk.kill(),
            }
        }
        check_all(&mut bench.open(), &acknowledged, seed);
    }
}

/// Each acknowledged record is in its queues at the offsets it names, and a light queue has nothing at an offset but the record that
/// names it. After a kill that goes for all records; a power cut may tear one in front of others, none of which is acknowledged.
fn check_all(store: &mut Store, acknowledged: &[(String, u64)], seed: u64) {
    let (low, high) = bounds(store, "t", 1);
    let mut bodies = HashSet::new();
    let mut expected: BTreeMap<(String, i64), String> = BTreeMap::new();
    let mut torn = false;
    for offset in low..high {
        let entry = entry(store, "t", 1, offset).unwrap();
        let mut bytes = Vec::new();
        if !store.copy_record(entry.position, entry.size, &mut bytes) {
            torn = true;
            continue;
        }
        let view = RecordView::parse(&bytes).unwrap();
        let part = |name: &[u8]| find(view.properties, name).and_then(|part| String::from_utf8(part.to_vec()).ok());
        let body = String::from_utf8(view.body.to_vec()).unwrap();
        let (Some(names), Some(offsets)) = (part(b"INNER_MULTI_DISPATCH"), part(b"INNER_MULTI_QUEUE_OFFSET")) else {
            torn = true; // no checksum covers a record's properties
            continue;
        };
        for (name, offset) in names.split(',').zip(offsets.split(',')) {
            match offset.parse() {
                Ok(offset) => drop(expected.insert((name.into(), offset), body.clone())),
                Err(_) => torn = true,
            }
        }
        bodies.insert(body);
    }
    for (body, _) in acknowledged {
        assert!(bodies.contains(body), "seed {seed}: {body} is lost");
    }
    for ((name, offset), body) in &expected {
        let there = (bounds(store, name, 0).0..bounds(store, name, 0).1).contains(offset)
            && entry(store, name, 0, *offset).is_some_and(|entry| !entry.is_hole());
        let must = !torn || acknowledged.iter().any(|(acknowledged, _)| acknowledged == body);
        assert!(there || !must, "seed {seed}: {name} lacks {offset}");
        if there {
            assert_eq!(read(store, name, 0, *offset).map(|(body, _)| body).as_ref(), Some(body), "seed {seed}");
        }
    }
    for (name, _) in store.topics().into_iter().filter(|(name, _)| name != "t") {
        let (low, high) = bounds(store, &name, 0);
        let unknown = (low..high).find(|offset| !expected.contains_key(&(name.clone(), *offset)));
        assert!(unknown.is_none() || torn, "seed {seed}: {name} has {unknown:?}");
    }
}
