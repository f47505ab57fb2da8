#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_pci::fuzz::option_roms(skep_fuzzing::Source::Bytes(data)));
