//! GICv2 (Arm IHI 0048B) and GICv3 (IHI 0069H), as a machine without the security extensions has them.

use core::sync::atomic::{AtomicU64, Ordering};

use skep_guest_protocol::{Gic, Trigger};

use super::cpu;
use super::memory::{read32, read64, write32, write64};
use crate::{irq, read_register, write_register};

/// Distributor, and from 0x100 on also the second frame of a redistributor.
const GICD_CTLR: u64 = 0x0;
const GICD_TYPER: u64 = 0x4;
const GICD_IGROUPR: u64 = 0x80;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_ICFGR: u64 = 0xc00;
const GICD_SGIR: u64 = 0xf00;
const GICD_IROUTER: u64 = 0x6000;

/// CPU interface of GICv2.
const GICC_CTLR: u64 = 0x0;
const GICC_PMR: u64 = 0x4;
const GICC_IAR: u64 = 0xc;
const GICC_EOIR: u64 = 0x10;

/// Redistributor.
const GICR_TYPER: u64 = 0x8;
const GICR_WAKER: u64 = 0x14;
const GICR_SGI_FRAME: u64 = 0x1_0000;
const GICR_TYPER_VLPIS: u64 = 1 << 1;
const GICR_TYPER_LAST: u64 = 1 << 4;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;

/// The group of GICv2, and both groups of GICv3.
const ENABLE_V2: u32 = 1;
const ENABLE_V3: u32 = 3;
const AFFINITY_ROUTING: u32 = 1 << 4;
const PRIORITY: u32 = 0xa0a0_a0a0;
const LOWEST_PRIORITY_MASK: u32 = 0xff;

/// The distributor's address, and in bit 0 whether it is a GICv3.
static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
/// The CPU interface of GICv2, or the first redistributor.
static INTERFACE: AtomicU64 = AtomicU64::new(0);

fn distributor() -> (u64, Gic) {
    let value = DISTRIBUTOR.load(Ordering::Acquire);
    (value & !1, if value & 1 == 0 { Gic::V2 } else { Gic::V3 })
}

/// How many interrupts the distributor has.
pub fn interrupts(distributor: u64) -> u64 {
    // SAFETY: a read of an identification register.
    (u64::from(unsafe { read32(distributor + GICD_TYPER) } & 0x1f) + 1) * 32
}

/// Enable the distributor, if it is not, and this CPU's interface.
///
/// # Safety
///
/// The GIC lies at these addresses.
pub unsafe fn init(gic: Gic, distributor: u64, interface: u64) {
    DISTRIBUTOR.store(distributor | u64::from(gic == Gic::V3), Ordering::Release);
    INTERFACE.store(interface, Ordering::Release);
    let enable = if gic == Gic::V2 { ENABLE_V2 } else { ENABLE_V3 };
    // SAFETY: the caller's.
    unsafe {
        if read32(distributor + GICD_CTLR) & enable == 0 {
            if gic == Gic::V3 {
                write32(distributor + GICD_CTLR, AFFINITY_ROUTING);
            }
            for word in 1..interrupts(distributor) / 32 {
                write32(distributor + GICD_ICENABLER + word * 4, u32::MAX);
                if gic == Gic::V3 {
                    write32(distributor + GICD_IGROUPR + word * 4, u32::MAX);
                }
            }
            write32(distributor + GICD_CTLR, read32(distributor + GICD_CTLR) | enable);
        }
        match gic {
            Gic::V2 => {
                write32(interface + GICC_PMR, LOWEST_PRIORITY_MASK);
                write32(interface + GICC_CTLR, 1);
            }
            Gic::V3 => {
                if let Some(redistributor) = redistributor() {
                    let waker = redistributor + GICR_WAKER;
                    write32(waker, read32(waker) & !PROCESSOR_SLEEP);
                    while read32(waker) & CHILDREN_ASLEEP != 0 {
                        cpu::relax();
                    }
                    write32(redistributor + GICR_SGI_FRAME + GICD_IGROUPR, u32::MAX);
                }
                write_register!("S3_0_C12_C12_5", 1_u64); // ICC_SRE_EL1
                write_register!("S3_0_C4_C6_0", LOWEST_PRIORITY_MASK); // ICC_PMR_EL1
                write_register!("S3_0_C12_C12_7", 1_u64); // ICC_IGRPEN1_EL1
            }
        }
        // SGIs are always wanted: the others are enabled one by one.
        write32(banked(gic) + GICD_ISENABLER, 0xffff);
        for word in 0..4 {
            write32(banked(gic) + GICD_IPRIORITYR + word * 4, PRIORITY);
        }
    }
}

/// Where this CPU's registers for interrupts below 32 lie.
fn banked(gic: Gic) -> u64 {
    match gic {
        Gic::V2 => distributor().0,
        Gic::V3 => redistributor().map_or(distributor().0, |redistributor| redistributor + GICR_SGI_FRAME),
    }
}

/// This CPU's redistributor, in the region that [`init`] was told.
pub fn redistributor() -> Option<u64> {
    let mut frame = INTERFACE.load(Ordering::Acquire);
    loop {
        // SAFETY: `init`'s caller named the region, which ends with the frame that says so.
        let identity = unsafe { read64(frame + GICR_TYPER) };
        let affinity = identity >> 32;
        if (affinity & 0xff_ffff) | (affinity >> 24) << 32 == cpu::id() {
            return Some(frame);
        }
        if identity & GICR_TYPER_LAST != 0 {
            return None;
        }
        frame += if identity & GICR_TYPER_VLPIS == 0 { 0x2_0000 } else { 0x4_0000 };
    }
}

/// Configure `intid`, below 1020, and send it to this CPU.
pub fn enable(intid: u64, trigger: Trigger) {
    let (distributor, gic) = distributor();
    let base = if intid < 32 { banked(gic) } else { distributor };
    // SAFETY: the registers of one interrupt, in the GIC that `init` was told of.
    unsafe {
        let config = base + GICD_ICFGR + intid / 16 * 4;
        let edge = 2 << (intid % 16 * 2);
        let others = read32(config) & !edge;
        write32(config, others | if trigger == Trigger::Edge { edge } else { 0 });
        let priority = base + GICD_IPRIORITYR + intid / 4 * 4;
        let shift = intid % 4 * 8;
        write32(priority, (read32(priority) & !(0xff << shift)) | (PRIORITY & 0xff << shift));
        if intid >= 32 {
            match gic {
                Gic::V2 => {
                    let mine = read32(distributor + GICD_ITARGETSR) & 0xff;
                    let targets = distributor + GICD_ITARGETSR + intid / 4 * 4;
                    write32(targets, (read32(targets) & !(0xff << shift)) | mine << shift);
                }
                Gic::V3 => write64(distributor + GICD_IROUTER + intid * 8, cpu::id()),
            }
        }
        write32(base + GICD_ISENABLER + intid / 32 * 4, 1 << (intid % 32));
    }
}

/// Disable `intid`, below 1020.
pub fn disable(intid: u64) {
    let (distributor, gic) = distributor();
    let base = if intid < 32 { banked(gic) } else { distributor };
    // SAFETY: as in `enable`.
    unsafe { write32(base + GICD_ICENABLER + intid / 32 * 4, 1 << (intid % 32)) };
}

/// Send SGI `intid` to the CPU with these affinity fields.
pub fn send(cpu: u64, intid: u64) {
    let (distributor, gic) = distributor();
    let [aff0, aff1, aff2, _, aff3, ..] = cpu.to_le_bytes().map(u64::from);
    // SAFETY: as in `enable`.
    unsafe {
        match gic {
            Gic::V2 => write32(distributor + GICD_SGIR, 1 << (16 + (aff0 & 7)) | (intid & 15) as u32),
            Gic::V3 => {
                let targets =
                    1 << (aff0 & 15) | aff1 << 16 | (intid & 15) << 24 | aff2 << 32 | (aff0 >> 4) << 44 | aff3 << 48;
                write_register!("S3_0_C12_C11_5", targets); // ICC_SGI1R_EL1
            }
        }
    }
}

/// Take the interrupt that is signalled, if there is one.
pub fn handle() {
    let (_, gic) = distributor();
    let interface = INTERFACE.load(Ordering::Acquire);
    let acknowledged = match gic {
        // SAFETY: the interface that `init` was told of.
        Gic::V2 => unsafe { read32(interface + GICC_IAR) }.into(),
        Gic::V3 => read_register!("S3_0_C12_C12_0"), // ICC_IAR1_EL1
    };
    let intid = acknowledged & if gic == Gic::V2 { 0x3ff } else { 0xff_ffff };
    if (1020..1024).contains(&intid) {
        return;
    }
    quiet_timer(intid);
    irq::taken(intid, cpu::id());
    // SAFETY: ends the interrupt that was taken.
    unsafe {
        match gic {
            Gic::V2 => write32(interface + GICC_EOIR, acknowledged as u32),
            Gic::V3 => write_register!("S3_0_C12_C12_1", acknowledged), // ICC_EOIR1_EL1
        }
    }
}

/// A timer's level stays high until it is set anew: mask it in the timer.
fn quiet_timer(intid: u64) {
    const VIRTUAL: u64 = 27;
    const PHYSICAL: u64 = 30;
    const ENABLED_AND_MASKED: u64 = 3;
    // SAFETY: timers interrupt, and nothing else.
    unsafe {
        match intid {
            VIRTUAL => write_register!("cntv_ctl_el0", ENABLED_AND_MASKED),
            PHYSICAL => write_register!("cntp_ctl_el0", ENABLED_AND_MASKED),
            _ => {}
        }
    }
}
