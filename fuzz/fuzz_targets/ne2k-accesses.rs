#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_ne2k::fuzz::ne2k_accesses(skep_fuzzing::Source::Bytes(data)));
