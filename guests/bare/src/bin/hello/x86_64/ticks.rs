//! Interrupts from every source, by every way.

use core::cell::UnsafeCell;

use bare::arch::acpi::Acpi;
use bare::arch::apic;
use bare::arch::clock::tsc_khz;
use bare::arch::cpu::{self, outb};
use bare::arch::serial;
use bare::arch::user::privileged;
use bare::irq;
use bare::{problem, say};
use skep_guest_protocol::IrqSlot;

use super::cpus;
use super::devices::{IoApic, cmos, gsi_of, set_cmos, set_pit};
use crate::PATIENCE_MS;
use crate::command::Echo;

/// Vectors. Those of the PIC are the 16 from the first on.
const PIC: u8 = 0x20;
const WATCH: u8 = 0x40;
const DEADLINE: u8 = 0x41;
const IPI: u8 = 0x42;
/// The vector of an ISA interrupt by the I/O APIC.
const ISA: u8 = 0x50;

const SERIAL_INTERRUPT: u8 = 4;
const TIMER_INTERRUPT: u8 = 0;
const RTC_INTERRUPT: u8 = 8;

/// How many of the periodic ones are waited for.
const TIMES: u64 = 10;
/// The PIT at about 1 kHz.
const PIT_COUNT: u16 = 1193;
/// Some milliseconds of the local APIC's timer, whatever its frequency.
const WATCH_COUNT: u32 = 500_000;

struct Table(UnsafeCell<[IrqSlot; 256]>);
// SAFETY: the handler is the only one to write, by atomics.
unsafe impl Sync for Table {}
static TABLE: Table = Table(UnsafeCell::new([IrqSlot { count: 0, cpu: 0, address: 0, value: 0 }; 256]));

/// Take interrupts from each source, and say how many came.
pub fn run(acpi: &Acpi, slow: bool) {
    cpus::init_local_apic(acpi);
    irq::set_table(TABLE.0.get() as u64);
    let this = privileged(apic::id);

    // The watch makes waiting for any other end.
    privileged(|| apic::start_timer(WATCH, WATCH_COUNT));
    expect(acpi, "local apic timer", WATCH, TIMES);
    privileged(|| apic::send(this, IPI));
    expect(acpi, "ipi to itself", IPI, 1);

    set_pit(PIT_COUNT);
    with_isa(acpi, TIMER_INTERRUPT, || expect(acpi, "pit irq0 via ioapic", ISA + TIMER_INTERRUPT, TIMES));
    init_pic(!1);
    privileged(|| apic::connect_pic(PIC));
    expect(acpi, "pit irq0 via pic", PIC + TIMER_INTERRUPT, TIMES);
    privileged(|| {
        apic::connect_pic(0);
        outb(0x21, 0xff);
    });
    set_pit(0);

    rtc(acpi, "rtc periodic irq8", Rtc::PERIODIC, TIMES);
    if slow {
        rtc(acpi, "rtc update irq8", Rtc::UPDATE, 1);
        for register in Rtc::ALARM_REGISTERS {
            set_cmos(register, Rtc::ANY);
        }
        rtc(acpi, "rtc alarm irq8", Rtc::ALARM, 1);
    }

    with_isa(acpi, SERIAL_INTERRUPT, || {
        serial::interrupt_when_empty();
        expect(acpi, "uart thr-empty irq4", ISA + SERIAL_INTERRUPT, 1);
        const EMPTY: u8 = 2;
        let identification = serial::stop_interrupts();
        if identification & 0xf != EMPTY {
            problem!("the serial port identified its interrupt as {identification:#x}");
        }
    });

    privileged(|| apic::start_timer(WATCH, 0));
    const TSC_DEADLINE: u32 = 1 << 24;
    if privileged(|| cpu::cpuid(1, 0)).ecx & TSC_DEADLINE != 0 {
        let khz = tsc_khz(acpi);
        privileged(|| apic::start_deadline(DEADLINE, cpu::counter() + khz));
        expect(acpi, "tsc deadline", DEADLINE, 1);
    }
}

/// Bits of the RTC's registers.
struct Rtc;

impl Rtc {
    const STATUS_A: u8 = 0xa;
    const STATUS_B: u8 = 0xb;
    const STATUS_C: u8 = 0xc;
    const PERIODIC: u8 = 0x40;
    const ALARM: u8 = 0x20;
    const UPDATE: u8 = 0x10;
    /// 32768 Hz base, 1024 Hz rate.
    const RATE_1024: u8 = 0x26;
    const ALARM_REGISTERS: [u8; 3] = [1, 3, 5];
    const ANY: u8 = 0xc0;
}

/// Take `count` of one kind of the RTC's interrupts. Each must be read before there is another.
fn rtc(acpi: &Acpi, name: &str, kind: u8, count: u64) {
    with_isa(acpi, RTC_INTERRUPT, || {
        let control = cmos(Rtc::STATUS_B) & 0xf;
        let vector = ISA + RTC_INTERRUPT;
        set_cmos(Rtc::STATUS_A, Rtc::RATE_1024);
        cmos(Rtc::STATUS_C);
        set_cmos(Rtc::STATUS_B, control | kind);
        let (mut taken, mut seen) = (0, irq::count(vector.into()));
        while taken < count && wait(acpi, vector, seen + 1) {
            seen = irq::count(vector.into());
            // A late one of another kind doesn't count.
            taken += u64::from(cmos(Rtc::STATUS_C) & kind != 0);
        }
        set_cmos(Rtc::STATUS_B, control);
        cmos(Rtc::STATUS_C);
        verdict(name, taken, count);
    });
}

/// Do something while an ISA interrupt is routed here through the I/O APIC.
fn with_isa(acpi: &Acpi, interrupt: u8, action: impl FnOnce()) {
    let gsi = gsi_of(acpi, interrupt);
    let Some(io_apic) = IoApic::of(acpi, gsi) else {
        problem!("no I/O APIC has GSI {gsi}");
        return;
    };
    io_apic.route(gsi, ISA + interrupt, privileged(apic::id));
    action();
    io_apic.route(gsi, 0, 0);
}

/// Initialise both halves of the PIC (Intel 8259A) with this mask of the first.
fn init_pic(mask: u8) {
    privileged(|| {
        for (port, vectors, cascade) in [(0x20, PIC, 1 << 2), (0xa0, PIC + 8, 2)] {
            outb(port, 0x11);
            outb(port + 1, vectors);
            outb(port + 1, cascade);
            outb(port + 1, 1);
        }
        outb(0x21, mask);
        outb(0xa1, 0xff);
    });
}

/// Wait for `count` interrupts on `vector`, and say whether they came.
fn expect(acpi: &Acpi, name: &str, vector: u8, count: u64) {
    wait(acpi, vector, count);
    verdict(name, irq::count(vector.into()), count);
}

fn verdict(name: &str, taken: u64, wanted: u64) {
    say!("{name}: {}", taken.min(wanted));
    if taken < wanted {
        problem!("{name}: {taken} interrupts of {wanted}");
    }
}

/// Wait until `vector` was taken `count` times, or patience ends. Whether it was.
fn wait(acpi: &Acpi, vector: u8, count: u64) -> bool {
    let last = cpu::counter() + tsc_khz(acpi) * PATIENCE_MS;
    let vector = vector.into();
    privileged(|| {
        while irq::count(vector) < count && cpu::counter() < last {
            cpu::wait_for_interrupt();
        }
    });
    irq::count(vector) >= count
}

/// Let the serial port interrupt when there is data, if that is how to wait for it.
pub fn prepare_input(acpi: &Acpi, echo: Echo) {
    if echo == Echo::Poll {
        return;
    }
    cpus::init_local_apic(acpi);
    let gsi = gsi_of(acpi, SERIAL_INTERRUPT);
    match IoApic::of(acpi, gsi) {
        Some(io_apic) => io_apic.route(gsi, ISA + SERIAL_INTERRUPT, privileged(apic::id)),
        None => problem!("no I/O APIC has GSI {gsi}"),
    }
    serial::interrupt_on_data();
}
