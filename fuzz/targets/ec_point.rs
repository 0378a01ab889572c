#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_hsm::fuzzing::ec_point(data));
