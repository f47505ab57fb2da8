//! A backend without a CPU, for tests of whatever stands on the hypervisor's traits, for both architectures on any host.
//!
//! Its vCPUs carry out lists of operations (`skep-guest-protocol`) in place of instructions: the list in guest memory that the boot state
//! points to (`EBX` on x86_64, `X0` on aarch64), as the `probe` guest does, or what a test gives by [`Fake::operations`] or
//! [`Fake::program`]. So the conformance suite's bodies run on it, and a machine can be tested without any hypervisor.
//!
//! It has memory slots, doorbells, MSI routes with eventfds, a dirty log, kicks, and whole states to save, restore and reset. Its local APICs
//! take fixed interrupts in physical destination mode; its GICs know no priorities, and its ITS is programmed by operations only. The guest's clock moves on
//! by one each time it is read.
//!
//! What it does not do: execute instructions, timers of its own, or the memory-mapped registers of a GIC.

mod aarch64;
mod machine;
mod memory;
mod posted;
mod vcpu;
mod x86_64;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_guest_protocol::{Op, Operation};

use crate::{
    Arch, Capabilities, Exit, Hypervisor, HypervisorError, Parts, Powers, VcpuError, Vm, VmBuilder, VmRequest,
};
use machine::{Machine, Model};
use vcpu::Source;

pub use vcpu::Guest;

const NAME: &str = "the fake";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tests want of the vCPUs that will be built, by their numbers.
struct Script<A: Arch> {
    sources: Mutex<BTreeMap<u32, Source<A>>>,
    failures: Mutex<BTreeMap<u32, VcpuError>>,
    standstills: Mutex<BTreeMap<u32, u64>>,
}

/// The fake hypervisor.
pub struct Fake<A: Arch> {
    /// What builders answer, less the powers that a request leaves out. A test changes it as it likes.
    pub capabilities: Capabilities<A>,
    script: Arc<Script<A>>,
}

#[allow(private_bounds, reason = "both architectures are models, and there is no other")]
impl<A: Model> Fake<A> {
    /// A fake with every power and generous limits.
    #[must_use]
    pub fn new() -> Self {
        let capabilities = Capabilities {
            powers: Powers::all(),
            max_vcpus: 1024,
            address_bits: 46,
            memory_slots: 509,
            arch: A::capabilities(),
        };
        let script = Script { sources: Mutex::default(), failures: Mutex::default(), standstills: Mutex::default() };
        Self { capabilities, script: Arc::new(script) }
    }

    /// Gives vCPU `vcpu` of the next VM a list of its own: it carries that out from its first run on, whatever its boot state says, and then waits for
    /// ever. Results and statuses are written to the list that is handed back.
    pub fn operations(&self, vcpu: u32, operations: &[Operation]) -> Arc<Mutex<Vec<Op>>> {
        let list = Arc::new(Mutex::new(operations.iter().map(|operation| operation.encode()).collect()));
        lock(&self.script.sources).insert(vcpu, Source::Operations(Arc::clone(&list)));
        list
    }

    /// Gives vCPU `vcpu` of the next VM a program: it is called at each run, and its answer is why the run returns; `None` calls it again unless the
    /// vCPU was kicked.
    pub fn program(&self, vcpu: u32, program: impl FnMut(&mut Guest<'_, A>) -> Option<Exit> + Send + 'static) {
        lock(&self.script.sources).insert(vcpu, Source::Program(Box::new(program)));
    }

    /// Lets the next run of vCPU `vcpu`, of whichever VM, fail.
    pub fn fail(&self, vcpu: u32, error: VcpuError) {
        lock(&self.script.failures).insert(vcpu, error);
    }

    /// Lets the next run of vCPU `vcpu` fail as if the hardware refused to enter the guest.
    pub fn fail_entry(&self, vcpu: u32) {
        let (meaning, registers) = ("the test wants it so".to_owned(), "none".to_owned());
        self.fail(vcpu, VcpuError::EntryFailed { vcpu, reason: 0x8000_0021, meaning, registers });
    }
}

impl<A: Arch> Fake<A> {
    /// How often vCPU `vcpu`, of all VMs, was told that it had stood still.
    #[must_use]
    pub fn standstills(&self, vcpu: u32) -> u64 {
        lock(&self.script.standstills).get(&vcpu).copied().unwrap_or(0)
    }
}

impl<A: Model> Default for Fake<A> {
    fn default() -> Self {
        Self::new()
    }
}

fn limit(what: &'static str, wanted: u64, limit: u64) -> HypervisorError {
    HypervisorError::Limit { backend: NAME, what, wanted, limit, mend: String::new() }
}

impl<A: Model> Hypervisor<A> for Fake<A> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn address_bits(&self) -> Result<u8, HypervisorError> {
        Ok(self.capabilities.address_bits)
    }

    fn builder(&self, request: &VmRequest) -> Result<Box<dyn VmBuilder<A>>, HypervisorError> {
        let Capabilities { powers, max_vcpus, address_bits, memory_slots, ref arch } = self.capabilities;
        if request.max_vcpus > max_vcpus {
            return Err(limit("vCPUs", request.max_vcpus.into(), max_vcpus.into()));
        }
        let highest = 1_u64.checked_shl(address_bits.into()).map_or(u64::MAX, |size| size - 1);
        if request.highest_gpa > highest {
            return Err(limit("highest guest address", request.highest_gpa, highest));
        }
        let powers = powers & request.powers;
        let capabilities = Capabilities { powers, max_vcpus, address_bits, memory_slots, arch: arch.clone() };
        Ok(Box::new(Builder { capabilities, max_vcpus: request.max_vcpus, script: Arc::clone(&self.script) }))
    }
}

struct Builder<A: Model> {
    capabilities: Capabilities<A>,
    max_vcpus: u32,
    script: Arc<Script<A>>,
}

impl<A: Model> VmBuilder<A> for Builder<A> {
    fn capabilities(&self) -> &Capabilities<A> {
        &self.capabilities
    }

    fn build(self: Box<Self>, config: &A::VmConfig, vcpus: &[A::VcpuConfig]) -> Result<Parts<A>, HypervisorError> {
        if vcpus.len() as u64 > u64::from(self.max_vcpus) {
            return Err(limit("vCPUs", vcpus.len() as u64, self.max_vcpus.into()));
        }
        let controller = A::controller(config, &self.capabilities, vcpus)?;
        let machine = Machine::new(self.capabilities, controller, self.max_vcpus, self.script)?;
        let vcpus = vcpus.iter().map(|config| machine.vcpu(config)).collect::<Result<_, _>>()?;
        let vm: Arc<dyn Vm<A>> = machine.clone();
        Ok(Parts { vm, vcpus, interrupts: A::interrupts(&machine) })
    }
}
