//! The operations that only aarch64 has.

use bare::arch::{gic, guarded, its, psci};
use bare::irq;
use skep_guest_protocol::Operation;

use crate::{Trouble, guest_main};

/// Carry out an operation that `main` leaves to the architecture.
///
/// # Safety
///
/// The operation breaks nothing that the guest relies on.
pub unsafe fn carry_out(operation: Operation) -> Result<u64, Trouble> {
    use Operation::*;
    match operation {
        ReadSystemRegister { register } => return Ok(guarded::read_register(register).ok_or(Trouble::Unsupported)??),
        WriteSystemRegister { register, value } => {
            // SAFETY: the caller's.
            unsafe { guarded::write_register(register, value) }.ok_or(Trouble::Unsupported)??;
        }
        // SAFETY: the caller's.
        FirmwareCall { address } => return Ok(unsafe { guarded::firmware_call(address)? }),
        InitGic { gic, distributor, interface, table } => {
            irq::set_table(table);
            // SAFETY: the caller's.
            unsafe { gic::init(gic, distributor, interface) };
        }
        EnableIntid { irq, trigger } => gic::enable(irq, trigger),
        DisableIntid { irq } => gic::disable(irq),
        InitIts { base, tables } => {
            // SAFETY: the caller's.
            if !unsafe { its::init(base, tables) } {
                return Err(Trouble::Unsupported);
            }
        }
        MapMsi { device, event, irq } => {
            if !its::map(device, event, irq) {
                return Err(Trouble::Unsupported);
            }
        }
        SendIpi { cpu, irq } => gic::send(cpu, irq),
        // SAFETY: the caller's.
        StartCpu { cpu, list, stack } => return Ok(unsafe { psci::start_cpu(cpu, stack, guest_main, list) }),
        _ => return Err(Trouble::Unsupported),
    }
    Ok(0)
}

/// End in a way that the host sees.
pub fn shut_down() -> ! {
    psci::system_off()
}
