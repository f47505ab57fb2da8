//! The PCI host bridge, as it is described in the device tree (the bindings `pci-host-ecam-generic`, `pci-msi`, and Open Firmware's
//! PCI bus binding).

use skep_irq::LineDescription;
use vm_fdt::FdtWriter;

use super::{Node, interrupt_cells, phandle, reg};
use crate::layout::AddressRange;

/// Kinds of addresses, in bits 25:24 of the first of three cells.
const IO: u32 = 1 << 24;
const MEMORY_32: u32 = 2 << 24;
const MEMORY_64: u32 = 3 << 24;

/// Interrupt pins of a device.
const PINS: u32 = 4;
/// Where the device is in an address, and all bits of a pin.
const DEVICE_SHIFT: u32 = 11;
const PIN_MASK: u32 = 7;

/// A generic ECAM host: segment 0, 256 buses.
#[derive(Clone, Copy, Debug)]
pub struct PciHost<'a> {
    /// Memory-mapped configuration space.
    pub ecam: AddressRange,
    /// Window in which I/O space, from port 0, is mapped.
    pub io: AddressRange,
    /// Addresses of memory BARs below 4 GiB.
    pub memory32: AddressRange,
    /// Addresses of memory BARs above.
    pub memory64: AddressRange,
    /// The lines that interrupt pins share, a power of two of them: device `d`'s pin `p` is on line `(d + p) % lines`.
    pub lines: &'a [LineDescription],
    /// Whether there is something that takes message-signalled interrupts, by requester ids.
    pub messages: bool,
}

fn halves(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}

impl PciHost<'_> {
    fn ranges(&self) -> Vec<u32> {
        // PCI's address, the CPU's, and the size: three, two and two cells.
        let range = |kind: u32, address: u64, window: AddressRange| {
            let cells = [[kind, 0], halves(window.base), halves(window.size)];
            let [[kind, _], [base_high, base_low], [size_high, size_low]] = cells;
            let [high, low] = halves(address);
            [kind, high, low, base_high, base_low, size_high, size_low]
        };
        [
            range(IO, 0, self.io),
            range(MEMORY_32, self.memory32.base, self.memory32),
            range(MEMORY_64, self.memory64.base, self.memory64),
        ]
        .concat()
    }

    /// For as many devices as there are lines: the others are the same again.
    fn interrupt_map(&self) -> Vec<u32> {
        let lines = self.lines.len() as u32;
        let mut cells = Vec::new();
        for device in 0..lines {
            for pin in 0..PINS {
                let Some(line) = self.lines.get(((device + pin) % lines) as usize) else { continue };
                cells.extend([device << DEVICE_SHIFT, 0, 0, pin + 1]);
                // The interrupt controller has addresses of two cells, of which nothing is made.
                cells.extend([phandle::INTERRUPT_CONTROLLER, 0, 0]);
                cells.extend(interrupt_cells(*line));
            }
        }
        cells
    }
}

impl Node for PciHost<'_> {
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let node = fdt.begin_node(&format!("pcie@{:x}", self.ecam.base))?;
        fdt.property_string("compatible", "pci-host-ecam-generic")?;
        fdt.property_string("device_type", "pci")?;
        reg(fdt, &[self.ecam])?;
        fdt.property_u32("#address-cells", 3)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_array_u32("bus-range", &[0, (self.ecam.size >> 20).saturating_sub(1).min(255) as u32])?;
        fdt.property_u32("linux,pci-domain", 0)?;
        fdt.property_null("dma-coherent")?;
        fdt.property_array_u32("ranges", &self.ranges())?;
        if !self.lines.is_empty() {
            let devices = (self.lines.len() as u32).saturating_sub(1) << DEVICE_SHIFT;
            fdt.property_u32("#interrupt-cells", 1)?;
            fdt.property_array_u32("interrupt-map-mask", &[devices, 0, 0, PIN_MASK])?;
            fdt.property_array_u32("interrupt-map", &self.interrupt_map())?;
        }
        if self.messages {
            // Every requester id is the device id that the controller sees.
            fdt.property_array_u32("msi-map", &[0, phandle::MSI_CONTROLLER, 0, 0x1_0000])?;
        }
        fdt.end_node(node)
    }
}
