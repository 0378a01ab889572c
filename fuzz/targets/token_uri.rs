#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_hsm::fuzzing::token_uri(data));
