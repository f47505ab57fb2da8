#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_chipset::fuzz::chipset_flash_file(skep_fuzzing::Source::Bytes(data)));
