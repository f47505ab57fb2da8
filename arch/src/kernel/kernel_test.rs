use std::io::{self, Cursor};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::samples::*;
use super::*;
use crate::layout::{GIB, MIB};

fn probe(file: &[u8]) -> Result<Kernel, KernelError> {
    Kernel::probe(&mut Cursor::new(file))
}

fn error(file: &[u8]) -> String {
    match probe(file) {
        Err(error) => error.to_string(),
        Ok(kernel) => panic!("taken for a kernel: {kernel:?}"),
    }
}

/// One of each format, with the architecture and the format that it is.
fn all() -> [(Vec<u8>, ArchKind, Format); 7] {
    let image = image(70_000, 2 * MIB, true);
    [
        (bzimage(&pattern(4096)), ArchKind::X86_64, Format::BzImage),
        (elf(&pattern(4096), true), ArchKind::X86_64, Format::ElfPvh),
        (elf(&pattern(4096), false), ArchKind::X86_64, Format::Elf),
        (image.clone(), ArchKind::Aarch64, Format::Image),
        (super::samples::image(70_000, 2 * MIB, false), ArchKind::Aarch64, Format::Image),
        (gzip(&image), ArchKind::Aarch64, Format::ImageGz),
        (zboot(&gzip(&image), b"gzip"), ArchKind::Aarch64, Format::Zboot),
    ]
}

#[test]
fn each_format_is_known_by_its_content() {
    for (file, architecture, format) in all() {
        let version = (format == Format::BzImage).then(|| VERSION.to_owned());
        assert_eq!(probe(&file).unwrap().info(), KernelInfo { architecture, format, version });
    }
}

#[test]
fn what_is_no_kernel_is_named() {
    assert_eq!(error(b""), "the file is empty");
    let told = [
        (&b"070701000"[..], "the file is an initramfs (cpio archive), not a kernel; give it by --initrd"),
        (b"\xfd7zXZ\0", "the file is xz-compressed data, not a kernel; decompress it first"),
        (b"#!/bin/sh", "the kernel is truncated: it has 9 bytes and needs 518"),
        (b"MZ\x90", "the file is an EFI application that is no Linux kernel"),
    ];
    for (file, text) in told {
        assert!(error(file).starts_with(text), "{}", error(file));
    }
    assert!(error(&pattern(1 << 20)).starts_with("the file is unknown data, not a kernel; x86_64 boots bzImage"));
    assert!(error(&gzip(b"070701000")).starts_with("the file is an initramfs (cpio archive), not a kernel"));
    assert!(error(&gzip(b"nothing")).contains("gzip-compressed data that holds no arm64 Image"));
    assert!(error(&gzip(&elf(&pattern(512), true))).contains("decompress it first (gunzip)"));
    let io = Kernel::probe(&mut std::fs::File::open("/").unwrap()).unwrap_err();
    assert!(matches!(io, KernelError::Io(_) | KernelError::Empty | KernelError::Truncated { .. }), "{io}");
}

#[test]
fn kernels_that_are_not_supported_are_told_apart() {
    let with = |file: &[u8], offset, value: &[u8]| {
        let mut file = file.to_vec();
        put(&mut file, offset, value);
        error(&file)
    };
    let bz = bzimage(&pattern(4096));
    assert!(with(&bz, 0x206, &[9, 2]).contains("Linux boot protocol 2.09"));
    assert!(with(&bz, 0x236, &[0, 0]).contains("a 32-bit x86 kernel"));
    let elf = elf(&pattern(4096), true);
    assert!(with(&elf, 18, &[183, 0]).contains("arch/arm64/boot/Image"));
    assert!(with(&elf, 18, &[3, 0]).contains("32-bit x86 ELF"));
    assert!(with(&elf, 18, &[243, 0]).contains("another architecture"));
    assert!(with(&elf, 16, &[1, 0]).contains("object or core"));
    assert!(with(&elf, 64, &[3]).contains("a dynamically linked program"));
    let arm = image(70_000, MIB, true);
    assert!(with(&arm, 24, &[0xb]).contains("big-endian"));
    assert!(error(&zboot(&gzip(&arm), b"zstd")).contains("compressed by zstd, which is not supported; take one"));
    assert!(with(&zboot(&gzip(&arm), b"gzip"), 68, &[0x64, 0x50]).contains("zboot kernel of another"));
}

#[test]
fn every_truncation_is_noticed() {
    for (file, architecture, format) in all() {
        if format == Format::Image && file[0] != b'M' {
            continue; // Such a header does not say how long its file is.
        }
        let mut noticed = 0;
        let lengths = (1..file.len() - 16).step_by(file.len() / 13).chain([file.len() - 17, file.len() - 16]);
        for length in lengths {
            let mut cut = Cursor::new(file[..length].to_vec());
            let result = Kernel::probe(&mut cut).map_err(LoadError::Kernel).and_then(|kernel| load(&kernel, &mut cut));
            let text = result.expect_err("a truncated kernel is loaded").to_string();
            assert!(text.contains("truncated") || text.contains("not a kernel"), "{architecture} {length}: {text}");
            noticed += 1;
        }
        assert!(noticed > 5);
    }
}

#[test]
fn a_file_that_shrinks_after_it_was_looked_at_is_truncated() {
    for (file, architecture, format) in all() {
        let mut file = Cursor::new(file);
        let kernel = Kernel::probe(&mut file).unwrap();
        let whole = file.get_ref().len();
        for left in [whole / 2, 0] {
            file.get_mut().truncate(left);
            let text = load(&kernel, &mut file).expect_err("half a kernel is loaded").to_string();
            assert!(text.contains("truncated"), "{architecture} {format:?}: {text}");
        }
    }
    let mut file = Cursor::new(vec![1; 4096]);
    let memory = memory(&[AddressRange::new(0, MIB)]);
    let error = copy_in(&memory, 0, &mut file, 0, 8192).map_err(LoadError::of_initrd).unwrap_err();
    assert_eq!(error.to_string(), "the initramfs can't be read: it is truncated: it has 4096 bytes and had 8192");
}

/// Loads any kernel into 32 MiB where its machine has RAM.
fn load(kernel: &Kernel, file: &mut File) -> Result<(), LoadError> {
    match kernel {
        Kernel::BzImage(kernel) => kernel.load(file, &memory(&[AddressRange::new(0, 32 * MIB)])),
        Kernel::Elf(kernel) => kernel.load(file, &memory(&[AddressRange::new(0, 32 * MIB)]), false),
        Kernel::Image(kernel) => {
            let memory = memory(&[AddressRange::new(GIB, 32 * MIB)]);
            kernel.load(file, &memory, kernel.region(GIB).unwrap())
        }
    }
}

#[test]
fn a_bzimage_goes_where_it_prefers() {
    let mut file = Cursor::new(bzimage(&pattern(4096)));
    let Kernel::BzImage(kernel) = Kernel::probe(&mut file).unwrap() else { panic!() };
    assert_eq!(kernel.region(), AddressRange::new(16 * MIB, 8 * MIB));
    assert_eq!(kernel.entry(), 16 * MIB + 0x200);
    let memory = memory(&[AddressRange::new(0, 32 * MIB)]);
    kernel.load(&mut file, &memory).unwrap();
    assert_eq!(bytes(&memory, 16 * MIB, 4097)[..], [&pattern(4096)[..], &[0]].concat());
}

#[test]
fn what_follows_a_bzimage_is_left_out() {
    let mut signed = bzimage(&pattern(4096));
    signed.extend([0xee; 1000]);
    let mut file = Cursor::new(signed);
    let kernel = Kernel::probe(&mut file).unwrap();
    let memory = memory(&[AddressRange::new(0, 32 * MIB)]);
    let Kernel::BzImage(kernel) = kernel else { panic!() };
    kernel.load(&mut file, &memory).unwrap();
    assert_eq!(bytes(&memory, 16 * MIB + 4096, 8), [0; 8]);
}

#[test]
fn an_elf_kernel_goes_where_it_is_linked() {
    let mut file = Cursor::new(elf(&pattern(4096), true));
    let Kernel::Elf(kernel) = Kernel::probe(&mut file).unwrap() else { panic!() };
    assert_eq!(kernel.region(), AddressRange::new(MIB, 8192));
    assert_eq!((kernel.entry(), kernel.pvh_entry()), (Some(ELF_ENTRY), Some(PVH_ENTRY)));
    let memory = memory(&[AddressRange::new(0, 2 * MIB)]);
    memory.write_slice(&[0xff; 3], GuestAddress(MIB + 4096)).unwrap();
    kernel.load(&mut file, &memory, true).unwrap();
    assert_eq!(bytes(&memory, MIB, 4096), pattern(4096));
    assert_eq!(bytes(&memory, MIB + 4096, 3), [0xff; 3]);
    kernel.load(&mut file, &memory, false).unwrap();
    assert_eq!(bytes(&memory, MIB + 4096, 4096), [0; 4096]);
}

#[test]
fn elf_entry_points_must_be_loaded_addresses() {
    let mut high = elf(&pattern(4096), true);
    put(&mut high, 24, &0xffff_ffff_8100_0000u64.to_le_bytes());
    let Kernel::Elf(kernel) = probe(&high).unwrap() else { panic!() };
    assert_eq!((kernel.entry(), kernel.pvh_entry()), (None, Some(PVH_ENTRY)));
    let mut none = elf(&pattern(4096), false);
    put(&mut none, 24, &0xffff_ffff_8100_0000u64.to_le_bytes());
    assert!(error(&none).contains("entry point outside"));
}

#[test]
fn an_image_is_unpacked_to_its_place() {
    let plain = image(200_000, 2 * MIB, true);
    for file in [plain.clone(), gzip(&plain), zboot(&gzip(&plain), b"gzip")] {
        let mut file = Cursor::new(file);
        let Kernel::Image(kernel) = Kernel::probe(&mut file).unwrap() else { panic!() };
        let region = kernel.region(GIB).unwrap();
        assert_eq!(region, AddressRange::new(GIB, 2 * MIB));
        let memory = memory(&[AddressRange::new(GIB, 4 * MIB)]);
        kernel.load(&mut file, &memory, region).unwrap();
        assert_eq!(bytes(&memory, GIB, 200_001), [&plain[..], &[0]].concat());
    }
}

#[test]
fn an_image_that_unpacks_to_more_than_it_says_is_refused() {
    let mut long = image(200_000, 2 * MIB, true);
    put(&mut long, 16, &100_000u64.to_le_bytes());
    let mut file = Cursor::new(gzip(&long));
    let kernel = Kernel::probe(&mut file).unwrap();
    let Err(LoadError::Kernel(KernelError::Malformed(text))) = load(&kernel, &mut file) else { panic!() };
    assert_eq!(text, "an Image longer than it says");
}

#[test]
fn an_old_image_goes_where_old_images_went() {
    let mut old = image(70_000, 0, false);
    put(&mut old, 24, &[0]);
    let Kernel::Image(kernel) = probe(&old).unwrap() else { panic!() };
    assert_eq!(kernel.region(GIB + 1).unwrap().base, GIB + 2 * MIB + 0x8_0000);
    assert!(kernel.region(u64::MAX - 3 * MIB).is_none());
}

#[test]
fn nothing_is_loaded_outside_memory() {
    let memory = memory(&[AddressRange::new(0, MIB)]);
    for (file, ..) in all() {
        let mut file = Cursor::new(file);
        let result = match Kernel::probe(&mut file).unwrap() {
            Kernel::BzImage(kernel) => kernel.load(&mut file, &memory),
            Kernel::Elf(kernel) => kernel.load(&mut file, &memory, true),
            Kernel::Image(kernel) => kernel.load(&mut file, &memory, kernel.region(GIB).unwrap()),
        };
        assert!(matches!(result, Err(LoadError::NoMemoryAt { .. })), "{result:?}");
    }
}

/// A source that counts its reads, and fails at one of them.
struct Watched {
    file: Cursor<Vec<u8>>,
    reads: usize,
    fails_at: usize,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        if self.reads == self.fails_at { Err(io::Error::other("gone")) } else { self.file.read(buffer) }
    }
}

impl Seek for Watched {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl ReadVolatile for Watched {
    fn read_volatile<B: skep_memory::vm_memory::bitmap::BitmapSlice>(
        &mut self,
        buffer: &mut skep_memory::vm_memory::VolatileSlice<'_, B>,
    ) -> Result<usize, skep_memory::vm_memory::VolatileMemoryError> {
        self.reads += 1;
        self.file.read_volatile(buffer)
    }
}

#[test]
fn a_file_that_fails_is_an_error_of_the_file() {
    let mut file = Watched { file: Cursor::new(bzimage(&pattern(4096))), reads: 0, fails_at: 1 };
    let error = Kernel::probe(&mut file).unwrap_err();
    assert_eq!(error.to_string(), "the file can't be read: gone");
}

#[test]
fn headers_are_read_at_once_and_the_kernel_in_one_piece() {
    for file in [bzimage(&pattern(9000)), elf(&pattern(9000), true), image(9000, MIB, true)] {
        let mut file = Watched { file: Cursor::new(file), reads: 0, fails_at: 0 };
        let kernel = Kernel::probe(&mut file).unwrap();
        assert_eq!(file.reads, 1);
        match kernel {
            Kernel::BzImage(kernel) => kernel.load(&mut file, &memory(&[AddressRange::new(0, 32 * MIB)])),
            Kernel::Elf(kernel) => kernel.load(&mut file, &memory(&[AddressRange::new(0, 32 * MIB)]), true),
            Kernel::Image(kernel) => {
                kernel.load(&mut file, &memory(&[AddressRange::new(GIB, 2 * MIB)]), kernel.region(GIB).unwrap())
            }
        }
        .unwrap();
        assert_eq!(file.reads, 2);
    }
}

proptest! {
    #[test]
    fn random_bytes_are_no_kernel(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(probe(&bytes).is_err());
    }
}

skep_fuzzing::targets! {
    /// Whatever stands in the headers, a kernel is loaded into its memory or refused.
    "kernels": fn fuzz_headers(
        which in 0usize..7,
        changes in prop::collection::vec((0usize..0x280, any::<u8>()), 0..6),
        words in prop::collection::vec((0usize..0x50, prop_oneof![Just(u64::MAX), Just(u64::MAX / 2), any::<u64>()]), 0..3),
        cut in prop_oneof![Just(usize::MAX), 0usize..80_000],
    ) {
        static ALL: LazyLock<[(Vec<u8>, ArchKind, Format); 7]> = LazyLock::new(all);
        let mut file = ALL[which].0.clone();
        for (at, value) in words {
            if let Some(place) = file.get_mut(at * 8..at * 8 + 8) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        }
        for (at, byte) in changes {
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        file.truncate(cut);
        let mut file = Cursor::new(file);
        if let Ok(kernel) = Kernel::probe(&mut file) {
            let _ = match &kernel {
                Kernel::Image(image) if image.region(GIB).is_none() => Ok(()),
                kernel => load(kernel, &mut file),
            };
        }
    }
}
