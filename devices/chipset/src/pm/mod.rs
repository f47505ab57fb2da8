//! The power management block of ICH9.
//!
//! Follows the ICH9 datasheet (316972, section 13.8) and ACPI 6.5 chapter 4 (fixed hardware): PM1 event and control registers, the 24-bit PM
//! timer, a GPE block of 16 bytes, the system control interrupt (SCI), SMI_EN and SMI_STS, and the APM ports 0xb2 and 0xb3 by which an operating
//! system asks for ACPI mode.
//!
//! There is no system management mode, and the block says so as QEMU's machine without it does: SMI_EN has APM's enable bit set from the
//! beginning, by which firmware sees that there is nothing to install. [`ACPI_ENABLE`] and [`ACPI_DISABLE`] at the APM control port do
//! at once what an SMI handler would.
//!
//! Sleep types are those of QEMU's machine, which distributions' firmware is built for: 0 is S5, 1 is S3, 2 is S4; those of ICH9 itself (7, 5
//! and 6) mean the same. S5 and S4 power the machine off. Any other sleep is refused: the guest wakes at once (WAK_STS).
//!
//! The block stands where the LPC bridge says (PMBASE): [`Pm::place`] moves it, [`Pm::range`] tells where it is, and the machine maps
//! it. PCI configuration space is the LPC bridge's; the reset control register is [`crate::ResetControl`].
//!
//! What it does not do: the TCO watchdog (its registers read 0), throttling, wake events other than the power button, RTC_STS.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};
use tracing::debug;

use crate::access::{read_ports, write_ports};
use crate::alarm::Alarm;
use crate::oscillator::Oscillator;
use crate::ports::PortRange;
use crate::request::{MachineRequest, Requests};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod pm_test;
mod state;

pub use state::PmState;

/// Ports that the block takes; it stands at a multiple of them.
pub const BLOCK_SIZE: u16 = 0x80;
/// The APM control and status ports.
pub const APM_PORTS: PortRange = PortRange { base: 0xb2, size: 2, region: APM };
/// Written to the APM control port, it turns ACPI mode on (the FADT's ACPI_ENABLE).
pub const ACPI_ENABLE: u8 = 2;
/// Written to the APM control port, it turns ACPI mode off (the FADT's ACPI_DISABLE).
pub const ACPI_DISABLE: u8 = 3;
/// The PM timer's frequency.
pub const TIMER_HZ: u64 = 3_579_545;

/// Offsets of the registers that ACPI's tables name.
pub mod register {
    /// PM1_STS and PM1_EN: the PM1a event block, 4 bytes.
    pub const PM1_EVENT: u16 = 0x00;
    /// PM1_CNT: the PM1a control block, 2 bytes.
    pub const PM1_CONTROL: u16 = 0x04;
    /// The PM timer, 4 bytes.
    pub const TIMER: u16 = 0x08;
    /// GPE0_STS and GPE0_EN: the GPE0 block, 16 bytes.
    pub const GPE0: u16 = 0x20;
    /// SMI_EN, 4 bytes, and SMI_STS after it.
    pub const SMI_ENABLE: u16 = 0x30;
}

/// Regions.
const BLOCK: u32 = 0;
const APM: u32 = 1;

/// PM1_STS.
mod status {
    pub(super) const TIMER: u16 = 1 << 0;
    pub(super) const POWER_BUTTON: u16 = 1 << 8;
    pub(super) const WAKE: u16 = 1 << 15;
    pub(super) const ALL: u16 = TIMER | POWER_BUTTON | WAKE;
}

/// PM1_EN.
mod enable {
    /// Timer, global lock, power button, RTC.
    pub(super) const ALL: u16 = 1 << 0 | 1 << 5 | 1 << 8 | 1 << 10;
}

/// PM1_CNT.
mod control {
    pub(super) const SCI: u16 = 1 << 0;
    pub(super) const SLEEP: u16 = 1 << 13;
    /// SCI_EN, BM_RLD, SLP_TYP.
    pub(super) const KEPT: u16 = 1 << 0 | 1 << 1 | 7 << 10;
}

/// SMI_EN at power-on: APM's enable bit.
const SMI_POWER_ON: u32 = 1 << 5;

/// The timer shows 24 bits, and each change of the highest sets TMROF_STS.
const TIMER_MASK: u64 = 0xff_ffff;
const TIMER_TOP_BIT: u32 = 23;

/// What a power management block is made of.
pub struct PmConfig {
    /// The system control interrupt: a level.
    pub sci: IrqLine,
    /// The machine's clock.
    pub clock: Clock,
    /// Where power-off is asked for.
    pub requests: Requests,
    /// Where it stands at power-on, a multiple of [`BLOCK_SIZE`], and then it is in ACPI mode too: a machine without firmware. Or nowhere, until
    /// firmware places it and the guest turns ACPI mode on.
    pub base: Option<u16>,
}

/// The power management block.
pub struct Pm {
    sci: IrqLine,
    clock: Clock,
    requests: Requests,
    power_on_base: Option<u16>,
    inner: Mutex<Inner>,
}

struct Inner {
    registers: Registers,
    alarm: Alarm,
}

struct Registers {
    base: Option<u16>,
    status: u16,
    enable: u16,
    control: u16,
    timer: Oscillator,
    /// How often the timer's highest bit had changed when it was last looked at.
    timer_halves: u64,
    gpe_status: u64,
    gpe_enable: u64,
    smi_enable: u32,
    apm_control: u8,
    apm_status: u8,
}

/// What the guest's write asks of the machine.
enum Sleep {
    No,
    Off,
    Refused(u8),
}

impl Registers {
    fn power_on(base: Option<u16>, now: GuestNanos) -> Self {
        Self {
            base,
            status: 0,
            enable: 0,
            control: if base.is_some() { control::SCI } else { 0 },
            timer: Oscillator::running_for(TIMER_HZ, 0, now),
            timer_halves: 0,
            gpe_status: 0,
            gpe_enable: 0,
            smi_enable: SMI_POWER_ON,
            apm_control: 0,
            apm_status: 0,
        }
    }

    /// Sets TMROF_STS if the timer's highest bit has changed.
    fn settle(&mut self, now: GuestNanos) {
        let halves = self.timer.ticks(now) >> TIMER_TOP_BIT;
        if halves != self.timer_halves {
            self.timer_halves = halves;
            self.status |= status::TIMER;
        }
    }

    fn interrupts(&self) -> bool {
        let wanted = self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0;
        wanted && self.control & control::SCI != 0
    }

    /// When TMROF_STS is set next, if that interrupts.
    fn next_overflow(&self, now: GuestNanos) -> Option<GuestNanos> {
        let waits = self.enable & !self.status & status::TIMER != 0 && self.control & control::SCI != 0;
        waits.then(|| self.timer.time_of(self.timer_halves.saturating_add(1) << TIMER_TOP_BIT, now))
    }

    fn timer_value(&self, now: GuestNanos) -> u32 {
        (self.timer.ticks(now) & TIMER_MASK) as u32
    }

    fn read(&self, region: u32, port: u64, now: GuestNanos) -> u8 {
        let byte_of = |bytes: &[u8], first: u16| bytes.get((port - u64::from(first)) as usize).copied().unwrap_or(0);
        match (region, port) {
            (APM, 0) => self.apm_control,
            (APM, _) => self.apm_status,
            (_, 0x00..0x02) => byte_of(&self.status.to_le_bytes(), 0x00),
            (_, 0x02..0x04) => byte_of(&self.enable.to_le_bytes(), 0x02),
            (_, 0x04..0x06) => byte_of(&self.control.to_le_bytes(), register::PM1_CONTROL),
            (_, 0x08..0x0c) => byte_of(&self.timer_value(now).to_le_bytes(), register::TIMER),
            (_, 0x20..0x28) => byte_of(&self.gpe_status.to_le_bytes(), register::GPE0),
            (_, 0x28..0x30) => byte_of(&self.gpe_enable.to_le_bytes(), 0x28),
            (_, 0x30..0x34) => byte_of(&self.smi_enable.to_le_bytes(), register::SMI_ENABLE),
            // Nothing raises an SMI.
            _ => 0,
        }
    }

    fn write(&mut self, region: u32, port: u64, value: u8) -> Sleep {
        match (region, port) {
            (APM, 0) => {
                self.apm_control = value;
                match value {
                    ACPI_ENABLE => self.control |= control::SCI,
                    ACPI_DISABLE => self.control &= !control::SCI,
                    _ => {}
                }
            }
            (APM, _) => self.apm_status = value,
            (_, 0x00..0x02) => self.status &= !(u16::from(value) << (8 * port)),
            (_, 0x02..0x04) => self.enable = replace(self.enable.into(), port - 0x02, value) as u16 & enable::ALL,
            (_, 0x04..0x06) => {
                let written = replace(self.control.into(), port - 0x04, value) as u16;
                self.control = written & control::KEPT;
                if written & control::SLEEP != 0 {
                    return self.sleep();
                }
            }
            (_, 0x20..0x28) => self.gpe_status &= !(u64::from(value) << (8 * (port - 0x20))),
            (_, 0x28..0x30) => self.gpe_enable = replace(self.gpe_enable, port - 0x28, value),
            (_, 0x30..0x34) => self.smi_enable = replace(self.smi_enable.into(), port - 0x30, value) as u32,
            _ => {}
        }
        Sleep::No
    }

    fn sleep(&mut self) -> Sleep {
        match (self.control >> 10 & 7) as u8 {
            0 | 2 | 6 | 7 => Sleep::Off,
            other => {
                self.status |= status::WAKE;
                Sleep::Refused(other)
            }
        }
    }
}

/// `register` with its byte `index` replaced.
fn replace(register: u64, index: u64, value: u8) -> u64 {
    let mut bytes = register.to_le_bytes();
    if let Some(byte) = bytes.get_mut(index as usize) {
        *byte = value;
    }
    u64::from_le_bytes(bytes)
}

impl Pm {
    /// A power management block in its power-on state.
    #[must_use]
    pub fn new(config: PmConfig) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = config.clock.timer(move || {
                if let Some(pm) = this.upgrade() {
                    pm.with(|inner, _| inner.alarm.fired());
                }
            });
            let registers = Registers::power_on(config.base, config.clock.now());
            Self {
                sci: config.sci,
                clock: config.clock,
                requests: config.requests,
                power_on_base: config.base,
                inner: Mutex::new(Inner { registers, alarm: Alarm::new(timer) }),
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the registers, and all that follows from it.
    fn with<R>(&self, act: impl FnOnce(&mut Inner, GuestNanos) -> R) -> R {
        let mut inner = self.lock();
        let now = self.clock.now();
        inner.registers.settle(now);
        let result = act(&mut inner, now);
        self.sci.set(inner.registers.interrupts());
        let next = inner.registers.next_overflow(now);
        inner.alarm.want(next);
        result
    }

    /// Moves the block, as the LPC bridge's PMBASE and its enable bit say; the machine then asks for its [`range`](Self::range). Bits
    /// below [`BLOCK_SIZE`] don't count.
    pub fn place(&self, base: Option<u16>) {
        self.lock().registers.base = base.map(|base| base & !(BLOCK_SIZE - 1));
    }

    /// Where the block is to be mapped. It changes with [`Pm::place`], reset and restore.
    #[must_use]
    pub fn range(&self) -> Option<PortRange> {
        let base = self.lock().registers.base?;
        Some(PortRange { base, size: BLOCK_SIZE, region: BLOCK })
    }

    /// Presses the power button, and says whether the guest listens to it.
    pub fn press_power_button(&self) -> bool {
        self.with(|inner, _| {
            inner.registers.status |= status::POWER_BUTTON;
            inner.registers.enable & status::POWER_BUTTON != 0 && inner.registers.control & control::SCI != 0
        })
    }

    /// Raises the general-purpose event `number`, 0 to 63. There are no others.
    pub fn raise_gpe(&self, number: u8) {
        self.with(|inner, _| inner.registers.gpe_status |= 1u64.checked_shl(number.into()).unwrap_or(0));
    }
}

impl Device for Pm {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        self.with(|inner, now| {
            // What guests read most, whole.
            if (region, offset, data.len()) == (BLOCK, register::TIMER.into(), 4) {
                skep_bus::fill(data, inner.registers.timer_value(now).into());
            } else {
                read_ports(offset, data, |port| inner.registers.read(region, port, now));
            }
        });
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|inner, _| {
            write_ports(offset, data, |port, value| match inner.registers.write(region, port, value) {
                Sleep::No => {}
                Sleep::Off => {
                    debug!("the guest powers off");
                    self.requests.send(MachineRequest::PowerOff);
                }
                Sleep::Refused(kind) => {
                    debug!(kind, "the guest asks for a sleep that this machine doesn't have: it wakes")
                }
            });
        });
        Action::None
    }
}

impl Persist for Pm {
    type State = PmState;

    fn catch_up(&self) {
        self.with(|_, _| ());
    }

    fn save(&self) -> PmState {
        self.with(|inner, now| {
            let r = &inner.registers;
            PmState {
                base: r.base,
                status: r.status,
                enable: r.enable,
                control: r.control,
                timer_nanos: r.timer.nanos(now),
                gpe_status: r.gpe_status,
                gpe_enable: r.gpe_enable,
                smi_enable: r.smi_enable,
                apm_control: r.apm_control,
                apm_status: r.apm_status,
            }
        })
    }

    fn restore(&self, state: &PmState) -> Result<(), StateError> {
        let mut inner = self.lock();
        let now = self.clock.now();
        let timer = Oscillator::running_for(TIMER_HZ, state.timer_nanos, now);
        inner.registers = Registers {
            base: state.base,
            status: state.status,
            enable: state.enable,
            control: state.control,
            timer,
            timer_halves: timer.ticks(now) >> TIMER_TOP_BIT,
            gpe_status: state.gpe_status,
            gpe_enable: state.gpe_enable,
            smi_enable: state.smi_enable,
            apm_control: state.apm_control,
            apm_status: state.apm_status,
        };
        self.sci.restore(inner.registers.interrupts());
        let next = inner.registers.next_overflow(now);
        inner.alarm.want(next);
        Ok(())
    }

    fn reset(&self) {
        self.with(|inner, now| inner.registers = Registers::power_on(self.power_on_base, now));
    }
}
