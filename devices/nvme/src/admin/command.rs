//! Admin commands (Base chapter 5).

use std::sync::Arc;

use skep_block::Buffer;
use skep_memory::RamView;

use super::task::Purpose;
use super::{Admin, Outcome, Pending};
use crate::doorbell::Shadow;
use crate::shared::Shared;
use crate::spec::register::MAX_ENTRIES;
use crate::spec::{Command, EVERY_NAMESPACE, Status, admin};
use crate::state::{CompletionQueueState, SubmissionQueueState, UnitState};
use crate::transfer;
use crate::unit::{self, Order};

/// Abort commands that wait at most: one more than Identify says (counting from 0).
pub(super) const ABORTS: usize = 4;

impl Admin {
    pub(super) fn execute(&mut self, command: &Command, ram: &Arc<RamView>) -> Outcome {
        if command.fuse() != 0 || command.data_kind() != 0 {
            return Outcome::Done(Status::INVALID_FIELD, 0);
        }
        match command.opcode() {
            admin::DELETE_SQ => self.delete_submission(command),
            admin::CREATE_SQ => self.create_submission(command).map(|()| 0).into(),
            admin::DELETE_CQ => self.delete_completion(command),
            admin::CREATE_CQ => self.create_completion(command).map(|()| 0).into(),
            admin::IDENTIFY => self.identify(command, ram).map(|()| 0).into(),
            admin::GET_LOG_PAGE => self.log_page(command, ram).map(|()| 0).into(),
            admin::SET_FEATURES => self.set_feature(command, ram).into(),
            admin::GET_FEATURES => self.get_feature(command, ram).into(),
            admin::ABORT => self.abort(command),
            admin::ASYNC_EVENT => self.request_event(command.id()),
            admin::KEEP_ALIVE => {
                self.restart_keep_alive();
                Outcome::Done(Status::SUCCESS, 0)
            }
            admin::DOORBELL_BUFFER => self.set_shadow(command),
            admin::FORMAT => self.format(command),
            _ => Outcome::Done(Status::INVALID_OPCODE, 0),
        }
    }

    /// Gives a command the data that it asked for: as much of `data` as `len` takes, and zeroes behind.
    pub(super) fn give(&self, command: &Command, ram: &Arc<RamView>, data: &[u8], len: usize) -> Result<(), Status> {
        let buffer = transfer::map(command, len, self.page, ram, Buffer::empty())?;
        let copied = buffer.copy_in(0, &data[..data.len().min(len)]);
        buffer.clear(copied);
        buffer.mark_dirty();
        Ok(())
    }

    /// A queue's number from dword 10; 0 is the admin queue's.
    fn queue_id(&self, command: &Command) -> Result<u16, Status> {
        let id = command.dword::<10>() as u16;
        if (1..=self.shared.config.queues).contains(&id) { Ok(id) } else { Err(Status::INVALID_QUEUE_ID) }
    }

    /// How many entries a queue is to have, and where.
    fn queue_memory(&self, command: &Command) -> Result<(u64, u32), Status> {
        let entries = (command.dword::<10>() >> 16) + 1;
        if !(2..=MAX_ENTRIES).contains(&entries) {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        // Queues are contiguous, as CAP says.
        if command.dword::<11>() & 1 == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let base = command.prp1();
        if base & (self.page - 1) != 0 || base >= 1 << 63 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        Ok((base, entries))
    }

    fn owner(&self, submission: u16) -> Option<u16> {
        self.units.iter().find(|(_, unit)| unit.submission.contains(&submission)).map(|(id, _)| *id)
    }

    fn create_completion(&mut self, command: &Command) -> Result<(), Status> {
        let id = self.queue_id(command)?;
        if self.units.contains_key(&id) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let (base, entries) = self.queue_memory(command)?;
        let vector = (command.dword::<11>() >> 16) as u16;
        if vector > self.shared.config.queues {
            return Err(Status::INVALID_VECTOR);
        }
        self.check_entry_sizes()?;
        let vector = (command.dword::<11>() & 2 != 0).then_some(vector);
        let completion = CompletionQueueState { id, base, entries, head: 0, tail: 0, phase: true, vector };
        self.start_unit(&UnitState { completion, submission: Vec::new() }, false).map_err(|error| {
            tracing::warn!("NVMe: the worker of queue {id} can't be started: {error}");
            Status::INTERNAL_ERROR
        })
    }

    /// I/O queues' entries have a size that the guest sets before it creates any.
    fn check_entry_sizes(&self) -> Result<(), Status> {
        let valid = self.shared.registers().configuration().has_entry_sizes();
        if valid { Ok(()) } else { Err(Status::INVALID_QUEUE_SIZE) }
    }

    fn create_submission(&mut self, command: &Command) -> Result<(), Status> {
        let id = self.queue_id(command)?;
        let leaves = |one: &Pending| matches!(one, Pending::DeleteSubmission { queue, .. } if *queue == id);
        if self.owner(id).is_some() || self.pending.iter().any(leaves) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let (base, entries) = self.queue_memory(command)?;
        let completion = (command.dword::<11>() >> 16) as u16;
        if !(1..=self.shared.config.queues).contains(&completion) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        self.check_entry_sizes()?;
        let unit = self.units.get_mut(&completion).filter(|unit| !unit.stopping);
        let unit = unit.ok_or(Status::COMPLETION_QUEUE_INVALID)?;
        let state = SubmissionQueueState { id, completion, base, entries, head: 0, tail: 0 };
        let queue = unit::open(&self.shared, &state, self.shadow, &unit.wake).ok_or(Status::INVALID_QUEUE_ID)?;
        unit.submission.push(id);
        unit.worker.send(Order::Add(Box::new(queue)));
        self.shared.bus.doorbells_changed();
        Ok(())
    }

    fn delete_submission(&mut self, command: &Command) -> Outcome {
        let id = command.dword::<10>() as u16;
        let owner = self.owner(id).and_then(|owner| Some((owner, self.units.get_mut(&owner)?)));
        let Some((completion, unit)) = owner else { return Outcome::Done(Status::INVALID_QUEUE_ID, 0) };
        unit.submission.retain(|one| *one != id);
        unit.worker.send(Order::Remove(id));
        self.pending.push(Pending::DeleteSubmission { command: command.id(), queue: id, completion });
        Outcome::Later
    }

    fn delete_completion(&mut self, command: &Command) -> Outcome {
        let id = command.dword::<10>() as u16;
        let leaves = |one: &Pending| matches!(one, Pending::DeleteSubmission { completion, .. } if *completion == id);
        let leaving = self.pending.iter().any(leaves);
        let Some(unit) = self.units.get_mut(&id).filter(|unit| !unit.stopping) else {
            return Outcome::Done(Status::INVALID_QUEUE_ID, 0);
        };
        if !unit.submission.is_empty() || leaving {
            return Outcome::Done(Status::INVALID_QUEUE_DELETION, 0);
        }
        unit.stopping = true;
        unit.worker.send(Order::Stop);
        self.pending.push(Pending::DeleteCompletion { command: command.id(), queue: id });
        Outcome::Later
    }

    /// Bit 0 of dword 0 says that the command was not aborted.
    fn abort(&mut self, command: &Command) -> Outcome {
        let waits = |pending: &&Pending| matches!(pending, Pending::Abort { .. } | Pending::AbortFormat { .. });
        if self.pending.iter().filter(waits).count() >= ABORTS {
            return Outcome::Done(Status::ABORT_LIMIT, 1);
        }
        let (queue, id) = (command.dword::<10>() as u16, (command.dword::<10>() >> 16) as u16);
        if queue == 0 {
            return self.abort_admin(command.id(), id);
        }
        let owner = self.owner(queue).and_then(|owner| self.units.get_mut(&owner));
        let Some(unit) = owner else { return Outcome::Done(Status::SUCCESS, 1) };
        self.tokens += 1;
        unit.worker.send(Order::Abort { queue, command: id, token: self.tokens });
        self.pending.push(Pending::Abort { command: command.id(), token: self.tokens });
        Outcome::Later
    }

    /// Of admin commands, requests for events can be aborted, and a format can be asked to end: both end then.
    fn abort_admin(&mut self, command: u16, id: u16) -> Outcome {
        if let Some(place) = self.events.requests.iter().position(|request| *request == id) {
            self.events.requests.remove(place);
            self.complete(id, Status::ABORT_REQUESTED, 0);
            return Outcome::Done(Status::SUCCESS, 0);
        }
        let format = Purpose::Format { command: id };
        let Some(task) = self.tasks.iter_mut().find(|task| task.purpose == format) else {
            return Outcome::Done(Status::SUCCESS, 1);
        };
        task.cancel();
        self.pending.push(Pending::AbortFormat { command, format: id });
        Outcome::Later
    }

    /// Doorbell Buffer Config (Base 5.8).
    fn set_shadow(&mut self, command: &Command) -> Outcome {
        let shadow = Shadow { doorbells: command.prp1(), events: command.prp2() };
        let aligned = |at: u64| at & (self.page - 1) == 0 && at < 1 << 63;
        if !aligned(shadow.doorbells) || !aligned(shadow.events) || shadow.doorbells == shadow.events {
            return Outcome::Done(Status::INVALID_FIELD, 0);
        }
        let running = self.units.values_mut().filter(|unit| !unit.stopping);
        let left = running.map(|unit| unit.worker.send(Order::Shadow(shadow))).count();
        if left == 0 {
            self.use_shadow(shadow);
            return Outcome::Done(Status::SUCCESS, 0);
        }
        // Queues that are created meanwhile have it from the start.
        self.shadow = Some(shadow);
        self.pending.push(Pending::Shadow { command: command.id(), left, shadow });
        Outcome::Later
    }

    /// Format NVM (Base 5.14): of the one format that there is; the content is deallocated, whether erasing is asked for or not.
    fn format(&mut self, command: &Command) -> Outcome {
        let settings = command.dword::<10>();
        // Format index 0, no metadata, no protection information.
        if settings & 0x31ff != 0 {
            return Outcome::Done(Status::INVALID_FORMAT, 0);
        }
        // No erase or user data erase.
        if settings >> 9 & 7 > 1 {
            return Outcome::Done(Status::INVALID_FIELD, 0);
        }
        let id = command.namespace();
        let found = if id == EVERY_NAMESPACE { None } else { self.shared.namespaces.get(id) };
        let Some(namespace) = found else { return Outcome::Done(Status::INVALID_NAMESPACE, 0) };
        if namespace.is_read_only() {
            return Outcome::Done(Status::WRITE_PROTECTED, 0);
        }
        if namespace.is_formatting() {
            return Outcome::Done(Status::FORMAT_IN_PROGRESS, 0);
        }
        self.begin_task(namespace, Purpose::Format { command: command.id() });
        Outcome::Later
    }

    /// The guest is alive.
    pub(super) fn restart_keep_alive(&mut self) {
        match self.features.keep_alive {
            0 => self.keep_alive.disarm(),
            timeout => {
                self.alive_until = self.shared.clock.now().saturating_add(u64::from(timeout) * 1_000_000);
                self.keep_alive.arm(self.alive_until);
            }
        }
    }
}

/// The namespaces with a number above `after`, as many as a list has room for.
pub(super) fn namespaces_after(shared: &Shared, after: u32) -> Vec<u32> {
    let from = after.saturating_add(1);
    shared.namespaces.load().range(from..).map(|(id, _)| *id).take(1024).collect()
}
