//! The controller's life: enabled, disabled, reset, shut down (Base 3.5 to 3.7).

use std::sync::atomic::Ordering;

use super::task::{Purpose, Task};
use super::{Admin, Events, Life, features};
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::spec::register::{MAX_ADMIN_ENTRIES, status};
use crate::state::{CompletionQueueState, SubmissionQueueState, UnitState};
use crate::unit::Order;

impl Admin {
    /// Follows what the guest has written to the registers. Says whether anything came of it.
    pub(super) fn follow(&mut self) -> bool {
        let registers = *self.shared.registers();
        if self.life == Life::Enabled && self.epoch != self.shared.epoch() {
            self.begin_stop();
            return true;
        }
        if self.life == Life::Disabled && self.epoch != self.shared.epoch() {
            // It was fatal, or shut down, and never ready.
            self.finish_stop();
            return true;
        }
        if self.life == Life::Stopping && self.units.is_empty() && self.tasks.is_empty() {
            self.finish_stop();
            return true;
        }
        if registers.status & status::SHUTDOWN_MASK == status::SHUTDOWN_RUNS && !self.shutting_down {
            self.begin_shutdown();
            return true;
        }
        let idle = self.life == Life::Disabled && !self.shutting_down;
        if idle && registers.configuration().is_enabled() && registers.status & status::FATAL == 0 {
            self.enable();
            return true;
        }
        false
    }

    /// Enables the controller, or says by its fatal status that it can't be (Base 3.5.1).
    pub(super) fn enable(&mut self) {
        self.epoch = self.shared.epoch();
        let registers = *self.shared.registers();
        let sizes = registers.admin_attributes;
        let (submission, completion) = ((sizes & 0xfff) + 1, (sizes >> 16 & 0xfff) + 1);
        let configuration = registers.configuration();
        let page = 1u64 << configuration.page_shift();
        let bases = [registers.admin_submission_base, registers.admin_completion_base];
        let sized = |entries| (2..=MAX_ADMIN_ENTRIES).contains(&entries);
        let based = bases.iter().all(|base| base & (page - 1) == 0 && *base < 1 << 63);
        if !configuration.is_valid() || !sized(submission) || !sized(completion) || !based {
            return self.shared.fail("it was enabled with a configuration or admin queues that can't be");
        }
        self.page = page;
        let [submission_base, completion_base] = bases;
        let state = UnitState {
            completion: CompletionQueueState {
                id: 0,
                base: completion_base,
                entries: completion,
                head: 0,
                tail: 0,
                phase: true,
                vector: Some(0),
            },
            submission: vec![SubmissionQueueState {
                id: 0,
                completion: 0,
                base: submission_base,
                entries: submission,
                head: 0,
                tail: 0,
            }],
        };
        self.open_queues(&state);
        self.life = Life::Enabled;
        self.restart_keep_alive();
        // A reset that came meanwhile keeps it from being ready; the next round sees it.
        let mut registers = self.shared.registers();
        if self.epoch == self.shared.epoch() {
            registers.status |= status::READY;
        }
    }

    pub(super) fn open_queues(&mut self, state: &UnitState) {
        let wake = &self.shared.wake;
        if let Some(doorbell) = self.shared.doorbells.completion(0) {
            self.completion = Some(CompletionQueue::open(&state.completion, doorbell, wake));
        }
        if let (Some(doorbell), Some(queue)) = (self.shared.doorbells.submission(0), state.submission.first()) {
            self.submission = Some(SubmissionQueue::open(queue, doorbell, wake));
        }
    }

    /// The queues are dead: everything in flight ends, and is told to nobody.
    pub(super) fn begin_stop(&mut self) {
        self.life = Life::Stopping;
        self.keep_alive.disarm();
        self.pending.clear();
        self.completion = None;
        self.submission = None;
        self.tasks.iter_mut().for_each(Task::cancel);
        for unit in self.units.values_mut() {
            unit.stopping = true;
            unit.worker.send(Order::Stop);
        }
    }

    /// Nothing is in flight any more: the controller is as after a reset (Base 3.7.2).
    pub(super) fn finish_stop(&mut self) {
        self.life = Life::Disabled;
        self.epoch = self.shared.epoch();
        self.shadow = None;
        self.shared.shadowed.store(false, Ordering::SeqCst);
        self.features = features::power_on();
        self.apply_features();
        self.events = Events::default();
        self.shutting_down = false;
        for flag in [&self.shared.happened.no_queue, &self.shared.happened.bad_value, &self.shared.happened.keep_alive]
        {
            flag.store(false, Ordering::SeqCst);
        }
        let mut registers = self.shared.registers();
        if registers.status & (status::READY | status::SHUTDOWN_MASK) == status::READY {
            self.health.unsafe_shutdowns = self.health.unsafe_shutdowns.saturating_add(1);
        }
        // A guest that has enabled it again meanwhile finds it not ready yet.
        registers.status = 0;
        drop(registers);
        self.shared.update_pin();
        self.shared.bus.doorbells_changed();
    }

    /// What is in the caches is written (Base 3.6).
    pub(super) fn begin_shutdown(&mut self) {
        self.shutting_down = true;
        let namespaces: Vec<_> = self.shared.namespaces.load().values().cloned().collect();
        for namespace in namespaces {
            self.begin_task(namespace, Purpose::Shutdown);
        }
        self.look_at_shutdown();
    }

    /// Whether what was to be written is.
    pub(super) fn look_at_shutdown(&mut self) {
        if self.shutting_down && !self.tasks.iter().any(|task| matches!(task.purpose, Purpose::Shutdown)) {
            self.shutting_down = false;
            let mut registers = self.shared.registers();
            if registers.status & status::SHUTDOWN_MASK == status::SHUTDOWN_RUNS {
                registers.status = registers.status & !status::SHUTDOWN_MASK | status::SHUTDOWN_DONE;
            }
        }
    }
}
