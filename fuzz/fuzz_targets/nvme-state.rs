#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_nvme::fuzz::nvme_state(skep_fuzzing::Source::Bytes(data)));
