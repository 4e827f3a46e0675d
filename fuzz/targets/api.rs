#![no_main]

include!("../chosen.rs");

libfuzzer_sys::fuzz_target!(|input: &[u8]| chosen(flotilla_api::fuzz::TARGETS)(input));
