#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_virtio::fuzz::virtio_console(skep_fuzzing::Source::Bytes(data)));
