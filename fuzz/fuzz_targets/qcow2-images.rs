#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_block::fuzz::qcow2_images(skep_fuzzing::Source::Bytes(data)));
