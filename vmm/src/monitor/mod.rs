//! Runs a machine to its end.

mod command;

use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_chipset::{MachineRequest, PanicEvent};
use skep_clock::Clock;
use skep_config::{Action, Config};
use skep_hypervisor::{ExitCounts, Hypervisor, VcpuError};
use skep_memory::MemoryMap;

use crate::Error;
use crate::boot::BootFiles;
use crate::console::Console;
use crate::ctl::Server;
use crate::machine::{Machine, Platform, Services};
use crate::run::{Control, Gate, Request, Requests, StopReason};
use command::Running;

/// How a machine has ended.
#[derive(Debug)]
pub enum Ending {
    /// The guest has powered its machine off.
    PowerOff,
    /// The guest has reset its machine, and the policy says exit.
    Reset,
    /// The guest's kernel has panicked.
    Panic,
    /// A vCPU has shut down.
    TripleFault {
        /// Which.
        vcpu: u32,
    },
    /// A vCPU could not go on.
    Failed(VcpuError),
    /// The user or a signal has ended it.
    Stopped(StopReason),
}

/// What a run has come to.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// How often vCPUs left guest code.
    pub exits: ExitCounts,
    /// From the start of the program to the first guest instruction, where there was one.
    pub until_first_instruction: Option<Duration>,
    /// From the start of the program to the end.
    pub elapsed: Duration,
    /// How often the machine was restarted.
    pub restarts: u32,
}

/// Runs the machine of `config` with the guest of `files` on `hypervisor`, until it ends. `started` is when the program began.
///
/// # Errors
/// Where the machine can't be made, or the host fails. A vCPU's failure is an [`Ending`].
pub fn run<A: Platform>(
    config: &Config,
    hypervisor: &dyn Hypervisor<A>,
    mut files: BootFiles,
    started: Instant,
) -> Result<Outcome, Error> {
    let gate = Arc::new(Gate::default());
    let host = |source| Error::Thread { what: "the control thread", source };
    let requests = Arc::new(Requests::new(gate.clone()).map_err(host)?);
    let clock = Clock::host();
    let mut control = Control::new(&clock, requests.clone())?;

    let console = Console::open(&config.serial)?;
    let server = config.control.as_deref().map(Server::bind).transpose().map_err(Error::ControlSocket)?;
    let services = Services {
        clock: clock.clone(),
        requests: device_requests(&requests),
        serial: console.output(),
        memory: MemoryMap::new(),
    };
    let mut machine = Machine::<A>::new(config, hypervisor, gate.clone(), services)?;
    machine.load(&mut files)?;
    control.add(console.attach(machine.serial(), requests.clone())?);
    if let Some(server) = server {
        control.add(server.attach(requests.clone()));
    }
    control.hear_signals()?;
    let threads = |source| Error::Thread { what: "a vCPU", source };
    machine.vcpus_mut().start(&requests).map_err(threads)?;

    let mut restarts = 0;
    // Devices that could not stop.
    let mut abandoned = false;
    let ending = loop {
        clock.resume();
        requests.open_gate();
        let request = loop {
            match control.next_request()? {
                Request::Command(call) => {
                    let machine = &mut machine;
                    Running { machine, requests: &requests, gate: &gate, started, restarts }.obey(call);
                }
                request => break request,
            }
        };
        gate.close_and_wait();
        clock.pause();
        let policy = &config.on;
        let (action, ending) = match request {
            Request::PowerOff => (policy.power_off, Ending::PowerOff),
            Request::Reset => (policy.reset, Ending::Reset),
            Request::Panic => (policy.panic, Ending::Panic),
            Request::TripleFault { vcpu } => (policy.triple_fault, Ending::TripleFault { vcpu }),
            Request::Failed(error) => break Ending::Failed(error),
            Request::Panicked { vcpu } => return Err(Error::Panicked { vcpu }),
            Request::Stop(reason) => break Ending::Stopped(reason),
            // Nobody waits for the one any more, and the other has been obeyed.
            Request::Stopped | Request::Command(_) => continue,
        };
        if action == Action::Exit {
            break ending;
        }
        tracing::info!("the guest has ended with {ending:?}: restarting it");
        restarts += 1;
        requests.forget();
        if let Some(reason) = stop(&machine, &mut control, &requests)? {
            abandoned = true;
            break Ending::Stopped(reason);
        }
        machine.reset()?;
        machine.load(&mut files)?;
    };
    if !abandoned {
        abandoned = stop(&machine, &mut control, &requests)?.is_some();
    }
    let outcome = Outcome {
        ending,
        exits: machine.vcpus().exits(),
        until_first_instruction: machine.vcpus().first_run().map(|at| at.saturating_duration_since(started)),
        elapsed: started.elapsed(),
        restarts,
    };
    if abandoned {
        tracing::warn!("the machine ends with requests of its devices in flight");
        // To drop it would wait for them; the end of the process does not.
        std::mem::forget(machine);
    }
    Ok(outcome)
}

/// Stops the devices, and says whether the user, or a signal, would not wait for that.
fn stop<A: Platform>(
    machine: &Machine<A>,
    control: &mut Control,
    requests: &Arc<Requests>,
) -> Result<Option<StopReason>, Error> {
    if !machine.has_devices() {
        return Ok(None);
    }
    let tell = requests.clone();
    machine.begin_stop(move || tell.send(Request::Stopped));
    loop {
        match control.next_request()? {
            Request::Stopped => return Ok(None),
            Request::Stop(reason) => return Ok(Some(reason)),
            Request::Command(call) => command::refuse(call, requests),
            // The machine stands, and what its vCPUs asked for before has been heard.
            _ => {}
        }
    }
}

/// The way from the devices to the control thread.
fn device_requests(requests: &Arc<Requests>) -> skep_chipset::Requests {
    let requests = requests.clone();
    skep_chipset::Requests::new(move |request| match request {
        MachineRequest::PowerOff => requests.send(Request::PowerOff),
        MachineRequest::Reset => requests.send(Request::Reset),
        MachineRequest::Panic(PanicEvent::Panicked) => requests.send(Request::Panic),
        MachineRequest::Panic(event) => tracing::info!("the guest reports: {event:?}"),
    })
}
