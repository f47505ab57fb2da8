#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_nvme::fuzz::nvme_registers(skep_fuzzing::Source::Bytes(data)));
