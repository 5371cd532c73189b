//! Any text as a SQL92 filter and the rest as a message's properties: an error with its column, or yes and no that stay.
#![no_main]
use aerobee_engine::sql::Filter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &[u8]| {
    let cut = source.iter().position(|&byte| byte == 0).unwrap_or(source.len());
    let Ok(text) = std::str::from_utf8(&source[..cut]) else { return };
    let properties = &source[(cut + 1).min(source.len())..];
    match Filter::compile(text) {
        Ok(filter) => assert_eq!(filter.matches(properties), Filter::compile(text).unwrap().matches(properties)),
        Err(error) => assert!(error.column <= text.chars().count() + 1 && !error.message.is_empty(), "{error}"),
    }
});
