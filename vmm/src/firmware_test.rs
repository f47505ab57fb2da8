use std::os::unix::fs::MetadataExt;

use tempfile::TempDir;

use super::*;

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
    let error = FirmwareFiles::open(path, vars, arch, Locking::Now).unwrap_err().to_string();
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
    assert_eq!(FirmwareFiles::open(&pc, None, X86, Locking::Now).unwrap().code.size(), 0x1_0000);
    let opened = FirmwareFiles::open(&arm, None, ARM, Locking::Now).unwrap();
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
    let checked = FirmwareFiles::open(&code, Some(&vars(&file, Some(&template))), X86, Locking::Never).unwrap();
    assert!(checked.vars.is_none() && !file.exists(), "a check makes nothing");
    refused(&code, Some(&vars(&file, None)), X86, "template=TEMPLATE");
    let opened = FirmwareFiles::open(&code, Some(&vars(&file, Some(&template))), X86, Locking::Now).unwrap();
    assert_eq!(fs::read(&file).unwrap(), variables(0x8000));
    assert_eq!(content(&opened.vars.as_ref().unwrap().content, 40, 4), b"_FVH");
    assert_eq!(fs::read_dir(files.0.path()).unwrap().count(), 3, "nothing else is left");
    refused(&code, Some(&vars(&file, None)), X86, "another machine uses it");
    drop(opened);
    // One that is there stays as it is.
    let mut changed = variables(0x8000);
    changed[0x1000] = 7;
    fs::write(&file, &changed).unwrap();
    drop(FirmwareFiles::open(&code, Some(&vars(&file, Some(&template))), X86, Locking::Now).unwrap());
    assert_eq!(fs::read(&file).unwrap(), changed);
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
    drop(FirmwareFiles::open(&arm, Some(&vars(&copy, Some(&whole))), ARM, Locking::Now).unwrap());
    let made = fs::metadata(&copy).unwrap();
    assert_eq!((made.len(), made.blocks()), (64 << 20, 0), "what is empty takes no room");
}

#[test]
fn firmware_in_one_file_has_its_own_variables() {
    let files = Files::new();
    let both = [variables(0x8000), pc(0x1_8000)].concat();
    let path = files.write("OVMF.fd", &both);
    let opened = FirmwareFiles::open(&path, None, X86, Locking::Now).unwrap();
    let own = opened.vars.unwrap();
    assert_eq!((opened.code.size(), own.content.size(), own.file.is_none()), (0x1_8000, 0x8000, true));
    let file = files.path("vm.vars");
    drop(FirmwareFiles::open(&path, Some(&vars(&file, None)), X86, Locking::Now).unwrap());
    assert_eq!(fs::read(&file).unwrap(), variables(0x8000));
    let other = files.write("other", &variables(0x9000));
    refused(&path, Some(&vars(&other, None)), X86, "it has 36864 bytes, and should have 32768");
}
