//! Does what clients of the control socket ask for, on the control thread between requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_config::Size;

use crate::ctl::protocol::{
    Answer, BalloonTarget, ConsoleResize, DeviceList, DeviceRemove, ErrorKind, Failure, Nothing, Pressed, Removed,
    Renewed, Resized, Stats,
};
use crate::ctl::{Call, Command, Reply};
use crate::machine::{HotplugError, Machine, Removal, Saved};
use crate::monitor::save::Standing;
use crate::run::{Gate, Request, Requests, StopReason};

/// A machine that runs, as commands see it.
pub(super) struct Running<'a, A: Saved> {
    pub(super) machine: &'a mut Machine<A>,
    pub(super) requests: &'a Arc<Requests>,
    pub(super) gate: &'a Gate,
    /// When skep began.
    pub(super) started: Instant,
    pub(super) restarts: u32,
    pub(super) standing: &'a mut Standing,
}

impl<A: Saved> Running<'_, A> {
    /// Does what is asked, and answers, now or when it is done.
    pub(super) fn obey(self, call: Call) {
        let Call { command, reply } = call;
        if matches!(command, Command::Resume)
            && let Some(back) = self.standing.take_back()
        {
            let done = back.map(|()| Answer::Nothing(Nothing {}));
            return reply.send(done.map_err(|error| crate::Error::from(error).into()));
        }
        if self.standing.is_saving()
            && !matches!(
                command,
                Command::DeviceList | Command::Status | Command::Quit | Command::SaveCancel | Command::MigrateCancel
            )
        {
            let text = "the machine is being saved, or on its way\n  \
                        try: again when that is done; or `save-cancel` gives a save up, and `migrate-cancel` a migration";
            return reply.send(Err(Failure::new(ErrorKind::Busy, text)));
        }
        let outcome = match command {
            Command::DeviceList => Ok(Answer::DeviceList(DeviceList { devices: self.machine.device_list() })),
            Command::DiskAdd(disk) => self.machine.plug_disk(*disk).map(Answer::Plugged).map_err(Failure::from),
            Command::NetAdd(net) => self.machine.plug_net(net).map(Answer::Plugged).map_err(Failure::from),
            Command::DeviceRemove(remove) => return self.remove(remove, reply),
            Command::DiskResize(disk) => {
                let size = self.machine.resize_disk(&disk.id);
                size.map(|size| Answer::Resized(Resized { size })).map_err(Failure::from)
            }
            Command::Balloon(BalloonTarget { size }) => {
                let balloon = self.machine.balloon(size.map(Size::bytes));
                balloon.map(Answer::Balloon).map_err(Failure::from)
            }
            Command::ConsoleResize(ConsoleResize { columns, rows }) => {
                let resized = self.machine.resize_console(columns, rows);
                resized.map(|()| Answer::Nothing(Nothing {})).map_err(Failure::from)
            }
            Command::Stats => Ok(Answer::Stats(self.stats())),
            Command::Status => Ok(Answer::Status(self.standing.status())),
            Command::Resume => {
                let resumed = self.standing.resume(self.machine).map(|()| Answer::Nothing(Nothing {}));
                resumed.map_err(Failure::from)
            }
            // The loop itself does these.
            Command::Pause | Command::Save(_) | Command::Migrate(_) => return,
            Command::SaveCancel => self.standing.cancel_save(),
            Command::MigrateCancel => self.standing.cancel_migration(),
            Command::PowerButton => Ok(Answer::Pressed(Pressed { heard: self.machine.press_power_button() })),
            Command::RenewGeneration => {
                let renewed = self.machine.renew_generation().map(|told| Answer::Renewed(Renewed { told }));
                renewed.map_err(|error| Failure::new(ErrorKind::Failed, error.to_string()))
            }
            // What begins anew runs, and so needs its images.
            Command::Reset => match self.machine.hold_images() {
                Ok(()) => {
                    self.requests.send(Request::Reset);
                    Ok(Answer::Nothing(Nothing {}))
                }
                Err(error) => Err(error.into()),
            },
            Command::Quit => return quit(self.requests, reply),
        };
        reply.send(outcome);
    }

    fn remove(self, remove: DeviceRemove, reply: Reply) {
        let DeviceRemove { id, wait, again } = remove;
        let (told, name) = (reply.clone(), id.clone());
        let waiter = move |removal| {
            told.send(match removal {
                Removal::Gone => Ok(Answer::Removed(Removed { gone: true })),
                Removal::Restarted => Err(HotplugError::Restarted { id: name }.into()),
            });
        };
        let waiter = wait.then(|| Box::new(waiter) as Box<dyn FnOnce(Removal) + Send>);
        match self.machine.unplug(&id, again, waiter) {
            // The waiter answers.
            Ok(()) if wait => {}
            Ok(()) => reply.send(Ok(Answer::Removed(Removed { gone: false }))),
            Err(error) => reply.send(Err(error.into())),
        }
    }

    /// The guest stands still for it a moment.
    fn stats(&self) -> Stats {
        self.gate.close_and_wait();
        let vcpus = self.machine.vcpus();
        let first = vcpus.first_run().map(|at| at.saturating_duration_since(self.started));
        let kinds = vcpus.exits();
        let exits: BTreeMap<_, _> =
            kinds.rows().filter(|(_, count)| *count > 0).map(|(kind, count)| (kind.to_string(), count)).collect();
        if !self.standing.is_still() {
            self.requests.open_gate();
        }
        Stats {
            elapsed_us: microseconds(self.started.elapsed()),
            first_instruction_us: first.map(microseconds),
            restarts: self.restarts,
            exits,
        }
    }
}

pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn quit(requests: &Requests, reply: Reply) {
    requests.send(Request::Stop(StopReason::Control));
    reply.send(Ok(Answer::Nothing(Nothing {})));
}

/// Answers while the machine's devices are being stopped, for the reason that `text` gives: its end can still be asked for.
pub(super) fn refuse(call: Call, requests: &Requests, text: &str) {
    match call.command {
        Command::Quit => quit(requests, call.reply),
        _ => call.reply.send(Err(Failure::new(ErrorKind::Busy, text))),
    }
}
