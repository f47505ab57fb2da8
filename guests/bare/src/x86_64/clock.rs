//! The time stamp counter, and the clocks that tell how fast it goes.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use super::acpi::Acpi;
use super::cpu::{self, CpuidResult, inl};
use super::user::privileged;

/// The ACPI PM timer's frequency.
const PM_TIMER_HZ: u64 = 3_579_545;

/// `CPUID` in user mode: subleaf 0 of a leaf.
pub fn cpuid(leaf: u32) -> CpuidResult {
    privileged(|| cpu::cpuid(leaf, 0))
}

/// The first of the hypervisor's CPUID leaves that have this signature.
fn hypervisor_leaf(signature: &[u8; 12]) -> Option<u32> {
    const PRESENT: u32 = 1 << 31;
    if cpuid(1).ecx & PRESENT == 0 {
        return None;
    }
    (0x4000_0000..0x4001_0000).step_by(0x100).take(4).find(|&leaf| {
        let found = cpuid(leaf);
        let mut bytes = signature.chunks_exact(4);
        [found.ebx, found.ecx, found.edx].iter().all(|register| bytes.next() == Some(&register.to_le_bytes()))
    })
}

/// Where the PM timer is.
pub fn pm_timer(acpi: &Acpi) -> Option<u16> {
    const X_PM_TIMER: u64 = 208;
    const PM_TIMER: u64 = 76;
    acpi.port(X_PM_TIMER, PM_TIMER)
}

/// The time stamp counter's frequency in kHz, and who says so.
pub fn find_tsc_khz(acpi: &Acpi) -> (u64, &'static str) {
    const TIMING: u32 = 0x10;
    let [highest, hypervisor] = [0, 0x4000_0000].map(|leaf| cpuid(leaf).eax);
    if highest >= 0x15 {
        let leaf = cpuid(0x15);
        let hertz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax.max(1));
        if hertz != 0 {
            return (hertz / 1000, "CPUID leaf 0x15");
        }
    }
    if let Some(base) = hypervisor_leaf(b"KVMKVMKVM\0\0\0").filter(|_| hypervisor >= 0x4000_0000 + TIMING) {
        let khz = cpuid(base + TIMING).eax;
        if khz != 0 {
            return (khz.into(), "CPUID leaf 0x40000010");
        }
    }
    if let Some(clock) = KvmClock::find() {
        return (clock.tsc_khz(), "kvmclock");
    }
    match pm_timer(acpi) {
        Some(port) => (measure_tsc_khz(port), "the PM timer"),
        None => (0, "nobody"),
    }
}

/// The frequency by 2 ms of the PM timer.
fn measure_tsc_khz(port: u16) -> u64 {
    const TICKS: u32 = (PM_TIMER_HZ / 500) as u32;
    privileged(|| {
        let elapsed = |from: u32| inl(port).wrapping_sub(from) & 0xff_ffff;
        let (from, begin) = (inl(port), cpu::counter());
        let mut patience = 1_000_000;
        while elapsed(from) < TICKS && patience != 0 {
            patience -= 1;
        }
        let (ticks, cycles) = (elapsed(from), cpu::counter() - begin);
        cycles * PM_TIMER_HZ / u64::from(ticks.max(1)) / 1000
    })
}

static TSC_KHZ: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter's frequency in kHz.
pub fn tsc_khz(acpi: &Acpi) -> u64 {
    if TSC_KHZ.load(Ordering::Relaxed) == 0 {
        TSC_KHZ.store(find_tsc_khz(acpi).0, Ordering::Relaxed);
    }
    TSC_KHZ.load(Ordering::Relaxed)
}

/// `struct pvclock_vcpu_time_info` of KVM's clock.
#[repr(C, align(32))]
#[derive(Clone, Copy)]
pub struct TimeInfo {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    /// Bit 0: the same on all CPUs.
    pub flags: u8,
    pad2: [u8; 2],
}

struct Shared(UnsafeCell<TimeInfo>);
// SAFETY: only the host writes to it, and it is only read volatile.
unsafe impl Sync for Shared {}

static TIME_INFO: Shared = Shared(UnsafeCell::new(TimeInfo {
    version: 0,
    pad: 0,
    tsc_timestamp: 0,
    system_time: 0,
    tsc_to_system_mul: 0,
    tsc_shift: 0,
    flags: 0,
    pad2: [0; 2],
}));

/// KVM's clock, switched on for this CPU.
pub struct KvmClock;

impl KvmClock {
    /// The clock, if CPUID offers it.
    pub fn find() -> Option<Self> {
        const CLOCK_SOURCE_2: u32 = 1 << 3;
        const SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
        let base = hypervisor_leaf(b"KVMKVMKVM\0\0\0")?;
        if cpuid(base + 1).eax & CLOCK_SOURCE_2 == 0 {
            return None;
        }
        let address = TIME_INFO.0.get() as u64;
        // SAFETY: the host writes to the static from now on.
        privileged(|| unsafe { cpu::wrmsr(SYSTEM_TIME_NEW, address | 1) });
        Some(Self).filter(|clock| clock.info().tsc_to_system_mul != 0)
    }

    /// What the host has written.
    pub fn info(&self) -> TimeInfo {
        loop {
            // SAFETY: the static is memory. The version is odd, or changes, while the host writes.
            let info = unsafe { TIME_INFO.0.get().read_volatile() };
            // SAFETY: as above.
            let after = unsafe { (&raw const (*TIME_INFO.0.get()).version).read_volatile() };
            if info.version == after && after & 1 == 0 {
                return info;
            }
        }
    }

    /// The time stamp counter's frequency by it.
    pub fn tsc_khz(&self) -> u64 {
        let info = self.info();
        let khz = (1_000_000 << 32) / u64::from(info.tsc_to_system_mul.max(1));
        if info.tsc_shift < 0 { khz << -info.tsc_shift } else { khz >> info.tsc_shift }
    }

    /// Nanoseconds at the time stamp `tsc`.
    pub fn nanoseconds(info: &TimeInfo, tsc: u64) -> u64 {
        let delta = tsc.wrapping_sub(info.tsc_timestamp);
        let delta = if info.tsc_shift < 0 { delta >> -info.tsc_shift } else { delta << info.tsc_shift };
        info.system_time + ((u128::from(delta) * u128::from(info.tsc_to_system_mul)) >> 32) as u64
    }
}
