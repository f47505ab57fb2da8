//! Interrupts from every source, by every way.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr;

use bare::arch::fdt::{Fdt, Interrupt};
use bare::arch::memory::{read32, write32};
use bare::arch::serial;
use bare::arch::{cpu, gic, its};
use bare::{irq, write_register};
use bare::{problem, say};
use skep_guest_protocol::{Gic, IrqSlot, Operation, Trigger};

use super::{clock, devices};
use crate::PATIENCE_MS;

const SGI: u64 = 1;
const VIRTUAL_TIMER: u64 = 27;
const LPI: u64 = 8192;
/// How often the virtual timer is taken, and how long it takes.
const TIMES: u64 = 10;
const PERIOD_MS: u64 = 1;

/// What is cleared only when it is needed, since the first output waits for what is cleared before.
#[repr(C, align(65536))]
struct Tables {
    its: [u8; Operation::ITS_TABLES_SIZE as usize],
    /// Up to the first LPI.
    interrupts: [IrqSlot; 1025],
}

struct Shared(UnsafeCell<MaybeUninit<Tables>>);
// SAFETY: the handler and the ITS change it, by atomics and by writes that nobody else makes.
unsafe impl Sync for Shared {}
#[unsafe(link_section = ".noinit")]
static TABLES: Shared = Shared(UnsafeCell::new(MaybeUninit::uninit()));

/// Take this CPU's interface into use. Which GIC it is.
fn init(fdt: &Fdt) -> Option<Gic> {
    let (kind, distributor, interface) = devices::gic(fdt)?;
    cpu::set_interrupts(false);
    let tables = TABLES.0.get().cast::<Tables>();
    // SAFETY: nothing uses the tables yet, and the device tree says that the GIC is there.
    unsafe {
        ptr::write_bytes(tables, 0, 1);
        irq::set_table(&raw const (*tables).interrupts as u64);
        gic::init(kind, distributor, interface);
    }
    gic::enable(VIRTUAL_TIMER, Trigger::Level);
    Some(kind)
}

/// Take interrupts from each source, and say how many came.
pub fn run(fdt: &Fdt, slow: bool) {
    let Some(kind) = init(fdt) else {
        problem!("there is no GIC to take interrupts from");
        return;
    };
    expect("virtual timer intid 27", VIRTUAL_TIMER, TIMES);
    gic::send(cpu::id(), SGI);
    expect("sgi to itself", SGI, 1);

    let console = serial::node(fdt).and_then(|node| node.interrupt());
    if let (Some(interrupt), Some(mask)) = (console, serial::mask_register()) {
        enable(interrupt, mask);
        serial::interrupt_when_sent();
        expect("pl011 transmit irq", interrupt.intid, 1);
        serial::clear_interrupts();
        gic::disable(interrupt.intid);
    }
    let rtc = fdt.compatible("arm,pl031").and_then(|node| Some((node.range(0)?.0, node.interrupt()?)));
    if let Some((address, interrupt)) = rtc.filter(|_| slow) {
        const MATCH: u64 = 0x4;
        const INTERRUPT_MASK: u64 = 0x10;
        const INTERRUPT_CLEAR: u64 = 0x1c;
        enable(interrupt, address + INTERRUPT_MASK);
        // SAFETY: the device tree says that the RTC is there.
        unsafe {
            write32(address + MATCH, read32(address) + 1);
            write32(address + INTERRUPT_MASK, 1);
            expect("pl031 alarm irq", interrupt.intid, 1);
            write32(address + INTERRUPT_CLEAR, 1);
        }
        gic::disable(interrupt.intid);
    }
    if let Some((frame, first, count)) = devices::v2m(fdt).filter(|&(_, _, count)| count != 0) {
        const SETSPI: u64 = 0x40;
        let last = first + u64::from(count) - 1;
        gic::enable(last, Trigger::Edge);
        // SAFETY: the device tree says that the frame is there.
        unsafe { write32(frame + SETSPI, last as u32) };
        expect("msi by v2m", last, 1);
        gic::disable(last);
    }
    if let Some(base) = devices::its(fdt).filter(|_| kind == Gic::V3) {
        const DEVICE: u32 = 0;
        const EVENT: u32 = 0;
        let tables = TABLES.0.get().cast::<Tables>();
        // SAFETY: the device tree says that the ITS is there, and the tables are its own, cleared by `init`.
        let ready = unsafe { its::init(base, &raw const (*tables).its as u64) } && its::map(DEVICE, EVENT, LPI);
        if ready {
            its::raise(DEVICE, EVENT);
        }
        expect("lpi by its", LPI, 1);
    }
}

/// Enable an interrupt whose handler masks it in the device.
fn enable(interrupt: Interrupt, mask: u64) {
    if let Some(slot) = irq::slot(interrupt.intid) {
        // SAFETY: the slot lies in the table, and its interrupt is not enabled.
        unsafe { (&raw mut (*slot).address).write_volatile(mask) };
    }
    gic::enable(interrupt.intid, if interrupt.level { Trigger::Level } else { Trigger::Edge });
}

/// Wait for `count` of an interrupt, and say whether they came.
fn expect(name: &str, intid: u64, count: u64) {
    let last = cpu::counter() + clock::frequency() * PATIENCE_MS / 1000;
    while irq::count(intid) < count && cpu::counter() < last {
        let deadline = cpu::counter() + clock::frequency() * PERIOD_MS / 1000;
        // SAFETY: the timer ends the waiting for any interrupt.
        unsafe {
            write_register!("cntv_cval_el0", deadline);
            write_register!("cntv_ctl_el0", 1_u64);
        }
        cpu::wait_for_interrupt();
    }
    let taken = irq::count(intid);
    say!("{name}: {}", taken.min(count));
    if taken < count {
        problem!("{name}: {taken} interrupts of {count}");
    }
}

/// Let the serial port interrupt when there is data.
pub fn prepare_input(fdt: &Fdt) {
    let console = serial::node(fdt).and_then(|node| node.interrupt());
    match (init(fdt), console, serial::mask_register()) {
        (Some(_), Some(interrupt), Some(mask)) => enable(interrupt, mask),
        _ => problem!("the serial port has no interrupt"),
    }
}
