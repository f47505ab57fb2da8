use std::io::Cursor;

use skep_hypervisor::aarch64::GicVersion;
use skep_memory::vm_memory::GuestMemoryMmap;

use super::*;
use crate::kernel::{initrd_length, samples::*};

fn machine(ram: u64) -> (Layout, GuestMemoryMmap) {
    let layout = Layout::new(ram, 40, GicVersion::V3, 1).unwrap();
    let memory = memory(&layout.ram);
    (layout, memory)
}

fn place(ram: u64, file: Vec<u8>, initrd: Option<u64>) -> Result<Placement, LoadError> {
    let layout = Layout::new(ram, 40, GicVersion::V3, 1).unwrap();
    Placement::new(&Kernel::probe(&mut Cursor::new(file))?, initrd, &layout)
}

#[test]
fn kernel_tree_and_initramfs_follow_each_other() {
    let (layout, memory) = machine(16 * MIB);
    let plain = image(200_000, 3 * MIB, true);
    let mut file = Cursor::new(gzip(&plain));
    let mut initrd = Cursor::new(pattern(5000));
    let kernel = Kernel::probe(&mut file).unwrap();
    let placement = Placement::new(&kernel, Some(initrd_length(&mut initrd).unwrap()), &layout).unwrap();
    assert_eq!(
        placement,
        Placement {
            kernel: AddressRange::new(GIB, 3 * MIB),
            fdt: AddressRange::new(GIB + 4 * MIB, 2 * MIB),
            initrd: Some(AddressRange::new(GIB + 6 * MIB, 5000)),
        }
    );
    placement.load(&kernel, &mut file, Some(&mut initrd), &memory).unwrap();
    placement.write_fdt(b"tree", &memory).unwrap();
    assert_eq!(bytes(&memory, GIB, 200_000), plain);
    assert_eq!(bytes(&memory, GIB + 4 * MIB, 4), b"tree");
    assert_eq!(bytes(&memory, GIB + 6 * MIB, 5000), pattern(5000));
    assert_eq!(placement.boot_state(), BootState { pc: GIB, x: [GIB + 4 * MIB, 0, 0, 0] });
    placement.load(&kernel, &mut file, NO_INITRD, &memory).unwrap();
}

#[test]
fn what_does_not_fit_is_told_what_would() {
    let kernel = || image(200_000, 3 * MIB, true);
    let error = |ram, file, initrd| place(ram, file, initrd).unwrap_err().to_string();
    place(6 * MIB, kernel(), None).unwrap();
    assert_eq!(
        error(4 * MIB, kernel(), None),
        "the kernel needs memory up to 6M, and the machine's ends at 4M; give it more memory"
    );
    place(8 * MIB, kernel(), Some(2 * MIB)).unwrap();
    assert!(error(8 * MIB, kernel(), Some(2 * MIB + 1)).starts_with("the initramfs of 3M does not fit: 2M are free"));
    assert_eq!(
        error(8 * MIB, bzimage(&pattern(4096)), None),
        "the kernel is for x86_64, and the machine is aarch64; take a kernel for aarch64"
    );
    assert!(error(8 * MIB, image(200_000, 1 << 39, true), None).starts_with("the kernel needs memory up to 524290M"));
}

#[test]
fn the_initramfs_stays_in_the_kernels_window() {
    let room = 32 * GIB - 6 * MIB;
    place(64 * GIB, image(200_000, 3 * MIB, true), Some(room)).unwrap();
    place(64 * GIB, image(200_000, 3 * MIB, true), Some(room + 1)).unwrap_err();
}

#[test]
fn trees_and_command_lines_have_limits() {
    let (layout, memory) = machine(16 * MIB);
    let kernel = Kernel::probe(&mut Cursor::new(image(200_000, 3 * MIB, true))).unwrap();
    let placement = Placement::new(&kernel, None, &layout).unwrap();
    placement.write_fdt(&vec![1; 2 << 20], &memory).unwrap();
    let error = placement.write_fdt(&vec![1; (2 << 20) + 1], &memory).unwrap_err();
    assert_eq!(error.to_string(), "the device tree has 2097153 bytes, and kernels take 2097152; take a smaller one");
    check_cmdline(&[b'x'; 2047]).unwrap();
    assert!(matches!(check_cmdline(&[b'x'; 2048]), Err(LoadError::CmdlineTooLong { length: 2048, limit: 2047 })));
    assert!(matches!(check_cmdline(b"\0"), Err(LoadError::CmdlineZero)));
}
