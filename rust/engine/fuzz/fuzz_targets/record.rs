//! Any bytes as a record of the log: none, or one whose parts lie within it and say the same to every reader.
#![no_main]
use aerobee_engine::property::{pairs, scan};
use aerobee_engine::record::RecordView;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &[u8]| {
    let Some(record) = RecordView::parse(source) else { return };
    assert!(record.raw.len() <= source.len() && !record.topic.is_empty());
    assert!(record.body.len() + record.topic.len() + record.properties.len() < record.raw.len());
    let again = RecordView::parse(record.raw).expect("a record by itself");
    assert_eq!((again.topic, again.body, again.properties), (record.topic, record.body, record.properties));
    assert_eq!(again.is_intact(), record.is_intact());
    scan(record.properties);
    assert!(pairs(record.properties).all(|(name, value)| name.len() + value.len() <= record.properties.len()));
});
