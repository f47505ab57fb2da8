//! Get Log Page (Base 5.16).

use std::sync::{Arc, PoisonError};

use skep_memory::RamView;

use super::Admin;
use super::events::log;
use super::features::feature;
use super::identify::TEMPERATURE;
use crate::namespace;
use crate::spec::{Command, EVERY_NAMESPACE, Page, Status, admin, io};
use crate::state::{ERRORS, HealthState};
use crate::unit::MAX_TRANSFER_SHIFT;

const SUPPORTED: u8 = 0x00;
const FIRMWARE: u8 = 0x03;
const EFFECTS: u8 = 0x05;
const FEATURES: u8 = 0x12;
/// Every log that there is.
const ALL: [u8; 7] = [SUPPORTED, log::ERRORS, log::HEALTH, FIRMWARE, log::CHANGED, EFFECTS, FEATURES];

/// Effects of a command (Base figure 210): it is supported; it changes content; it changes what Identify says.
const SUPPORTS: u32 = 1;
const CHANGES_CONTENT: u32 = 1 << 1;
/// It is to be submitted when nothing else of its namespace is outstanding.
const ALONE: u32 = 1 << 16;
/// Nanoseconds.
const MINUTE: u64 = 60_000_000_000;
const HOUR: u64 = 60 * MINUTE;

impl Admin {
    pub(super) fn log_page(&mut self, command: &Command, ram: &Arc<RamView>) -> Result<(), Status> {
        let (control, more) = (command.dword::<10>(), command.dword::<11>());
        let id = control as u8;
        let retain = control & 1 << 15 != 0;
        let dwords = u64::from(control >> 16) | u64::from(more & 0xffff) << 16;
        let len = (dwords + 1) * 4;
        let offset = u64::from(command.dword::<12>()) | u64::from(command.dword::<13>()) << 32;
        // Offsets are in bytes, and the only command set's.
        if command.dword::<14>() >> 23 & 1 != 0 || command.dword::<14>() >> 24 != 0 || offset & 3 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if len > 4096 << MAX_TRANSFER_SHIFT {
            return Err(Status::INVALID_FIELD);
        }
        // Logs are of the controller; a namespace's health is the controller's.
        let namespace = command.namespace();
        if namespace != 0 && namespace != EVERY_NAMESPACE {
            return Err(if (1..=namespace::MOST).contains(&namespace) {
                Status::INVALID_FIELD
            } else {
                Status::INVALID_NAMESPACE
            });
        }
        let page = match id {
            SUPPORTED => supported(),
            log::ERRORS => self.error_log(),
            log::HEALTH => self.health_log(),
            FIRMWARE => firmware(),
            log::CHANGED => self.changed_log(retain),
            EFFECTS => effects(),
            FEATURES => feature_effects(),
            _ => return Err(Status::INVALID_LOG),
        };
        let rest = usize::try_from(offset).ok().and_then(|offset| page.bytes().get(offset..));
        self.give(command, ram, rest.ok_or(Status::INVALID_FIELD)?, len as usize)?;
        if !retain {
            self.events.log_read(id);
        }
        Ok(())
    }

    fn error_log(&self) -> Page {
        let mut page = Page::new(ERRORS * 64);
        let log = self.shared.errors.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, entry) in log.entries.iter().take(ERRORS).enumerate() {
            let at = index * 64;
            page.put64(at, entry.number);
            page.put16(at + 8, entry.queue);
            page.put16(at + 10, entry.command);
            // As in the completion, with room for the phase tag.
            page.put16(at + 12, entry.status << 1);
            // No parameter of the command is named.
            page.put16(at + 14, 0xffff);
            page.put64(at + 16, entry.block);
            page.put32(at + 24, entry.namespace);
        }
        page
    }

    fn health_log(&self) -> Page {
        let health: HealthState = self.health();
        let mut page = Page::new(512);
        page.put8(0, u8::from(self.is_temperature_critical()) << 1);
        page.put16(1, TEMPERATURE);
        // All of the spare is there, and its threshold.
        page.put8(3, 100);
        page.put8(4, 10);
        let errors = self.shared.errors.lock().unwrap_or_else(PoisonError::into_inner).count;
        let counters = [
            (32, health.sectors_read.div_ceil(1000)),
            (48, health.sectors_written.div_ceil(1000)),
            (64, health.reads),
            (80, health.writes),
            (96, health.busy / MINUTE),
            (112, health.power_cycles),
            (128, self.powered_for() / HOUR),
            (144, health.unsafe_shutdowns),
            (160, health.media_errors),
            (176, errors),
        ];
        for (offset, value) in counters {
            page.put128(offset, value.into());
        }
        page
    }

    fn changed_log(&mut self, retain: bool) -> Page {
        let mut page = Page::new(Page::SIZE);
        for (index, id) in self.events.changed.iter().enumerate() {
            page.put32(index * 4, *id);
        }
        if !retain {
            self.events.changed.clear();
        }
        page
    }
}

fn supported() -> Page {
    let mut page = Page::new(1024);
    for id in ALL {
        page.put32(usize::from(id) * 4, 1);
    }
    page
}

fn firmware() -> Page {
    let mut page = Page::new(512);
    page.put8(0, 1);
    page.put_text(8, 8, env!("CARGO_PKG_VERSION"));
    page
}

fn effects() -> Page {
    let mut page = Page::new(Page::SIZE);
    let admin_commands = [
        admin::DELETE_SQ,
        admin::CREATE_SQ,
        admin::GET_LOG_PAGE,
        admin::DELETE_CQ,
        admin::CREATE_CQ,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT,
        admin::KEEP_ALIVE,
        admin::DOORBELL_BUFFER,
    ];
    for opcode in admin_commands {
        page.put32(usize::from(opcode) * 4, SUPPORTS);
    }
    page.put32(usize::from(admin::FORMAT) * 4, SUPPORTS | CHANGES_CONTENT | ALONE);
    for opcode in [io::FLUSH, io::READ, io::COMPARE, io::VERIFY] {
        page.put32(1024 + usize::from(opcode) * 4, SUPPORTS);
    }
    for opcode in [io::WRITE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT] {
        page.put32(1024 + usize::from(opcode) * 4, SUPPORTS | CHANGES_CONTENT);
    }
    page
}

/// Feature Identifiers Supported and Effects (Base 5.16.1.18): each is of the controller.
fn feature_effects() -> Page {
    let mut page = Page::new(1024);
    for id in feature::ALL {
        page.put32(usize::from(id) * 4, SUPPORTS | 1 << 21);
    }
    page
}
