//! A release ends at a panic, has no tables for unwinding, and needs no unwinder. The standard library asks for one all the same, to say where a panic
//! was: here is one that knows of no frames, so that neither the real one nor what reads debugging information is linked: 200 KB.
#![allow(unsafe_code)] // The unwinder's interface is one of C symbols.

use std::ffi::c_int;

/// `_URC_END_OF_STACK` (Itanium C++ ABI: Exception Handling, 1.2).
const END_OF_STACK: c_int = 5;

// SAFETY: nothing else in the program has that name, since the library that has it is then not linked; it touches nothing.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_trace: usize, _argument: usize) -> c_int {
    END_OF_STACK
}

/// What only one who unwinds calls, which nobody does.
macro_rules! never {
    ($($name:ident)*) => {
        $(
            // SAFETY: as above.
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> usize {
                std::process::abort()
            }
        )*
    };
}

never! {
    _Unwind_GetDataRelBase
    _Unwind_GetIP
    _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_Resume
    _Unwind_SetGR
    _Unwind_SetIP
}
