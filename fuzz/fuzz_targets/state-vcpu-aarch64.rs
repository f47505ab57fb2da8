#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_hypervisor::fuzz::state_vcpu_aarch64(skep_fuzzing::Source::Bytes(data)));
