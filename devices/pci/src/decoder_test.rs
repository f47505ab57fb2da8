use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::testing::*;
use crate::{Address, Windows};

/// The BARs of the rig's endpoint on bus 0.
fn bars(rig: &Rig) -> (u64, u64, u64) {
    let bar = |offset| u64::from(rig.read(ONE, offset));
    (bar(0x14) << 32 | bar(0x10) & !0xf, bar(0x18), bar(0x1c) & !0x3)
}

#[test]
fn bars_are_answered_where_they_are() {
    let rig = placed();
    let (memory, msix, io) = bars(&rig);
    let mut data = [0; 4];
    assert!(rig.memory.read(memory + 0x3ff0, &mut data));
    assert_eq!(data, [0xf0, 0xf1, 0xf2, 0xf3]);
    rig.memory_write(memory + 8, &[1, 2]);
    assert!(rig.ports.read(io + 4, &mut data));
    assert!(rig.ports.write(io, &[9]).is_some());
    assert_eq!(rig.log.take(), ["one BAR 0 8=[1, 2]", "one BAR 3 0=[9]"]);
    rig.memory_write(msix + 8, &0x55u32.to_le_bytes());
    assert!(rig.memory.read(msix + 8, &mut data));
    assert_eq!((data, rig.log.take().len()), ([0x55, 0, 0, 0], 0), "the table is not the function's");

    rig.write(ONE, 0x10, 4, 0x1000_0000);
    assert!(!rig.memory.read(memory, &mut data));
    assert!(rig.memory.read(0x40_1000_0000, &mut data));
    rig.write(ONE, 4, 2, 0);
    assert!(!rig.memory.read(0x40_1000_0000, &mut data) && !rig.ports.read(io, &mut data));
}

#[test]
fn what_is_laid_over_another_is_the_same_whatever_came_first() {
    let rig = placed();
    let (_, _, io) = bars(&rig);
    let other = rig.read(TWO, 0x1c) & !0x3;
    // The device on bus 0 comes first; that behind the port would need its window.
    rig.write(ONE, 0x1c, 4, other);
    assert_eq!(rig.mapped().iter().filter(|row| row.contains("Io")).count(), 1);
    assert!(rig.mapped().contains(&format!("root:4 BAR 3 Io {other:#x}+0x20")));
    rig.write(ONE, 0x1c, 4, io as u32);
    assert!(rig.mapped().contains(&format!("port:0 BAR 3 Io {other:#x}+0x20")));
}

#[test]
fn what_the_machine_has_mapped_stays() {
    let rig = placed();
    let device: Arc<dyn Device> = rig.root.clone();
    rig.memory.map("fixed", 0xfee0_0000, 0x1000, 0, device).unwrap();
    rig.write(ONE, 0x18, 4, 0xfee0_0000);
    assert!(!rig.mapped().iter().any(|row| row.contains("root:4 BAR 2")));
    rig.write(ONE, 0x18, 4, 0xfee0_1000);
    assert!(rig.mapped().contains(&"root:4 BAR 2 Memory 0xfee01000+0x1000".to_owned()));
}

#[test]
fn bridges_forward_what_is_in_their_windows() {
    let rig = placed();
    let rows = |rig: &Rig| rig.mapped().iter().filter(|row| row.starts_with("port:0")).count();
    assert_eq!(rows(&rig), 3);
    rig.write(PORT, 4, 2, 0x0006);
    assert_eq!(rows(&rig), 2, "no I/O");
    rig.write(PORT, 4, 2, 0x0005);
    assert_eq!(rows(&rig), 1, "no memory");
    rig.write(PORT, 4, 2, 0x0007);
    let window = rig.read(PORT, 0x20);
    rig.write(PORT, 0x20, 4, 0x0000_fff0);
    assert_eq!(rows(&rig), 2, "a window that ends before it begins");
    rig.write(PORT, 0x20, 4, window);
    let base = rig.read(PORT, 0x28);
    rig.write(PORT, 0x28, 4, base + 1);
    assert_eq!(rows(&rig), 2);
    rig.write(PORT, 0x28, 4, base);
    assert_eq!(rows(&rig), 3);
    rig.write(PORT, 0x18, 4, 0);
    assert_eq!(rows(&rig), 3, "bus numbers are for configuration cycles only");
}

#[test]
fn io_may_be_a_window_in_memory() {
    let rig = rig();
    rig.root.place(&Windows { io: crate::Window { base: 0x1000, size: 0xf000 }, ..WINDOWS }).unwrap();
    let spaces =
        Spaces { memory: &rig.memory, io: IoSpace::Window { base: 0x3eff_0000, size: 0x1_0000 }, doorbells: None };
    rig.decoder.update(&spaces, || rig.root.mappings());
    let io = u64::from(rig.read(ONE, 0x1c) & !3);
    let mut data = [0; 2];
    assert!(rig.memory.read(0x3eff_0000 + io + 2, &mut data));
    assert_eq!(data, [2, 3]);
    rig.write(ONE, 0x1c, 4, 0x1_0000);
    rig.decoder.update(&spaces, || rig.root.mappings());
    assert!(!rig.mapped().iter().any(|row| row.contains("root:4 BAR 3")), "beyond the window");
}

#[test]
fn doorbells_follow_their_bar() {
    let rig = placed();
    let (memory, ..) = bars(&rig);
    let bell = |offset| FunctionDoorbell {
        bar: 0,
        offset,
        width: Some(4),
        value: None,
        fd: Arc::new(EventFd::new(0).unwrap()),
    };
    *rig.probes[0].bells.lock().unwrap() = vec![bell(0x1000), bell(0x1008), bell(0x4000)];
    rig.memory_write(memory, &[0]);
    assert_eq!(rig.log.take(), ["one BAR 0 0=[0]"], "nobody said that they have changed");
    rig.probes[0].attachment.doorbells.changed();
    rig.memory_write(memory, &[0]);
    let attached = [format!("attach Memory {:x}", memory + 0x1000), format!("attach Memory {:x}", memory + 0x1008)];
    assert_eq!(rig.log.take()[1..], attached);
    rig.memory_write(memory, &[0]);
    assert_eq!(rig.log.take().len(), 1);
    rig.probes[0].bells.lock().unwrap().remove(0);
    rig.probes[0].attachment.doorbells.changed();
    rig.memory_write(memory, &[0]);
    assert_eq!(rig.log.take()[1..], [format!("detach Memory {:x}", memory + 0x1000)]);
    rig.write(ONE, 0x10, 4, 0x1000_0000);
    let moved = [format!("detach Memory {:x}", memory + 0x1008), "attach Memory 4010001008".to_owned()];
    assert_eq!(rig.log.take(), moved);
    rig.write(ONE, 4, 2, 0);
    assert_eq!(rig.log.take(), ["detach Memory 4010001008"]);
}

#[test]
fn a_move_is_whole_while_others_access() {
    let rig = placed();
    let (memory, ..) = bars(&rig);
    let moves = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for step in 0..200u32 {
                rig.write(ONE, 0x10, 4, 0x1000_0000 + (step % 2) * 0x4000);
                moves.fetch_add(1, Ordering::Relaxed);
            }
        });
        while moves.load(Ordering::Relaxed) < 200 {
            let mut data = [0; 4];
            if rig.memory.read(memory, &mut data) || rig.memory.read(0x40_1000_0000, &mut data) {
                assert_eq!(data, [0, 1, 2, 3]);
            }
        }
    });
    assert_eq!(rig.mapped().len(), 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_mapped_follows_from_the_registers_alone(steps in steps(0..200)) {
        let rig = placed();
        steps.iter().for_each(|step| drop(rig.step(step)));
        let before = rig.mapped();
        let (memory, ports) = (AddressSpace::memory(), AddressSpace::ports());
        let fresh = Rig { memory, ports, decoder: Decoder::new(), ..rig };
        fresh.update();
        prop_assert_eq!(fresh.mapped(), before);
        let mappings = fresh.memory.mappings();
        prop_assert!(mappings.windows(2).all(|pair| pair[0].last < pair[1].base));
        prop_assert_eq!(mappings.len() + fresh.ports.mappings().len(), fresh.mapped().len());
    }
}

#[test]
fn nothing_behind_a_sleeping_port_is_reached() {
    let rig = placed();
    let power = rig.capability(PORT, 1);
    rig.write(PORT, power + 4, 2, 3);
    assert_eq!(rig.read(TWO, 0), u32::MAX);
    assert!(!rig.mapped().iter().any(|row| row.starts_with("port:0")));
    rig.write(PORT, power + 4, 2, 0);
    assert_eq!(rig.read(Address::new(1, 0), 0), 0x1042_1af4);
    assert_eq!(rig.mapped().len(), 6, "a bridge keeps its state");
}
