//! The keyboard controller of a PC.
//!
//! Follows the IBM PS/2 Hardware Interface Technical Reference (keyboard and auxiliary device controller): command and status ports, the command
//! byte and the memory behind it, self-tests, loop-back to either output, the output port with A20 and system reset, translation of scan codes.
//!
//! Keyboard and mouse are [`Ps2Port`]s; without one, a byte sent there is answered at once by a time-out (0xfe with the status bit), so that
//! drivers which probe for one need not wait. While the output buffer is empty, the status register of a controller without a keyboard has the bits for a
//! time-out and for a parity error: UEFI's driver, which waits a second for any other answer than a keyboard's, and again at each try, then leaves it alone.
//! An answer of the controller replaces what was in the output buffer, as in the chip.
//!
//! A20 is always open: the gate's bit keeps what was written, and has no effect. What it does not do: passwords, the multiplexing of four
//! auxiliary devices.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use minicbor::{Decode, Encode};
use skep_bus::{Action, Device};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use self::translation::translate;
use crate::access::{read_ports, write_ports};
use crate::ports::PortRange;
use crate::request::{MachineRequest, Requests};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod i8042_test;
mod state;
mod translation;

pub use state::{Expects, I8042State, OutputByte};

/// Where a PC has its ports: data, and command and status.
pub const PORTS: [PortRange; 2] =
    [PortRange { base: 0x60, size: 1, region: DATA }, PortRange { base: 0x64, size: 1, region: COMMAND }];

/// Regions.
const DATA: u32 = 0;
const COMMAND: u32 = 1;

/// Bytes of memory behind the command byte.
const RAM_SIZE: usize = 32;

/// The command byte.
mod command_byte {
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub(super) const AUXILIARY_INTERRUPT: u8 = 1 << 1;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const KEYBOARD_OFF: u8 = 1 << 4;
    pub(super) const AUXILIARY_OFF: u8 = 1 << 5;
    pub(super) const TRANSLATE: u8 = 1 << 6;
    /// Translating, no interrupts: where a machine has no firmware to set it, drivers find this.
    pub(super) const POWER_ON: u8 = TRANSLATE;
}

/// The status register.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const COMMAND: u8 = 1 << 3;
    pub(super) const UNLOCKED: u8 = 1 << 4;
    pub(super) const AUXILIARY: u8 = 1 << 5;
    pub(super) const TIMEOUT: u8 = 1 << 6;
    pub(super) const PARITY: u8 = 1 << 7;
    /// Nothing comes, and nothing is there from which it could.
    pub(super) const NO_KEYBOARD: u8 = TIMEOUT | PARITY;
}

/// The output port.
mod port2 {
    /// Low resets the machine.
    pub(super) const NO_RESET: u8 = 1 << 0;
    pub(super) const A20: u8 = 1 << 1;
    pub(super) const KEYBOARD_FULL: u8 = 1 << 4;
    pub(super) const AUXILIARY_FULL: u8 = 1 << 5;
    /// Clock and data of the keyboard, idle.
    pub(super) const IDLE: u8 = 0xc0;
}

/// Answered where a device does not.
const NO_ANSWER: u8 = 0xfe;

/// A keyboard or a mouse, as the controller sees it. It is called under the controller's lock and must not call back.
pub trait Ps2Port: Send {
    /// Takes a byte of the controller.
    fn receive(&mut self, byte: u8);
    /// Gives the next byte for the controller, if there is one.
    fn send(&mut self) -> Option<u8>;
}

/// Where a byte in the output buffer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Origin {
    /// The keyboard, or the controller itself.
    #[n(0)]
    Keyboard,
    /// The auxiliary device: the mouse.
    #[n(1)]
    Auxiliary,
}

/// What a keyboard controller is made of.
pub struct I8042Config {
    /// The keyboard's interrupt.
    pub keyboard_irq: IrqLine,
    /// The auxiliary device's interrupt.
    pub auxiliary_irq: IrqLine,
    /// Where a reset is asked for.
    pub requests: Requests,
}

/// A keyboard controller.
pub struct I8042 {
    keyboard_irq: IrqLine,
    auxiliary_irq: IrqLine,
    requests: Requests,
    inner: Mutex<Inner>,
}

struct Inner {
    registers: I8042State,
    keyboard: Option<Box<dyn Ps2Port>>,
    auxiliary: Option<Box<dyn Ps2Port>>,
}

fn power_on() -> I8042State {
    let mut memory = vec![0; RAM_SIZE];
    memory[0] = command_byte::POWER_ON;
    I8042State {
        output: None,
        last: 0,
        expects: Expects::Keyboard,
        command: false,
        memory,
        output_port: port2::A20,
        release: false,
    }
}

/// Whether a write asked for a reset.
type Resets = bool;

impl Inner {
    fn command_byte(&self) -> u8 {
        self.registers.memory.first().copied().unwrap_or(0)
    }

    fn change_command_byte(&mut self, clear: u8, set: u8) {
        if let Some(byte) = self.registers.memory.first_mut() {
            *byte = *byte & !clear | set;
        }
    }

    fn answer(&mut self, value: u8, origin: Origin) {
        self.registers.output = Some(OutputByte { value, origin, timeout: false });
    }

    /// Fills the output buffer from the devices, if it is empty.
    fn fill(&mut self) {
        let command_byte = self.command_byte();
        while self.registers.output.is_none() && command_byte & command_byte::KEYBOARD_OFF == 0 {
            let Some(byte) = self.keyboard.as_mut().and_then(|port| port.send()) else { break };
            let translated = match command_byte & command_byte::TRANSLATE {
                0 => Some(byte),
                _ => translate(byte, &mut self.registers.release),
            };
            if let Some(value) = translated {
                self.answer(value, Origin::Keyboard);
            }
        }
        if self.registers.output.is_none() && command_byte & command_byte::AUXILIARY_OFF == 0 {
            let byte = self.auxiliary.as_mut().and_then(|port| port.send());
            if let Some(value) = byte {
                self.answer(value, Origin::Auxiliary);
            }
        }
    }

    /// Which interrupts are high: the keyboard's, the auxiliary device's.
    fn interrupts(&self) -> (bool, bool) {
        let enabled = |bit| self.command_byte() & bit != 0;
        match self.registers.output.map(|byte| byte.origin) {
            Some(Origin::Keyboard) => (enabled(command_byte::KEYBOARD_INTERRUPT), false),
            Some(Origin::Auxiliary) => (false, enabled(command_byte::AUXILIARY_INTERRUPT)),
            None => (false, false),
        }
    }

    fn status(&self) -> u8 {
        let flag = |holds: bool, bit| if holds { bit } else { 0 };
        let output = self.registers.output;
        flag(output.is_some(), status::OUTPUT_FULL)
            | flag(output.is_some_and(|byte| byte.origin == Origin::Auxiliary), status::AUXILIARY)
            | flag(output.is_some_and(|byte| byte.timeout), status::TIMEOUT)
            | flag(output.is_none() && self.keyboard.is_none(), status::NO_KEYBOARD)
            | flag(self.command_byte() & command_byte::SYSTEM != 0, status::SYSTEM)
            | flag(self.registers.command, status::COMMAND)
            | status::UNLOCKED
    }

    fn output_port(&self) -> u8 {
        let full = match self.interrupts() {
            (true, _) => port2::KEYBOARD_FULL,
            (_, true) => port2::AUXILIARY_FULL,
            _ => 0,
        };
        self.registers.output_port | full | port2::NO_RESET | port2::IDLE
    }

    fn take_output(&mut self) -> u8 {
        if let Some(byte) = self.registers.output.take() {
            self.registers.last = byte.value;
        }
        self.registers.last
    }

    /// Sends a byte to a device. Where there is none, the controller answers in its place.
    fn send(&mut self, value: u8, origin: Origin) {
        let (port, off) = match origin {
            Origin::Keyboard => (&mut self.keyboard, command_byte::KEYBOARD_OFF),
            Origin::Auxiliary => (&mut self.auxiliary, command_byte::AUXILIARY_OFF),
        };
        match port {
            Some(port) => port.receive(value),
            None => self.registers.output = Some(OutputByte { value: NO_ANSWER, origin, timeout: true }),
        }
        // To send, the controller turns the device's clock on.
        self.change_command_byte(off, 0);
    }

    fn write_data(&mut self, value: u8) -> Resets {
        self.registers.command = false;
        match std::mem::replace(&mut self.registers.expects, Expects::Keyboard) {
            Expects::Keyboard => self.send(value, Origin::Keyboard),
            Expects::Auxiliary => self.send(value, Origin::Auxiliary),
            Expects::KeyboardLoop => self.answer(value, Origin::Keyboard),
            Expects::AuxiliaryLoop => self.answer(value, Origin::Auxiliary),
            Expects::Memory(place) => {
                if let Some(byte) = self.registers.memory.get_mut(usize::from(place)) {
                    *byte = value;
                }
            }
            Expects::OutputPort => {
                self.registers.output_port = value & port2::A20;
                return value & port2::NO_RESET == 0;
            }
        }
        false
    }

    fn write_command(&mut self, value: u8) -> Resets {
        self.registers.command = true;
        self.registers.expects = Expects::Keyboard;
        match value {
            0x20..=0x3f => {
                let byte = self.registers.memory.get(usize::from(value & 0x1f)).copied();
                self.answer(byte.unwrap_or(0), Origin::Keyboard);
            }
            0x60..=0x7f => self.registers.expects = Expects::Memory(value & 0x1f),
            // No password is installed.
            0xa4 => self.answer(0xf1, Origin::Keyboard),
            0xa7 => self.change_command_byte(0, command_byte::AUXILIARY_OFF),
            0xa8 => self.change_command_byte(command_byte::AUXILIARY_OFF, 0),
            // Tests of both interfaces, passed.
            0xa9 | 0xab => self.answer(0x00, Origin::Keyboard),
            0xaa => {
                self.change_command_byte(0, command_byte::SYSTEM);
                self.answer(0x55, Origin::Keyboard);
            }
            0xad => self.change_command_byte(0, command_byte::KEYBOARD_OFF),
            0xae => self.change_command_byte(command_byte::KEYBOARD_OFF, 0),
            // The input port: not locked, no manufacturing jumper.
            0xc0 => self.answer(0xa0, Origin::Keyboard),
            0xd0 => self.answer(self.output_port(), Origin::Keyboard),
            0xd1 => self.registers.expects = Expects::OutputPort,
            0xd2 => self.registers.expects = Expects::KeyboardLoop,
            0xd3 => self.registers.expects = Expects::AuxiliaryLoop,
            0xd4 => self.registers.expects = Expects::Auxiliary,
            0xdd => self.registers.output_port &= !port2::A20,
            0xdf => self.registers.output_port |= port2::A20,
            // The test inputs: both clocks low.
            0xe0 => self.answer(0x00, Origin::Keyboard),
            // Lines of the output port whose bit is 0 are pulsed low.
            0xf0..=0xff => return value & port2::NO_RESET == 0,
            _ => {}
        }
        false
    }
}

impl I8042 {
    /// A keyboard controller in its power-on state, with nothing connected.
    #[must_use]
    pub fn new(config: I8042Config) -> Self {
        Self {
            keyboard_irq: config.keyboard_irq,
            auxiliary_irq: config.auxiliary_irq,
            requests: config.requests,
            inner: Mutex::new(Inner { registers: power_on(), keyboard: None, auxiliary: None }),
        }
    }

    /// Connects a keyboard or a mouse, in place of what was there.
    pub fn connect(&self, origin: Origin, device: Box<dyn Ps2Port>) {
        self.with(|inner| {
            match origin {
                Origin::Keyboard => inner.keyboard = Some(device),
                Origin::Auxiliary => inner.auxiliary = Some(device),
            }
            false
        });
    }

    /// A connected device has something to send.
    pub fn poll(&self) {
        self.with(|_| false);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_lines(&self, inner: &Inner) {
        let (keyboard, auxiliary) = inner.interrupts();
        self.keyboard_irq.set(keyboard);
        self.auxiliary_irq.set(auxiliary);
    }

    /// Does something with the controller, and all that follows from it. A byte that follows another makes an edge of its own.
    fn with(&self, act: impl FnOnce(&mut Inner) -> Resets) {
        let mut inner = self.lock();
        if act(&mut inner) {
            self.requests.send(MachineRequest::Reset);
        }
        self.set_lines(&inner);
        inner.fill();
        self.set_lines(&inner);
    }
}

impl Device for I8042 {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        self.with(|inner| {
            read_ports(offset, data, |_| if region == DATA { inner.take_output() } else { inner.status() });
            false
        });
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|inner| {
            let mut resets = false;
            write_ports(offset, data, |_, value| {
                resets |= if region == DATA { inner.write_data(value) } else { inner.write_command(value) };
            });
            resets
        });
        Action::None
    }
}

/// What is connected saves itself.
impl Persist for I8042 {
    type State = I8042State;

    fn save(&self) -> I8042State {
        self.lock().registers.clone()
    }

    fn restore(&self, state: &I8042State) -> Result<(), StateError> {
        let mut inner = self.lock();
        inner.registers = state.clone();
        let (keyboard, auxiliary) = inner.interrupts();
        self.keyboard_irq.restore(keyboard);
        self.auxiliary_irq.restore(auxiliary);
        Ok(())
    }

    fn reset(&self) {
        let mut inner = self.lock();
        inner.registers = power_on();
        self.set_lines(&inner);
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042").field("registers", &self.lock().registers).finish_non_exhaustive()
    }
}
