#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_virtio::fuzz::virtio_vsock(skep_fuzzing::Source::Bytes(data)));
