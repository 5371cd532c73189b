//! By seed: files are lost or cut, the starts that make them again are killed or lose their power themselves, and in the end
//! everything that the log has is found.

mod common;

use std::path::PathBuf;

use aerobee_engine::disk::{Disk, Mode, Random};
use aerobee_engine::record::NewRecord;
use aerobee_engine::store::{FlushMode, Store};
use common::{bounds, entry, found_by_key, seeds, Bench};

struct Acknowledged {
    topic: &'static str,
    queue_id: u32,
    offset: i64,
    position: u64,
    size: u32,
    key: String,
}

fn bench(random: &mut Random) -> Bench {
    let mut bench = Bench::new(if random.below(2) == 0 { FlushMode::Sync } else { FlushMode::Async });
    bench.options.queue_file_units = 20;
    bench.options.batch_file_units = 10;
    bench.options.index_entries = 100 + random.below(200) as u32;
    bench.options.index_slots = 50;
    bench.options.batch_topics = vec!["batches".into()];
    bench
}

fn send(bench: &Bench, store: &mut Store, random: &mut Random, acknowledged: &mut Vec<Acknowledged>) {
    for _ in 0..1 + random.below(6) {
        let (topic, queue_id) = match random.below(10) {
            0 => ("batches", 0),
            n => (["a", "b", "c"][n as usize % 3], random.below(2) as u32),
        };
        let key = format!("key-{}", random.next_u64());
        let body = vec![7; random.below(700) as usize];
        let properties = format!("UNIQ_KEY\u{1}U-{key}\u{2}KEYS\u{1}{key} other-{key}\u{2}");
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
            body: &body,
            properties: properties.as_bytes(),
            tags_code: None,
            known: None,
        };
        let staged = store.stage(queue, &record).unwrap();
        let (offset, position, size) = (staged.queue_offset, staged.position, staged.size);
        acknowledged.push(Acknowledged { topic, queue_id, offset, position, size, key });
    }
    store.commit().unwrap();
    bench.clock.advance(random.below(1500) as i64);
    if random.below(2) == 0 {
        store.tick().unwrap();
    }
}

/// What is not where it was acknowledged, by queue and by key.
fn missing(store: &mut Store, acknowledged: &[Acknowledged]) -> Vec<String> {
    let mut missing = Vec::new();
    for Acknowledged { topic, queue_id, offset, position, size, key } in acknowledged {
        let found = match store.is_batch_topic(topic) {
            true => {
                let mut batches = Vec::new();
                if let Some(queue) = store.find_queue(topic, *queue_id) {
                    store.batches(queue, *offset, 1, &mut batches);
                }
                batches.first().filter(|batch| batch.base == *offset).map(|batch| (batch.position, batch.size))
            }
            false => entry(store, topic, *queue_id, *offset).map(|entry| (entry.position, entry.size)),
        };
        if found != Some((*position, *size)) || !store.copy_record(*position, *size, &mut Vec::new()) {
            let bounds = bounds(store, topic, *queue_id);
            missing.push(format!("{topic}/{queue_id} {offset} of {bounds:?} at {position}: {found:?}"));
        }
        for key in [format!("U-{key}"), key.clone(), format!("other-{key}")] {
            let found = found_by_key(store, topic, &key);
            if found != [*position] {
                missing.push(format!("{key} at {position}: {found:?}"));
            }
        }
    }
    missing
}

/// The files in a folder of the store, with those below.
fn files(bench: &Bench, dir: PathBuf) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in bench.disk.list(&dir).unwrap() {
        match entry.is_dir {
            true => files.extend(self::files(bench, dir.join(entry.name))),
            false => files.push(dir.join(entry.name)),
        }
    }
    files.sort();
    files
}

/// Damages what a start can make again from the log.
fn damage(bench: &Bench, random: &mut Random) -> String {
    let queues = ["/store/consumequeue", "/store/batchconsumequeue"];
    let mut queue_files: Vec<PathBuf> = queues.iter().flat_map(|dir| files(bench, dir.into())).collect();
    let mut index_files = files(bench, "/store/index".into());
    let kind = random.below(8);
    let mut one_of = |files: &mut Vec<PathBuf>| match files.len() {
        0 => Vec::new(),
        count => vec![files.swap_remove(random.below(count as u64) as usize)],
    };
    let (cut, paths) = match kind {
        0 => (false, one_of(&mut queue_files)),
        1 => (true, one_of(&mut queue_files)),
        2 => (true, one_of(&mut index_files)),
        3 => (false, index_files),
        4 => (false, queue_files.into_iter().chain(index_files).collect()),
        5 => (false, vec![PathBuf::from("/store/checkpoint")]),
        _ => (false, Vec::new()),
    };
    for path in &paths {
        if cut {
            let file = bench.disk.open(path, Mode::Write).unwrap();
            file.set_len(random.below(file.len().unwrap())).unwrap();
        } else if bench.disk.exists(path) {
            bench.disk.remove_file(path).unwrap();
        }
    }
    if kind == 4 {
        let gone = queues.iter().take(random.below(3) as usize);
        gone.for_each(|dir| bench.disk.remove_tree(dir.as_ref()).unwrap());
    }
    bench.disk.sync_all("/store".as_ref()).unwrap();
    format!("{} {paths:?}", if cut { "cut" } else { "without" })
}

fn live_through_interrupted_starts(seed: u64) {
    let random = &mut Random(seed);
    let bench = bench(random);
    let mut acknowledged = Vec::new();
    let mut story = String::new();
    for life in 0..3 {
        let mut store = bench.open();
        assert_eq!(missing(&mut store, &acknowledged), [""; 0], "seed {seed}, begin of life {life}{story}");
        for _ in 0..random.below(60) {
            send(&bench, &mut store, random, &mut acknowledged);
        }
        let (clean, power) = [(true, false), (false, false), (false, true)][random.below(3) as usize];
        if clean {
            store.close().unwrap();
        } else if power {
            let safe = store.stats().flushed_position;
            acknowledged.retain(|a| a.position < safe);
        }
        drop(store);
        let crash = |random: &mut Random| match power {
            true => bench.disk.power_cut(random.next_u64()),
            false => bench.disk.kill(),
        };
        crash(random);
        story += &format!("; clean {clean}, power cut {power}, {}", damage(&bench, random));
        for _ in 0..random.below(5) {
            let operations = random.below(60);
            bench.disk.stop_after(operations);
            let opened = bench.try_open().is_ok();
            story += &format!(", opened after {operations} operations: {opened}");
            crash(random);
        }
        let mut store = bench.open();
        assert_eq!(missing(&mut store, &acknowledged), [""; 0], "seed {seed}, life {life}{story}: {:?}", bench.lines);
        drop(store);
        bench.disk.kill();
    }
}

#[test]
fn a_start_that_is_interrupted_takes_nothing_of_what_it_was_to_make_again() {
    seeds(0, 12).for_each(live_through_interrupted_starts);
}
