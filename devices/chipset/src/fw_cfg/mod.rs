//! QEMU's firmware configuration device (docs/specs/fw_cfg.rst), by which firmware learns of the machine.
//!
//! The guest selects an item by its number and reads it byte by byte, or has it copied by DMA. A directory gives names to most items. Some are
//! made late ([`Content::Late`]): ACPI's tables tell where firmware has put things, so they are made when firmware first selects one, and
//! are part of the saved state from then on. Some the guest writes ([`Content::Written`]), by DMA alone, and within their size.
//!
//! On a PC it is at ports ([`PORTS_REGION`]), elsewhere in memory ([`MEMORY_REGION`]), where all registers are big-endian.
//!
//! What it does not do: the numbered items of machines that are no PC, the old way to write by the data register, callbacks.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use minicbor::bytes::ByteVec;
use skep_bus::{Action, Device, value_of};
use skep_memory::Dma;
use skep_memory::vm_memory::{GuestAddress, GuestMemoryBackend};
use skep_state::{Persist, StateError, ensure};
use tracing::debug;

mod item;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod fw_cfg_test;

pub use item::{Content, NAME_MAX, NamedItem, key};
pub use state::FwCfgState;

use item::Place;

/// Selector, data and DMA address as ports: 12, from 0x510 on.
pub const PORTS_REGION: u32 = 0;
/// Data, selector and DMA address in memory: 24 bytes.
pub const MEMORY_REGION: u32 = 1;

/// Offsets in [`PORTS_REGION`].
mod port {
    pub(super) const SELECTOR: u64 = 0;
    pub(super) const DATA: u64 = 1;
    pub(super) const DMA: u64 = 4;
}

/// Offsets in [`MEMORY_REGION`].
mod memory {
    pub(super) const DATA: u64 = 0;
    pub(super) const SELECTOR: u64 = 8;
    pub(super) const DMA: u64 = 16;
}

/// The interface by registers, and the one by DMA.
const FEATURES: u32 = 0b11;
/// What the DMA address register reads as.
const DMA_SIGNATURE: u64 = u64::from_be_bytes(*b"QEMU CFG");
/// The bit of a selector that once made the data register writable.
const OLD_WRITE: u16 = 1 << 14;

/// Bits of a DMA request's control word.
mod control {
    pub(super) const ERROR: u32 = 1 << 0;
    pub(super) const READ: u32 = 1 << 1;
    pub(super) const SKIP: u32 = 1 << 2;
    pub(super) const SELECT: u32 = 1 << 3;
    pub(super) const WRITE: u32 = 1 << 4;
}

/// Bytes that are copied at once.
const PIECE: usize = 64 << 10;

/// Makes the late items' bytes, in the order of those items.
pub type MakeLate = Box<dyn Fn() -> Vec<Vec<u8>> + Send + Sync>;

/// What fw_cfg is made of.
pub struct FwCfgConfig {
    /// Where requests and their data are.
    pub dma: Dma,
    /// Items by their numbers, below [`key::FILE_DIRECTORY`]; those that are fixed by the interface are not among them.
    pub items: Vec<(u16, Content)>,
    /// Items by their names.
    pub files: Vec<NamedItem>,
}

/// The device.
pub struct FwCfg {
    dma: Dma,
    /// By number, ascending.
    items: Vec<(u16, Place)>,
    names: Vec<String>,
    written_sizes: Vec<usize>,
    late_sizes: Vec<usize>,
    late: OnceLock<MakeLate>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    selected: u16,
    offset: u64,
    dma_high: u32,
    written: Vec<Vec<u8>>,
    late: Option<Vec<Arc<[u8]>>>,
}

impl FwCfg {
    /// The device in its power-on state. Files get their numbers by the order of their names.
    ///
    /// # Panics
    /// If two files have one name, or a name is too long: both are the machine's mistakes.
    #[must_use]
    pub fn new(config: FwCfgConfig) -> Self {
        let FwCfgConfig { dma, items, mut files } = config;
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        assert!(files.windows(2).all(|pair| pair[0].name != pair[1].name), "each file has a name of its own");
        assert!(files.iter().all(|file| file.name.len() <= NAME_MAX), "a file's name has 55 bytes at most");
        let mut this = Self {
            dma,
            items: Vec::new(),
            names: Vec::new(),
            written_sizes: Vec::new(),
            late_sizes: Vec::new(),
            late: OnceLock::new(),
            inner: Mutex::default(),
        };
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        let mut numbered = items;
        numbered.push((key::SIGNATURE, b"QEMU".to_vec().into()));
        numbered.push((key::ID, FEATURES.to_le_bytes().to_vec().into()));
        for (number, content) in numbered {
            let place = this.place(content).0;
            this.items.push((number, place));
        }
        for (number, file) in (key::FIRST_FILE..).zip(files) {
            let (place, size) = this.place(file.content);
            let mut name = file.name.clone().into_bytes();
            name.resize(NAME_MAX + 1, 0);
            directory.extend(u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
            directory.extend(number.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(name);
            this.items.push((number, place));
            this.names.push(file.name);
        }
        this.items.push((key::FILE_DIRECTORY, Place::Bytes(directory.into())));
        this.items.sort_unstable_by_key(|(number, _)| *number);
        this.reset();
        this
    }

    /// Where a content's bytes are kept, and how many it has.
    fn place(&mut self, content: Content) -> (Place, u64) {
        match content {
            Content::Bytes(bytes) => {
                let size = bytes.len() as u64;
                (Place::Bytes(bytes.into()), size)
            }
            Content::File { file, size } => (Place::File { file: Arc::new(file), size }, size),
            Content::Written(size) => {
                self.written_sizes.push(size);
                (Place::Written(self.written_sizes.len() - 1), size as u64)
            }
            Content::Late(size) => {
                self.late_sizes.push(size);
                (Place::Late(self.late_sizes.len() - 1), size as u64)
            }
        }
    }

    /// Who makes the late items, once. `make` is called under no lock, on a vCPU's thread.
    pub fn set_late(&self, make: MakeLate) {
        // A machine has one for its whole life.
        let _ = self.late.set(make);
    }

    /// What the guest has written to the file `name`, if there is such a file.
    #[must_use]
    pub fn written(&self, name: &str) -> Option<Vec<u8>> {
        let number = self.names.iter().position(|other| other == name)?;
        match self.item(key::FIRST_FILE + number as u16)? {
            Place::Written(number) => self.lock().written.get(*number).cloned(),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn item(&self, number: u16) -> Option<&Place> {
        let at = self.items.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.items.get(at).map(|(_, place)| place)
    }

    fn select(&self, number: u16) {
        let number = number & !OLD_WRITE;
        if matches!(self.item(number), Some(Place::Late(_))) && self.lock().late.is_none() {
            self.make_late();
        }
        let mut inner = self.lock();
        (inner.selected, inner.offset) = (number, 0);
    }

    fn make_late(&self) {
        let Some(make) = self.late.get() else { return };
        let mut made = make();
        made.resize(self.late_sizes.len(), Vec::new());
        let sized = made.into_iter().zip(&self.late_sizes).map(|(mut bytes, size)| {
            if bytes.len() > *size {
                tracing::error!(
                    size,
                    bytes = bytes.len(),
                    "a table is longer than firmware was told: it is cut off, which is a mistake in skep"
                );
            }
            bytes.resize(*size, 0);
            Arc::from(bytes)
        });
        let sized = sized.collect();
        // Of two vCPUs that select at once, both see what the first has made.
        self.lock().late.get_or_insert(sized);
    }

    /// Reads on in the selected item; beyond its end, and where there is none, there are zeroes.
    fn read_on(&self, inner: &mut Inner, into: &mut [u8]) {
        self.selected(inner).read(inner.offset, into);
        inner.offset = inner.offset.saturating_add(into.len() as u64);
    }

    /// What is selected, as it is now.
    fn selected(&self, inner: &Inner) -> Place {
        match self.item(inner.selected) {
            Some(Place::Written(number)) => {
                Place::Bytes(inner.written.get(*number).map_or(&[][..], Vec::as_slice).into())
            }
            Some(Place::Late(number)) => {
                let made = inner.late.as_ref().and_then(|late| late.get(*number));
                Place::Bytes(made.cloned().unwrap_or_default())
            }
            Some(place) => place.clone(),
            None => Place::Bytes(Arc::default()),
        }
    }

    /// Carries out the request at `address`: control, length and address, big-endian.
    fn request(&self, address: u64) {
        let mut request = [0; 16];
        if let Err(error) = self.dma.read(address, &mut request) {
            return debug!(%error, "a request to fw_cfg can't be read");
        }
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| request[at + i]));
        let (asked, length) = (word(0), word(4));
        let data = u64::from(word(8)) << 32 | u64::from(word(12));
        if asked & control::SELECT != 0 {
            self.select((asked >> 16) as u16);
        }
        let done = if asked & control::READ != 0 {
            self.dma_read(data, length)
        } else if asked & control::WRITE != 0 {
            self.dma_write(data, length)
        } else {
            if asked & control::SKIP != 0 {
                let mut inner = self.lock();
                inner.offset = inner.offset.saturating_add(length.into());
            }
            true
        };
        let answer = if done { 0 } else { control::ERROR };
        if let Err(error) = self.dma.write(address, &answer.to_be_bytes()) {
            debug!(%error, "a request to fw_cfg can't be answered");
        }
    }

    /// Copies what is selected, and zeroes where it has ended. Nobody waits for that but the vCPU: an item may be a file on a disk that hangs, and a guest may ask for
    /// all of its memory to be filled.
    fn dma_read(&self, to: u64, length: u32) -> bool {
        let (place, selected, start) = {
            let inner = self.lock();
            (self.selected(&inner), inner.selected, inner.offset)
        };
        let length = u64::from(length);
        let is_ram = |memory: skep_memory::DmaGuard| memory.check_range(GuestAddress(to), length as usize);
        // What can't be done is not begun.
        if length > 0 && !self.dma.memory().is_ok_and(is_ram) {
            debug!(to, length, "an item of fw_cfg goes nowhere");
            return false;
        }
        let mut buffer = vec![0; (length as usize).min(PIECE)];
        let (mut done, mut zeroed) = (0, false);
        while done < length {
            let take = (length - done).min(PIECE as u64);
            let Some(piece) = buffer.get_mut(..take as usize) else { return false };
            let offset = start.saturating_add(done);
            let beyond = offset >= place.size();
            if !(beyond && zeroed) {
                place.read(offset, piece);
                // The pieces that follow are no longer.
                zeroed = beyond;
            }
            if let Err(error) = self.dma.write(to.wrapping_add(done), piece) {
                debug!(%error, "an item of fw_cfg goes nowhere");
                return false;
            }
            done += take;
        }
        let mut inner = self.lock();
        // Unless another vCPU has gone on with it meanwhile.
        if (inner.selected, inner.offset) == (selected, start) {
            inner.offset = start.saturating_add(length);
        }
        true
    }

    fn dma_write(&self, from: u64, length: u32) -> bool {
        let mut inner = self.lock();
        let offset = inner.offset;
        let Some(Place::Written(number)) = self.item(inner.selected) else { return false };
        let Some(content) = inner.written.get_mut(*number) else { return false };
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(length as usize)?));
        let Some(place) = range.and_then(|range| content.get_mut(range)) else { return false };
        let mut bytes = vec![0; place.len()];
        if let Err(error) = self.dma.read(from, &mut bytes) {
            debug!(%error, "what the guest writes to fw_cfg can't be read");
            return false;
        }
        place.copy_from_slice(&bytes);
        inner.offset = offset.saturating_add(length.into());
        true
    }

    /// A write to the DMA address register, of which the upper half comes first.
    fn write_dma(&self, offset: u64, data: &[u8]) {
        let value = data.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        match (offset, data.len()) {
            (0, 8) => self.request(value),
            (0, 4) => self.lock().dma_high = value as u32,
            (4, 4) => {
                let high = std::mem::take(&mut self.lock().dma_high);
                self.request(u64::from(high) << 32 | value);
            }
            _ => {}
        }
    }

    fn read_dma(offset: u64, data: &mut [u8]) {
        data.fill(0);
        let signature = DMA_SIGNATURE.to_be_bytes();
        data.iter_mut().zip(signature.iter().skip(offset as usize)).for_each(|(byte, value)| *byte = *value);
    }
}

impl Device for FwCfg {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        match (region, offset) {
            (PORTS_REGION, port::DATA) | (MEMORY_REGION, memory::DATA..memory::SELECTOR) => {
                self.read_on(&mut self.lock(), data);
            }
            (PORTS_REGION, port::DMA..) => Self::read_dma(offset - port::DMA, data),
            (MEMORY_REGION, memory::DMA..) => Self::read_dma(offset - memory::DMA, data),
            // The selector is written only.
            _ => data.fill(0),
        }
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        match (region, offset, data) {
            (PORTS_REGION, port::SELECTOR, [_, _]) => self.select(value_of(data) as u16),
            (MEMORY_REGION, memory::SELECTOR, &[high, low]) => self.select(u16::from_be_bytes([high, low])),
            (PORTS_REGION, port::DMA.., _) => self.write_dma(offset - port::DMA, data),
            (MEMORY_REGION, memory::DMA.., _) => self.write_dma(offset - memory::DMA, data),
            // What was once written by the data register is not any more.
            _ => {}
        }
        Action::None
    }
}

impl Persist for FwCfg {
    type State = FwCfgState;

    fn save(&self) -> FwCfgState {
        let inner = self.lock();
        FwCfgState {
            selected: inner.selected,
            offset: inner.offset,
            dma_high: inner.dma_high,
            written: inner.written.iter().cloned().map(ByteVec::from).collect(),
            late: inner.late.as_ref().map(|late| late.iter().map(|bytes| ByteVec::from(bytes.to_vec())).collect()),
        }
    }

    fn restore(&self, state: &FwCfgState) -> Result<(), StateError> {
        const ID: &str = <FwCfgState as skep_state::State>::ID;
        let sizes = |list: &[ByteVec]| list.iter().map(|bytes| bytes.len()).collect::<Vec<_>>();
        let written = sizes(&state.written);
        let rule = "the items that this machine's guest writes have the sizes that they have";
        ensure(written == self.written_sizes, ID, "written", written, rule)?;
        if let Some(late) = &state.late {
            // Their sizes were told to firmware when it looked at the directory, and those of the machine that was saved hold.
            let count = late.len();
            ensure(count == self.late_sizes.len(), ID, "late", count, "this machine makes as many tables as it has")?;
        }
        let mut inner = self.lock();
        *inner = Inner {
            selected: state.selected,
            offset: state.offset,
            dma_high: state.dma_high,
            written: state.written.iter().map(|bytes| bytes.to_vec()).collect(),
            late: state.late.as_ref().map(|late| late.iter().map(|bytes| Arc::from(bytes.to_vec())).collect()),
        };
        Ok(())
    }

    fn reset(&self) {
        let written = self.written_sizes.iter().map(|size| vec![0; *size]).collect();
        *self.lock() = Inner { written, ..Inner::default() };
    }
}

impl fmt::Debug for FwCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FwCfg").field("items", &self.items).field("names", &self.names).finish_non_exhaustive()
    }
}
