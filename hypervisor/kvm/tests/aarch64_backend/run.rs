//! Running guest code.

use skep_hypervisor::Exit;

use crate::guest;
use crate::machine::{DEVICE, Device, Machine, Options};

#[test]
fn accesses_of_every_width_reach_the_device() {
    let mut machine = Machine::new(&Options::default());
    machine.boot(guest::accesses(), [DEVICE, 0x8182_8384_8586_8788, 0, 0]);
    let mut device = Device::default();
    let vcpu = &mut machine.parts.vcpus[0];
    assert_eq!(vcpu.run(&mut device).unwrap(), Exit::PowerOff);
    let widths = |kind, widths: &[usize]| widths.iter().map(|w| (kind, DEVICE, *w)).collect::<Vec<_>>();
    let expected = [widths('w', &[1, 2, 4, 8]), widths('r', &[1, 2, 4, 8])].concat();
    assert_eq!(device.accesses, expected);
    let x = vcpu.save(&mut device).unwrap().x;
    assert_eq!(x[20..24], [0x88, 0x8788, 0x8586_8788, 0x8182_8384_8586_8788]);
    assert_eq!((vcpu.exits().memory_writes, vcpu.exits().memory_reads, vcpu.exits().others), (4, 4, 1));
}
