//! What the suite needs to know of an architecture.

use std::sync::Arc;

use skep_guest_protocol::Operation;
use skep_irq::{IrqLine, LineTable, MsiMessage, MsiTarget, RequesterId};

use super::bus::Recorder;
use super::rig::Rig;
use crate::aarch64::GicState;
use crate::{Arch, Capabilities};

/// A source of messages: how the guest prepares for them, and what each raises.
pub(super) struct Messages {
    pub target: Arc<dyn MsiTarget>,
    pub requester: Option<RequesterId>,
    /// What the CPU that is to take them carries out first.
    pub setup: Vec<Operation>,
    /// Each message, and its vector or INTID.
    pub messages: Vec<(MsiMessage, u64)>,
}

/// A 32-bit register of an interrupt controller.
#[derive(Clone, Copy)]
pub(super) struct Register {
    pub address: u64,
    /// Bits that a guest may write as it likes, and those that it always sets.
    pub free: u32,
    pub set: u32,
}

/// A level-triggered line.
pub(super) struct Level {
    pub lines: LineTable,
    pub line: u32,
    /// Its vector or INTID.
    pub irq: u64,
    /// What the CPU that is to take it carries out first.
    pub setup: Vec<Operation>,
}

/// An architecture that backends are tested for. Both are.
#[allow(private_interfaces, reason = "nobody else implements or calls it")]
pub trait Target: Arch<VmConfig: Clone, VcpuConfig: Clone, Capabilities: Clone> + Clone {
    /// Where RAM begins.
    const RAM: u64;
    /// Where the probe is loaded.
    const PROBE: u64;
    /// The end of what the probe uses.
    const FREE: u64;
    /// Addresses from here on, for some pages, that nothing backs.
    const DEVICE: u64;
    /// Addresses for further regions of memory.
    const MORE: [u64; 3];

    /// A VM for `vcpus` vCPUs with each interrupt controller that takes as many.
    #[doc(hidden)]
    fn configs(capabilities: &Capabilities<Self>, vcpus: u32) -> Vec<Self::VmConfig>;
    /// What other CPUs call vCPU `index`.
    #[doc(hidden)]
    fn cpu_id(index: u32) -> u64;
    #[doc(hidden)]
    fn vcpu_config(capabilities: &Capabilities<Self>, id: u64) -> Self::VcpuConfig;
    #[doc(hidden)]
    fn boot_state(list: u64) -> Self::BootState;
    #[doc(hidden)]
    fn io(recorder: &mut Recorder) -> &mut Self::Io;
    /// Sets what runs by itself to 0, and gives the counter.
    #[doc(hidden)]
    fn still(state: &mut Self::VcpuState) -> u64;
    /// The general registers that `HoldRegisters` fills, with their numbers.
    #[doc(hidden)]
    fn general(state: &Self::VcpuState) -> Vec<(u64, u64)>;
    /// The 128-bit registers, all bytes of them.
    #[doc(hidden)]
    fn set_simd(state: &mut Self::VcpuState, bytes: &[u8]);
    #[doc(hidden)]
    const SIMD_SIZE: usize;
    /// Makes a state that no CPU of this configuration could have, though each of its fields is in its range.
    #[doc(hidden)]
    fn spoil(state: &mut Self::VcpuState);
    /// Writes a register that the boot state does not set, and reads it.
    #[doc(hidden)]
    fn system_register(value: u64) -> [Operation; 2];
    #[doc(hidden)]
    fn save_controller(_interrupts: &Self::Interrupts) -> Option<GicState> {
        None
    }
    #[doc(hidden)]
    fn restore_controller(_interrupts: &Self::Interrupts, _state: &GicState) {}
    #[doc(hidden)]
    fn reset_controller(_interrupts: &Self::Interrupts) {}
    /// Whether the interrupt controllers offer eventfds, and ends of interrupts to listen to where they are optional.
    #[doc(hidden)]
    fn offers(rig: &Rig<Self>) -> (bool, Option<bool>);

    /// Enables the CPU's interrupt controller.
    #[doc(hidden)]
    fn init_interrupts(rig: &Rig<Self>, table: u64) -> Operation;
    /// A vector or SGI that CPUs send each other, and what the one that takes it carries out first.
    #[doc(hidden)]
    fn ipi() -> (u64, Vec<Operation>);
    /// `count` messages to vCPU `cpu`.
    #[doc(hidden)]
    fn messages(rig: &mut Rig<Self>, cpu: u32, count: u32) -> Messages;
    /// Registers of the backend's interrupt controllers that do not change by themselves, all of which can be read.
    #[doc(hidden)]
    fn controller_registers(config: &Self::VmConfig) -> Vec<Register>;
    /// A level-triggered line to vCPU 0.
    #[doc(hidden)]
    fn level(rig: &Rig<Self>) -> Level;
    /// Lets that line be high as it was when the state was taken, which the backend has restored.
    #[doc(hidden)]
    fn restore_level(line: &IrqLine) {
        line.restore(true);
    }
}
