//! /dev/kvm itself.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use skep_hypervisor::HypervisorError;

use crate::NAME;
use crate::host::{Rights, Virtualization};

#[cfg(test)]
#[path = "device_test.rs"]
mod test;

/// Where KVM is.
pub(crate) const PATH: &str = "/dev/kvm";
/// The only version of the API that there has been since 2007.
const API_VERSION: i32 = 12;

/// KVM, opened: a [`skep_hypervisor::Hypervisor`] for the host's architecture.
#[derive(Clone)]
pub struct Kvm {
    pub(crate) system: Arc<kvm_ioctls::Kvm>,
    /// The CPUID that it supports, once it was asked.
    #[cfg(target_arch = "x86_64")]
    pub(crate) cpuid: Arc<std::sync::OnceLock<skep_hypervisor::x86_64::Cpuid>>,
}

/// Opens /dev/kvm.
///
/// # Errors
/// [`HypervisorError::Unavailable`], which says what would mend it, or [`HypervisorError::Missing`] for a KVM of another API.
pub fn open() -> Result<Kvm, HypervisorError> {
    Kvm::open(Path::new(PATH))
}

impl Kvm {
    pub(crate) fn open(path: &Path) -> Result<Self, HypervisorError> {
        let refused = |source| unavailable(path, source, Virtualization::of_host(), Rights::of(path));
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| refused(e.into()))?;
        let system = kvm_ioctls::Kvm::new_with_path(&name).map_err(|e| refused(e.into()))?;
        match system.get_api_version() {
            API_VERSION => Ok(Self {
                system: Arc::new(system),
                #[cfg(target_arch = "x86_64")]
                cpuid: Arc::default(),
            }),
            other => Err(HypervisorError::Missing {
                backend: NAME,
                what: format!("API version {API_VERSION} (it answers {other})"),
                mend: ": use a current kernel".to_owned(),
            }),
        }
    }
}

fn unavailable(path: &Path, source: io::Error, host: Virtualization, rights: Option<Rights>) -> HypervisorError {
    let mend = match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => rights.map_or_else(|| "ls -l /dev/kvm".to_owned(), |r| r.mend(path)),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => host.load().to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files: ulimit -n".to_owned(),
        _ => "skep doctor, and the host's kernel log (sudo dmesg | grep -i kvm)".to_owned(),
    };
    HypervisorError::Unavailable { what: format!("can't open {}", path.display()), source, mend }
}

/// Why `KVM_CREATE_VM` failed.
pub(crate) fn no_vm(source: impl Into<io::Error>) -> HypervisorError {
    let source = source.into();
    let mend = match source.raw_os_error() {
        Some(libc::EBUSY) => "stop the other hypervisor that holds the hardware (VirtualBox, VMware)",
        Some(libc::ENOMEM) => "free memory of the host, or raise the limit of this process's cgroup",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files: ulimit -n",
        _ => "the host's kernel log: sudo dmesg | grep -i kvm",
    };
    HypervisorError::Unavailable { what: "KVM makes no VM".to_owned(), source, mend: mend.to_owned() }
}
