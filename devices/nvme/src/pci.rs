//! The controller as a PCI function (NVMe over PCIe Transport 1.0).

use std::sync::Arc;

use skep_clock::Clock;
use skep_pci::{
    Attachment, Bar, Doorbells, Endpoint, EndpointConfig, Function, FunctionDoorbell, Identity, Interrupts, Msix, Pin,
    Socket,
};
use skep_state::Persist;

use crate::admin::VENDOR;
use crate::{Bus, Controller, ControllerConfig, NvmeError};

#[cfg(test)]
#[path = "pci_test.rs"]
mod test;

/// Non-volatile memory controller with the NVMe programming interface.
const CLASS: u32 = 0x01_08_02;
/// The device id of virtual NVMe controllers of that vendor.
const DEVICE: u16 = 0x0010;
/// BAR of the registers.
const REGISTERS: u8 = 0;
/// BAR of the MSI-X table.
const TABLE: u8 = 4;

struct PciBus {
    interrupts: Arc<Interrupts>,
    doorbells: Doorbells,
}

impl Bus for PciBus {
    fn signal(&self, vector: u16) {
        self.interrupts.signal(vector);
    }

    fn set_pin(&self, asserted: bool) {
        self.interrupts.set_pin(asserted);
    }

    fn messages_enabled(&self) -> bool {
        self.interrupts.messages_enabled()
    }

    fn doorbells_changed(&self) {
        self.doorbells.changed();
    }
}

struct NvmeFunction(Arc<Controller>);

impl Function for NvmeFunction {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == REGISTERS {
            self.0.read(offset, data);
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == REGISTERS {
            self.0.write(offset, data);
        }
    }

    fn reset(&self) {
        Persist::reset(&*self.0);
    }

    fn doorbells(&self) -> Vec<FunctionDoorbell> {
        let of = |(offset, fd)| FunctionDoorbell { bar: REGISTERS, offset, width: Some(4), value: None, fd };
        self.0.doorbells().into_iter().map(of).collect()
    }
}

/// A controller as an endpoint in `socket`: registers in BAR 0, MSI-X with a vector for each completion queue in BAR 4, and a pin.
///
/// # Errors
/// Those of [`Controller::new`].
pub fn endpoint(
    socket: &Socket,
    config: ControllerConfig,
    clock: Clock,
) -> Result<(Arc<Endpoint>, Arc<Controller>), NvmeError> {
    config.check()?;
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE,
        subsystem_vendor: VENDOR,
        subsystem: 0x1100,
        class: CLASS,
        revision: 0,
    };
    let msix = Msix::in_bar(TABLE, Controller::vectors(&config));
    let mut bars = [None; 6];
    bars[usize::from(REGISTERS)] = Some(Bar::memory64(Controller::registers_size(&config)));
    bars[usize::from(TABLE)] = Some(Bar::memory64(msix.own_bar_size()));
    let form = EndpointConfig {
        identity,
        bars,
        msix: Some(msix),
        msi: 0,
        pin: Some(Pin::A),
        capabilities: Vec::new(),
        rom: None,
    };
    let mut made = None;
    let endpoint = Endpoint::try_new(socket, &form, |attachment: Attachment| {
        let bus = Arc::new(PciBus { interrupts: attachment.interrupts, doorbells: attachment.doorbells });
        let controller = Controller::new(config, attachment.dma, bus, clock)?;
        made = Some(controller.clone());
        Ok::<Arc<dyn Function>, NvmeError>(Arc::new(NvmeFunction(controller)))
    })?;
    let controller = made.expect("an endpoint that was made has made its function");
    Ok((endpoint, controller))
}
