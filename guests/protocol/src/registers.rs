//! Registers: which ones are held, with which values, and how aarch64's system registers are named.

/// The size of the area that [`Operation::HoldRegisters`](crate::Operation::HoldRegisters) uses, in bytes. It begins with the 8 bytes that
/// release the CPU, and is aligned to 4096.
pub const HOLD_AREA_SIZE: u64 = 0x8000;

/// Which registers [`Operation::HoldRegisters`](crate::Operation::HoldRegisters) fills and verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterSet {
    /// The general registers. Bit *n* of the result is register *n*: `RAX` 0, `RCX` 1, `RDX` 2, `RBX` 3, `RSP` 4, `RBP` 5, `RSI` 6, `RDI` 7,
    /// `R8` to `R15`; `X0` to `X30`. Register 0 is scratch and the stack pointer holds the area's address; neither has a pattern.
    General,
    /// `XMM0` to `XMM15` and `MXCSR` (result bit 32); `Q0` to `Q31`, `FPCR` and `FPSR` (result bit 32).
    Simd,
    /// Through `XSAVE`, every component of plain data that the CPU has (AVX 2, AVX-512 5 to 7, PKRU 9, result bits by these numbers);
    /// SVE's `Z0` to `Z31` at the greatest vector length.
    Extended,
}

impl RegisterSet {
    /// All sets.
    pub const ALL: [Self; 3] = [Self::General, Self::Simd, Self::Extended];

    pub(crate) const fn number(self) -> u16 {
        match self {
            Self::General => 0,
            Self::Simd => 1,
            Self::Extended => 2,
        }
    }

    pub(crate) const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::General,
            1 => Self::Simd,
            2 => Self::Extended,
            _ => return None,
        })
    }
}

/// The value of 64-bit word `index` of the registers held with `pattern`. General register *n* holds word *n*, 128-bit register *n* words
/// 2*n* and 2*n* + 1.
pub const fn held_value(pattern: u64, index: u64) -> u64 {
    // Fibonacci hashing: neighbours differ in about half of their bits.
    pattern.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The number by which operations name an aarch64 system register: its encoding as `MRS` and `MSR` have it.
pub const fn system_register(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> u16 {
    ((op0 as u16 & 3) << 14)
        | ((op1 as u16 & 7) << 11)
        | ((crn as u16 & 15) << 7)
        | ((crm as u16 & 15) << 3)
        | (op2 as u16 & 7)
}
