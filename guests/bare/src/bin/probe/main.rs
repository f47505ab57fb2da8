//! `probe`: carries out lists of operations for the hypervisor conformance suite. See `skep-guest-protocol` for how it is loaded and entered.
//!
//! Every CPU runs the same interpreter on a list of its own, in kernel mode.

#![no_std]
#![no_main]

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod machine;

use core::panic::PanicInfo;

use bare::arch::memory::pointer;
use bare::arch::{cpu, guarded, hold};
use bare::irq;
use skep_guest_protocol::{Op, Operation, Status, Width};

/// Why an operation has no result.
enum Trouble {
    /// The architecture, or this CPU, has no such thing.
    Unsupported,
    /// An exception: its number.
    Fault(u64),
}

impl From<u64> for Trouble {
    fn from(number: u64) -> Self {
        Self::Fault(number)
    }
}

/// What to do after an operation.
enum Next {
    /// Write down the result and go on.
    Result(u64),
    /// Go back to an earlier operation; the result counts how often.
    Back { operations: u64, count: u64 },
    /// Ring and stop.
    End { doorbell: u64 },
}

/// Carry out the list at `list` on this CPU.
#[unsafe(no_mangle)]
extern "C" fn guest_main(list: u64) -> ! {
    let mut index = 0;
    loop {
        let place: *mut Op = pointer(list + index * Op::SIZE as u64);
        // SAFETY: the host has put a list there, and leaves an operation alone while it is being carried out.
        let op = unsafe { place.read_volatile() };
        let finish = |status: Status, result: u64| {
            // SAFETY: as above. The host may look at the status at any time, so it comes last.
            unsafe {
                (&raw mut (*place).result).write_volatile(result);
                (&raw mut (*place).status).write_volatile(status as u32);
            }
        };
        // SAFETY: what the operations do is the host's affair.
        match Operation::decode(&op).map(|operation| unsafe { carry_out(operation, op.result) }) {
            Ok(Ok(Next::Result(value))) => finish(Status::Done, value),
            Ok(Ok(Next::Back { operations, count })) if (1..=index).contains(&operations) => {
                finish(Status::Done, count);
                index -= operations;
                continue;
            }
            Ok(Ok(Next::End { doorbell })) => {
                finish(Status::Done, 0);
                // SAFETY: the doorbell is the host's choice.
                if let Err(number) = unsafe { guarded::store(doorbell, index, Width::Four) } {
                    finish(Status::Faulted, number);
                }
                cpu::park()
            }
            Ok(Err(Trouble::Unsupported)) => finish(Status::Unsupported, 0),
            Ok(Err(Trouble::Fault(number))) => finish(Status::Faulted, number),
            Ok(Ok(Next::Back { .. })) | Err(_) => {
                finish(Status::Malformed, 0);
                machine::shut_down()
            }
        }
        index += 1;
    }
}

/// Carry out one operation, whose result so far is `result`.
///
/// # Safety
///
/// The operation breaks nothing that the guest relies on.
unsafe fn carry_out(operation: Operation, result: u64) -> Result<Next, Trouble> {
    use Operation::*;
    let value = match operation {
        End { doorbell } => return Ok(Next::End { doorbell }),
        Repeat { back, times } if result < times => return Ok(Next::Back { operations: back, count: result + 1 }),
        Repeat { .. } => result,
        // SAFETY: the caller's.
        ReadMemory { address, width } => unsafe { guarded::load(address, width)? },
        WriteMemory { address, value, width } => {
            // SAFETY: the caller's.
            unsafe { guarded::store(address, value, width)? };
            0
        }
        AddMemory { address, value, width } => {
            // SAFETY: the caller's.
            unsafe { guarded::add(address, value, width)? };
            0
        }
        TouchPages { address, pages, value } => {
            for page in 0..pages {
                // SAFETY: the caller's.
                unsafe { guarded::store(address + page * 0x1000, value, Width::Eight)? };
            }
            0
        }
        SpinUntil { address, value, width } => {
            let value = width.truncate(value);
            // SAFETY: the caller's.
            while unsafe { guarded::load(address, width)? } != value {
                cpu::relax();
            }
            value
        }
        ReadCounter => cpu::counter(),
        OnIrqWrite { irq, address, value } => {
            let slot = irq::slot(irq).ok_or(Trouble::Unsupported)?;
            // SAFETY: the slot is memory of the table. A handler that sees an address must find its value.
            unsafe {
                (&raw mut (*slot).address).write_volatile(0);
                (&raw mut (*slot).value).write_volatile(value);
                (&raw mut (*slot).address).write_volatile(address);
            }
            0
        }
        WaitIrq { irq, count } => {
            let were_on = cpu::set_interrupts(false);
            while irq::count(irq) < count {
                cpu::wait_for_interrupt();
            }
            cpu::set_interrupts(were_on);
            irq::count(irq)
        }
        SetInterrupts { on } => cpu::set_interrupts(on).into(),
        Halt => {
            let were_on = cpu::set_interrupts(false);
            cpu::wait_for_interrupt();
            cpu::set_interrupts(were_on);
            0
        }
        HoldRegisters { set, pattern, doorbell, area } => {
            let were_on = cpu::set_interrupts(false);
            // SAFETY: the caller's.
            let changed = unsafe { hold::hold(set, pattern, doorbell, area) };
            cpu::set_interrupts(were_on);
            changed.ok_or(Trouble::Unsupported)?
        }
        // SAFETY: the caller's.
        other => unsafe { machine::carry_out(other)? },
    };
    Ok(Next::Result(value))
}

/// An exception where none was allowed for: the host sees the machine stop.
#[unsafe(no_mangle)]
extern "C" fn guest_fault(_number: u64, _instruction: u64, _address: u64) -> ! {
    machine::shut_down()
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    machine::shut_down()
}
