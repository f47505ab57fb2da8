//! Get Features and Set Features (Base 5.15, 5.27; NVM 4.1.3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_block::Buffer;
use skep_memory::RamView;

use super::Admin;
use super::events::Event;
use super::identify::TEMPERATURE;
use crate::namespace;
use crate::shared::Counters;
use crate::spec::{Command, EVERY_NAMESPACE, Status};
use crate::state::{FeaturesState, LAST_TIMESTAMP};
use crate::transfer;

/// Feature identifiers.
pub(super) mod feature {
    pub(crate) const ARBITRATION: u8 = 0x01;
    pub(crate) const POWER: u8 = 0x02;
    pub(crate) const TEMPERATURE: u8 = 0x04;
    pub(crate) const ERROR_RECOVERY: u8 = 0x05;
    pub(crate) const WRITE_CACHE: u8 = 0x06;
    pub(crate) const QUEUES: u8 = 0x07;
    pub(crate) const COALESCING: u8 = 0x08;
    pub(crate) const VECTOR: u8 = 0x09;
    pub(crate) const ATOMICITY: u8 = 0x0a;
    pub(crate) const EVENTS: u8 = 0x0b;
    pub(crate) const TRANSITIONS: u8 = 0x0c;
    pub(crate) const TIMESTAMP: u8 = 0x0e;
    pub(crate) const KEEP_ALIVE: u8 = 0x0f;
    pub(crate) const ALL: [u8; 13] = [
        ARBITRATION,
        POWER,
        TEMPERATURE,
        ERROR_RECOVERY,
        WRITE_CACHE,
        QUEUES,
        COALESCING,
        VECTOR,
        ATOMICITY,
        EVENTS,
        TRANSITIONS,
        TIMESTAMP,
        KEEP_ALIVE,
    ];
}

/// Commands of one queue in a row: no limit.
const NO_LIMIT: u32 = 7;
/// Bits of the events that can be asked for: SMART warnings, and changed namespaces.
pub(crate) const EVENT_MASK: u32 = 0x1f | 1 << 8;

/// Bytes of the table of autonomous transitions: 32 entries.
const TABLE: usize = 256;

/// An entry of that table (Base 5.27.1.8): the state that follows, and after how many milliseconds without I/O.
fn transition(entry: u32) -> (usize, u32) {
    ((entry >> 3 & 0x1f) as usize, entry >> 8)
}

/// What features are when the controller is powered on.
pub(super) fn power_on() -> FeaturesState {
    FeaturesState {
        arbitration: NO_LIMIT,
        power_state: 0,
        operational: 0,
        over_temperature: 343,
        under_temperature: 0,
        error_recovery: 0,
        write_cache: true,
        coalescing: 0,
        uncoalesced: Vec::new(),
        write_atomicity: 0,
        events: 0,
        keep_alive: 0,
        timestamp: 0,
        timestamp_set: false,
        autonomous: false,
        transitions: Vec::new(),
    }
}

impl Admin {
    /// Tells workers what concerns them.
    pub(super) fn apply_features(&mut self) {
        self.shared.write_cache.store(self.features.write_cache, Ordering::Relaxed);
        let burst = self.features.arbitration & 7;
        self.shared.burst.store(if burst == NO_LIMIT { u64::MAX } else { 1 << burst }, Ordering::Relaxed);
    }

    pub(super) fn get_feature(&mut self, command: &Command, ram: &Arc<RamView>) -> Result<u32, Status> {
        let (id, select) = (command.dword::<10>() as u8, command.dword::<10>() >> 8 & 7);
        if !feature::ALL.contains(&id) {
            return Err(Status::INVALID_FIELD);
        }
        let state = match select {
            // Nothing is saveable, so that what is saved is the default.
            1 | 2 => power_on(),
            0 => self.features.clone(),
            // Changeable, of the controller and not of a namespace, not saveable.
            3 => return Ok(if id == feature::QUEUES { 0 } else { 1 << 2 }),
            _ => return Err(Status::INVALID_FIELD),
        };
        let current = select == 0;
        let argument = command.dword::<11>();
        Ok(match id {
            feature::ARBITRATION => state.arbitration,
            feature::POWER => {
                if current {
                    self.power_state()
                } else {
                    0
                }
            }
            feature::TEMPERATURE => match (argument >> 16 & 0xf, argument >> 20 & 3) {
                (0, 0) => state.over_temperature.into(),
                (0, 1) => state.under_temperature.into(),
                _ => return Err(Status::INVALID_FIELD),
            },
            feature::ERROR_RECOVERY => state.error_recovery,
            feature::WRITE_CACHE => state.write_cache.into(),
            feature::QUEUES => self.queue_counts(),
            feature::COALESCING => state.coalescing,
            feature::VECTOR => {
                let vector = argument as u16;
                if vector > self.shared.config.queues {
                    return Err(Status::INVALID_FIELD);
                }
                u32::from(vector) | u32::from(state.uncoalesced.contains(&vector)) << 16
            }
            feature::ATOMICITY => state.write_atomicity,
            feature::EVENTS => state.events,
            feature::TRANSITIONS => {
                let mut table = [0; TABLE];
                for (entry, transition) in table.as_chunks_mut::<8>().0.iter_mut().zip(&state.transitions) {
                    *entry = u64::from(*transition).to_le_bytes();
                }
                self.give(command, ram, &table, TABLE)?;
                state.autonomous.into()
            }
            feature::TIMESTAMP => {
                let millis = if current { self.timestamp() } else { self.shared.clock.now() / 1_000_000 };
                let origin = u64::from(current && self.features.timestamp_set) << 49;
                let value = millis & 0xffff_ffff_ffff | origin;
                self.give(command, ram, &value.to_le_bytes(), 8)?;
                0
            }
            _ => state.keep_alive,
        })
    }

    pub(super) fn set_feature(&mut self, command: &Command, ram: &Arc<RamView>) -> Result<u32, Status> {
        let (id, save) = (command.dword::<10>() as u8, command.dword::<10>() >> 31 != 0);
        if !feature::ALL.contains(&id) {
            return Err(Status::INVALID_FIELD);
        }
        if save {
            return Err(Status::NOT_SAVEABLE);
        }
        let namespace = command.namespace();
        if (1..=namespace::MOST).contains(&namespace) {
            return Err(Status::NOT_NAMESPACE_SPECIFIC);
        }
        if namespace != 0 && namespace != EVERY_NAMESPACE {
            return Err(Status::INVALID_NAMESPACE);
        }
        let value = command.dword::<11>();
        match id {
            feature::ARBITRATION => self.features.arbitration = value,
            feature::POWER => self.set_power_state(value)?,
            feature::TEMPERATURE => self.set_threshold(value)?,
            // Deallocated blocks never fail to be read.
            feature::ERROR_RECOVERY if value & 1 << 16 != 0 => return Err(Status::INVALID_FIELD),
            feature::ERROR_RECOVERY => self.features.error_recovery = value,
            feature::WRITE_CACHE => self.features.write_cache = value & 1 != 0,
            feature::QUEUES => return self.set_queue_counts(value),
            feature::COALESCING => self.features.coalescing = value & 0xffff,
            feature::VECTOR => self.set_vector(value)?,
            feature::ATOMICITY => self.features.write_atomicity = value & 1,
            feature::EVENTS => self.features.events = value & EVENT_MASK,
            feature::TRANSITIONS => {
                let buffer = transfer::map(command, TABLE, self.page, ram, Buffer::empty())?;
                let mut table = [0; TABLE];
                buffer.copy_out(0, &mut table);
                self.set_transitions(value & 1 != 0, &table)?;
            }
            feature::TIMESTAMP => {
                let buffer = transfer::map(command, 8, self.page, ram, Buffer::empty())?;
                let mut bytes = [0; 8];
                buffer.copy_out(0, &mut bytes);
                let millis = u64::from_le_bytes(bytes) & 0xffff_ffff_ffff;
                self.features.timestamp = millis as i64 - self.millis();
                self.features.timestamp_set = true;
            }
            _ => {
                self.features.keep_alive = value;
                self.restart_keep_alive();
            }
        }
        self.apply_features();
        Ok(0)
    }

    fn queue_counts(&self) -> u32 {
        let counts = u32::from(self.shared.config.queues) - 1;
        counts | counts << 16
    }

    /// How many queues the guest wants changes nothing; how many there are is answered.
    fn set_queue_counts(&self, value: u32) -> Result<u32, Status> {
        if value as u16 == u16::MAX || value >> 16 == 0xffff {
            return Err(Status::INVALID_FIELD);
        }
        if !self.units.is_empty() {
            return Err(Status::COMMAND_SEQUENCE);
        }
        Ok(self.queue_counts())
    }

    fn set_vector(&mut self, value: u32) -> Result<(), Status> {
        let vector = value as u16;
        if vector > self.shared.config.queues {
            return Err(Status::INVALID_FIELD);
        }
        self.features.uncoalesced.retain(|known| *known != vector);
        if value & 1 << 16 != 0 {
            self.features.uncoalesced.push(vector);
        }
        Ok(())
    }

    fn set_threshold(&mut self, value: u32) -> Result<(), Status> {
        match (value >> 16 & 0xf, value >> 20 & 3) {
            // The composite temperature, or all sensors: it is the only one.
            (0 | 0xf, 0) => self.features.over_temperature = value as u16,
            (0 | 0xf, 1) => self.features.under_temperature = value as u16,
            _ => return Err(Status::INVALID_FIELD),
        }
        if self.is_temperature_critical() && self.features.events & 2 != 0 {
            self.events.raise(Event::TEMPERATURE);
        }
        Ok(())
    }

    /// Whether the temperature is beyond a threshold.
    pub(super) fn is_temperature_critical(&self) -> bool {
        TEMPERATURE >= self.features.over_temperature || TEMPERATURE <= self.features.under_temperature
    }

    fn set_power_state(&mut self, value: u32) -> Result<(), Status> {
        let wanted = value & 0x1f;
        let state = self.shared.config.power_states.get(wanted as usize).ok_or(Status::INVALID_FIELD)?;
        if !state.non_operational {
            self.features.operational = wanted as u8;
        }
        self.features.power_state = wanted as u8;
        self.power_set = self.shared.nanos();
        Ok(())
    }

    /// Autonomous power state transitions go to states in which no I/O is done (Base 8.15.2).
    fn set_transitions(&mut self, enabled: bool, table: &[u8; TABLE]) -> Result<(), Status> {
        let states = &self.shared.config.power_states;
        let entries = table.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry) as u32);
        let transitions: Vec<u32> = entries.map(|entry| entry & !7).collect();
        let leads = |entry: &u32| {
            let (next, after) = transition(*entry);
            after == 0 || states.get(next).is_some_and(|state| state.non_operational)
        };
        // What stands there for states that do not exist is of no effect.
        if !transitions.iter().take(states.len()).all(leads) {
            return Err(Status::INVALID_FIELD);
        }
        // What it was in until now, it was in by the old rules.
        self.power_state();
        (self.features.autonomous, self.features.transitions) = (enabled, transitions);
        Ok(())
    }

    /// Goes to the states that a rest since `begun` leads to, each once at most.
    fn rest(&mut self, mut begun: u64) {
        let now = self.shared.nanos();
        for _ in 0..self.shared.config.power_states.len() {
            let entry = self.features.transitions.get(usize::from(self.features.power_state));
            let (next, after) = entry.map_or((0, 0), |entry| transition(*entry));
            let after = u64::from(after) * 1_000_000;
            let exists = self.shared.config.power_states.get(next).is_some_and(|state| state.non_operational);
            if !self.features.autonomous || after == 0 || !exists || now.saturating_sub(begun) < after {
                break;
            }
            begun += after;
            (self.features.power_state, self.power_set) = (next as u8, begun);
        }
    }

    /// The power state that it is in: one in which no I/O is done was left when a command came (Base 8.15), and, where the guest has said so, is
    /// entered when none has come for long enough. Nobody sees it until it is asked for, and so nobody counts the time before.
    fn power_state(&mut self) -> u32 {
        let asked = self.features.power_state;
        let states = &self.shared.config.power_states;
        let sleeps = states.get(usize::from(asked)).is_some_and(|state| state.non_operational);
        let last = self.units.values().map(|unit| unit.counters.last.load(Ordering::Relaxed)).max().unwrap_or(0);
        if sleeps && last > self.power_set {
            self.features.power_state = self.features.operational;
        }
        if last != Counters::BUSY {
            self.rest(last.max(self.power_set));
        }
        self.features.power_state.into()
    }

    fn millis(&self) -> i64 {
        i64::try_from(self.shared.clock.now() / 1_000_000).unwrap_or(i64::MAX)
    }

    fn timestamp(&self) -> u64 {
        self.features.timestamp.saturating_add(self.millis()).max(0) as u64
    }

    /// Features as they are saved: a timestamp that does not depend on where the clock stands.
    pub(super) fn saved_features(&mut self) -> FeaturesState {
        let power_state = self.power_state() as u8;
        let timestamp = self.features.timestamp.saturating_add(self.millis()).clamp(0, LAST_TIMESTAMP);
        FeaturesState { power_state, timestamp, ..self.features.clone() }
    }

    /// Takes times of a saved state as of now.
    pub(super) fn restore_time(&mut self) {
        self.features.timestamp = self.features.timestamp.saturating_sub(self.millis());
        self.power_set = self.shared.nanos();
    }

    /// Lets the keep alive timeout come when it would have.
    pub(super) fn restore_keep_alive(&mut self, left: Option<u64>) {
        self.restart_keep_alive();
        if let Some(left) = left {
            self.alive_until = self.shared.clock.now().saturating_add(left);
            self.keep_alive.arm(self.alive_until);
        }
    }
}
