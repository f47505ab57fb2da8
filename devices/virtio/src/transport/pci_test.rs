use std::sync::Arc;

use skep_bus::{Device, value_of};
use skep_irq::IrqLine;
use skep_pci::{ConfigFunction, NoMessages, PciPlace, Upstream};

use super::*;
use crate::Rng;
use crate::testing::{Guest, Piece, RAM, Ring};

fn device(guest: &Guest) -> PciDevice {
    let lines = std::array::from_fn(|_| IrqLine::detached());
    let socket = Socket::new(PciPlace::Root(3), guest.map.clone(), Arc::new(NoMessages), lines);
    PciDevice::new(&socket, Rng::new("rng").unwrap()).unwrap()
}

fn byte(device: &PciDevice, offset: u16) -> u8 {
    (device.endpoint.config_read(offset & !3) >> (8 * (offset & 3))) as u8
}

/// Places of the vendor-specific capabilities, by their `cfg_type`.
fn capabilities(device: &PciDevice) -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    let mut at = u16::from(byte(device, 0x34));
    while at != 0 {
        if byte(device, at) == VENDOR_SPECIFIC {
            found.push((byte(device, at + 3), at));
        }
        at = byte(device, at + 1).into();
    }
    found.sort_unstable();
    found
}

#[test]
fn it_is_what_drivers_look_for() {
    let device = device(&Guest::new());
    assert_eq!(device.endpoint.config_read(0), 0x1044_1af4);
    assert_eq!(device.endpoint.config_read(8), 0xff00_0001);
    assert_eq!(device.endpoint.config_read(0x2c), 0x0044_1af4);
    let capabilities = capabilities(&device);
    let types: Vec<_> = capabilities.iter().map(|(cfg_type, _)| *cfg_type).collect();
    assert_eq!(types, [COMMON_CFG, NOTIFY_CFG, ISR_CFG, DEVICE_CFG, PCI_CFG]);
    let places = [(0, 60), (0x3000, 4), (0x1000, 1), (0x2000, 0x1000)];
    for ((_, at), (offset, length)) in capabilities.iter().zip(places) {
        assert_eq!(byte(&device, at + 4), STRUCTURES);
        assert_eq!((device.endpoint.config_read(at + 8), device.endpoint.config_read(at + 12)), (offset, length));
    }
    let notify = capabilities[1].1;
    assert_eq!((byte(&device, notify + 2), device.endpoint.config_read(notify + 16)), (20, 4));
}

/// Section 4.1.4.9: how firmware reaches the structures before it has placed the BARs.
#[test]
fn the_window_reaches_the_structures() {
    let device = device(&Guest::new());
    let at = capabilities(&device)[4].1;
    let aim = |offset: u32, length: u32| {
        let _ = device.endpoint.config_write(at + 4, 0xff, STRUCTURES.into());
        let _ = device.endpoint.config_write(at + 8, 0xffff_ffff, offset);
        let _ = device.endpoint.config_write(at + 12, 0xffff_ffff, length);
    };
    aim(18, 2);
    assert_eq!(device.endpoint.config_read(at + 16), 1, "one queue");
    aim(20, 1);
    let _ = device.endpoint.config_write(at + 16, 0xffff_ffff, 3);
    assert_eq!(device.endpoint.config_read(at + 16), 3, "device_status");
    aim(0x3fff, 4);
    assert_eq!(device.endpoint.config_read(at + 16), 0xffff_ffff);
}

/// A whole life: a driver that knows nothing but the BAR.
#[test]
fn a_driver_gets_random_bytes() {
    let guest = Arc::new(Guest::new());
    let device = device(&guest);
    let write = |offset: u64, data: &[u8]| {
        let _ = Device::write(&*device.endpoint, STRUCTURES.into(), offset, data);
    };
    let read = |offset: u64, width: usize| {
        let mut data = [0xff; 8];
        Device::read(&*device.endpoint, STRUCTURES.into(), offset, &mut data[..width]);
        value_of(&data[..width])
    };
    // Bus mastering and memory, of the function and above it.
    device.endpoint.connect(Upstream::ROOT);
    let _ = device.endpoint.config_write(4, 0xffff, 6);
    let mut ring = Ring::new(guest.clone(), Ring::place(RAM, 8, false));
    for life in 1..3 {
        write(20, &[3]);
        write(8, &1u32.to_le_bytes());
        write(12, &1u32.to_le_bytes());
        write(20, &[11]);
        write(24, &8u16.to_le_bytes());
        write(32, &ring.config.descriptors.to_le_bytes());
        write(40, &ring.config.available.to_le_bytes());
        write(48, &ring.config.used.to_le_bytes());
        write(28, &1u16.to_le_bytes());
        write(20, &[15]);
        ring.add(&[Piece::Write(32)]);
        write(0x3000, &0u16.to_le_bytes());
        // Without messages the ISR status tells.
        while read(0x1000, 1) == 0 {
            std::thread::yield_now();
        }
        let used = ring.take_used().unwrap();
        assert_eq!((used.len, used.data == [0; 32]), (32, false), "life {life}");
        // Function-level reset leaves nothing of it.
        Function::reset(&*device.transport);
        while read(20, 1) != 0 {
            std::thread::yield_now();
        }
        ring = Ring::new(guest.clone(), Ring::place(RAM + 0x4000 * life, 8, false));
    }
}
