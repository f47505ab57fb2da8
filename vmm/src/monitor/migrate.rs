//! A machine that leaves, and one that comes: what the control thread does for it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use skep_hypervisor::Hypervisor;

use super::command::microseconds;
use super::save::{Frozen, Parts, Purpose, Standing, ending};
use crate::Error;
use crate::ctl::Reply;
use crate::ctl::protocol::{Answer, ErrorKind, Failure, Migrate, Migrated, MigrationStatus, Nothing};
use crate::leftover::Leftover;
use crate::machine::{Machine, Saved};
use crate::migrate::{Arrival, Handed, Listener, MigrateError, Moved, Outgoing, Settling};
use crate::run::{Request, StopReason};
use crate::state::SnapshotError;

/// A machine that leaves.
pub(super) struct Leaving {
    outgoing: Outgoing,
    reply: Reply,
    /// It stands still for it.
    handed: bool,
}

impl Leaving {
    pub(super) fn status(&self) -> MigrationStatus {
        let shared = &self.outgoing.shared;
        MigrationStatus {
            rounds: shared.rounds.load(Ordering::Relaxed),
            sent: shared.sent.load(Ordering::Relaxed),
            rate: shared.rate(),
            unknown: shared.is_unknown(),
        }
    }

    pub(super) fn progress(&self) -> &crate::state::Progress {
        &self.outgoing.shared.progress
    }

    /// The machine ends: nobody wants it any more, unless it is the other side's by now.
    pub(super) fn give_up(&self) {
        self.outgoing.shared.give_up();
    }

    /// Whether nothing of the machine may change.
    pub(super) fn is_handed(&self) -> bool {
        self.handed
    }
}

fn busy(text: &str) -> Failure {
    Failure::new(ErrorKind::Busy, text)
}

impl Standing {
    /// Begins to send the machine away. What can't be done leaves it as it was.
    pub(super) fn migrate<A: Saved>(&mut self, parts: &mut Parts<'_, A>, migrate: Migrate, reply: Reply) {
        if self.is_saving() || self.leaving.is_some() {
            return reply
                .send(Err(busy("the machine is being saved, or migrates already\n  try: again when that is done")));
        }
        let begun = migrate.to.parse().map_err(|why| Failure::new(ErrorKind::BadArguments, why)).and_then(|to| {
            // For a moment, to look at its vCPUs; the control loop lets them go on.
            parts.gate.close_and_wait();
            let plan = parts.machine.leave(to, Duration::from_millis(migrate.downtime_ms));
            let (stop, ended) = (parts.requests.clone(), parts.requests.clone());
            let begin = |plan| {
                Outgoing::begin(plan, move || stop.send(Request::HandOver), move || ended.send(Request::Migrated))
            };
            plan.and_then(|plan| Ok(begin(plan)?)).map_err(Failure::from)
        });
        match begun {
            Ok(outgoing) => self.leaving = Some(Leaving { outgoing, reply, handed: false }),
            Err(failure) => reply.send(Err(failure)),
        }
    }

    /// Lets the machine stand still, and hands its state to who sends it. Answers who ended the machine meanwhile.
    pub(super) fn hand_over<A: Saved>(&mut self, parts: &mut Parts<'_, A>) -> Result<Option<StopReason>, Error> {
        let Some(leaving) = &mut self.leaving else { return Ok(None) };
        if leaving.outgoing.shared.is_cancelled() {
            leaving.outgoing.hand(Err(SnapshotError::Cancelled));
            return Ok(None);
        }
        let begin = Instant::now();
        let handed = match self.freeze(parts, Purpose::Migration)? {
            Frozen::Still => {
                let images = parts.machine.disk_images();
                let since = self.catch_up(parts.machine);
                parts.machine.save().map(|records| Handed { records, images, begin, since, paused: self.paused })
            }
            Frozen::Ending => Err(ending()),
            Frozen::GivenUp => Err(SnapshotError::Cancelled),
            Frozen::Ended(reason) => return Ok(Some(reason)),
        };
        if let Some(leaving) = &mut self.leaving {
            leaving.handed = handed.is_ok();
            leaving.outgoing.hand(handed);
        }
        Ok(None)
    }

    /// What has come of it: `true` where the machine has gone. Who asked for it is told.
    pub(super) fn migrated(&mut self) -> bool {
        let Some(Leaving { outgoing, reply, .. }) = self.leaving.take() else { return false };
        match outgoing.outcome() {
            Ok(moved) => {
                tracing::info!("the machine has gone: it stood still for {:?}", moved.standstill);
                reply.send(Ok(Answer::Migrated(told(&moved))));
                true
            }
            Err(error) => {
                tracing::warn!("the machine stays: {error}");
                if matches!(error, MigrateError::Stranded(_)) {
                    self.paused = true;
                }
                reply.send(Err(Error::from(error).into()));
                false
            }
        }
    }

    /// Ends a migration, unless the machine is the other side's by now.
    pub(super) fn cancel_migration(&self) -> Result<Answer, Failure> {
        match &self.leaving {
            None => Err(Failure::new(ErrorKind::BadArguments, "the machine does not migrate")),
            Some(leaving) if leaving.outgoing.shared.cancel() => Ok(Answer::Nothing(Nothing {})),
            Some(_) => Err(busy("the other side has been told that the machine is its own: it is too late")),
        }
    }

    /// Takes a machine back of which nobody says whose it is: it is to run, also if somebody had paused it before.
    pub(super) fn take_back(&mut self) -> Option<Result<(), MigrateError>> {
        let unknown = self.leaving.as_ref().filter(|leaving| leaving.outgoing.shared.is_unknown());
        let back = unknown.map(|leaving| leaving.outgoing.shared.take_back())?;
        if back.is_ok() {
            self.paused = false;
        }
        Some(back)
    }

    /// A machine that waits for its source to give it away; with the file of variables that was made for it.
    pub(super) fn arriving(settling: Settling, since: Instant, paused: bool, variables: Option<Leftover>) -> Self {
        Self { since: Some(since), paused, arriving: Some((settling, variables)), ..Self::default() }
    }

    /// The process ends before the machine is its own.
    pub(super) fn refuse_arrival(&mut self) {
        if let Some((settling, _)) = self.arriving.take() {
            settling.refuse("the process that it was to come to ends".to_owned());
        }
    }

    /// The source says that the machine is this side's, or is heard no more.
    pub(super) fn arrived<A: Saved>(&mut self, machine: &Machine<A>, go: bool) -> Result<(), Error> {
        let Some((settling, variables)) = self.arriving.take() else { return Ok(()) };
        if !go {
            let text = "the source is lost, or has kept the machine: it does not run here";
            return Err(MigrateError::Lost(std::io::Error::other(text)).into());
        }
        if let Err(error) = machine.disk_images().take() {
            settling.refuse(error.to_string());
            return Err(error.into());
        }
        variables.into_iter().for_each(Leftover::keep);
        self.settled = Some(settling.accept());
        machine.announce();
        tracing::info!("the machine runs here");
        Ok(())
    }
}

fn told(moved: &Moved) -> Migrated {
    Migrated {
        memory: moved.memory,
        sent: moved.sent,
        rounds: moved.rounds,
        standstill_us: microseconds(moved.standstill),
        elapsed_us: microseconds(moved.elapsed),
    }
}

/// Waits at `listener` for a machine, and takes it as far as it can be taken before it is made. `adjust` gives its config what this host has, and answers
/// whose disks have other images.
///
/// # Errors
/// What this host lacks, and what the source ends with.
pub fn receive<A: Saved>(
    listener: Listener,
    hypervisor: &dyn Hypervisor<A>,
    adjust: &dyn Fn(&mut skep_config::Config) -> Result<Vec<String>, Error>,
) -> Result<Arrival, Error> {
    Arrival::receive(listener, adjust, &|config, cpus, ram| Machine::<A>::could_inherit(config, hypervisor, cpus, ram))
}
