use std::error::Error as _;
use std::os::unix::fs::MetadataExt;

use skep_config::BootSource;
use tempfile::TempDir;

use super::*;
use crate::boot::BootFiles;

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }
}

const X86: ArchKind = ArchKind::X86_64;
const ARM: ArchKind = ArchKind::Aarch64;

/// A PC's firmware: a header of an image somewhere, and code at the reset vector.
pub(crate) fn pc(size: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; size];
    bytes[0x2000..0x2006].copy_from_slice(&[b'V', b'Z', 0x64, 0x86, 3, 11]);
    bytes[size - 16] = 0x90;
    bytes
}

/// A volume of variables.
pub(crate) fn variables(size: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; size];
    bytes[..16].fill(0);
    bytes[16..32].copy_from_slice(&NV_DATA);
    bytes[32..40].copy_from_slice(&(size as u64).to_le_bytes());
    bytes[40..44].copy_from_slice(b"_FVH");
    bytes
}

pub(crate) fn arm() -> Vec<u8> {
    let mut bytes = vec![0; 0x2_0000];
    bytes[..4].copy_from_slice(&0x1400_0400u32.to_le_bytes());
    bytes[0x1000..0x1006].copy_from_slice(b"PE\0\0\x64\xaa");
    bytes
}

fn refused(path: &Path, vars: Option<&FirmwareVars>, arch: ArchKind, words: &str) {
    let error = FirmwareFiles::open(path, vars, arch, Locking::Now, None).unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

fn vars(file: &Path, template: Option<&Path>) -> FirmwareVars {
    FirmwareVars { file: file.to_owned(), template: template.map(Path::to_owned) }
}

fn content(backing: &Arc<Backing>, at: u64, length: usize) -> Vec<u8> {
    let region = Region::new("test", RegionKind::ReadOnly, 0, backing.size(), backing.clone(), 0).unwrap();
    let mut bytes = vec![0; length];
    region.read_slice(&mut bytes, MemoryRegionAddress(at)).unwrap();
    bytes
}

#[test]
fn firmware_of_the_other_architecture_is_refused() {
    let files = Files::new();
    let (pc, arm) = (files.write("OVMF.fd", &pc(0x1_0000)), files.write("AAVMF.fd", &arm()));
    assert_eq!(FirmwareFiles::open(&pc, None, X86, Locking::Now, None).unwrap().code.size(), 0x1_0000);
    let opened = FirmwareFiles::open(&arm, None, ARM, Locking::Now, None).unwrap();
    assert_eq!((opened.code.size(), opened.vars.unwrap().content.size()), (64 << 20, 64 << 20));
    assert_eq!(content(&opened.code, 0x1000, 4), b"PE\0\0");
    refused(&pc, None, ARM, "it is for x86_64 guests");
    refused(&arm, None, X86, "it is for aarch64 guests");
    let nothing = files.write("nothing", &[0; 0x1000]);
    refused(&nothing, None, X86, "no firmware of a PC");
    refused(&nothing, None, ARM, "no aarch64 firmware");
    refused(&files.write("odd", &[1; 100]), None, X86, "it has 100 bytes");
}

#[test]
fn a_file_of_variables_is_made_whole_from_its_template() {
    let files = Files::new();
    let code = files.write("CODE.fd", &pc(0x1_0000));
    let template = files.write("VARS.fd", &variables(0x8000));
    let file = files.path("vm.vars");
    let checked = FirmwareFiles::open(&code, Some(&vars(&file, Some(&template))), X86, Locking::Never, None).unwrap();
    assert!(checked.vars.is_none() && !file.exists(), "a check makes nothing");
    refused(&code, Some(&vars(&file, None)), X86, "template=TEMPLATE");
    let opened = FirmwareFiles::open(&code, Some(&vars(&file, Some(&template))), X86, Locking::Now, None).unwrap();
    assert_eq!(fs::read(&file).unwrap(), variables(0x8000));
    assert_eq!(content(&opened.vars.as_ref().unwrap().content, 40, 4), b"_FVH");
    assert_eq!(fs::read_dir(files.0.path()).unwrap().count(), 3, "nothing else is left");
    refused(&code, Some(&vars(&file, None)), X86, "another machine uses it");
    drop(opened);
    // One that is there stays as it is.
    let mut changed = variables(0x8000);
    changed[0x1000] = 7;
    fs::write(&file, &changed).unwrap();
    drop(FirmwareFiles::open(&code, Some(&vars(&file, Some(&template))), X86, Locking::Now, None).unwrap());
    assert_eq!(fs::read(&file).unwrap(), changed);
}

/// Neither half of it, nor one that somebody else has made meanwhile, and nothing is left beside.
#[test]
fn a_file_is_there_when_it_is_whole() {
    let files = Files::new();
    let path = files.path("vm.vars");
    let names = || fs::read_dir(path.parent().unwrap()).unwrap().count();
    let failed = make_whole(&path, |file| {
        file.write_all(b"half")?;
        assert!(!path.exists() && names() == 1);
        Err(io::ErrorKind::StorageFull.into())
    });
    assert_eq!((failed.unwrap_err().kind(), names()), (io::ErrorKind::StorageFull, 0));
    make_whole(&path, |file| file.write_all(b"whole")).unwrap().keep();
    assert_eq!((fs::read(&path).unwrap(), names()), (b"whole".to_vec(), 1));
    let failed = make_whole(&path, |file| file.write_all(b"another"));
    assert_eq!((failed.unwrap_err().kind(), names()), (io::ErrorKind::AlreadyExists, 1));
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    // By links, or without.
    let [new, other] = ["new", "other"].map(|name| files.write(name, b"new"));
    assert_eq!(place(&new, &path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    fs::remove_file(&path).unwrap();
    place(&new, &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert!(place(&files.path("nothing"), &other).is_err());
}

#[test]
fn variables_of_another_size_are_refused() {
    let files = Files::new();
    let code = files.write("CODE.fd", &pc(0x1_0000));
    let mut cut = variables(0x8000);
    cut.truncate(0x7000);
    refused(&code, Some(&vars(&files.write("cut", &cut), None)), X86, "it has 28672 bytes, and should have 32768");
    refused(&code, Some(&vars(&files.write("none", &[0xff; 0x8000]), None)), X86, "no variables of UEFI firmware");
    let arm = files.write("AAVMF.fd", &arm());
    refused(&arm, Some(&vars(&files.write("pc", &variables(0x8000)), None)), ARM, "and should have 67108864");
    let whole = files.path("whole");
    File::create(&whole).unwrap().set_len(64 << 20).unwrap();
    let copy = files.path("copy");
    drop(FirmwareFiles::open(&arm, Some(&vars(&copy, Some(&whole))), ARM, Locking::Now, None).unwrap());
    let made = fs::metadata(&copy).unwrap();
    assert_eq!((made.len(), made.blocks()), (64 << 20, 0), "what is empty takes no room");
}

#[test]
fn room_is_kept_for_a_volume_of_variables() {
    let files = Files::new();
    let can = fallocate(File::create(files.path("room")).unwrap(), FallocateFlags::empty(), 0, 4096).is_ok();
    let arm = files.write("AAVMF.fd", &arm());
    let file = files.write("vm.vars", &variables(0xc_0000)[..56]);
    File::options().write(true).open(&file).unwrap().set_len(64 << 20).unwrap();
    let room = || fs::metadata(&file).unwrap().blocks() * 512;
    assert!(room() < 0x1_0000, "it has holes");
    drop(FirmwareFiles::open(&arm, Some(&vars(&file, None)), ARM, Locking::Now, None).unwrap());
    assert!(!can || (0xc_0000..0x10_0000).contains(&room()), "{}", room());
    assert_eq!(fs::metadata(&file).unwrap().len(), 64 << 20);
}

/// The code of edk2's firmware for a PC, in a file of its own.
fn edk2(size: usize) -> Vec<u8> {
    let mut bytes = pc(size);
    bytes[..56].copy_from_slice(&variables(size)[..56]);
    bytes[16] = 0x78;
    bytes
}

#[test]
fn variables_of_another_build_are_refused() {
    let files = Files::new();
    let code = files.write("CODE.fd", &edk2(0x3_8000));
    let (right, small) = (files.write("VARS.fd", &variables(0x8000)), files.write("other.fd", &variables(0x4000)));
    let file = files.path("vm.vars");
    let words =
        "it has 16384 bytes, and should have 32768: `CODE.fd` has 229376, and is one half of an image of 262144";
    refused(&code, Some(&vars(&small, None)), X86, words);
    refused(&code, Some(&vars(&small, None)), X86, "came with `CODE.fd` (`/");
    refused(&code, Some(&vars(&file, Some(&small))), X86, words);
    assert!(!file.exists(), "nothing is made of it");
    fs::remove_file(&right).unwrap();
    refused(&code, Some(&vars(&small, None)), X86, "came with `CODE.fd` by `--firmware-vars FILE");
    let right = files.write("VARS.fd", &variables(0x8000));
    drop(FirmwareFiles::open(&code, Some(&vars(&file, Some(&right))), X86, Locking::Now, None).unwrap());
    assert_eq!(fs::read(&file).unwrap(), variables(0x8000));
    // Of firmware that is none of edk2's, nobody knows.
    let own = files.write("own.fd", &pc(0x3_8000));
    drop(FirmwareFiles::open(&own, Some(&vars(&small, None)), X86, Locking::Now, None).unwrap());
}

#[test]
fn a_volume_that_does_not_fit_its_file_is_refused() {
    let files = Files::new();
    let both = |size: u64| {
        let mut bytes = [variables(0x8000), pc(0x1_8000)].concat();
        bytes[32..40].copy_from_slice(&size.to_le_bytes());
        files.write("OVMF.fd", &bytes)
    };
    refused(&both(0), None, X86, "a volume of variables of 0 bytes, and has 131072");
    refused(&both(0x8001), None, X86, "a volume of variables of 32769 bytes");
    refused(&both(0x4_0000), None, X86, "or not all of it is there");
    let mut empty = variables(0x8000);
    empty[32..40].fill(0);
    let code = files.write("CODE.fd", &pc(0x1_0000));
    refused(&code, Some(&vars(&files.write("empty", &empty), None)), X86, "no variables of UEFI firmware");
}

#[test]
fn a_kernel_is_handed_to_who_boots_it() {
    let files = Files::new();
    let mut bz_image = vec![0; 0x1000];
    bz_image[..2].copy_from_slice(b"MZ");
    // One sector of setup, a header as far as 0x268, protocol 2.15, loaded high, 64 bits; 1 KiB of kernel, which asks for 4.
    let fields: [(usize, &[u8]); 8] = [
        (0x1f1, &[1]),
        (0x1f4, &[0x40]),
        (0x1fe, b"\x55\xaa\xeb\x66"),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x236, &[1]),
        (0x260, &[0, 0x10]),
    ];
    fields.iter().for_each(|(at, bytes)| bz_image[*at..at + bytes.len()].copy_from_slice(bytes));
    let mut image = vec![0; 0x1000];
    image[16..24].copy_from_slice(&0x1000u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    let mut shell = vec![0; 0x1000];
    shell[..2].copy_from_slice(b"MZ");
    let open = |code: &Path, kernel: &[u8], arch| {
        let kernel = files.write("kernel", kernel);
        let made = vars(&files.path("vm.vars"), None);
        let vars = code.ends_with("bios.bin").then_some(&made);
        let source = BootSource::Firmware { code, vars, kernel: Some(&kernel), initrd: None, cmdline: "" };
        BootFiles::open(&source, arch, Locking::Now)
    };
    let refused = |code: &Path, kernel: &[u8], arch, words: &str| {
        let error = open(code, kernel, arch).unwrap_err();
        let text = format!("{error} {}", error.source().map(ToString::to_string).unwrap_or_default());
        assert!(text.contains(words), "{text}");
    };
    let (bios, uefi) = (files.write("bios.bin", &pc(0x1_0000)), files.write("CODE.fd", &edk2(0x1_0000)));
    let one = files.write("OVMF.fd", &[variables(0x8000), pc(0x1_8000)].concat());
    let arm = files.write("AAVMF.fd", &arm());
    refused(&bios, &bz_image, X86, "try: the kernel without `--firmware`");
    assert!(!files.path("vm.vars").exists(), "nothing is made for what is refused");
    for (code, kernel, arch) in [(&uefi, &bz_image, X86), (&one, &bz_image, X86), (&arm, &image, ARM)] {
        assert!(open(code, kernel, arch).unwrap().split().1.unwrap().kernel.is_some());
        // An EFI application is the firmware's to judge.
        assert!(open(code, &shell, arch).is_ok());
        refused(code, &[], arch, "empty");
    }
    refused(&uefi, &image, X86, "the kernel is for aarch64");
    refused(&arm, &bz_image, ARM, "the kernel is for x86_64");
}

#[test]
fn firmware_in_one_file_has_its_own_variables() {
    let files = Files::new();
    let both = [variables(0x8000), pc(0x1_8000)].concat();
    let path = files.write("OVMF.fd", &both);
    let opened = FirmwareFiles::open(&path, None, X86, Locking::Now, None).unwrap();
    let own = opened.vars.unwrap();
    assert_eq!((opened.code.size(), own.content.size(), own.file.is_none()), (0x1_8000, 0x8000, true));
    let file = files.path("vm.vars");
    drop(FirmwareFiles::open(&path, Some(&vars(&file, None)), X86, Locking::Now, None).unwrap());
    assert_eq!(fs::read(&file).unwrap(), variables(0x8000));
    let other = files.write("other", &variables(0x9000));
    refused(&path, Some(&vars(&other, None)), X86, "it has 36864 bytes, and should have 32768");
}
