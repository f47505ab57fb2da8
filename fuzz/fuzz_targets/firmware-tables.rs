#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_vmm::fuzz::firmware_tables(skep_fuzzing::Source::Bytes(data)));
