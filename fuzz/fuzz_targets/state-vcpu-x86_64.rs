#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_hypervisor::fuzz::state_vcpu_x86_64(skep_fuzzing::Source::Bytes(data)));
