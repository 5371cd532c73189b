//! Nanoseconds a message for staging and committing, and for copying records out: `cargo run --release --example store_bench`.
//!
//! Arguments: directory (a temporary one), messages a run (400,000).

use std::sync::Arc;
use std::time::Instant;

use aerobee_engine::clock::SystemClock;
use aerobee_engine::disk::RealDisk;
use aerobee_engine::property::scan;
use aerobee_engine::record::NewRecord;
use aerobee_engine::store::{FlushMode, Store, StoreOptions};

fn main() {
    let mut args = std::env::args().skip(1);
    let root = args.next().map_or_else(|| std::env::temp_dir().join("aerobee-store-bench"), Into::into);
    let messages: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(400_000);
    for flush_mode in [FlushMode::Async, FlushMode::Sync] {
        for body_bytes in [100, 1024] {
            for chunk in [1, 64] {
                let few = if flush_mode == FlushMode::Sync { messages / 200 } else { messages };
                run(&root, flush_mode, body_bytes, chunk, few);
            }
        }
    }
}

fn run(root: &std::path::Path, flush_mode: FlushMode, body_bytes: usize, chunk: usize, messages: usize) {
    let _ = std::fs::remove_dir_all(root);
    let options = StoreOptions { flush_mode, ..StoreOptions::new(root) };
    let mut store =
        Store::open(options, Arc::new(RealDisk), Arc::new(SystemClock), &|_, line| println!("  {line}")).unwrap();
    let queues: Vec<_> = (0..8).map(|id| store.queue("bench-topic", id)).collect();
    let body = vec![b'x'; body_bytes];
    let mut waits = 0u64;
    let (mut stage_ns, mut commit_ns, mut commit_max) = (0u64, 0u64, 0u64);
    let mut staged = Vec::with_capacity(messages);
    let mut properties = String::new();
    for round in 0..messages / chunk {
        let mut made: Vec<String> = Vec::with_capacity(chunk);
        for at in 0..chunk {
            let n = round * chunk + at;
            properties.clear();
            use std::fmt::Write;
            let _ = write!(
                properties,
                "UNIQ_KEY\u{1}7F00000100002A139A55{n:012X}\u{2}WAIT\u{1}true\u{2}TAGS\u{1}TagA\u{2}KEYS\u{1}order-{n}\u{2}MSG_REGION\u{1}DefaultRegion\u{2}TRACE_ON\u{1}true"
            );
            made.push(properties.clone());
        }
        let t0 = Instant::now();
        for (at, properties) in made.iter().enumerate() {
            let queue = (round * chunk + at) % 8;
            let record = NewRecord {
                topic: "bench-topic",
                queue_id: queue as u32,
                flag: 0,
                sys_flag: 0,
                born_timestamp: 1_700_000_000_000,
                born_host: ([127, 0, 0, 1], 50000).into(),
                reconsume_times: 0,
                prepared_offset: 0,
                body: &body,
                properties: properties.as_bytes(),
                tags_code: None,
                known: Some(scan(properties.as_bytes())),
            };
            staged.push(store.stage(queues[queue], &record).unwrap());
        }
        let t1 = Instant::now();
        let commit = store.commit().unwrap();
        let t2 = Instant::now();
        stage_ns += (t1 - t0).as_nanos() as u64;
        commit_ns += (t2 - t1).as_nanos() as u64;
        commit_max = commit_max.max((t2 - t1).as_nanos() as u64);
        if flush_mode == FlushMode::Sync {
            while store.durable() < commit.end {
                std::thread::yield_now();
            }
            store.settle();
            waits += t2.elapsed().as_nanos() as u64;
        }
    }
    let each = |ns: u64| ns as f64 / messages as f64;
    let t3 = Instant::now();
    let mut out = Vec::new();
    let mut copied = 0usize;
    for (n, record) in staged.iter().enumerate() {
        if n % 32 == 0 {
            out.clear();
        }
        copied += usize::from(store.copy_record(record.position, record.size, &mut out));
    }
    let copy_ns = t3.elapsed().as_nanos() as u64;
    assert_eq!(copied, staged.len());
    let rss = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let anon = rss.lines().find(|l| l.starts_with("RssAnon")).unwrap_or("").to_string();
    println!(
        "{flush_mode:?} {body_bytes:>5} B chunk {chunk:>2}: stage {:>6.0} commit {:>6.0} together {:>6.0} ns/message; longest commit {:>6} us; flushed after {:>5.0} us; copy_record {:>5.0} ns; {anon}",
        each(stage_ns),
        each(commit_ns),
        each(stage_ns + commit_ns),
        commit_max / 1000,
        waits as f64 / 1000.0 / (messages / chunk) as f64,
        each(copy_ns)
    );
    let t4 = Instant::now();
    store.close().unwrap();
    let close = t4.elapsed();
    let t5 = Instant::now();
    let options = StoreOptions { flush_mode, ..StoreOptions::new(root) };
    let store =
        Store::open(options, Arc::new(RealDisk), Arc::new(SystemClock), &|_, line| println!("  {line}")).unwrap();
    let open = t5.elapsed();
    drop(store);
    let t6 = Instant::now();
    let options = StoreOptions { flush_mode, ..StoreOptions::new(root) };
    let mut store =
        Store::open(options, Arc::new(RealDisk), Arc::new(SystemClock), &|_, line| println!("  {line}")).unwrap();
    println!("  close {close:?}, open after close {open:?}, open after a kill {:?}", t6.elapsed());
    store.close().unwrap();
    let _ = std::fs::remove_dir_all(root);
}
