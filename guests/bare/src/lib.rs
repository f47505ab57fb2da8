//! What the freestanding guests share: entry, page tables, exceptions, interrupt controllers.
//!
//! Guests: `hello` says what it finds in the machine; `io` drives disks; `probe` carries out lists of operations (`skep-guest-protocol`). Each provides
//! `guest_main`, which the entry calls with what the loader passed, and `guest_fault`, which an unexpected exception ends in.
//!
//! Everything runs in an identity map, on any CPU of its architecture: no instruction is used that an early model lacks. What runs in kernel
//! mode on x86_64 is kept short, because a host whose KVM has no hardware behind it emulates each of those instructions.
//!
//! What it does not do: no allocation, no unwinding, no return to the loader.

#![no_std]

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod console;
pub mod irq;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64 as arch;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as arch;

unsafe extern "C" {
    /// Where a guest ends that took an exception which nobody expected: its number (the vector, or `ESR_EL1`), the address of the instruction, and
    /// the address that it accessed, if that is what failed.
    pub fn guest_fault(number: u64, instruction: u64, address: u64) -> !;
}
