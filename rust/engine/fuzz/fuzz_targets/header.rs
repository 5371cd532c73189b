//! Any bytes as a header in both encodings: an error, or fields that can be written and read again.
#![no_main]
use aerobee_engine::header::{Encoding, Fixed, Header, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &[u8]| {
    for encoding in [Encoding::Json, Encoding::RocketMq] {
        let mut header = Header::default();
        if header.read(encoding, source).is_err() {
            continue;
        }
        let mut out = Vec::new();
        let fixed = Fixed {
            code: header.code,
            language: header.language,
            version: header.version,
            opaque: header.opaque,
            flag: header.flag,
            remark: header.remark(source),
        };
        let mut writer = Writer::begin(&mut out, Encoding::Json, fixed);
        for (key, value) in header.fields(source) {
            writer.field(key, value);
        }
        writer.end_header();
        writer.finish();
        let again = &out[8..];
        let mut read = Header::default();
        read.read(Encoding::Json, again).expect("what we write is read");
        assert!(read.fields(again).eq(header.fields(source)));
        assert_eq!(read.remark(again), header.remark(source));
    }
});
