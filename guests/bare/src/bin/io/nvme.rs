//! An NVMe controller: NVM Express Base 2.0, PCIe Transport 1.0.

use core::sync::atomic::{Ordering, fence};

use bare::arch::cpu;
use bare::arch::memory::{read32, write32};

use crate::disk::{Disk, MOST_BYTES, MOST_DEPTH};
use crate::memory::{PAGE, Pool, get, put};
use crate::pci::Function;

/// Registers (Base 3.1.3).
const CAP: u64 = 0;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// `CC`: enabled, entries of 64 and of 16 bytes.
const ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
const READY: u32 = 1;
const FATAL: u32 = 2;

/// Opcodes, of admin and I/O commands.
const CREATE_SUBMISSION: u32 = 1;
const CREATE_COMPLETION: u32 = 5;
const IDENTIFY: u32 = 6;
const SET_FEATURES: u32 = 9;
const DOORBELL_BUFFER_CONFIG: u32 = 0x7c;
const WRITE: u32 = 1;
const READ: u32 = 2;

const SUBMISSION: u64 = 64;
const COMPLETION: u64 = 16;
/// Entries of the admin queues and of the I/O queues.
const ADMIN: u32 = 16;
const ENTRIES: u32 = 256;
/// Bytes for a slot's list of pages.
const LIST: u64 = PAGE / 2;
/// How often a register is read before the controller is given up: each read takes a microsecond at least.
const PATIENCE: u32 = 2_000_000;

/// A doorbell, and its shadow where it has one.
struct Doorbell {
    register: u64,
    shadow: Option<(u64, u64)>,
    value: u16,
}

impl Doorbell {
    /// Moves on to `value`; says whether the register was written (Base, annex B.5).
    fn set(&mut self, value: u16) -> bool {
        let old = core::mem::replace(&mut self.value, value);
        if let Some((shadow, event)) = self.shadow {
            fence(Ordering::Release);
            put(shadow, u32::from(value));
            fence(Ordering::SeqCst);
            let event = get::<u32>(event) as u16;
            if value.wrapping_sub(event).wrapping_sub(1) >= value.wrapping_sub(old) {
                return false;
            }
        }
        fence(Ordering::SeqCst);
        // SAFETY: the doorbell of a queue of this controller.
        unsafe { write32(self.register, value.into()) };
        true
    }
}

/// A submission queue and its completion queue.
struct Pair {
    submission: u64,
    completion: u64,
    entries: u32,
    tail: u32,
    head: u32,
    phase: u32,
    tail_bell: Doorbell,
    head_bell: Doorbell,
}

impl Pair {
    fn new(registers: u64, stride: u64, id: u64, entries: u32, pool: &mut Pool) -> Result<Self, &'static str> {
        let bell = |index| Doorbell { register: registers + DOORBELLS + index * stride, shadow: None, value: 0 };
        Ok(Self {
            submission: pool.take(u64::from(entries) * SUBMISSION)?,
            completion: pool.take(u64::from(entries) * COMPLETION)?,
            entries,
            tail: 0,
            head: 0,
            phase: 1,
            tail_bell: bell(id * 2),
            head_bell: bell(id * 2 + 1),
        })
    }

    /// Puts a command behind the others: doublewords 0 and 1, the data pointers, and from doubleword 10 on.
    fn push(&mut self, first: [u32; 2], data: [u64; 2], last: [u32; 3]) {
        let at = self.submission + u64::from(self.tail) * SUBMISSION;
        put(at, first);
        put(at + 24, data);
        put(at + 40, last);
        self.tail = (self.tail + 1) % self.entries;
    }

    /// The next completion: command and status.
    fn pop(&mut self) -> Option<(u16, u32)> {
        let at = self.completion + u64::from(self.head) * COMPLETION;
        let last = get::<u32>(at + 12);
        if last >> 16 & 1 != self.phase {
            return None;
        }
        fence(Ordering::Acquire);
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase ^= 1;
        }
        Some((last as u16, last >> 17))
    }
}

/// A controller with one pair of I/O queues, and its first namespace.
pub struct Nvme {
    admin: Pair,
    io: Pair,
    bytes: u64,
    shift: u32,
    most: u64,
    lists: u64,
    buffers: u64,
    /// Of the job: what each slot's commands end with, and their data pointers.
    blocks: u32,
    data: [[u64; 2]; MOST_DEPTH as usize],
    bells: u64,
}

impl Nvme {
    /// Resets the controller and makes its queues.
    pub fn open(function: &Function<'_>, pool: &mut Pool, shadow: bool) -> Result<Self, &'static str> {
        let registers = function.bar(0)?;
        function.enable();
        // SAFETY: in this function: registers of a controller that nobody else uses, and queues that are its own.
        let read = |offset| unsafe { read32(registers + offset) };
        // SAFETY: as above.
        let write = |offset, value| unsafe { write32(registers + offset, value) };
        let wait = |ready| {
            for _ in 0..PATIENCE {
                match read(CSTS) {
                    status if status & FATAL != 0 => return Err("it has failed"),
                    status if status & READY == ready => return Ok(()),
                    _ => cpu::relax(),
                }
            }
            Err("it does not become ready")
        };
        write(CC, 0);
        wait(0)?;
        let stride = 4 << (read(CAP + 4) & 0xf);
        let entries = ENTRIES.min((read(CAP) & 0xffff) + 1);
        let mut admin = Pair::new(registers, stride, 0, ADMIN, pool)?;
        write(AQA, (ADMIN - 1) << 16 | (ADMIN - 1));
        for (register, address) in [(ASQ, admin.submission), (ACQ, admin.completion)] {
            write(register, address as u32);
            write(register + 4, (address >> 32) as u32);
        }
        write(CC, ENABLE);
        wait(READY)?;

        let page = pool.take(PAGE)?;
        let mut order = |first, data, last| carry_out(&mut admin, first, data, last);
        order([IDENTIFY, 0], [page, 0], [1, 0, 0])?;
        let optional = get::<u16>(page + 256);
        let largest = get::<u8>(page + 77);
        order([IDENTIFY, 1], [page, 0], [0, 0, 0])?;
        let format = get::<u8>(page + 26) & 0xf;
        let shift = get::<u32>(page + 128 + u64::from(format) * 4) >> 16 & 0xff;
        let bytes = get::<u64>(page).checked_shl(shift).ok_or("its blocks are too large")?;

        const NUMBER_OF_QUEUES: u32 = 7;
        const CONTIGUOUS: u32 = 1;
        const DOORBELL_BUFFERS: u16 = 1 << 8;
        order([SET_FEATURES, 0], [0, 0], [NUMBER_OF_QUEUES, 0, 0])?;
        let mut io = Pair::new(registers, stride, 1, entries, pool)?;
        // Without interrupts.
        order([CREATE_COMPLETION, 0], [io.completion, 0], [(entries - 1) << 16 | 1, CONTIGUOUS, 0])?;
        order([CREATE_SUBMISSION, 0], [io.submission, 0], [(entries - 1) << 16 | 1, 1 << 16 | CONTIGUOUS, 0])?;
        if shadow && optional & DOORBELL_BUFFERS != 0 {
            let (shadows, events) = (pool.take(PAGE)?, pool.take(PAGE)?);
            order([DOORBELL_BUFFER_CONFIG, 0], [shadows, events], [0, 0, 0])?;
            io.tail_bell.shadow = Some((shadows + 2 * stride, events + 2 * stride));
            io.head_bell.shadow = Some((shadows + 3 * stride, events + 3 * stride));
            let bells = [&mut admin.tail_bell, &mut admin.head_bell];
            for (bell, index) in bells.into_iter().zip(0..) {
                bell.shadow = Some((shadows + index * stride, events + index * stride));
            }
        }
        Ok(Self {
            admin,
            io,
            bytes,
            shift,
            most: if largest == 0 { 1 << 20 } else { PAGE << largest.min(8) },
            lists: pool.take(u64::from(MOST_DEPTH) * LIST)?,
            buffers: pool.take(MOST_BYTES)?,
            blocks: 0,
            data: [[0; 2]; MOST_DEPTH as usize],
            bells: 0,
        })
    }
}

/// Carries out an admin command.
fn carry_out(admin: &mut Pair, first: [u32; 2], data: [u64; 2], last: [u32; 3]) -> Result<(), &'static str> {
    admin.push(first, data, last);
    admin.tail_bell.set(admin.tail as u16);
    for _ in 0..PATIENCE * 100 {
        if let Some((_, status)) = admin.pop() {
            admin.head_bell.set(admin.head as u16);
            return if status == 0 { Ok(()) } else { Err("it refuses an admin command") };
        }
        cpu::relax();
    }
    Err("it does not answer an admin command")
}

impl Disk for Nvme {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn block(&self) -> u64 {
        1 << self.shift
    }

    fn most(&self) -> u64 {
        self.most
    }

    fn buffers(&self) -> u64 {
        self.buffers
    }

    fn prepare(&mut self, depth: u32, stride: u64, length: u64) {
        self.blocks = ((length >> self.shift) - 1) as u32;
        for (data, slot) in self.data.iter_mut().zip(0..u64::from(depth)) {
            let (first, list) = (self.buffers + slot * stride, self.lists + slot * LIST);
            let pages = length.div_ceil(PAGE);
            (1..pages).for_each(|page| put(list + (page - 1) * 8, first + page * PAGE));
            *data = [first, if pages > 2 { list } else { first + PAGE }];
        }
    }

    fn queue(&mut self, slot: u32, write: bool, offset: u64) {
        let block = offset >> self.shift;
        let opcode = if write { WRITE } else { READ };
        let last = [block as u32, (block >> 32) as u32, self.blocks];
        self.io.push([slot << 16 | opcode, 1], self.data[slot as usize], last);
    }

    fn ring(&mut self) {
        let tail = self.io.tail as u16;
        if tail != self.io.tail_bell.value {
            self.bells += u64::from(self.io.tail_bell.set(tail));
        }
    }

    fn reap(&mut self, mut done: impl FnMut(u32, bool)) -> u32 {
        let mut count = 0;
        while let Some((command, status)) = self.io.pop() {
            done(command.into(), status == 0);
            count += 1;
        }
        if count > 0 {
            self.bells += u64::from(self.io.head_bell.set(self.io.head as u16));
        }
        count
    }

    fn bells(&self) -> u64 {
        self.bells
    }

    fn is_quiet(&self) -> bool {
        self.admin.tail_bell.shadow.is_some()
    }
}
