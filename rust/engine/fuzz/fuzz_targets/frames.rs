//! Any bytes as a stream, whole and byte by byte: the same frames, or both an error.
#![no_main]
use aerobee_engine::frame::{Cutter, Flow, FRAME_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fn frames<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Option<Vec<Vec<u8>>> {
    let mut cutter = Cutter::default();
    let mut out = Vec::new();
    for chunk in chunks {
        let fed = cutter.feed(chunk, FRAME_BYTES_MAX, |frame| {
            out.push([frame.header, b"|", frame.body].concat());
            Ok(Flow::Go)
        });
        fed.ok()?;
    }
    Some(out)
}

fuzz_target!(|stream: &[u8]| {
    assert_eq!(frames([stream].into_iter()), frames(stream.chunks(1)));
});
