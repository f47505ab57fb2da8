//! A bank beside a simple model of it: what it holds, what it says of each operation, and what its file holds after each of the guest's writes, which
//! is what a process leaves that is killed there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use skep_memory::RamOptions;

use super::*;

const SIZE: u64 = 512 << 10;

/// An operation of a driver.
#[derive(Debug, Clone)]
enum Operation {
    /// Programs one word.
    Program(u64, u32),
    /// Programs words of a buffer, in this order; the last choice confirms it, or does not.
    Buffered(u64, Vec<(u64, u32)>, bool),
    /// Asks for a buffer that there is not.
    TooLong(u64),
    Erase(u64, bool),
    Lock(u64, bool),
    /// A command of one cycle.
    Command(u8),
    /// The machine is saved.
    Save,
}

/// Places at the ends of the bank and of its first block, where operations meet each other.
fn places(geometry: Geometry) -> Vec<Range<u64>> {
    let block = u64::from(geometry.block);
    [0, block - 2048, block, SIZE - 2048].map(|start| start..start + 2048).to_vec()
}

fn offset() -> impl Strategy<Value = u64> {
    // The number of a place, and a word in it: few words, most of them side by side.
    (0..4u64, prop_oneof![3 => 0..24u64, 1 => 480..512u64]).prop_map(|(place, word)| place << 32 | word)
}

fn operations() -> impl Strategy<Value = Vec<(Operation, Option<usize>)>> {
    let word = prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)];
    let words = prop::collection::vec((0..40u64, word.clone()), 1..24);
    let operation = prop_oneof![
        6 => (offset(), word).prop_map(|(offset, word)| Operation::Program(offset, word)),
        3 => (offset(), words, prop::bool::weighted(0.8)).prop_map(|(a, b, c)| Operation::Buffered(a, b, c)),
        1 => offset().prop_map(Operation::TooLong),
        2 => (offset(), prop::bool::weighted(0.8)).prop_map(|(offset, confirm)| Operation::Erase(offset, confirm)),
        2 => (offset(), any::<bool>()).prop_map(|(offset, lock)| Operation::Lock(offset, lock)),
        4 => prop::sample::select(vec![0xff, 0x70, 0x90, 0x98, 0x50, 0x00]).prop_map(Operation::Command),
        1 => Just(Operation::Save),
    ];
    // Some are given up after so many writes, by a reset.
    let given_up = prop::option::weighted(0.1, 0..6usize);
    prop::collection::vec((operation, given_up), 0..60)
}

struct Model {
    geometry: Geometry,
    bytes: Vec<u8>,
    locked: BTreeSet<u64>,
    status: u8,
    /// What the file may hold, of the bytes at [`places`]: what the bank held after one of these operations.
    allowed: Vec<Vec<u8>>,
    /// Where the next of programs that follow each other would be.
    next: Option<u64>,
    /// A large block that was erased and is not programmed to its end, of which the file has what it was.
    held: Option<(u64, Vec<u8>)>,
    /// As far as it is programmed anew.
    end: u64,
}

impl Model {
    fn block(&self, offset: u64) -> u64 {
        offset / u64::from(self.geometry.block)
    }

    fn sample(&self, bytes: &[u8]) -> Vec<u8> {
        places(self.geometry)
            .into_iter()
            .flat_map(|place| bytes[place.start as usize..place.end as usize].to_vec())
            .collect()
    }

    /// Where an operation is.
    fn at(&self, offset: u64) -> u64 {
        let (word, width) = (offset & 0xffff_ffff, u64::from(self.geometry.width));
        // The last words of a buffer of 4-byte words, or of bytes.
        let word = if word < 480 { word } else { word + BUFFER as u64 / width - 512 };
        places(self.geometry)[(offset >> 32) as usize].start + word * width
    }

    fn settle(&mut self) {
        (self.allowed, self.next) = (vec![self.sample(&self.kept())], None);
    }

    /// What the file is to hold.
    fn kept(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some((block, old)) = &self.held {
            bytes[*block as usize * old.len()..][..old.len()].copy_from_slice(old);
        }
        bytes
    }

    /// Something else begins.
    fn let_go(&mut self) {
        if self.held.take().is_some() {
            self.settle();
        }
    }

    /// A program has come as far as `end`.
    fn reach(&mut self, end: u64) {
        let size = u64::from(self.geometry.block);
        self.end = end;
        if self.held.as_ref().is_some_and(|(held, _)| (held + 1) * size == end) {
            self.let_go();
        }
    }

    /// Clears bits, or says that they are locked.
    fn clear(&mut self, offset: u64, data: &[u8]) {
        self.status |= status::READY;
        if self.locked.contains(&self.block(offset)) {
            self.status |= status::PROGRAM_FAILED | status::LOCKED;
            return;
        }
        let place = &mut self.bytes[offset as usize..offset as usize + data.len()];
        place.iter_mut().zip(data).for_each(|(byte, value)| *byte &= value);
    }

    fn sequence(&mut self) {
        self.status |= status::READY | status::SEQUENCE;
    }
}

struct Pair {
    flash: Arc<Flash>,
    file: File,
    model: Model,
}

impl Pair {
    fn new(geometry: Geometry) -> Self {
        let bytes: Vec<u8> = (0..SIZE).map(|at| if at / 1024 % 3 == 0 { 0xff } else { at as u8 | 0x80 }).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let content = Arc::new(Backing::new(SIZE, &RamOptions::default()).unwrap());
        let own = Some(file.try_clone().unwrap());
        let clock = Clock::manual(0);
        let config = FlashConfig { name: "flash", base: 0x1000, content, geometry, file: own, clock };
        let flash = Flash::new(config).unwrap();
        flash.store(0, &bytes);
        let (locked, allowed) = (BTreeSet::new(), Vec::new());
        let mut model =
            Model { geometry, bytes, locked, status: status::READY, allowed, next: None, held: None, end: 0 };
        model.settle();
        Self { flash, file, model }
    }

    /// A write of the guest's, and what the file holds then.
    fn put(&self, offset: u64, value: u32) {
        let width = self.model.geometry.width as usize;
        let mapped = self.flash.mapping().is_some();
        let action = self.flash.write(0, offset, &value.to_le_bytes()[..width]);
        assert!(action == Action::Remap || mapped == self.flash.mapping().is_some());
    }

    fn check_file(&self) {
        let places = places(self.model.geometry);
        let piece = |place: Range<u64>| {
            let mut bytes = vec![0; (place.end - place.start) as usize];
            self.file.read_exact_at(&mut bytes, place.start).unwrap();
            bytes
        };
        let held: Vec<u8> = places.into_iter().flat_map(piece).collect();
        assert!(self.model.allowed.contains(&held), "of {} states, the file holds none", self.model.allowed.len());
    }

    /// A command, for each chip.
    fn command(&self, command: u8) -> u32 {
        let command = u32::from(command);
        if self.model.geometry.chips() == 2 { command << 16 | command } else { command }
    }

    /// The writes that an operation is made of.
    fn writes(&self, operation: &Operation) -> Vec<(u64, u32)> {
        let at = |offset: &u64| self.model.at(*offset);
        let two =
            |offset: u64, first: u8, second: u8| vec![(offset, self.command(first)), (offset, self.command(second))];
        match operation {
            Operation::Program(offset, value) => vec![(at(offset), self.command(0x40)), (at(offset), *value)],
            Operation::Buffered(offset, words, confirm) => {
                let mut writes = two(at(offset), 0xe8, words.len() as u8 - 1);
                writes.extend(words.iter().map(|(word, value)| (self.word(at(offset), *word), *value)));
                writes.push((at(offset), self.command(if *confirm { 0xd0 } else { 0xff })));
                writes
            }
            Operation::TooLong(offset) => vec![(at(offset), self.command(0xe8)), (at(offset), u32::MAX)],
            Operation::Erase(offset, confirm) => two(at(offset), 0x20, if *confirm { 0xd0 } else { 0xff }),
            Operation::Lock(offset, lock) => two(at(offset), 0x60, if *lock { 0x01 } else { 0xd0 }),
            Operation::Command(command) => vec![(0, self.command(*command))],
            Operation::Save => vec![],
        }
    }

    /// Where a word of a buffer is: not beyond the bank.
    fn word(&self, start: u64, word: u64) -> u64 {
        let width = u64::from(self.model.geometry.width);
        (start + word * width).min(SIZE - width)
    }

    /// What an operation does that is not given up.
    fn apply(&mut self, operation: &Operation) {
        let width = self.model.geometry.width as usize;
        match operation {
            Operation::Program(offset, value) => {
                let at = self.model.at(*offset);
                if self.model.locked.contains(&self.model.block(at)) {
                    return self.model.clear(at, &[]);
                }
                if self.model.next != Some(at) {
                    self.model.settle();
                }
                self.model.clear(at, &value.to_le_bytes()[..width]);
                self.model.allowed.push(self.model.sample(&self.model.kept()));
                self.model.next = Some(at + width as u64);
                return;
            }
            Operation::Buffered(_, _, false) | Operation::TooLong(_) | Operation::Erase(_, false) => {
                self.model.sequence();
            }
            Operation::Buffered(offset, words, true) => {
                let at = self.model.at(*offset);
                let places = words.iter().map(|(word, value)| (self.word(at, *word), *value));
                let last: BTreeMap<u64, u32> = places.collect();
                let window = |at: &u64| at / BUFFER as u64;
                if last.keys().any(|at| Some(window(at)) != last.keys().next().map(window)) {
                    self.model.status |= status::READY | status::PROGRAM_FAILED;
                } else {
                    let block = self.model.block(*last.keys().next().unwrap());
                    let mut programmed =
                        last.iter().filter(|(_, value)| value.to_le_bytes()[..width] != [0xff; 4][..width]);
                    let first = programmed.next().map(|(at, value)| (*at, *value));
                    let end = programmed.next_back().map(|(at, value)| (*at, *value)).or(first);
                    // Of words that are not all ones, the bytes that are not.
                    let ones = |value: u32, back: bool| {
                        let bytes = &value.to_le_bytes()[..width];
                        let is = |byte: &u8| *byte == 0xff;
                        if back {
                            bytes.iter().rev().take_while(|b| is(b)).count()
                        } else {
                            bytes.iter().take_while(|b| is(b)).count()
                        }
                    };
                    if let (Some((first, low)), Some((end, high))) = (first, end)
                        && !self.model.locked.contains(&block)
                    {
                        let start = first + ones(low, false) as u64;
                        if self.model.held.as_ref().is_some_and(|(held, _)| *held != block) || start < self.model.end {
                            self.model.let_go();
                        }
                        last.iter().for_each(|(at, value)| self.model.clear(*at, &value.to_le_bytes()[..width]));
                        self.model.reach(end + (width - ones(high, true)) as u64);
                    } else {
                        last.iter().for_each(|(at, value)| self.model.clear(*at, &value.to_le_bytes()[..width]));
                    }
                }
            }
            Operation::Erase(offset, true) => {
                let block = self.model.block(self.model.at(*offset));
                self.model.status |= status::READY;
                if self.model.locked.contains(&block) {
                    self.model.status |= status::ERASE_FAILED | status::LOCKED;
                } else {
                    let size = self.model.geometry.block as usize;
                    if self.model.held.as_ref().is_some_and(|(held, _)| *held != block) {
                        self.model.let_go();
                    }
                    let place = block as usize * size..(block as usize + 1) * size;
                    if size > 4096 && self.model.held.is_none() {
                        self.model.held = Some((block, self.model.bytes[place.clone()].to_vec()));
                    }
                    self.model.end = place.start as u64;
                    self.model.bytes[place].fill(0xff);
                }
            }
            Operation::Lock(offset, lock) => {
                let block = self.model.block(self.model.at(*offset));
                self.model.status |= status::READY;
                if *lock {
                    self.model.locked.insert(block)
                } else {
                    self.model.locked.remove(&block)
                };
            }
            Operation::Command(0x50) => self.model.status = 0,
            Operation::Command(_) => {}
            Operation::Save => drop(self.flash.save()),
        }
        self.model.settle();
    }

    fn operate(&mut self, operation: &Operation, given_up: Option<usize>) {
        if matches!(operation, Operation::TooLong(_)) && self.model.geometry.width == 1 {
            // A byte counts no more than there is room for.
            return;
        }
        let writes = self.writes(operation);
        let count = given_up.unwrap_or(writes.len()).min(writes.len());
        for (number, (offset, value)) in writes.iter().enumerate().take(count) {
            if !matches!(operation, Operation::Program(..)) {
                // A command that programs nothing ends those that follow each other.
                self.model.settle();
            }
            let begins =
                matches!(operation, Operation::Program(..) | Operation::Lock(..) | Operation::Command(0x90 | 0x98));
            if begins && number == 0 {
                self.model.let_go();
            }
            self.put(*offset, *value);
            if number + 1 == writes.len() {
                self.apply(operation);
            }
            self.check_file();
        }
        if given_up.is_some() {
            self.flash.reset();
            (self.model.status, self.model.locked, self.model.held) = (status::READY, BTreeSet::new(), None);
            self.model.settle();
        } else if writes.is_empty() {
            self.apply(operation);
        }
        self.check_file();
        self.check_answer(operation, given_up);
    }

    /// What the guest reads: all that the bank holds, or the status of each chip.
    fn check_answer(&self, operation: &Operation, given_up: Option<usize>) {
        let mut word = [0; 4];
        match operation {
            _ if given_up.is_some() => self.check_content(),
            Operation::Command(0xff | 0x50 | 0x00) => self.check_content(),
            Operation::Command(0x90 | 0x98) | Operation::Save => {}
            _ => {
                let width = self.model.geometry.width as usize;
                self.flash.read(0, 8, &mut word[..width]);
                let status = self.command(self.model.status).to_le_bytes();
                assert_eq!(word[..width], status[..width], "{operation:?}");
            }
        }
    }

    fn check_content(&self) {
        let mut bytes = vec![0; SIZE as usize];
        self.flash.read(0, 0, &mut bytes);
        assert!(bytes == self.model.bytes && self.flash.mapping().is_some());
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(
            bytes == self.model.kept() && !self.flash.lock().store.as_ref().unwrap().is_unsynced(),
            "a return to read array"
        );
    }
}

skep_fuzzing::targets! {
    /// Whatever a driver does, and wherever its process is killed.
    "chipset-flash-file", 64: fn fuzz_the_file_is_what_the_bank_held(operations in operations(), pc in any::<bool>()) {
        let mut pair = Pair::new(if pc { Geometry::PC } else { Geometry::VIRT });
        for (operation, given_up) in &operations {
            pair.operate(operation, *given_up);
        }
        pair.operate(&Operation::Command(0xff), None);
    }
}
