#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_arch::fuzz::acpi_loader(skep_fuzzing::Source::Bytes(data)));
