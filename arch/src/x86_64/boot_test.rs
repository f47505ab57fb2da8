use std::io::Cursor;

use skep_memory::vm_memory::GuestMemoryMmap;
use zerocopy::FromBytes;

use super::*;
use crate::kernel::samples::*;
use crate::layout::RAM_GRANULE;
use crate::x86_64::e820::Kind;

const CMDLINE: &[u8] = b"console=ttyS0 quiet";

struct Machine {
    layout: Layout,
    memory: GuestMemoryMmap,
}

impl Machine {
    fn new(ram: u64) -> Self {
        let layout = Layout::new(ram, 40).unwrap();
        let memory = memory(&layout.ram);
        Self { layout, memory }
    }

    fn setup(&self) -> Setup<'_> {
        Setup {
            layout: &self.layout,
            cmdline: CMDLINE,
            tables: self.layout.acpi_tables(4096),
            rsdp: Some(0xe_0000),
            rng_seed: None,
            protocol: None,
            memory_is_zero: true,
        }
    }

    fn load(&self, file: Vec<u8>, initrd: Option<usize>, setup: &Setup<'_>) -> Result<Entry, LoadError> {
        let mut file = Cursor::new(file);
        let kernel = Kernel::probe(&mut file)?;
        let mut initrd = initrd.map(|size| Cursor::new(pattern(size)));
        load(&kernel, &mut file, initrd.as_mut(), &self.memory, setup)
    }

    fn read<T: FromBytes>(&self, base: u64) -> T {
        T::read_from_bytes(&bytes(&self.memory, base, size_of::<T>())).unwrap()
    }
}

fn descriptor(segment: &Segment) -> u64 {
    // As it stands in a descriptor table: limit 15:0, attributes 7:0, limit 19:16, attributes 15:12.
    let limit = u64::from(if segment.attributes & 0x8000 == 0 { segment.limit } else { segment.limit >> 12 });
    let attributes = u64::from(segment.attributes);
    (limit & 0xffff) | (attributes & 0xff) << 40 | (limit >> 16) << 48 | (attributes >> 12) << 52
}

#[test]
fn a_bzimage_is_entered_in_long_mode() {
    let machine = Machine::new(64 * MIB);
    let setup = Setup { rng_seed: Some([7; 32]), ..machine.setup() };
    let entry = machine.load(bzimage(&pattern(4096)), Some(10_000), &setup).unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: 16 * MIB + 0x200 });

    let params: BootParams = machine.read(boot::ZERO_PAGE.base);
    assert_eq!(params.header.boot_flag.get(), 0xaa55);
    assert_eq!(params.header.type_of_loader, 0xff);
    assert_eq!(params.header.init_size.get(), 8 * MIB as u32);
    assert_eq!(params.acpi_rsdp_addr.get(), 0xe_0000);
    assert_eq!(u64::from(params.header.cmd_line_ptr.get()), boot::CMDLINE.base);
    assert_eq!(bytes(&machine.memory, boot::CMDLINE.base, 20), [CMDLINE, &[0]].concat());

    let (initrd, size) = (params.header.ramdisk_image.get(), params.header.ramdisk_size.get());
    assert_eq!((u64::from(initrd), size), (64 * MIB - 12 * KIB, 10_000));
    assert_eq!(bytes(&machine.memory, initrd.into(), 10_000), pattern(10_000));

    assert_eq!(params.e820_entries, 5);
    assert_eq!(params.e820_table[2], super::super::e820::Entry::new(AddressRange::between(MIB, 64 * MIB), Kind::Ram));
    assert_eq!(params.e820_table[5].size.get(), 0);

    let seed: RngSeed = machine.read(params.header.setup_data.get());
    assert_eq!((seed.header.next.get(), seed.header.kind.get(), seed.header.len.get()), (0, 9, 32));
    assert_eq!(seed.seed, [7; 32]);
}

#[test]
fn long_mode_maps_four_gibibytes_to_themselves() {
    let machine = Machine::new(64 * MIB);
    let entry = machine.load(bzimage(&pattern(4096)), None, &machine.setup()).unwrap();
    let state = entry.boot_state();
    assert_eq!(state.general.rsi, boot::ZERO_PAGE.base);
    assert_eq!(state.general.rip, entry.address);
    assert_eq!((state.system.cr0, state.system.cr4, state.system.efer), (0x8000_0011, 0x20, 0x500));
    for address in [0, boot::ZERO_PAGE.base, 16 * MIB + 0x200, 4 * GIB - 1] {
        let walk = |table: u64, shift: u32| -> u64 { machine.read(table + ((address >> shift) & 511) * 8) };
        let (pdpt, directory) = (walk(state.system.cr3, 39), 0);
        assert_eq!(pdpt & 0x83, 3);
        let directory = walk(pdpt & !0xfff, 30) + directory;
        assert_eq!(directory & 0x83, 3);
        let page = walk(directory & !0xfff, 21);
        assert_eq!((page & 0xfff, page >> 21), (0x83, address >> 21));
    }
    let gdt = state.system.gdt;
    assert_eq!(gdt.limit, 31);
    for segment in [&state.system.cs, &state.system.ds, &state.system.ss] {
        let stored: u64 = machine.read(gdt.base + u64::from(segment.selector));
        assert_eq!(stored, descriptor(segment));
    }
}

#[test]
fn an_elf_kernel_is_entered_by_pvh_or_as_asked() {
    let machine = Machine::new(64 * MIB);
    let entry = machine.load(elf(&pattern(4096), true), Some(5000), &machine.setup()).unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Pvh, address: PVH_ENTRY.into() });
    let state = entry.boot_state();
    assert_eq!((state.system.cr0, state.system.cr4, state.system.efer), (0x11, 0, 0));
    assert_eq!(state.system.cs.attributes, 0xc09b);
    assert_eq!(state.general.rflags, 2);

    let info: StartInfo = machine.read(state.general.rbx);
    assert_eq!((info.magic.get(), info.version.get(), info.nr_modules.get()), (0x336e_c578, 1, 1));
    assert_eq!(info.rsdp_paddr.get(), 0xe_0000);
    assert_eq!(bytes(&machine.memory, info.cmdline_paddr.get(), 20), [CMDLINE, &[0]].concat());
    let module: Module = machine.read(info.modlist_paddr.get());
    assert_eq!(bytes(&machine.memory, module.paddr.get(), 5000), pattern(5000));
    assert_eq!(module.size.get(), 5000);
    let last: MemoryMapEntry = machine.read(info.memmap_paddr.get() + u64::from(info.memmap_entries.get() - 1) * 24);
    assert_eq!(last.entry.region(), Some(super::super::layout::BACKEND));

    let setup = Setup { protocol: Some(Protocol::Linux64), ..machine.setup() };
    let entry = machine.load(elf(&pattern(4096), true), None, &setup).unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: ELF_ENTRY });
    let params: BootParams = machine.read(boot::ZERO_PAGE.base);
    assert_eq!(params.header.header.get(), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(params.header.ramdisk_size.get(), 0);

    let setup = Setup { protocol: Some(Protocol::Pvh), ..machine.setup() };
    let error = machine.load(elf(&pattern(4096), false), None, &setup).unwrap_err();
    assert!(error.to_string().contains("without a PVH entry point"), "{error}");
    machine.load(elf(&pattern(4096), false), None, &machine.setup()).unwrap();
}

#[test]
fn what_does_not_fit_is_told_what_would() {
    let error = |ram, file, initrd| {
        let machine = Machine::new(ram);
        machine.load(file, initrd, &machine.setup()).unwrap_err().to_string()
    };
    assert_eq!(
        error(16 * MIB, bzimage(&pattern(4096)), None),
        "the kernel needs memory up to 24M, and the machine's ends at 16M; give it more memory"
    );
    assert_eq!(
        error(26 * MIB, bzimage(&pattern(4096)), Some(3 << 20)),
        "the initramfs of 3M does not fit: 2M are free beside the kernel; give the machine more memory or take a \
         smaller initramfs"
    );
    assert_eq!(error(26 * MIB, bzimage(&pattern(4096)), Some(0)), "the initramfs is empty");
    assert_eq!(
        error(64 * MIB, image(70_000, MIB, true), None),
        "the kernel is for aarch64, and the machine is x86_64; take a kernel for x86_64"
    );
    let mut low = elf(&pattern(4096), true);
    put(&mut low, 144, &0x8000u64.to_le_bytes());
    put(&mut low, 0x128, &0x8000u32.to_le_bytes());
    assert!(error(64 * MIB, low, None).contains("is linked to 0x8000..0xa000"));
}

#[test]
fn an_initramfs_fills_the_room_exactly() {
    let machine = Machine::new(26 * MIB);
    machine.load(bzimage(&pattern(4096)), Some(2 << 20), &machine.setup()).unwrap();
    machine.load(bzimage(&pattern(4096)), Some((2 << 20) + 1), &machine.setup()).unwrap_err();
    // The kernel's own limit.
    let mut file = bzimage(&pattern(4096));
    put(&mut file, 0x22c, &(25 * MIB as u32 - 1).to_le_bytes());
    machine.load(file.clone(), Some(1 << 20), &machine.setup()).unwrap();
    machine.load(file, Some((1 << 20) + 1), &machine.setup()).unwrap_err();
    // Tables at the end of low RAM.
    let setup = Setup { tables: machine.layout.acpi_tables(MIB), ..machine.setup() };
    machine.load(bzimage(&pattern(4096)), Some(1 << 20), &setup).unwrap();
    machine.load(bzimage(&pattern(4096)), Some((1 << 20) + 1), &setup).unwrap_err();
}

#[test]
fn command_lines_have_their_kernels_limit() {
    let machine = Machine::new(64 * MIB);
    let error = |file, cmdline: &[u8]| machine.load(file, None, &Setup { cmdline, ..machine.setup() }).map(|_| ());
    error(bzimage(&pattern(4096)), &[b'x'; 2047]).unwrap();
    let long = error(bzimage(&pattern(4096)), &[b'x'; 2048]).unwrap_err();
    assert_eq!(long.to_string(), "the command line has 2048 bytes, and the kernel takes 2047; shorten it");
    let mut large = bzimage(&pattern(4096));
    put(&mut large, 0x238, &u32::MAX.to_le_bytes());
    error(large.clone(), &[b'x'; 0xffff]).unwrap();
    error(large, &[b'x'; 0x1_0000]).unwrap_err();
    let mut old = bzimage(&pattern(4096));
    put(&mut old, 0x238, &0u32.to_le_bytes());
    error(old, &[b'x'; 256]).unwrap_err();
    error(elf(&pattern(4096), true), &[b'x'; 2048]).unwrap_err();
    assert!(matches!(error(elf(&pattern(4096), true), b"a\0b"), Err(LoadError::CmdlineZero)));
}

#[test]
fn the_smallest_machine_boots_a_small_kernel() {
    let machine = Machine::new(RAM_GRANULE);
    machine.load(elf(&pattern(4096), true), None, &machine.setup()).unwrap();
}
