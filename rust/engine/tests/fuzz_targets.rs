//! A smoke run of the fuzz targets on a stable compiler: the files of `fuzz/fuzz_targets` as they are, over what official
//! clients sent and over mutations of it. `FUZZ_SECONDS=60` keeps each of them going for that long (`make fuzz`).
use std::path::Path;
use std::time::{Duration, Instant};

use aerobee_engine::disk::Random;

// The targets take this crate for libfuzzer's and get a function instead of a program.
extern crate self as libfuzzer_sys;

#[macro_export]
macro_rules! fuzz_target {
    (|$bytes:ident: &[u8]| $body:block) => {
        pub fn run($bytes: &[u8]) $body
    };
}

macro_rules! targets {
    ($($name:ident $path:literal,)*) => {$(
        #[allow(unused_attributes, unused_imports)]
        #[path = $path]
        mod $name;
    )*};
}

targets! {
    feed "../fuzz/fuzz_targets/feed.rs",
    frames "../fuzz/fuzz_targets/frames.rs",
    header "../fuzz/fuzz_targets/header.rs",
    json "../fuzz/fuzz_targets/json.rs",
    record "../fuzz/fuzz_targets/record.rs",
    sql "../fuzz/fuzz_targets/sql.rs",
}

const INPUTS: u64 = 300;

/// Frames that official clients and Apache's servers exchanged.
fn recorded() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/wire/recordings");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    files.sort();
    let mut frames = Vec::new();
    for file in files {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let hex = line.split("\"hex\": \"").nth(1).unwrap().split('"').next().unwrap();
            frames
                .push((0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect());
        }
    }
    assert!(frames.len() > 500);
    frames
}

/// The header of a frame and what follows it.
fn parts(frame: &[u8]) -> (&[u8], &[u8]) {
    let size = usize::from(u16::from_be_bytes([frame[6], frame[7]]));
    frame[8..].split_at(size)
}

fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() as u64 + 1) as usize;
        match random.below(6) {
            0 => input.truncate(at),
            1 => input.insert(at, random.next_u64() as u8),
            2 if at < input.len() => input[at] ^= 1 << random.below(8),
            3 if at + 4 <= input.len() => {
                let number = [0, 1, -1, i32::MAX, i32::MIN, 255][random.below(6) as usize];
                input[at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
            4 => {
                let piece = &other[random.below(other.len() as u64 + 1) as usize..];
                input.splice(at..at, piece.iter().take(64).copied());
            }
            _ => {
                let end = (at + random.below(32) as usize).min(input.len());
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
        }
    }
}

/// Runs a target over the seeds as they are and over mutations; the input that it fails on is shown.
fn smoke(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().map(|text| Duration::from_secs(text.parse().unwrap()));
    let mut random = Random(seconds.map_or(1, |_| std::process::id().into()));
    let began = Instant::now();
    for count in 0.. {
        let mut input = seeds[(count as usize).wrapping_mul(7919) % seeds.len()].clone();
        if count % 3 > 0 {
            let other = &seeds[random.below(seeds.len() as u64) as usize];
            mutate(&mut input, other, &mut random);
        }
        if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
            println!("failed on {}", input.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            std::panic::resume_unwind(panic);
        }
        if seconds.map_or(count >= INPUTS, |seconds| began.elapsed() >= seconds) {
            break;
        }
    }
}

#[test]
fn feed_survives_any_stream() {
    smoke(feed::run, &recorded());
}

#[test]
fn frames_are_cut_alike_in_any_pieces() {
    smoke(frames::run, &recorded());
}

#[test]
fn headers_end_in_an_error_or_come_back() {
    let seeds: Vec<_> = recorded().iter().map(|frame| parts(frame).0.to_vec()).collect();
    smoke(header::run, &seeds);
}

#[test]
fn json_ends_in_an_error_or_in_strict_json() {
    let recorded = recorded();
    let seeds: Vec<_> =
        recorded.iter().flat_map(|frame| [parts(frame).0, parts(frame).1]).map(<[u8]>::to_vec).collect();
    smoke(json::run, &seeds);
}

#[test]
fn records_end_in_none_or_in_a_whole_one() {
    // Bodies of pulls are records, one after the other.
    let mut seeds: Vec<_> = recorded().iter().map(|frame| parts(frame).1.to_vec()).collect();
    seeds.retain(|body| aerobee_engine::record::RecordView::parse(body).is_some());
    assert!(seeds.len() >= 20);
    smoke(record::run, &seeds);
}

#[test]
fn filters_end_in_a_column_or_in_an_answer() {
    let seeds = [
        "a > 5 AND b = 'x'\0a\x017\x02b\x01x\x02",
        "a BETWEEN 1 AND 3.5e2 OR b IN ('x', 'y')\0a\x01-1\x02",
        "NOT (a IS NULL) AND b IS NOT NULL\0b\x01\x02",
        "a CONTAINS 'x''y' AND b NOT STARTSWITH 'z' OR TRUE\0a\x01x'y\x02",
        "((((a = -9223372036854775808))))\0a\x019223372036854775807\x02",
    ];
    smoke(sql::run, &seeds.map(|seed| seed.as_bytes().to_vec()));
}
