//! Pausing, and the saved state.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Admin, Events, Life, Stopped, features};
use crate::doorbell::Shadow;
use crate::shared::Registers;
use crate::spec::register::Configuration;
use crate::state::{ControllerState, HealthState, ShadowState, UnitState};
use crate::unit::Order;

/// The state of a controller that was never enabled.
pub(crate) fn power_on() -> ControllerState {
    ControllerState {
        configuration: 0,
        status: 0,
        admin_attributes: 0,
        admin_submission_base: 0,
        admin_completion_base: 0,
        interrupt_mask: 0,
        admin: None,
        units: Vec::new(),
        shadow: None,
        features: features::power_on(),
        event_requests: Vec::new(),
        events: Vec::new(),
        events_masked: 0,
        changed: Vec::new(),
        health: HealthState { power_cycles: 1, ..HealthState::default() },
        errors: Vec::new(),
        alive: None,
    }
}

impl Admin {
    pub(super) fn begin_pause(&mut self, stopped: Stopped) {
        self.pausing = Some(stopped);
        if self.paused {
            return;
        }
        self.pauses += 1;
        for unit in self.units.values_mut().filter(|unit| !unit.stopping) {
            unit.paused = None;
            unit.worker.send(Order::Pause(self.pauses));
        }
    }

    /// Whether everything has come to rest.
    pub(super) fn look_at_pause(&mut self) {
        let at_rest = self.life != Life::Stopping
            && self.pending.is_empty()
            && self.tasks.is_empty()
            && !self.shutting_down
            && self.answers.is_empty()
            && self.units.values().all(|unit| unit.paused.is_some());
        if self.pausing.is_some() && at_rest {
            self.paused = true;
            // What other threads have seen since the last round is part of the state.
            if self.life == Life::Enabled {
                self.notice();
            }
            let state = self.state();
            if let Some(stopped) = self.pausing.take() {
                stopped(state);
            }
        }
    }

    pub(super) fn state(&mut self) -> ControllerState {
        let ram = self.ram();
        let registers = *self.shared.registers();
        let admin = match (&mut self.completion, &self.submission) {
            (Some(completion), Some(submission)) => {
                Some(UnitState { completion: completion.state(ram.as_deref()), submission: vec![submission.state()] })
            }
            _ => None,
        };
        // Admin queues that can't be reached are gone until the guest resets the controller, and all that goes with them is of no use.
        let enabled = admin.is_some();
        let features = self.saved_features();
        let errors = self.shared.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut health = self.health();
        health.errors = errors.count;
        health.powered = self.powered_for();
        ControllerState {
            configuration: registers.configuration,
            status: registers.status,
            admin_attributes: registers.admin_attributes,
            admin_submission_base: registers.admin_submission_base,
            admin_completion_base: registers.admin_completion_base,
            interrupt_mask: registers.interrupt_mask,
            units: if enabled {
                self.units.values().filter_map(|unit| unit.paused.clone()).collect()
            } else {
                Vec::new()
            },
            admin,
            shadow: self
                .shadow
                .filter(|_| enabled)
                .map(|Shadow { doorbells, events }| ShadowState { doorbells, events }),
            features,
            event_requests: if enabled { self.events.requests.clone() } else { Vec::new() },
            events: self.events.queue.iter().copied().collect(),
            events_masked: self.events.masked,
            changed: self.events.changed.iter().copied().collect(),
            health: health.bounded(),
            errors: errors.entries.iter().copied().collect(),
            alive: (enabled && self.features.keep_alive > 0)
                .then(|| self.alive_until.saturating_sub(self.shared.clock.now())),
        }
    }

    /// Takes on a state that fits, in a controller that has none yet or is paused.
    pub(super) fn restore(&mut self, state: &ControllerState) {
        self.units.clear();
        self.pending.clear();
        self.paused = true;
        *self.shared.registers() = Registers {
            configuration: state.configuration,
            status: state.status,
            admin_attributes: state.admin_attributes,
            admin_submission_base: state.admin_submission_base,
            admin_completion_base: state.admin_completion_base,
            interrupt_mask: state.interrupt_mask,
        };
        {
            let mut log = self.shared.errors.lock().unwrap_or_else(PoisonError::into_inner);
            log.entries = state.errors.iter().copied().collect();
            log.count = state.health.errors;
        }
        self.epoch = self.shared.epoch();
        self.shadow = state.shadow.map(|ShadowState { doorbells, events }| Shadow { doorbells, events });
        self.shared.shadowed.store(self.shadow.is_some(), Ordering::SeqCst);
        self.features = state.features.clone();
        self.apply_features();
        self.restore_time();
        self.restore_keep_alive(state.alive);
        self.events = Events {
            requests: state.event_requests.clone(),
            queue: state.events.iter().copied().collect(),
            masked: state.events_masked,
            changed: state.changed.iter().copied().collect(),
        };
        self.health = state.health;
        self.powered = self.shared.clock.now();
        self.completion = None;
        self.submission = None;
        self.life = Life::Disabled;
        self.page = 1 << Configuration(state.configuration).page_shift().min(16);
        if let Some(admin) = &state.admin {
            self.open_queues(admin);
            if let Some(submission) = &mut self.submission {
                submission.in_flight = self.events.requests.len() as u32;
            }
            self.life = Life::Enabled;
        }
        for unit in &state.units {
            if let Err(error) = self.start_unit(unit, true) {
                self.shared.fail(&format!("the worker of queue {} can't be started: {error}", unit.completion.id));
            }
        }
    }

    pub(super) fn health(&self) -> HealthState {
        let mut health = self.health;
        self.units.values().for_each(|unit| unit.counters.add_to(&mut health));
        health.bounded()
    }

    /// Nanoseconds of power, in all.
    pub(super) fn powered_for(&self) -> u64 {
        self.health.powered.saturating_add(self.shared.clock.now().saturating_sub(self.powered))
    }
}
