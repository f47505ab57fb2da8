use skep_memory::DmaError;

use super::*;
use crate::testing::*;
use crate::{Bar, BarWindow};

/// An endpoint alone, connected as on bus 0.
fn alone(config: &EndpointConfig, place: PciPlace) -> (Sink, Arc<Endpoint>, Arc<Probe>) {
    let sink = Sink::default();
    let (endpoint, probe) = probe(&socket(&sink, place), &sink.log, "it", config);
    endpoint.connect(Upstream::ROOT);
    (sink, endpoint, probe)
}

fn word(endpoint: &Endpoint, offset: u16) -> u32 {
    endpoint.config_read(offset & !3) >> (8 * (offset & 2)) & 0xffff
}

fn find(endpoint: &Endpoint, id: u8) -> Option<u16> {
    let mut at = word(endpoint, 0x34) as u16 & 0xff;
    while at != 0 {
        let header = word(endpoint, at) as u16;
        if header as u8 == id {
            return Some(at);
        }
        at = header >> 8;
    }
    None
}

#[test]
fn it_says_what_it_is() {
    let (_, endpoint, _) = alone(&config(), PciPlace::Root(4));
    let header = [0x00, 0x08, 0x2c].map(|offset| endpoint.config_read(offset));
    assert_eq!(header, [0x1042_1af4, 0x0108_0201, 0x1100_1af4]);
    assert_eq!(endpoint.config_read(0x3c), 0x0200);
    assert_eq!(word(&endpoint, 6), 0x10, "a list of capabilities");
    let ids = [1, 0x10, 0x11, 5, 9].map(|id| find(&endpoint, id).is_some());
    assert_eq!(ids, [true; 5]);
    let bare = EndpointConfig { msix: None, msi: 0, pin: None, capabilities: Vec::new(), ..config() };
    let (_, endpoint, _) = alone(&bare, PciPlace::Root(4));
    assert_eq!([0x11, 5, 9].map(|id| find(&endpoint, id)), [None; 3]);
    assert_eq!(endpoint.config_read(0x3c), 0);
}

/// CVE-2024-26327, CVE-2024-26328: a guest set NumVFs beyond what there was, and the host made that many functions. There is no SR-IOV here: the
/// extended space is empty, whatever is written there, and the guest's numbers make nothing.
#[test]
fn the_extended_space_is_empty_and_stays_so() {
    let (_, endpoint, _) = alone(&config(), PciPlace::Port(0));
    let fresh = endpoint.save();
    for offset in (0x100..0x1000).step_by(4) {
        assert_eq!(endpoint.config_write(offset, u32::MAX, u32::MAX), Action::None);
    }
    assert!((0x100..0x1000).step_by(4).all(|offset| endpoint.config_read(offset) == 0));
    assert_eq!(endpoint.save(), fresh);
}

#[test]
fn links_have_speed_and_width() {
    let (_, endpoint, _) = alone(&config(), PciPlace::Port(0));
    let express = find(&endpoint, 0x10).unwrap();
    assert_eq!(word(&endpoint, express + 2), 0x0002, "an endpoint, version 2");
    assert_eq!(endpoint.config_read(express + 0xc) & 0x3ff, 0x44, "16 GT/s, 4 lanes");
    assert_eq!(word(&endpoint, express + 0x12) & 0x3ff, 0x44);
    assert_eq!(endpoint.config_read(express + 0x2c), 0b1_1110);
    let (_, endpoint, _) = alone(&config(), PciPlace::Root(4));
    let express = find(&endpoint, 0x10).unwrap();
    assert_eq!(word(&endpoint, express + 2), 0x0092, "integrated into the root complex");
    assert_eq!((endpoint.config_read(express + 0xc), endpoint.config_read(express + 0x10)), (0, 0));
}

#[test]
fn a_function_level_reset_is_the_power_on_state() {
    let (sink, endpoint, probe) = alone(&config(), PciPlace::Root(4));
    let fresh = endpoint.save();
    let express = find(&endpoint, 0x10).unwrap();
    let _ = endpoint.config_write(0x10, u32::MAX, 0xc000_0000);
    assert_eq!(endpoint.config_write(4, 0xffff, 7), Action::Relocate);
    probe.attachment.interrupts.set_pin(true);
    let msix = find(&endpoint, 0x11).unwrap();
    let _ = endpoint.config_write(msix, 0xffff_0000, 0x8000_0000);
    sink.log.take();
    assert_eq!(endpoint.config_write(express + 8, 0xffff, 0x8000), Action::Relocate);
    assert_eq!(sink.log.take(), ["it reset"]);
    assert_eq!((endpoint.save(), endpoint.config_read(express + 8) & 0x8000), (fresh, 0));
    assert!(!probe.attachment.interrupts.messages_enabled());
    assert_eq!(probe.attachment.dma.read(0, &mut [0]), Err(DmaError::NotBusMaster { requester: 0x20 }));
}

#[test]
fn coming_back_from_d3_is_a_reset() {
    let (sink, endpoint, probe) = alone(&config(), PciPlace::Root(4));
    let power = find(&endpoint, 1).unwrap() + 4;
    let _ = endpoint.config_write(0x10, u32::MAX, 0xc000_0000);
    let _ = endpoint.config_write(4, 0xffff, 6);
    assert_eq!(ConfigFunction::decoded(&*endpoint).len(), 1);
    probe.attachment.dma.read(0, &mut [0]).unwrap();
    for state in [1, 2] {
        assert_eq!(endpoint.config_write(power, 0xffff, state), Action::None);
        assert_eq!(endpoint.config_read(power) & 3, 0, "D1 and D2 are not there");
    }
    assert_eq!(endpoint.config_write(power, 0xffff, 3), Action::Relocate);
    assert!(ConfigFunction::decoded(&*endpoint).is_empty());
    probe.attachment.dma.read(0, &mut [0]).unwrap_err();
    assert!(sink.log.take().is_empty());
    let _ = endpoint.config_write(power, 0xffff, 0);
    assert_eq!(sink.log.take(), ["it reset"]);
    assert_eq!(endpoint.config_read(0x10), 0xc, "it must be placed again");
}

#[test]
fn bus_mastering_takes_all_bridges_above() {
    let (_, endpoint, probe) = alone(&config(), PciPlace::Port(0));
    endpoint.connect(Upstream { bus: 5, bus_master: false });
    let _ = endpoint.config_write(4, 0xffff, 4);
    assert_eq!(probe.attachment.dma.read(0, &mut [0]), Err(DmaError::NotBusMaster { requester: 0x500 }));
    endpoint.connect(Upstream { bus: 5, bus_master: true });
    probe.attachment.dma.read(0, &mut [0]).unwrap();
}

#[test]
fn messages_name_the_function_where_it_is() {
    let (sink, endpoint, probe) = alone(&config(), PciPlace::Port(0));
    let msi = find(&endpoint, 5).unwrap();
    let _ = endpoint.config_write(msi + 4, u32::MAX, 0xfee0_1003);
    let _ = endpoint.config_write(msi + 12, 0xffff, 0x50);
    // Two of four vectors allocated.
    let _ = endpoint.config_write(msi, 0xffff_0000, 0x0011_0000);
    let _ = endpoint.config_write(4, 0xffff, 4);
    probe.attachment.interrupts.signal(3);
    endpoint.connect(Upstream { bus: 7, bus_master: true });
    probe.attachment.interrupts.signal(0);
    assert_eq!(sink.log.take(), ["MSI 0000 fee01000 51", "MSI 0700 fee01000 50"]);
    let _ = endpoint.config_write(msi + 0x10, u32::MAX, 1);
    probe.attachment.interrupts.signal(0);
    assert_eq!(endpoint.config_read(msi + 0x14), 1);
    // With MSI-X on as well, MSI-X holds.
    let msix = find(&endpoint, 0x11).unwrap();
    let _ = endpoint.config_write(msix, 0xffff_0000, 0x8000_0000);
    let _ = Device::write(&*endpoint, 2, 0, &0xfee0_2000u64.to_le_bytes());
    let _ = Device::write(&*endpoint, 2, 8, &[0x60, 0, 0, 0, 0, 0, 0, 0]);
    let log = sink.log.take();
    assert_eq!(log.last().unwrap(), "MSI 0700 fee02000 60", "{log:?}");
}

#[test]
fn a_window_reaches_the_bars() {
    let (sink, endpoint, probe) = alone(&config(), PciPlace::Root(4));
    let window = find(&endpoint, 9).unwrap();
    let set = |bar: u32, offset: u32, length: u32| {
        let _ = endpoint.config_write(window + 4, 0xff, bar);
        let _ = endpoint.config_write(window + 8, u32::MAX, offset);
        let _ = endpoint.config_write(window + 12, u32::MAX, length);
    };
    set(0, 0x102, 2);
    assert_eq!(endpoint.config_read(window + 16), 0x0302);
    let _ = endpoint.config_write(window + 16, u32::MAX, 0xddcc_bbaa);
    let _ = endpoint.config_write(window + 16, 0xff, 0xdd);
    assert_eq!(sink.log.take(), ["it BAR 0 102=[aa, bb]"], "and half an access is none");
    for (bar, offset, length) in
        [(0, 0x101, 2), (0, 0x4000, 4), (1, 0, 4), (9, 0, 4), (0, 0, 3), (0, 0, 0), (0, u32::MAX, 1)]
    {
        set(bar, offset, length);
        assert_eq!(endpoint.config_read(window + 16), u32::MAX);
        let _ = endpoint.config_write(window + 16, u32::MAX, 1);
    }
    set(2, 12, 4);
    assert_eq!(endpoint.config_read(window + 16), 1, "the MSI-X table's mask bit");
    assert!(sink.log.take().is_empty());
    let _ = endpoint.config_write(find(&endpoint, 1).unwrap() + 4, 0xffff, 3);
    assert_eq!(endpoint.config_read(window + 16), u32::MAX, "asleep");
    assert!(!probe.attachment.interrupts.pin());
}

#[test]
fn a_function_may_fail_to_be_made() {
    let sink = Sink::default();
    let socket = socket(&sink, PciPlace::Root(4));
    assert_eq!(Endpoint::try_new(&socket, &config(), |_| Err("no eventfd left")).unwrap_err(), "no eventfd left");
}

#[test]
#[should_panic(expected = "table and pending bits are apart")]
fn table_and_pending_bits_are_apart() {
    let msix = Msix { vectors: 5, bar: 2, table: 0, pending: 0x48 };
    alone(&EndpointConfig { msix: Some(msix), ..config() }, PciPlace::Root(4));
}

#[test]
fn a_bar_of_msix_alone_has_room_for_all() {
    for vectors in [1, 5, 128, 129, 1000, 2048] {
        let msix = Msix::in_bar(2, vectors);
        let mut config = EndpointConfig { msix: Some(msix), capabilities: Vec::new(), ..config() };
        config.bars[2] = Some(Bar::memory32(msix.own_bar_size()));
        let (_, endpoint, _) = alone(&config, PciPlace::Root(4));
        let at = find(&endpoint, 0x11).unwrap();
        assert_eq!(word(&endpoint, at + 2), u32::from(vectors) - 1);
        let mut data = [0xff; 8];
        Device::read(&*endpoint, 2, u64::from(msix.pending) + msix.pending_size() - 8, &mut data);
        assert_eq!(data, [0; 8]);
    }
}

#[test]
fn a_window_of_a_capability_is_placed_with_it() {
    let BarWindow { data, .. } = config().capabilities[0].window.unwrap();
    let (_, endpoint, _) = alone(&config(), PciPlace::Root(4));
    assert!(endpoint.window(find(&endpoint, 9).unwrap() + u16::from(data)).is_some());
    assert!(endpoint.window(0x40).is_none());
}

#[test]
fn its_end_is_told_by_the_last_who_reaches_it() {
    let (_sink, endpoint, probe) = alone(&config(), PciPlace::Port(0));
    let (told, released) = std::sync::mpsc::channel();
    let function = Arc::downgrade(&probe);
    endpoint.on_release(move || told.send(function.strong_count()).unwrap());
    let other = endpoint.clone();
    drop((endpoint, probe));
    assert!(released.try_recv().is_err());
    drop(other);
    assert_eq!(released.try_recv(), Ok(0), "what was behind it has gone");
}
