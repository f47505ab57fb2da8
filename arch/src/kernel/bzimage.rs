//! Linux/x86 bzImage.

use skep_memory::vm_memory::GuestMemory;
use zerocopy::{FromZeros, IntoBytes};

use super::{KernelError, LoadError, Reader, Source, copy_in};
use crate::layout::AddressRange;
use crate::x86_64::boot_params::{HEADER_OFFSET, SetupHeader};

const SECTOR: u64 = 512;
/// The 64-bit entry point, from the start of the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// First boot protocol with `xloadflags`: Linux 3.8.
const PROTOCOL_2_12: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// Longest version text that is shown.
const VERSION_MAX: usize = 128;

/// A bzImage's setup header, and where its protected-mode kernel stands in the file.
#[derive(Clone, Debug)]
pub struct BzImage {
    header: SetupHeader,
    payload: AddressRange,
    version: Option<String>,
}

impl BzImage {
    pub(super) fn parse<S: Source>(file: &mut Reader<'_, S>) -> Result<Self, KernelError> {
        let mut jump = [0; 2];
        file.read_at(0x200, &mut jump)?;
        // The header ends where the jump around it leads; newer kernels' is longer than what is known here.
        let end = 0x202 + usize::from(jump[1]);
        let mut header = SetupHeader::new_zeroed();
        let known = end.saturating_sub(HEADER_OFFSET).min(size_of::<SetupHeader>());
        file.read_at(HEADER_OFFSET as u64, &mut header.as_mut_bytes()[..known])?;

        let version = header.version.get();
        if version < PROTOCOL_2_12 {
            return Err(KernelError::Unsupported {
                what: format!("of Linux boot protocol {}.{:02}", version >> 8, version & 0xff),
                mend: "take Linux 3.8 or later, which has 2.12",
            });
        }
        if header.xloadflags.get() & XLF_KERNEL_64 == 0 {
            return Err(KernelError::Unsupported {
                what: "a 32-bit x86 kernel".to_owned(),
                mend: "take an x86_64 (amd64) one",
            });
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(KernelError::Malformed("a 64-bit kernel that is not loaded high"));
        }
        let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
        let start = (sectors + 1) * SECTOR;
        // In paragraphs of 16 bytes, of which the last need not be full.
        let size = u64::from(header.syssize.get()) * 16;
        if size <= ENTRY_64 {
            return Err(KernelError::Malformed("a bzImage without a kernel"));
        }
        if file.length < start + size - 15 {
            return Err(KernelError::Truncated { needs: start + size, has: file.length });
        }
        let payload = AddressRange::between(start, file.length.min(start + size));
        if u64::from(header.init_size.get()) < payload.size {
            return Err(KernelError::Malformed("a bzImage larger than the memory it asks for"));
        }
        if header.pref_address.get().checked_add(u64::from(header.init_size.get())).is_none() {
            return Err(KernelError::Malformed("a preferred address beyond 2^64"));
        }
        let version = Self::read_version(file, &header, start)?;
        Ok(Self { header, payload, version })
    }

    fn read_version<S: Source>(
        file: &mut Reader<'_, S>,
        header: &SetupHeader,
        setup: u64,
    ) -> Result<Option<String>, KernelError> {
        let offset = u64::from(header.kernel_version.get());
        if offset == 0 || offset + 0x200 >= setup {
            return Ok(None);
        }
        let mut text = [0; VERSION_MAX];
        let count = (setup - offset - 0x200).min(VERSION_MAX as u64) as usize;
        file.read_at(offset + 0x200, &mut text[..count])?;
        let end = text.iter().position(|byte| !(b' '..=b'~').contains(byte)).unwrap_or(VERSION_MAX);
        Ok(std::str::from_utf8(&text[..end]).ok().filter(|text| !text.is_empty()).map(str::to_owned))
    }

    /// The setup header, for `boot_params`.
    pub fn header(&self) -> &SetupHeader {
        &self.header
    }

    /// The kernel's version text.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The memory that the kernel takes until it has read the memory map: from where it prefers to be loaded.
    pub fn region(&self) -> AddressRange {
        AddressRange::new(self.header.pref_address.get(), u64::from(self.header.init_size.get()))
    }

    /// Address of the 64-bit entry point once the kernel is loaded.
    pub fn entry(&self) -> u64 {
        self.region().base + ENTRY_64
    }

    /// Reads the protected-mode kernel to the start of [`region`](Self::region).
    ///
    /// # Errors
    /// If there is no guest memory or the file can't be read.
    pub fn load<M, S>(&self, source: &mut S, memory: &M) -> Result<(), LoadError>
    where
        M: GuestMemory + ?Sized,
        S: Source,
    {
        copy_in(memory, self.region().base, source, self.payload.base, self.payload.size)
    }
}
