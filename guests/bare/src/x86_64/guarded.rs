//! Instructions that may fault, and then return the vector as an error.

use core::arch::asm;

use skep_guest_protocol::Width;

use super::memory::map;

/// What [`super::trap`] leaves in `R8` is the vector with this bit.
pub(super) const FAULT: u64 = 0x100;

/// One instruction with its operands. An exception during it goes on after it. Evaluates to what became of it.
macro_rules! guarded {
    ($instruction:literal, $($operands:tt)*) => {{
        let fault: u64;
        asm!(
            "xor r8d, r8d",
            concat!("2: ", $instruction),
            "3:",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 3b",
            ".popsection",
            $($operands)*,
            out("r8") fault
        );
        if fault == 0 { Ok(()) } else { Err(fault & !FAULT) }
    }};
}

/// Read memory.
///
/// # Safety
///
/// A read of `address` has no effect that breaks the guest.
pub unsafe fn load(address: u64, width: Width) -> Result<u64, u64> {
    map(address, width.bytes().into());
    let value: u64;
    // SAFETY: the caller's.
    unsafe {
        match width {
            Width::One => guarded!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) address),
            Width::Two => guarded!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) address),
            Width::Four => guarded!("mov {:e}, [{}]", out(reg) value, in(reg) address),
            Width::Eight => guarded!("mov {}, [{}]", out(reg) value, in(reg) address),
        }
    }?;
    Ok(value)
}

/// Write memory.
///
/// # Safety
///
/// Nothing that the guest relies on lies there.
pub unsafe fn store(address: u64, value: u64, width: Width) -> Result<(), u64> {
    map(address, width.bytes().into());
    // SAFETY: the caller's.
    unsafe {
        match width {
            Width::One => guarded!("mov [{}], {}", in(reg) address, in(reg_byte) value as u8),
            Width::Two => guarded!("mov [{}], {:x}", in(reg) address, in(reg) value),
            Width::Four => guarded!("mov [{}], {:e}", in(reg) address, in(reg) value),
            Width::Eight => guarded!("mov [{}], {}", in(reg) address, in(reg) value),
        }
    }
}

/// Add to memory, by one instruction.
///
/// # Safety
///
/// As for [`store`].
pub unsafe fn add(address: u64, value: u64, width: Width) -> Result<(), u64> {
    map(address, width.bytes().into());
    // SAFETY: the caller's.
    unsafe {
        match width {
            Width::One => guarded!("add [{}], {}", in(reg) address, in(reg_byte) value as u8),
            Width::Two => guarded!("add [{}], {:x}", in(reg) address, in(reg) value),
            Width::Four => guarded!("add [{}], {:e}", in(reg) address, in(reg) value),
            Width::Eight => guarded!("add [{}], {}", in(reg) address, in(reg) value),
        }
    }
}

/// `IN`; `None` where the width has none.
pub fn read_port(port: u16, width: Width) -> Option<Result<u64, u64>> {
    let value: u64;
    // SAFETY: no device that the guest uses does DMA.
    let result = unsafe {
        match width {
            Width::One => guarded!("in al, dx", inout("rax") 0_u64 => value, in("dx") port),
            Width::Two => guarded!("in ax, dx", inout("rax") 0_u64 => value, in("dx") port),
            Width::Four => guarded!("in eax, dx", inout("rax") 0_u64 => value, in("dx") port),
            Width::Eight => return None,
        }
    };
    Some(result.map(|()| value))
}

/// `OUT`; `None` where the width has none.
pub fn write_port(port: u16, value: u64, width: Width) -> Option<Result<(), u64>> {
    // SAFETY: as in `read_port`.
    Some(unsafe {
        match width {
            Width::One => guarded!("out dx, al", in("rax") value, in("dx") port),
            Width::Two => guarded!("out dx, ax", in("rax") value, in("dx") port),
            Width::Four => guarded!("out dx, eax", in("rax") value, in("dx") port),
            Width::Eight => return None,
        }
    })
}

/// `REP INS`; `None` where the width has none.
///
/// # Safety
///
/// Nothing that the guest relies on lies at `address`.
pub unsafe fn read_port_string(port: u16, address: u64, count: u64, width: Width) -> Option<Result<(), u64>> {
    map(address, count.saturating_mul(width.bytes().into()));
    // SAFETY: the caller's.
    Some(unsafe {
        match width {
            Width::One => guarded!("rep insb", in("dx") port, inout("rdi") address => _, inout("rcx") count => _),
            Width::Two => guarded!("rep insw", in("dx") port, inout("rdi") address => _, inout("rcx") count => _),
            Width::Four => guarded!("rep insd", in("dx") port, inout("rdi") address => _, inout("rcx") count => _),
            Width::Eight => return None,
        }
    })
}

/// `REP OUTS`; `None` where the width has none.
///
/// # Safety
///
/// A read of `address` has no effect that breaks the guest.
pub unsafe fn write_port_string(port: u16, address: u64, count: u64, width: Width) -> Option<Result<(), u64>> {
    map(address, count.saturating_mul(width.bytes().into()));
    // SAFETY: the caller's.
    Some(unsafe {
        match width {
            Width::One => guarded!("rep outsb", in("dx") port, inout("rsi") address => _, inout("rcx") count => _),
            Width::Two => guarded!("rep outsw", in("dx") port, inout("rsi") address => _, inout("rcx") count => _),
            Width::Four => guarded!("rep outsd", in("dx") port, inout("rsi") address => _, inout("rcx") count => _),
            Width::Eight => return None,
        }
    })
}

/// `RDMSR`.
pub fn rdmsr(index: u32) -> Result<u64, u64> {
    let (low, high): (u32, u32);
    // SAFETY: reading a register changes nothing that the guest relies on.
    unsafe { guarded!("rdmsr", in("ecx") index, out("eax") low, out("edx") high) }?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// `WRMSR`.
///
/// # Safety
///
/// The new value breaks nothing that runs.
pub unsafe fn wrmsr(index: u32, value: u64) -> Result<(), u64> {
    // SAFETY: the caller's.
    unsafe { guarded!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32) }
}
