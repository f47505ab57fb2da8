//! Runs a machine to its end.

mod command;
mod migrate;
mod save;
mod wait;

use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_block::Locking;
use skep_chipset::{MachineRequest, PanicEvent};
use skep_clock::Clock;
use skep_config::{Action, Config};
use skep_hypervisor::{ExitCounts, Hypervisor, VcpuError};
use skep_memory::MemoryMap;

use crate::Error;
use crate::boot::BootFiles;
use crate::console::Console;
use crate::ctl::Server;
use crate::ctl::{Call, Command};
use crate::leftover::Leftover;
use crate::machine::{ClockPolicy, Machine, Platform, Saved, Services};
use crate::migrate::Arrival;
use crate::program;
use crate::run::{Control, Gate, Request, Requests, StopReason, Ticket};
use crate::state::Snapshot;
use command::Running;
pub use migrate::receive;
use save::{Parts, Standing};
use wait::{Waited, wait};

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
    /// It goes on in another process.
    Moved,
}

impl Ending {
    /// Whether the guest has brought it about, so that nothing of its own is under way.
    fn is_the_guests(&self) -> bool {
        matches!(self, Self::PowerOff | Self::Reset | Self::Panic | Self::TripleFault { .. })
    }
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

/// What a machine begins with.
pub enum Start {
    /// It boots these files.
    Boot(Box<BootFiles>),
    /// It goes on where a snapshot was saved.
    Snapshot {
        /// The snapshot, whose disks have been checked.
        snapshot: Box<Snapshot>,
        /// What the guest's clocks do.
        clock: ClockPolicy,
        /// The guest waits to be resumed.
        paused: bool,
        /// What it changes is followed, so that differences can be saved.
        track: bool,
        /// It is one of several: a guest that has a generation id gets a new one.
        clone: bool,
        /// Files that were made for it, which stay once it is there.
        made: Vec<Leftover>,
    },
    /// It goes on where another process has left it ([`receive`]).
    Arrival(Box<Arrival>),
}

/// Runs the machine of `config` on `hypervisor`, until it ends. `started` is when the program began.
///
/// # Errors
/// Where the machine can't be made, or the host fails. A vCPU's failure is an [`Ending`].
pub fn run<A: Saved>(
    config: &Config,
    hypervisor: &dyn Hypervisor<A>,
    start: Start,
    started: Instant,
) -> Result<Outcome, Error> {
    let gate = Arc::new(Gate::default());
    let host = |source| Error::Thread { what: "the control thread", source };
    let requests = Arc::new(Requests::new(gate.clone()).map_err(host)?);
    let clock = Clock::host();
    let mut control = Control::new(&clock, requests.clone())?;

    // A source is told why its machine can't come.
    let tell = |error: &Error| match &start {
        Start::Arrival(arrival) => arrival.refuse(error),
        Start::Boot(_) | Start::Snapshot { .. } => {}
    };
    let console = Console::open(&config.serial).map_err(Error::from).inspect_err(tell)?;
    let server = config.control.as_deref().map(Server::bind).transpose();
    let server = server.map_err(Error::ControlSocket).inspect_err(tell)?;
    let mut services = Services {
        clock: clock.clone(),
        requests: device_requests(&requests),
        serial: console.output(),
        memory: MemoryMap::new(),
        firmware: None,
    };
    let mut standing = Standing::default();
    let (mut came, mut files_made) = (None, Vec::new());
    let (mut machine, mut files) = match start {
        Start::Boot(files) => {
            let (mut kernel, firmware) = files.split();
            services.firmware = firmware;
            let mut machine = Machine::<A>::new(config, hypervisor, gate.clone(), services)?;
            machine.load(kernel.as_deref_mut())?;
            (machine, Some(kernel))
        }
        Start::Snapshot { snapshot, clock, paused, track, clone, made } => {
            files_made = made;
            let machine = Machine::of_snapshot(config, hypervisor, gate.clone(), services, &snapshot, clock, track)?;
            if clone {
                machine.renew_generation()?;
            }
            if paused {
                standing = Standing::paused();
            } else {
                machine.resume();
            }
            tracing::info!("restored from `{}`", snapshot.path.display());
            // Firmware begins a restart by itself; a kernel's files are opened when they are needed.
            (machine, config.boot.firmware.is_some().then_some(None))
        }
        Start::Arrival(arrival) => {
            let variables = arrival.make_variables().inspect_err(|error| arrival.refuse(error))?;
            let made = Machine::of_arrival(config, hypervisor, gate.clone(), services, &arrival);
            let (machine, since) = made.inspect_err(|error| arrival.refuse(error))?;
            came = Some((arrival, since, variables));
            (machine, config.boot.firmware.is_some().then_some(None))
        }
    };
    control.add(console.attach(machine.serial(), requests.clone())?);
    if let Some(server) = server {
        control.add(server.attach(requests.clone()));
    }
    control.hear_signals()?;
    let threads = |source| Error::Thread { what: "a vCPU", source };
    machine.vcpus_mut().start(&requests).map_err(threads)?;
    program::let_go_of_code();
    files_made.into_iter().for_each(Leftover::keep);
    if let Some((arrival, since, variables)) = came {
        // Last: nothing that could fail comes between the source's word and the guest.
        let (tell, paused) = (requests.clone(), arrival.paused);
        let settling = arrival.settle(move |go| tell.send(Request::Arrived(go)))?;
        standing = Standing::arriving(settling, since, paused, variables);
    }

    let mut restarts = 0;
    // Devices that could not stop.
    let mut abandoned = false;
    let ending = loop {
        standing.thaw(&machine);
        if !standing.is_still() {
            clock.resume();
            requests.open_gate();
        }
        let request = match control.next_request()? {
            Request::Command(call) => {
                let mut parts =
                    Parts { machine: &mut machine, control: &mut control, requests: &requests, gate: &gate };
                let Call { command, reply } = call;
                let given_up = match command {
                    Command::Pause => standing.pause(&mut parts, reply)?,
                    Command::Save(save) => standing.save(&mut parts, save, reply)?,
                    Command::Migrate(migrate) => {
                        standing.migrate(&mut parts, migrate, reply);
                        None
                    }
                    command => {
                        let (machine, standing) = (parts.machine, &mut standing);
                        Running { machine, requests: &requests, gate: &gate, started, restarts, standing }
                            .obey(Call { command, reply });
                        None
                    }
                };
                if let Some(reason) = given_up {
                    abandoned = true;
                    break Ending::Stopped(reason);
                }
                continue;
            }
            Request::Written => {
                standing.written();
                continue;
            }
            Request::HandOver => {
                let mut parts =
                    Parts { machine: &mut machine, control: &mut control, requests: &requests, gate: &gate };
                if let Some(reason) = standing.hand_over(&mut parts)? {
                    abandoned = true;
                    break Ending::Stopped(reason);
                }
                continue;
            }
            // Of a wait that was given up.
            Request::Done(_) => continue,
            Request::Migrated if standing.migrated() => break Ending::Moved,
            Request::Migrated => continue,
            Request::Arrived(go) => {
                standing.arrived(&machine, go)?;
                continue;
            }
            request => request,
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
            Request::SmmWanted => return Err(Error::SmmWanted),
            Request::Stop(reason) => break Ending::Stopped(reason),
            // Nobody waits for the one any more, and the other has been obeyed.
            Request::Done(_)
            | Request::Written
            | Request::Command(_)
            | Request::HandOver
            | Request::Migrated
            | Request::Arrived(_) => continue,
        };
        if action == Action::Exit {
            break ending;
        }
        tracing::info!("the guest has ended with {ending:?}: restarting it");
        restarts += 1;
        requests.forget();
        let stopped = match settle(&machine, true, &mut control, &requests)? {
            None => stop(&machine, &mut control, &requests)?,
            given_up => given_up,
        };
        if let Some(reason) = stopped {
            abandoned = true;
            break Ending::Stopped(reason);
        }
        machine.reset()?;
        let files = match &mut files {
            Some(files) => files,
            // A machine that was restored has not needed them before.
            none => none.insert(BootFiles::open(&config.boot.source()?, config.arch(), Locking::Now)?.split().0),
        };
        machine.load(files.as_deref_mut())?;
        standing.forget();
    };
    let (ticket, tell) = requests.ticket();
    if standing.end(tell) && wait_or_end(&mut control, &requests, ticket)?.is_some() {
        tracing::warn!("the machine ends before what was written of a snapshot is whole, or removed");
        abandoned = true;
    }
    // Who has the machine now has its variables as well.
    if !abandoned && !matches!(ending, Ending::Moved) {
        abandoned = settle(&machine, ending.is_the_guests(), &mut control, &requests)?.is_some();
    }
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
    } else if machine.has_devices() {
        let (ticket, tell) = requests.ticket();
        machine.on_close(tell);
        drop(machine);
        if wait_or_end(&mut control, &requests, ticket)?.is_some() {
            tracing::warn!("the machine ends before all of its disks' images are closed");
        }
    }
    Ok(outcome)
}

/// Whether the machine of a snapshot could go on here, before anything is made for it.
///
/// # Errors
/// What this host lacks, by name.
pub fn could_restore<A: Saved>(
    config: &Config,
    hypervisor: &dyn Hypervisor<A>,
    snapshot: &Snapshot,
) -> Result<(), Error> {
    Machine::could_restore(config, hypervisor, snapshot)
}

/// Has the host keep firmware's variables, and says whether the user, or a signal, would not wait for that.
fn settle<A: Platform>(
    machine: &Machine<A>,
    by_guest: bool,
    control: &mut Control,
    requests: &Arc<Requests>,
) -> Result<Option<StopReason>, Error> {
    let (ticket, tell) = requests.ticket();
    if machine.settle(by_guest, tell) { wait_or_end(control, requests, ticket) } else { Ok(None) }
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
    let (ticket, tell) = requests.ticket();
    machine.begin_stop(tell);
    wait_or_end(control, requests, ticket)
}

/// Waits for it, of a machine that ends or begins anew, and says whether the user, or a signal, would not wait.
fn wait_or_end(control: &mut Control, requests: &Requests, ticket: Ticket) -> Result<Option<StopReason>, Error> {
    let refuse = |call| {
        let text = "the machine is being restarted or ended, and waits for its devices\n  try: again in a moment";
        command::refuse(call, requests, text);
        None
    };
    Ok(match wait(control, requests, ticket, refuse)? {
        Waited::Ended(reason) => Some(reason),
        Waited::Done | Waited::GivenUp(_) => None,
    })
}

/// The way from the devices to the control thread.
fn device_requests(requests: &Arc<Requests>) -> skep_chipset::Requests {
    let requests = requests.clone();
    skep_chipset::Requests::new(move |request| match request {
        MachineRequest::PowerOff => requests.send(Request::PowerOff),
        MachineRequest::Reset => requests.send(Request::Reset),
        MachineRequest::Panic(PanicEvent::Panicked) => requests.send(Request::Panic),
        MachineRequest::SmmWanted => requests.send(Request::SmmWanted),
        MachineRequest::Panic(event) => tracing::info!("the guest reports: {event:?}"),
    })
}
