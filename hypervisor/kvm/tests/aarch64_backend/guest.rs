//! The guests: position-independent, at EL1 with the MMU off. They find what they need relative to X0, which the boot state sets.

use std::arch::global_asm;

/// The bytes of a guest between two of its symbols.
macro_rules! guest {
    ($(#[$doc:meta])* $name:ident, $begin:ident, $end:ident, $($line:literal),+ $(,)?) => {
        global_asm!(
            ".pushsection .rodata",
            ".balign 2048",
            concat!(".global ", stringify!($begin)),
            concat!(stringify!($begin), ":"),
            $($line,)+
            concat!(".global ", stringify!($end)),
            concat!(stringify!($end), ":"),
            ".popsection",
        );
        unsafe extern "C" {
            static $begin: u8;
            static $end: u8;
        }
        $(#[$doc])*
        pub(crate) fn $name() -> &'static [u8] {
            let (begin, end) = (&raw const $begin, &raw const $end);
            // SAFETY: both symbols delimit what was assembled above.
            unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) }
        }
    };
}

guest! {
    /// Writes X1 to X0 by each width, reads it back by each width into X20 to X23, then powers off by PSCI.
    accesses, guest_accesses, guest_accesses_end,
    "strb w1, [x0]",
    "strh w1, [x0]",
    "str w1, [x0]",
    "str x1, [x0]",
    "ldrb w20, [x0]",
    "ldrh w21, [x0]",
    "ldr w22, [x0]",
    "ldr x23, [x0]",
    "movz x0, #0x8400, lsl #16",
    "movk x0, #8",
    "hvc #0",
    "b .",
}
