//! A virtio device as a PCI function.

use std::io;
use std::sync::Arc;

use skep_pci::{
    Bar, BarWindow, Capability, Endpoint, EndpointConfig, Function, FunctionDoorbell, Identity, Interrupts, Msix,
    OptionRom, Pin, Socket,
};
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, Transport, layout, registers};
use crate::{DeviceType, VirtioDevice};

#[cfg(test)]
#[path = "pci_test.rs"]
mod test;

/// Vendor id of virtio, and what is added to a device type's number to be the device id (section 4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
/// The BARs: the structures, and the MSI-X table.
const STRUCTURES: u8 = 0;
const MSIX: u8 = 2;

/// `cfg_type` of the capabilities (section 4.1.4), and the sizes of their bodies, which begin behind the capability's header.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;
const CAPABILITY: usize = 16;
const VENDOR_SPECIFIC: u8 = 9;

impl Interrupt for Interrupts {
    fn signal(&self, vector: u16) {
        Self::signal(self, vector);
    }

    fn set_pin(&self, asserted: bool) {
        Self::set_pin(self, asserted);
    }

    fn messages_enabled(&self) -> bool {
        Self::messages_enabled(self)
    }

    fn eventfd(&self, vector: u16) -> Option<EventFd> {
        Self::eventfd(self, vector).ok().flatten()
    }
}

impl Function for Transport {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == STRUCTURES {
            Self::read(self, offset, data);
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == STRUCTURES {
            Self::write(self, offset, data);
        }
    }

    fn reset(&self) {
        self.begin_reset();
    }

    fn doorbells(&self) -> Vec<FunctionDoorbell> {
        let doorbell = |(queue, fd): (u64, &Arc<_>)| FunctionDoorbell {
            bar: STRUCTURES,
            offset: layout::NOTIFY + queue * layout::NOTIFY_STEP,
            // A driver writes the queue's number, 16 bits wide (section 4.1.5.2).
            width: Some(2),
            value: None,
            fd: Arc::clone(fd),
        };
        (0..).zip(self.doorbells()).map(doorbell).collect()
    }
}

/// A structure's capability (`virtio_pci_cap`, section 4.1.4), `extra` doublewords behind it.
fn capability(cfg_type: u8, offset: u64, length: u64, extra: &[u32]) -> Capability {
    let size = CAPABILITY + extra.len() * 4;
    let mut body = vec![size as u8, cfg_type, STRUCTURES, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    extra.iter().for_each(|word| body.extend(word.to_le_bytes()));
    Capability { id: VENDOR_SPECIFIC, body, writable: Vec::new(), window: None }
}

/// The capabilities of a device with that many queues, the window for guests that can't map BARs included.
fn capabilities(queues: usize) -> Vec<Capability> {
    let notify_length = queues as u64 * layout::NOTIFY_STEP;
    let mut window = capability(PCI_CFG, 0, 0, &[0]);
    // The guest writes BAR, offset, length and data; places are from the capability's start.
    window.writable = vec![0; window.body.len()];
    for at in [4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19] {
        if let Some(mask) = window.writable.get_mut(at - 2) {
            *mask = 0xff;
        }
    }
    window.window = Some(BarWindow { bar: 4, offset: 8, length: 12, data: 16 });
    vec![
        capability(COMMON_CFG, layout::COMMON, registers::SIZE as u64, &[]),
        capability(ISR_CFG, layout::ISR, 1, &[]),
        capability(DEVICE_CFG, layout::DEVICE, 0x1000, &[]),
        capability(NOTIFY_CFG, layout::NOTIFY, notify_length, &[layout::NOTIFY_STEP as u32]),
        window,
    ]
}

/// What a virtio device of that type, with that many queues, is on the bus: a vector for each queue and one for its configuration.
fn endpoint_config(device_type: DeviceType, queues: usize) -> EndpointConfig {
    let msix = Msix::in_bar(MSIX, queues as u16 + 1);
    let [base, sub] = device_type.class;
    let mut bars = [None; 6];
    bars[usize::from(STRUCTURES)] = Some(Bar::memory64(layout::SIZE));
    bars[usize::from(MSIX)] = Some(Bar::memory64(msix.own_bar_size()));
    EndpointConfig {
        identity: Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + device_type.id,
            subsystem_vendor: VENDOR,
            subsystem: 0x40 + device_type.id,
            class: u32::from(base) << 16 | u32::from(sub) << 8,
            revision: 1,
        },
        bars,
        msix: Some(msix),
        msi: 0,
        pin: Some(Pin::A),
        capabilities: capabilities(queues),
        rom: None,
    }
}

/// A virtio device in its place on the bus: what a machine holds of it.
#[derive(Clone)]
pub struct PciDevice {
    /// Configuration space, BARs and interrupts.
    pub endpoint: Arc<Endpoint>,
    /// The device's registers; [`Transport::device`] is the device.
    pub transport: Arc<Transport>,
}

impl PciDevice {
    /// Puts `device` into `socket`.
    ///
    /// # Errors
    /// Where the host has no descriptor left for a doorbell.
    pub fn new(socket: &Socket, device: Arc<dyn VirtioDevice>) -> io::Result<Self> {
        Self::with_rom(socket, device, None)
    }

    /// The same with an option ROM, if there is one.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_rom(socket: &Socket, device: Arc<dyn VirtioDevice>, rom: Option<OptionRom>) -> io::Result<Self> {
        let config = EndpointConfig { rom, ..endpoint_config(device.device_type(), device.queue_sizes().len()) };
        let mut made = None;
        let endpoint = Endpoint::try_new(socket, &config, |attachment| {
            let vectors = attachment.interrupts.vector_count();
            let transport = Transport::new(device, attachment.dma, attachment.interrupts, vectors)?;
            made = Some(transport.clone());
            Ok::<_, io::Error>(transport as Arc<dyn Function>)
        })?;
        let transport = made.expect("an endpoint makes its function");
        Ok(Self { endpoint, transport })
    }
}
