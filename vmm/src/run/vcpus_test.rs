use skep_clock::Clock;
use skep_hypervisor::x86_64::{BootState, Io, VcpuState, X86_64};
use skep_hypervisor::{Exit, Kick, MemoryIo, VcpuError};

use super::super::Control;
use super::*;

/// A vCPU whose device handler has a mistake.
struct Faulty(u32);

impl Kick for Faulty {
    fn kick(&self) {}
}

impl Vcpu<X86_64> for Faulty {
    fn index(&self) -> u32 {
        self.0
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Faulty(self.0))
    }

    fn run(&mut self, _: &mut (dyn Io + 'static)) -> Result<Exit, VcpuError> {
        panic!("as the test wants");
    }

    fn boot(&mut self, _: &BootState) -> Result<(), VcpuError> {
        unreachable!()
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        unreachable!()
    }

    fn save(&mut self, _: &mut (dyn Io + 'static)) -> Result<VcpuState, VcpuError> {
        unreachable!()
    }

    fn restore(&mut self, _: &VcpuState) -> Result<(), VcpuError> {
        unreachable!()
    }

    fn identity(&mut self) -> Result<(), VcpuError> {
        unreachable!()
    }

    fn adopt(&mut self, (): &()) -> Result<(), VcpuError> {
        unreachable!()
    }

    fn exits(&self) -> ExitCounts {
        ExitCounts::default()
    }

    fn dump(&mut self) -> String {
        String::new()
    }
}

/// No devices at all.
struct Nothing;

impl MemoryIo for Nothing {
    fn memory_read(&mut self, _: u64, _: &mut [u8]) {}

    fn memory_write(&mut self, _: u64, _: &[u8]) {}
}

impl Io for Nothing {
    fn port_read(&mut self, _: u16, _: &mut [u8]) {}

    fn port_write(&mut self, _: u16, _: &[u8]) {}

    fn end_of_interrupt(&mut self, _: u8) {}

    fn external_interrupt(&self) -> bool {
        false
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
}

#[test]
fn a_panic_in_a_vcpus_thread_stops_the_machine_and_is_told() {
    let gate = Arc::new(Gate::default());
    let requests = Arc::new(Requests::new(gate.clone()).unwrap());
    let mut control = Control::new(&Clock::host(), requests.clone()).unwrap();
    let slots = vec![Slot::<X86_64>::new(Box::new(Faulty(0)), Box::new(Nothing))];
    let mut vcpus = Vcpus::new(slots, gate.clone());
    vcpus.start(&requests).unwrap();
    gate.open();
    let request = control.next_request().unwrap();
    assert!(matches!(request, Request::Panicked { vcpu: 0 }), "{request:?}");
    gate.close_and_wait();
    assert_eq!(vcpus.exits().total(), 0, "its state can still be looked at");
}
