#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_vmm::fuzz::control_requests(skep_fuzzing::Source::Bytes(data)));
