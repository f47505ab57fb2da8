#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_pci::fuzz::pci_hierarchy(skep_fuzzing::Source::Bytes(data)));
