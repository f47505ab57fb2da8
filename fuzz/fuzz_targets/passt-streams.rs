#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_net::fuzz::passt_streams(skep_fuzzing::Source::Bytes(data)));
