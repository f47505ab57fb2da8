//! The platform's devices, as they are described in the device tree.

use skep_irq::LineDescription;
use vm_fdt::FdtWriter;

use super::{Node, interrupt_cells, phandle, reg};
use crate::layout::AddressRange;

/// A device with an AMBA PrimeCell identity.
#[derive(Clone, Copy, Debug)]
pub struct PrimeCell {
    /// Its registers.
    pub registers: AddressRange,
    /// Its interrupt.
    pub line: LineDescription,
    /// Its peripheral id, so that a kernel need not read the eight registers that hold it.
    pub peripheral_id: Option<u32>,
}

impl PrimeCell {
    fn write(&self, fdt: &mut FdtWriter, name: &str, clocks: &[&str]) -> Result<(), vm_fdt::Error> {
        self.write_with(fdt, name, clocks, |_| Ok(()))
    }

    /// Writes it with more properties.
    fn write_with(
        &self,
        fdt: &mut FdtWriter,
        name: &str,
        clocks: &[&str],
        more: impl FnOnce(&mut FdtWriter) -> Result<(), vm_fdt::Error>,
    ) -> Result<(), vm_fdt::Error> {
        let node = fdt.begin_node(&format!("{name}@{:x}", self.registers.base))?;
        fdt.property_string_list("compatible", vec![format!("arm,{name}"), "arm,primecell".to_owned()])?;
        reg(fdt, &[self.registers])?;
        fdt.property_array_u32("interrupts", &interrupt_cells(self.line))?;
        fdt.property_array_u32("clocks", &vec![phandle::CLOCK; clocks.len()])?;
        fdt.property_string_list("clock-names", clocks.iter().map(|&name| name.to_owned()).collect())?;
        if let Some(id) = self.peripheral_id {
            fdt.property_u32("arm,primecell-periphid", id)?;
        }
        more(fdt)?;
        fdt.end_node(node)
    }
}

/// PL011 serial port.
#[derive(Clone, Copy, Debug)]
pub struct Pl011(pub PrimeCell);

impl Pl011 {
    /// The node's path, for `stdout-path`.
    pub fn path(&self) -> String {
        format!("/pl011@{:x}", self.0.registers.base)
    }
}

impl Node for Pl011 {
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        self.0.write(fdt, "pl011", &["uartclk", "apb_pclk"])
    }
}

/// PL031 real-time clock.
#[derive(Clone, Copy, Debug)]
pub struct Pl031(pub PrimeCell);

impl Node for Pl031 {
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        self.0.write(fdt, "pl031", &["apb_pclk"])
    }
}

/// PL061 GPIO controller, and the power button at one of its pins.
#[derive(Clone, Copy, Debug)]
pub struct Pl061 {
    /// The controller.
    pub cell: PrimeCell,
    /// The button's pin.
    pub power_button: u32,
}

impl Node for Pl061 {
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        /// Linux's number of the key (input-event-codes.h).
        const KEY_POWER: u32 = 116;
        /// A pin is given by its number and its flags.
        const CELLS: u32 = 2;
        self.cell.write_with(fdt, "pl061", &["apb_pclk"], |fdt| {
            fdt.property_null("gpio-controller")?;
            fdt.property_u32("#gpio-cells", CELLS)?;
            fdt.property_phandle(phandle::GPIO)
        })?;
        let keys = fdt.begin_node("gpio-keys")?;
        fdt.property_string("compatible", "gpio-keys")?;
        let button = fdt.begin_node("poweroff")?;
        fdt.property_string("label", "power button")?;
        fdt.property_u32("linux,code", KEY_POWER)?;
        fdt.property_array_u32("gpios", &[phandle::GPIO, self.power_button, 0])?;
        fdt.end_node(button)?;
        fdt.end_node(keys)
    }
}

/// fw_cfg.
#[derive(Clone, Copy, Debug)]
pub struct FwCfg(pub AddressRange);

impl Node for FwCfg {
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let node = fdt.begin_node(&format!("fw-cfg@{:x}", self.0.base))?;
        fdt.property_string("compatible", "qemu,fw-cfg-mmio")?;
        reg(fdt, &[self.0])?;
        fdt.property_null("dma-coherent")?;
        fdt.end_node(node)
    }
}

/// Firmware flash: banks of two 16-bit chips side by side.
#[derive(Clone, Copy, Debug)]
pub struct Flash<'a>(pub &'a [AddressRange]);

impl Node for Flash<'_> {
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let Some(first) = self.0.first() else { return Ok(()) };
        let node = fdt.begin_node(&format!("flash@{:x}", first.base))?;
        fdt.property_string("compatible", "cfi-flash")?;
        reg(fdt, self.0)?;
        fdt.property_u32("bank-width", 4)?;
        fdt.end_node(node)
    }
}

/// pvpanic, by which a guest says that it has crashed.
#[derive(Clone, Copy, Debug)]
pub struct Pvpanic(pub AddressRange);

impl Node for Pvpanic {
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let node = fdt.begin_node(&format!("pvpanic@{:x}", self.0.base))?;
        fdt.property_string("compatible", "qemu,pvpanic-mmio")?;
        reg(fdt, &[self.0])?;
        fdt.end_node(node)
    }
}
