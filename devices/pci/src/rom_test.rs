use proptest::prelude::*;
use skep_bus::{Action, Device};
use skep_state::Persist;

use super::*;
use crate::config_space::header;
use crate::node::ConfigFunction;
use crate::testing::{IDENTITY, Sink, config, probe, socket};
use crate::{EndpointConfig, PciPlace};

/// A ROM of two images: for a BIOS with its checksum, and for UEFI. Ids are those of nobody.
fn rom() -> Vec<u8> {
    let image = |blocks: u8, code_type: u8, indicator: u8| {
        let mut image = vec![code_type; usize::from(blocks) * BLOCK];
        image[..3].copy_from_slice(&[0x55, 0xaa, blocks]);
        image[POINTER..POINTER + 2].copy_from_slice(&[0x40, 0]);
        image[0x40..0x44].copy_from_slice(DATA);
        image[0x40 + VENDOR..0x40 + VENDOR + 4].fill(0);
        image[0x40 + LENGTH..0x40 + LENGTH + 2].copy_from_slice(&[blocks, 0]);
        image[0x40 + CODE_TYPE] = code_type;
        image[0x40 + INDICATOR] = indicator;
        image
    };
    let mut bios = image(3, BIOS, 0);
    let sum = bios.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bios[SPARE] = bios[SPARE].wrapping_sub(sum);
    [bios, image(2, 3, LAST)].concat()
}

#[test]
fn images_become_the_functions_own() {
    let rom = OptionRom::new(&rom()).unwrap();
    let own = rom.of(&IDENTITY);
    assert_eq!(images(&own.0), [Image { start: 0, data: 0x40 }, Image { start: 0x600, data: 0x640 }]);
    for image in images(&own.0) {
        assert_eq!(word(&own.0, image.data + VENDOR), Some(0x1af4));
        assert_eq!(word(&own.0, image.data + DEVICE), Some(0x1042));
    }
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(sum(&own.0[..0x600]), 0, "the BIOS's checksum");
    // One that is for it already stays as it is.
    assert_eq!(own.of(&IDENTITY).0, own.0);
    let changed = rom.0.iter().zip(own.0.iter()).filter(|(old, new)| old != new).count();
    assert_eq!(changed, 2 * 4 + 1);
}

#[test]
fn what_is_no_rom_is_refused() {
    assert_eq!(OptionRom::new(&[]).unwrap_err(), RomError::Size(0));
    assert_eq!(OptionRom::new(&vec![0; LARGEST + 1]).unwrap_err(), RomError::Size(LARGEST + 1));
    let good = rom();
    for (at, value) in [(0, 0), (1, 0), (POINTER, 0xff), (POINTER + 1, 0xff), (0x40, b'Q')] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(OptionRom::new(&bad).unwrap_err(), RomError::NoImage, "{at:#x}");
    }
    assert_eq!(OptionRom::new(&good[..0x50]).unwrap_err(), RomError::NoImage);
    // Its second image is cut off.
    assert_eq!(images(&good[..0x610]).len(), 1);
}

fn write(function: &dyn ConfigFunction, offset: u16, value: u32) -> Action {
    function.config_write(offset, u32::MAX, value)
}

#[test]
fn a_rom_is_decoded_where_it_is_put_and_while_it_is_enabled() {
    let sink = Sink::default();
    let config = EndpointConfig { rom: Some(OptionRom::new(&rom()).unwrap()), ..config() };
    let make = || probe(&socket(&sink, PciPlace::Root(4)), &sink.log, "a", &config).0;
    let (endpoint, twin) = (make(), make());
    assert_eq!(endpoint.config_read(REGISTER), 0);
    let _ = write(&*endpoint, REGISTER, u32::MAX);
    assert_eq!(endpoint.config_read(REGISTER), 0xffff_f001, "4 KiB");
    let _ = write(&*endpoint, header::COMMAND, command::MEMORY);
    assert_eq!(ConfigFunction::decoded(&*endpoint), [], "all ones is no place");
    assert_eq!(write(&*endpoint, REGISTER, 0xc000_0000), Action::None, "it is not enabled");
    assert_eq!(write(&*endpoint, REGISTER, 0xc000_0001), Action::Relocate);
    let place = Decoded { bar: BAR, space: Space::Memory, base: 0xc000_0000, size: 0x1000 };
    assert_eq!(ConfigFunction::decoded(&*endpoint), [place]);

    let mut data = [0; 4];
    Device::read(&*endpoint, BAR.into(), 0, &mut data);
    assert_eq!(data, [0x55, 0xaa, 3, 0]);
    assert_eq!(Device::write(&*endpoint, BAR.into(), 0, &[0; 4]), Action::None);
    Device::read(&*endpoint, BAR.into(), 0x44, &mut data);
    assert_eq!(data, [0xf4, 0x1a, 0x42, 0x10]);
    Device::read(&*endpoint, BAR.into(), 0x9fe, &mut data);
    assert_eq!(data, [3, 3, 0xff, 0xff], "behind its end there is nothing");
    assert!(!sink.log.take().iter().any(|note| note.contains("BAR 6")), "the function hears nothing of it");

    twin.restore(&endpoint.save()).unwrap();
    assert_eq!(ConfigFunction::decoded(&*twin), [place]);
    assert_eq!(write(&*endpoint, header::COMMAND, 0), Action::Relocate);
    assert_eq!(ConfigFunction::decoded(&*endpoint), []);
}

skep_fuzzing::targets! {
    "option-roms": fn fuzz_any_file_is_refused_or_read(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..0x300),
        offset in any::<u64>(),
    ) {
        let real = rom();
        for (byte, real) in bytes.iter_mut().zip(&real).take(0x60).filter(|(byte, _)| **byte < 0xe0) {
            *byte = *real;
        }
        if let Ok(rom) = OptionRom::new(&bytes) {
            let own = rom.of(&IDENTITY);
            prop_assert_eq!(own.0.len(), bytes.len());
            let mut data = [0; 8];
            own.read(offset, &mut data);
        }
    }
}
