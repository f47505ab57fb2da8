//! A bank of parallel NOR flash with Intel's command set, which holds firmware's variables.
//!
//! Follows the Common Flash Interface (JESD68.01) with primary command set 1 as Micron's P30 has it, in the geometries of QEMU's machines ([`Geometry`]):
//! byte-wide with blocks of 4 KiB on a PC, two 16-bit chips side by side with blocks of 256 KiB on aarch64, where a command is given to both.
//! There are the commands that edk2's drivers, and Linux's, give: read array, status, id and query; clear status; program; buffered program; block
//! erase; lock and unlock.
//!
//! As in QEMU's, and unlike a chip's: the ready bit of the status register is clear after "clear status", until an operation has ended (OVMF knows
//! flash by that); blocks are unlocked at power-on; nothing takes time.
//!
//! # As memory
//!
//! While it is read ([`Flash::mapping`]), the bank is memory, and code runs from it at full speed; a write reaches the bus. In all other
//! modes it has no memory, and reads reach the bus as well. While the data of a buffered program comes ([`Flash::posts`]), writes may reach the bus late: what
//! they do shows first where the guest asks for the status, as drivers do after each confirm. A guest that does not ask may have what it writes next, the return to
//! read array among it, come late as well, until its next exit. What changes any of that returns [`Action::Remap`].
//!
//! # What lasts
//!
//! A bank with a file keeps its content there, and never has it torn. What an operation has changed is written to the file when that has ended
//! (programs of single bytes that follow each other, when the last one has), in the guest's order and by writes of their own: so
//! the file is at each moment what a chip would hold that lost its power just then, whatever ends the process. Variable drivers are made for that, but for
//! those that erase a large block to write it anew: of that the file has nothing before it is whole, which is when the guest goes on to something else, or has
//! run for a while since (`held.rs` says how long, and what that is worth). Each
//! return to read array, with which a driver ends what it has to do at once, waits until the host has it on stable storage, so that what follows can't
//! overtake it there, where the host's power fails. What the host refuses is a failed operation to the guest, and so is all that follows: the file stays as it was
//! (`store.rs`).
//!
//! A bank without a file forgets at the machine's end, not at its reset; what was changed is part of its saved state. Of a bank with a file all is: what
//! the guest knows of its variables is in its memory as well, so it goes on only where the file holds what it held.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use minicbor::bytes::ByteVec;
use skep_bus::{Action, Device, value_of};
use skep_clock::Clock;
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_memory::{Backing, MemoryError, Region, RegionKind};
use skep_state::{Persist, StateError, ensure};
use tracing::debug;

use crate::alarm::Alarm;

mod held;
mod query;
mod state;
mod store;
mod waiting;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod flash_test;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // Tests.
mod held_test;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod model_test;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // Tests.
mod store_test;

use held::Held;
pub use held::mend;
pub use state::{BlockState, ContentState, FlashState};
use store::{Media, Store};

/// Bytes of the buffer for a buffered program.
pub(crate) const BUFFER: usize = 2048;
/// The largest bank: aarch64's.
const FLASH_MAX: u64 = 64 << 20;

/// How chips and blocks are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the bank's bus: 1, or 4 for two chips of 16 bits.
    pub width: u32,
    /// Bytes of an erase block, of all chips together.
    pub block: u32,
}

impl Geometry {
    /// A PC's.
    pub const PC: Self = Self { width: 1, block: 4 << 10 };
    /// That of aarch64's machine.
    pub const VIRT: Self = Self { width: 4, block: 256 << 10 };

    /// Chips side by side.
    fn chips(self) -> u32 {
        if self.width == 4 { 2 } else { 1 }
    }
}

/// What a bank is made of.
pub struct FlashConfig {
    /// What it is called in the memory layout.
    pub name: &'static str,
    /// Where it is in guest memory.
    pub base: u64,
    /// Its content; all of it is the bank, a whole number of blocks.
    pub content: Arc<Backing>,
    /// How it is arranged.
    pub geometry: Geometry,
    /// Where changes last; the content has been read from it.
    pub file: Option<File>,
    /// Guest time, in which a block is held that is written anew.
    pub clock: Clock,
}

/// The bank as memory.
#[derive(Debug, Clone)]
pub struct FlashMapping {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub base: u64,
    /// The memory: all of it.
    pub content: Arc<Backing>,
}

/// A bank of flash.
pub struct Flash {
    name: &'static str,
    base: u64,
    content: Arc<Backing>,
    /// The way to the content. It is in no memory map.
    bytes: Region,
    geometry: Geometry,
    /// Its content is kept in a file.
    lasts: bool,
    clock: Clock,
    inner: Mutex<Inner>,
    /// It has been saved, or restored, and its machine has not gone on since ([`Flash::resumed`]): another process may have the file. It changes with the lock
    /// held, under which nobody waits for the disk while this is set.
    saved: AtomicBool,
    /// The last thread that waits for the file's disk.
    waits: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Array,
    Status,
    Id,
    Query,
    Program,
    Erase,
    Lock,
    Count,
    Fill,
    Confirm,
}

/// How the guest reaches the bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Memory,
    Posted,
    Bus,
}

impl Mode {
    fn reach(self) -> Reach {
        match self {
            Mode::Array => Reach::Memory,
            Mode::Fill | Mode::Confirm => Reach::Posted,
            _ => Reach::Bus,
        }
    }
}

const MODES: [Mode; 10] = [
    Mode::Array,
    Mode::Status,
    Mode::Id,
    Mode::Query,
    Mode::Program,
    Mode::Erase,
    Mode::Lock,
    Mode::Count,
    Mode::Fill,
    Mode::Confirm,
];

/// Bits of the status register.
mod status {
    pub(super) const READY: u8 = 1 << 7;
    pub(super) const ERASE_FAILED: u8 = 1 << 5;
    pub(super) const PROGRAM_FAILED: u8 = 1 << 4;
    pub(super) const LOCKED: u8 = 1 << 1;
    /// Both: the commands make no sense.
    pub(super) const SEQUENCE: u8 = ERASE_FAILED | PROGRAM_FAILED;
}

/// Commands.
mod command {
    pub(super) const LOCK: u8 = 0x01;
    pub(super) const PROGRAM: [u8; 2] = [0x10, 0x40];
    pub(super) const ERASE: u8 = 0x20;
    pub(super) const LOCK_DOWN: u8 = 0x2f;
    pub(super) const CLEAR_STATUS: u8 = 0x50;
    pub(super) const LOCK_SETUP: u8 = 0x60;
    pub(super) const READ_STATUS: u8 = 0x70;
    pub(super) const READ_ID: u8 = 0x90;
    pub(super) const READ_QUERY: u8 = 0x98;
    pub(super) const CONFIRM: u8 = 0xd0;
    pub(super) const BUFFERED_PROGRAM: u8 = 0xe8;
}

/// Manufacturer and device, as QEMU's aarch64 machine has them.
const ID: [u16; 2] = [0x0089, 0x0018];

struct Inner {
    mode: Mode,
    status: u8,
    locked: BTreeSet<u32>,
    expected: u32,
    window: Option<u32>,
    astray: bool,
    buffer: Vec<u8>,
    /// Of a bank without a file: what its changed blocks held before.
    originals: BTreeMap<u32, Vec<u8>>,
    /// Programmed, and not yet written to the file.
    unwritten: Option<Range<u64>>,
    /// Erased, and not yet written anew.
    held: Option<Held>,
    alarm: Alarm,
    /// Its file.
    store: Option<Store>,
}

impl Inner {
    /// Whether the host has refused anything.
    fn has_failed(&self) -> bool {
        self.store.as_ref().is_some_and(Store::has_failed)
    }

    /// Has the file keep something, where there is one. What it does not keep is an operation that has failed.
    fn keep(&mut self, act: impl FnOnce(&mut Store) -> bool) {
        if !self.store.as_mut().is_none_or(act) {
            self.status |= status::PROGRAM_FAILED | status::ERASE_FAILED;
        }
    }
}

impl Flash {
    /// A bank in its power-on state.
    ///
    /// # Errors
    /// [`MemoryError::BadRange`] for a size or an address that is not made of whole pages.
    ///
    /// # Panics
    /// If the size is no whole number of blocks, which is the machine's mistake.
    pub fn new(mut config: FlashConfig) -> Result<Arc<Self>, MemoryError> {
        let media = config.file.take().map(|file| Box::new(file) as Box<dyn Media>);
        Self::on(config, media)
    }

    fn on(config: FlashConfig, media: Option<Box<dyn Media>>) -> Result<Arc<Self>, MemoryError> {
        let FlashConfig { name, base, content, geometry, file: _, clock } = config;
        let size = content.size();
        assert!(size.is_multiple_of(geometry.block.into()) && size <= FLASH_MAX, "flash is made of whole blocks");
        let bytes = Region::new(name, RegionKind::ReadOnly, base, size, content.clone(), 0)?;
        let lasts = media.is_some();
        Ok(Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = clock.timer(move || {
                if let Some(flash) = this.upgrade() {
                    flash.apart(Self::wait_no_longer);
                }
            });
            let inner = Mutex::new(Inner {
                mode: Mode::Array,
                status: status::READY,
                locked: BTreeSet::new(),
                expected: 0,
                window: None,
                astray: false,
                buffer: vec![0xff; BUFFER],
                originals: BTreeMap::new(),
                unwritten: None,
                held: None,
                alarm: Alarm::new(timer),
                store: media.map(|media| Store::new(media, name, size)),
            });
            Self {
                name,
                base,
                content,
                bytes,
                geometry,
                lasts,
                clock,
                inner,
                saved: AtomicBool::new(false),
                waits: Mutex::default(),
            }
        }))
    }

    /// Where it is in guest memory.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes of the bank.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.content.size()
    }

    /// Where it is to be memory now; nowhere while it is not read.
    #[must_use]
    pub fn mapping(&self) -> Option<FlashMapping> {
        let (name, base, content) = (self.name, self.base, self.content.clone());
        (self.lock().mode.reach() == Reach::Memory).then_some(FlashMapping { name, base, content })
    }

    /// Where its writes may be posted now.
    #[must_use]
    pub fn posts(&self) -> Option<Range<u64>> {
        (self.lock().mode.reach() == Reach::Posted).then(|| self.base..self.base + self.size())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block_of(&self, offset: u64) -> u32 {
        u32::try_from(offset / u64::from(self.geometry.block)).unwrap_or(u32::MAX)
    }

    fn block_range(&self, block: u32) -> Range<u64> {
        let size = u64::from(self.geometry.block);
        let start = u64::from(block) * size;
        start..(start + size).min(self.size())
    }

    fn blocks(&self) -> u32 {
        self.block_of(self.size() - 1) + 1
    }

    fn load(&self, offset: u64, into: &mut [u8]) {
        if let Err(error) = self.bytes.read_slice(into, MemoryRegionAddress(offset)) {
            // The bus gives it nothing beyond its range.
            debug!(%error, "a read leaves the flash");
        }
    }

    fn content_of(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.load(range.start, &mut bytes);
        bytes
    }

    /// What the file of a bank holds.
    fn content(&self, held: Option<&Held>) -> Option<ContentState> {
        if !self.lasts {
            return None;
        }
        // Most of an arm64 bank has never been touched, and is not now.
        let used = self.bytes.used().unwrap_or_else(|_| vec![Range { start: 0, end: self.size() }]);
        let touched = |range: &Range<u64>| used.iter().any(|used| used.start < range.end && range.start < used.end);
        let block = |number| {
            let range = Some(self.block_range(number)).filter(touched)?;
            let mut bytes = match held {
                Some(held) if held.block == number => held.old.clone(),
                _ => self.content_of(range),
            };
            let first = *bytes.first()?;
            if bytes.iter().all(|byte| *byte == first) {
                bytes.truncate(1);
            }
            (bytes != [0]).then(|| BlockState { number, bytes: bytes.into() })
        };
        let blocks = (0..self.blocks()).filter_map(block).collect();
        Some(ContentState { size: self.size(), block: self.geometry.block, blocks })
    }

    fn store(&self, offset: u64, from: &[u8]) {
        if let Err(error) = self.bytes.write_slice(from, MemoryRegionAddress(offset)) {
            debug!(%error, "a write leaves the flash");
        }
    }

    /// Notes what a block held before it is changed for the first time, where no file keeps it.
    fn remember(&self, inner: &mut Inner, block: u32) {
        if !self.lasts && !inner.originals.contains_key(&block) {
            inner.originals.insert(block, self.content_of(self.block_range(block)));
        }
    }

    /// Clears the bits that are clear in `data`, where the block is not locked.
    fn program(&self, inner: &mut Inner, offset: u64, data: &[u8]) {
        inner.status |= status::READY;
        let last = offset + (data.len() as u64).saturating_sub(1);
        let blocks = self.block_of(offset)..=self.block_of(last);
        if blocks.clone().any(|block| inner.locked.contains(&block)) {
            inner.status |= status::PROGRAM_FAILED | status::LOCKED;
            return;
        }
        // What goes on with a block goes upwards.
        let goes_on = |held: &Held| blocks == (held.block..=held.block) && offset >= held.end;
        if inner.held.as_ref().is_some_and(|held| !goes_on(held)) {
            self.let_go(inner);
        }
        let joins = inner.unwritten.as_ref().is_some_and(|range| range.end == offset);
        if !joins {
            self.write_out(inner);
        }
        if inner.has_failed() {
            inner.status |= status::PROGRAM_FAILED;
            return;
        }
        blocks.for_each(|block| self.remember(inner, block));
        let mut bytes = vec![0; data.len()];
        self.load(offset, &mut bytes);
        bytes.iter_mut().zip(data).for_each(|(byte, value)| *byte &= value);
        self.store(offset, &bytes);
        if inner.held.is_some() {
            return self.hold(inner, last + 1);
        }
        match &mut inner.unwritten {
            Some(range) => range.end = last + 1,
            none => *none = Some(offset..last + 1),
        }
    }

    fn erase(&self, inner: &mut Inner, offset: u64) {
        inner.status |= status::READY;
        let block = self.block_of(offset);
        if inner.locked.contains(&block) {
            inner.status |= status::ERASE_FAILED | status::LOCKED;
            return;
        }
        let range = self.block_range(block);
        let holds = self.lasts && self.geometry.block > held::PAGE;
        let begins = holds && inner.held.as_ref().is_none_or(|held| held.block != block);
        if begins {
            self.let_go(inner);
        }
        if inner.has_failed() {
            inner.status |= status::ERASE_FAILED;
            return;
        }
        self.remember(inner, block);
        if begins {
            inner.held = Some(Held::new(block, range.start, self.content_of(range.clone()), self.clock.now()));
        }
        self.store(range.start, &vec![0xff; (range.end - range.start) as usize]);
        if holds {
            return self.hold(inner, range.start);
        }
        inner.unwritten = Some(range);
        self.write_out(inner);
    }

    /// Does what may wait for the host's disk on a thread of its own: the clock's has a console to serve. Where there is none to be had, here.
    fn apart(self: &Arc<Self>, act: impl Fn(&Self) + Clone + Send + 'static) {
        let (this, task) = (self.clone(), act.clone());
        match thread::Builder::new().name("flash".to_owned()).spawn(move || task(&this)) {
            Ok(thread) => *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread),
            Err(error) => {
                debug!(%error, "no thread to wait for the disk of a flash");
                act(self);
            }
        }
    }

    fn program_buffer(&self, inner: &mut Inner) {
        let window = inner.window.take().unwrap_or(0);
        if inner.astray {
            inner.status |= status::READY | status::PROGRAM_FAILED;
            return;
        }
        if inner.locked.contains(&self.block_of(window.into())) {
            inner.status |= status::READY | status::PROGRAM_FAILED | status::LOCKED;
            return;
        }
        let buffer = std::mem::take(&mut inner.buffer);
        // What was not written is all ones, which changes nothing.
        let first = buffer.iter().position(|byte| *byte != 0xff).unwrap_or(0);
        let end = buffer.iter().rposition(|byte| *byte != 0xff).map_or(first, |last| last + 1);
        if let Some(data) = buffer.get(first..end).filter(|data| !data.is_empty()) {
            self.program(inner, u64::from(window) + first as u64, data);
            self.write_out(inner);
        }
        inner.status |= status::READY;
        inner.buffer = buffer;
    }

    /// Takes a write of a buffered program's data.
    fn fill(&self, inner: &mut Inner, offset: u64, data: &[u8]) {
        for (at, value) in (offset..).zip(data) {
            let start = (at / BUFFER as u64 * BUFFER as u64) as u32;
            let window = *inner.window.get_or_insert(start);
            match inner.buffer.get_mut((at % BUFFER as u64) as usize) {
                Some(byte) if window == start => *byte = *value,
                _ => inner.astray = true,
            }
        }
        inner.expected = inner.expected.saturating_sub(data.len() as u32);
        if inner.expected == 0 {
            inner.mode = Mode::Confirm;
        }
    }

    /// Writes what was programmed to the file.
    fn write_out(&self, inner: &mut Inner) {
        let Some(range) = inner.unwritten.take() else { return };
        if self.lasts {
            let bytes = self.content_of(range.clone());
            inner.keep(|store| store.write(range.start, &bytes));
        }
    }

    /// The first cycle of a command.
    fn command(&self, inner: &mut Inner, command: u8) {
        let programs = command::PROGRAM.contains(&command);
        if !programs {
            self.write_out(inner);
        }
        if programs || [command::LOCK_SETUP, command::READ_ID, command::READ_QUERY].contains(&command) {
            self.let_go(inner);
        }
        inner.mode = match command {
            _ if programs => Mode::Program,
            command::ERASE => Mode::Erase,
            command::LOCK_SETUP => Mode::Lock,
            command::READ_STATUS => Mode::Status,
            command::READ_ID => Mode::Id,
            command::READ_QUERY => Mode::Query,
            command::BUFFERED_PROGRAM => {
                inner.status |= status::READY;
                Mode::Count
            }
            command::CLEAR_STATUS => {
                inner.status = 0;
                Mode::Array
            }
            // Read array, the reset commands of other chips, and what is not known.
            _ => Mode::Array,
        };
        if inner.mode == Mode::Array {
            inner.keep(Store::sync);
        }
    }

    fn count(&self, inner: &mut Inner, data: &[u8]) {
        let mask = if self.geometry.chips() == 2 { 0xffff } else { 0xff };
        let bytes = ((value_of(data) & mask) as u32 + 1) * self.geometry.width;
        if bytes as usize > BUFFER {
            inner.status |= status::READY | status::SEQUENCE;
            inner.mode = Mode::Status;
            return;
        }
        (inner.expected, inner.window, inner.astray) = (bytes, None, false);
        inner.buffer.fill(0xff);
        inner.mode = Mode::Fill;
    }

    fn set_lock(inner: &mut Inner, block: u32, command: u8) {
        match command {
            command::LOCK | command::LOCK_DOWN => drop(inner.locked.insert(block)),
            command::CONFIRM => drop(inner.locked.remove(&block)),
            _ => inner.status |= status::SEQUENCE,
        }
        inner.status |= status::READY;
    }

    /// What each chip answers, of 16 bits, to an access at `offset`.
    fn answer(&self, inner: &Inner, offset: u64) -> u16 {
        let word = offset / u64::from(self.geometry.width);
        match inner.mode {
            Mode::Id => match word & 0xff {
                number @ 0..=1 => ID[number as usize],
                2 => inner.locked.contains(&self.block_of(offset)).into(),
                _ => 0,
            },
            Mode::Query => query::byte(self.geometry, self.size(), word & 0xff).into(),
            _ => inner.status.into(),
        }
    }
}

impl Device for Flash {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        if inner.mode == Mode::Array {
            return self.load(offset, data);
        }
        let chip_width = u64::from(self.geometry.width / self.geometry.chips());
        for (at, byte) in (offset..).zip(data) {
            let answer = self.answer(&inner, at);
            *byte = answer.to_le_bytes()[(at % chip_width) as usize & 1];
        }
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        let mut guard = self.lock();
        let inner = &mut *guard;
        // Who writes runs.
        self.set_saved(false);
        let reach = inner.mode.reach();
        let first = data.first().copied().unwrap_or(0);
        match inner.mode {
            Mode::Program => {
                self.program(inner, offset, data);
                inner.mode = Mode::Status;
            }
            Mode::Erase => {
                if first == command::CONFIRM {
                    self.erase(inner, offset);
                } else {
                    inner.status |= status::READY | status::SEQUENCE;
                }
                inner.mode = Mode::Status;
            }
            Mode::Lock => {
                Self::set_lock(inner, self.block_of(offset), first);
                inner.mode = Mode::Status;
            }
            Mode::Count => self.count(inner, data),
            Mode::Fill => self.fill(inner, offset, data),
            Mode::Confirm => {
                if first == command::CONFIRM {
                    self.program_buffer(inner);
                } else {
                    inner.status |= status::READY | status::SEQUENCE;
                }
                inner.mode = Mode::Status;
            }
            Mode::Array | Mode::Status | Mode::Id | Mode::Query => self.command(inner, first),
        }
        if reach == inner.mode.reach() { Action::None } else { Action::Remap }
    }
}

impl Persist for Flash {
    type State = FlashState;

    fn save(&self) -> FlashState {
        let mut inner = self.lock();
        self.write_out(&mut inner);
        self.set_saved(true);
        let held = inner.held.as_ref().map(|held| {
            let bytes = self.content_of(self.block_range(held.block)).into();
            BlockState { number: held.block, bytes }
        });
        let changed = inner.originals.keys().map(|&number| {
            let bytes = self.content_of(self.block_range(number)).into();
            BlockState { number, bytes }
        });
        FlashState {
            mode: MODES.iter().position(|mode| *mode == inner.mode).unwrap_or(0) as u8,
            status: inner.status,
            locked: inner.locked.iter().copied().collect(),
            expected: inner.expected,
            window: inner.window,
            astray: inner.astray,
            buffer: ByteVec::from(inner.buffer.clone()),
            changed: changed.collect(),
            content: self.content(inner.held.as_ref()),
            held,
        }
    }

    fn restore(&self, state: &FlashState) -> Result<(), StateError> {
        const ID: &str = <FlashState as skep_state::State>::ID;
        let blocks = self.blocks();
        let locked = state.locked.last().copied();
        ensure(locked.is_none_or(|last| last < blocks), ID, "locked", locked, "the bank has such blocks")?;
        let window = state.window;
        let rule = "it is within the bank";
        ensure(window.is_none_or(|window| u64::from(window) < self.size()), ID, "window", window, rule)?;
        let fits = |block: &BlockState| block.number < blocks && block.bytes.len() == self.geometry.block as usize;
        let wrong = state.changed.iter().find(|block| !fits(block)).map(|block| block.number);
        ensure(wrong.is_none(), ID, "changed", wrong, "the bank has such blocks")?;
        let misplaced = self.lasts && !state.changed.is_empty();
        ensure(!misplaced, ID, "changed", state.changed.len(), "a bank with a file has its content there")?;
        let misplaced = !self.lasts || !state.held.as_ref().is_none_or(fits);
        let held = state.held.as_ref().map(|held| held.number);
        ensure(held.is_none() || !misplaced, ID, "held", held, "the bank has such blocks, and a file")?;
        let mut guard = self.lock();
        let inner = &mut *guard;
        if let Some(held) = inner.held.take() {
            self.store(self.block_range(held.block).start, &held.old);
        }
        if let Some(saved) = &state.content {
            let rule =
                "the file of variables holds what was written since, or before; --firmware-vars FILE makes another";
            ensure(self.content(None).as_ref() == Some(saved), ID, "content", saved.blocks.len(), rule)?;
        }
        for (number, bytes) in std::mem::take(&mut inner.originals) {
            self.store(self.block_range(number).start, &bytes);
        }
        for block in &state.changed {
            self.remember(inner, block.number);
            self.store(self.block_range(block.number).start, &block.bytes);
        }
        inner.mode = MODES.get(usize::from(state.mode)).copied().unwrap_or(Mode::Array);
        inner.status = state.status;
        inner.locked = state.locked.iter().copied().collect();
        (inner.expected, inner.window, inner.astray) = (state.expected, state.window, state.astray);
        inner.buffer = state.buffer.to_vec();
        inner.unwritten = None;
        self.set_saved(true);
        if let Some(BlockState { number, bytes }) = &state.held {
            let range = self.block_range(*number);
            let end =
                bytes.iter().rposition(|byte| *byte != 0xff).map_or(range.start, |last| range.start + last as u64 + 1);
            inner.held = Some(Held::new(*number, range.start, self.content_of(range.clone()), self.clock.now()));
            self.store(range.start, bytes);
            self.hold(inner, end);
        }
        Ok(())
    }

    fn reset(&self) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        // It begins anew, and so goes on.
        self.set_saved(false);
        self.write_out(inner);
        self.let_go(inner);
        inner.keep(Store::sync);
        inner.mode = Mode::Array;
        inner.status = status::READY;
        inner.locked.clear();
        (inner.expected, inner.window, inner.astray) = (0, None, false);
        inner.buffer.fill(0xff);
    }
}

impl fmt::Debug for Flash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.lock().mode;
        f.debug_struct("Flash").field("name", &self.name).field("base", &self.base).field("mode", &mode).finish()
    }
}
