#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| strongroom_hsm::fuzzing::rsa_numbers(data));
