#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_chipset::fuzz::chipset_fw_cfg(skep_fuzzing::Source::Bytes(data)));
