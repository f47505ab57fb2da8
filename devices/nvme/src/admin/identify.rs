//! Identify (Base 5.17, NVM 4.1.5).

use std::sync::Arc;

use skep_memory::RamView;

use super::Admin;
use super::command::{ABORTS, namespaces_after};
use crate::namespace::{self, Namespace};
use crate::spec::register::{MAX_ENTRIES, VERSION};
use crate::spec::{Command, EVERY_NAMESPACE, Page, Status};
use crate::state::{ERRORS, EVENT_REQUESTS};
use crate::unit::MAX_TRANSFER_SHIFT;

/// The PCI vendor id of virtual machines' devices (Red Hat), as the binding shows it.
pub(crate) const VENDOR: u16 = 0x1b36;
/// The composite temperature in kelvins: there is nothing that gets warm.
pub(super) const TEMPERATURE: u16 = 303;
/// At which temperatures a warning would be due.
const WARNING: u16 = 343;
const CRITICAL: u16 = 353;

/// Controller or Namespace Structure.
mod cns {
    pub(super) const NAMESPACE: u32 = 0x00;
    pub(super) const CONTROLLER: u32 = 0x01;
    pub(super) const ACTIVE_LIST: u32 = 0x02;
    pub(super) const DESCRIPTORS: u32 = 0x03;
    pub(super) const NVM_NAMESPACE: u32 = 0x05;
    pub(super) const NVM_CONTROLLER: u32 = 0x06;
    pub(super) const NVM_ACTIVE_LIST: u32 = 0x07;
    pub(super) const COMMON_NAMESPACE: u32 = 0x08;
}

impl Admin {
    pub(super) fn identify(&mut self, command: &Command, ram: &Arc<RamView>) -> Result<(), Status> {
        let id = command.namespace();
        let set = command.dword::<11>() >> 24;
        let nvm_only = || if set == 0 { Ok(()) } else { Err(Status::INVALID_FIELD) };
        let page = match command.dword::<10>() & 0xff {
            cns::NAMESPACE => self.namespace_page(id)?,
            cns::CONTROLLER => self.controller_page(),
            cns::ACTIVE_LIST => self.active_list(id)?,
            cns::DESCRIPTORS => self.descriptors(id)?,
            cns::NVM_NAMESPACE => {
                nvm_only()?;
                self.existing(id)?;
                Page::new(Page::SIZE)
            }
            cns::NVM_CONTROLLER => {
                // No limit for Verify, Write Zeroes and Dataset Management but those of their fields.
                nvm_only()?;
                Page::new(Page::SIZE)
            }
            cns::NVM_ACTIVE_LIST => {
                nvm_only()?;
                self.active_list(id)?
            }
            cns::COMMON_NAMESPACE => self.common_page(id)?,
            _ => return Err(Status::INVALID_FIELD),
        };
        self.give(command, ram, page.bytes(), Page::SIZE)
    }

    /// A namespace that is attached; `None` for a number that one could have.
    fn existing(&self, id: u32) -> Result<Option<Arc<Namespace>>, Status> {
        if !(1..=namespace::MOST).contains(&id) {
            return Err(Status::INVALID_NAMESPACE);
        }
        Ok(self.shared.namespaces.get(id))
    }

    fn active_list(&self, after: u32) -> Result<Page, Status> {
        if after >= EVERY_NAMESPACE - 1 {
            return Err(Status::INVALID_NAMESPACE);
        }
        let mut page = Page::new(Page::SIZE);
        for (index, id) in namespaces_after(&self.shared, after).into_iter().enumerate() {
            page.put32(index * 4, id);
        }
        Ok(page)
    }

    /// Namespace Identification Descriptor list (Base figure 277).
    fn descriptors(&self, id: u32) -> Result<Page, Status> {
        let found = self.existing(id)?.ok_or(Status::INVALID_NAMESPACE)?;
        let mut page = Page::new(Page::SIZE);
        // UUID.
        page.put8(0, 3);
        page.put8(1, 16);
        page.put(4, &found.uuid);
        // Command set identifier: NVM, 0.
        page.put8(20, 4);
        page.put8(21, 1);
        Ok(page)
    }

    /// Identify Namespace of the NVM command set (NVM figure 97). One that is not attached is all zeroes.
    fn namespace_page(&self, id: u32) -> Result<Page, Status> {
        let mut page = Page::new(Page::SIZE);
        // Of all namespaces, what they have in common is said; here nothing but the format could be, and it need not be.
        if id == EVERY_NAMESPACE {
            return Err(Status::INVALID_NAMESPACE);
        }
        let Some(found) = self.existing(id)? else { return Ok(page) };
        let blocks = found.blocks();
        let info = found.disk.info();
        for offset in [0, 8, 16] {
            page.put64(offset, blocks);
        }
        // Thin provisioning is not told of; the fields of optimal I/O are (NPWG to NOWS).
        page.put8(24, 1 << 4);
        // One format; its number is 0. Deallocated blocks read as zeroes, and Write Zeroes may deallocate.
        page.put8(33, if info.discard { 1 | 1 << 3 } else { 0 });
        page.put8(99, u8::from(found.is_read_only()));
        let granularity = (info.preferred_size >> found.shift).clamp(1, 0xffff) as u16;
        for offset in [64, 66, 68, 70, 72] {
            page.put16(offset, granularity - 1);
        }
        // Format 0: no metadata, the block's size, best performance.
        page.put32(128, found.shift << 16);
        Ok(page)
    }

    /// I/O Command Set Independent Identify Namespace (Base figure 280).
    fn common_page(&self, id: u32) -> Result<Page, Status> {
        let mut page = Page::new(Page::SIZE);
        if let Some(found) = self.existing(id)? {
            page.put8(8, u8::from(found.is_read_only()));
            // Ready.
            page.put8(14, 1);
        }
        Ok(page)
    }

    /// Identify Controller (Base figure 275).
    fn controller_page(&self) -> Page {
        let config = &self.shared.config;
        let mut page = Page::new(Page::SIZE);
        page.put16(0, VENDOR);
        page.put16(2, VENDOR);
        page.put_text(4, 20, &config.serial);
        page.put_text(24, 40, &config.model);
        page.put_text(64, 8, env!("CARGO_PKG_VERSION"));
        page.put8(72, 6);
        page.put8(77, MAX_TRANSFER_SHIFT);
        page.put32(80, VERSION);
        // Namespace attribute notices.
        page.put32(92, 1 << 8);
        // An I/O controller.
        page.put8(111, 1);
        // Format, doorbell buffers.
        page.put16(256, 1 << 1 | 1 << 8);
        page.put8(258, ABORTS as u8 - 1);
        page.put8(259, EVENT_REQUESTS as u8 - 1);
        // One firmware slot, read-only.
        page.put8(260, 1 | 1 << 1);
        // Log pages: commands and effects, extended data, supported pages.
        page.put8(261, 1 << 1 | 1 << 2 | 1 << 5);
        page.put8(262, ERRORS as u8 - 1);
        page.put8(263, config.power_states.len() as u8 - 1);
        // Autonomous power state transitions.
        page.put8(265, 1);
        page.put16(266, WARNING);
        page.put16(268, CRITICAL);
        // Keep alive in units of 100 ms.
        page.put16(320, 1);
        page.put8(512, 0x66);
        page.put8(513, 0x44);
        page.put16(514, u16::try_from(MAX_ENTRIES).unwrap_or(u16::MAX));
        page.put32(516, namespace::MOST);
        // Compare, dataset management, write zeroes, save and select, timestamp, verify.
        page.put16(520, 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7);
        // A format is of one namespace, and never of all at once.
        page.put8(524, 1 << 3);
        // A write cache; flush takes one namespace at a time.
        page.put8(525, 1 | 2 << 1);
        // SGLs without alignment.
        page.put32(536, 1);
        page.put32(540, namespace::MOST);
        page.put(768, config.nqn.as_bytes());
        for (index, state) in config.power_states.iter().enumerate() {
            let at = 2048 + 32 * index;
            page.put16(at, state.centiwatts);
            page.put8(at + 3, u8::from(state.non_operational) << 1);
            page.put32(at + 4, state.entry_latency);
            page.put32(at + 8, state.exit_latency);
            // Throughput and latency are the later state's the worse.
            for offset in 12..16 {
                page.put8(at + offset, index as u8);
            }
        }
        page
    }
}
