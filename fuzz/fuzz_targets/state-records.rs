#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_state::fuzz::state_records(skep_fuzzing::Source::Bytes(data)));
