//! Any text as Fastjson's JSON: an error within the text, or JSON that comes through unchanged a second time.
#![no_main]
use aerobee_engine::json::strict;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &[u8]| {
    let Ok(text) = std::str::from_utf8(source) else { return };
    match strict(text) {
        Ok(first) => {
            let again = strict(&first.text).expect("strict JSON is read");
            assert_eq!(again.text, first.text);
        }
        Err(error) => assert!(error.at <= text.len()),
    }
});
