//! The device tree of the aarch64 machine (Devicetree Specification 0.4, and Linux's bindings).
//!
//! [`build`] writes what every machine has: CPUs, memory, PSCI, timers, interrupt controller, clock. What a device
//! says of itself is the device's: anything that is a [`Node`] is added. Those of the platform are in [`devices`].
//! [`replace_chosen`] hands a command line and an initramfs over by a tree that somebody else has made.

use skep_hypervisor::aarch64::GicConfig;
use skep_irq::{LineDescription, Polarity, Trigger};
pub use vm_fdt::FdtWriter;

use super::layout::{GIC_DISTRIBUTOR, GIC_ITS, GICV2_CPU, GICV2M_FRAME, REDISTRIBUTOR_SIZE, ppi, spi};
use crate::layout::AddressRange;
use crate::topology::Topology;

pub mod devices;
mod patch;
mod pci;

pub use patch::{BrokenFdt, replace_chosen};
pub use pci::PciHost;

/// Handles by which nodes name each other.
pub mod phandle {
    /// The GIC, which is the parent of all interrupts.
    pub const INTERRUPT_CONTROLLER: u32 = 1;
    /// The ITS or the v2m frame: what takes MSIs.
    pub const MSI_CONTROLLER: u32 = 2;
    /// The clock of PrimeCells, 24 MHz.
    pub const CLOCK: u32 = 3;
    /// The PL061, whose pins other nodes name.
    pub const GPIO: u32 = 4;
    /// CPU 0; the others follow.
    pub const CPUS: u32 = 0x1_0000;
}

/// A tree that can't be written: a name or a text in it is not one.
#[derive(Debug, thiserror::Error)]
#[error("the device tree can't be written: {0}")]
pub struct FdtError(#[from] vm_fdt::Error);

/// Something that has a node, or several, below the root.
pub trait Node {
    /// Writes it.
    ///
    /// # Errors
    /// The writer's.
    fn write(&self, fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error>;
}

/// What the machine hands to the kernel.
#[derive(Clone, Debug, Default)]
pub struct Chosen<'a> {
    /// The command line.
    pub bootargs: Option<&'a str>,
    /// The initramfs.
    pub initrd: Option<AddressRange>,
    /// Path of the console's node.
    pub stdout_path: Option<String>,
    /// Seeds the kernel's random number generator.
    pub rng_seed: Option<[u8; 32]>,
    /// Seeds the placing of the kernel in its address space.
    pub kaslr_seed: Option<u64>,
}

/// What the tree tells of the machine.
pub struct Platform<'a> {
    /// RAM.
    pub ram: &'a [AddressRange],
    /// MPIDR_EL1 affinities of the CPUs.
    pub cpus: &'a [u64],
    /// How the CPUs are arranged, where the guest is to know.
    pub topology: Option<Topology>,
    /// Whether the CPUs have a performance monitor.
    pub pmu: bool,
    /// The interrupt controller.
    pub gic: &'a GicConfig,
    /// The devices.
    pub devices: &'a [&'a dyn Node],
    /// What is handed to the kernel.
    pub chosen: Chosen<'a>,
}

/// Writes the tree.
///
/// # Errors
/// If the command line, or what a device writes, is no text.
pub fn build(platform: &Platform<'_>) -> Result<Vec<u8>, FdtError> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "skep,virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", phandle::INTERRUPT_CONTROLLER)?;
    chosen(&mut fdt, &platform.chosen)?;
    for part in platform.ram {
        let node = fdt.begin_node(&format!("memory@{:x}", part.base))?;
        fdt.property_string("device_type", "memory")?;
        reg(&mut fdt, &[*part])?;
        fdt.end_node(node)?;
    }
    cpus(&mut fdt, platform)?;
    psci(&mut fdt)?;
    timer(&mut fdt, platform)?;
    gic(&mut fdt, platform.gic)?;
    clock(&mut fdt)?;
    for device in platform.devices {
        device.write(&mut fdt)?;
    }
    fdt.end_node(root)?;
    Ok(fdt.finish()?)
}

/// Writes a `reg` property below the root.
fn reg(fdt: &mut FdtWriter, ranges: &[AddressRange]) -> Result<(), vm_fdt::Error> {
    let cells: Vec<u64> = ranges.iter().flat_map(|range| [range.base, range.size]).collect();
    fdt.property_array_u64("reg", &cells)
}

/// The three cells of an interrupt in the GIC's binding.
pub fn interrupt_cells(line: LineDescription) -> [u32; 3] {
    const SPI: u32 = 0;
    const PPI: u32 = 1;
    const EDGE_RISING: u32 = 1;
    const EDGE_FALLING: u32 = 2;
    const LEVEL_HIGH: u32 = 4;
    const LEVEL_LOW: u32 = 8;
    let flags = match (line.trigger, line.polarity) {
        (Trigger::Edge, Polarity::High) => EDGE_RISING,
        (Trigger::Edge, Polarity::Low) => EDGE_FALLING,
        (Trigger::Level, Polarity::High) => LEVEL_HIGH,
        (Trigger::Level, Polarity::Low) => LEVEL_LOW,
    };
    match line.number.checked_sub(spi::FIRST) {
        Some(number) => [SPI, number, flags],
        None => [PPI, line.number.saturating_sub(ppi::FIRST), flags],
    }
}

/// Cells of a private peripheral interrupt: level-triggered, and with GICv2 for each of its CPUs.
fn private(platform: &Platform<'_>, number: u32) -> [u32; 3] {
    let line = LineDescription { number: ppi::FIRST + number, trigger: Trigger::Level, polarity: Polarity::High };
    let mut cells = interrupt_cells(line);
    if let GicConfig::V2 { .. } = platform.gic {
        let cpus = platform.cpus.len().min(8);
        cells[2] |= ((1 << cpus) - 1) << 8;
    }
    cells
}

fn chosen(fdt: &mut FdtWriter, chosen: &Chosen<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("chosen")?;
    chosen_properties(fdt, chosen)?;
    fdt.end_node(node)
}

const BOOTARGS: &str = "bootargs";
const INITRD: [&str; 2] = ["linux,initrd-start", "linux,initrd-end"];
const STDOUT_PATH: &str = "stdout-path";
const RNG_SEED: &str = "rng-seed";
const KASLR_SEED: &str = "kaslr-seed";

fn chosen_properties(fdt: &mut FdtWriter, chosen: &Chosen<'_>) -> Result<(), vm_fdt::Error> {
    if let Some(bootargs) = chosen.bootargs {
        fdt.property_string(BOOTARGS, bootargs)?;
    }
    if let Some(initrd) = chosen.initrd {
        fdt.property_u64(INITRD[0], initrd.base)?;
        fdt.property_u64(INITRD[1], initrd.end())?;
    }
    if let Some(path) = &chosen.stdout_path {
        fdt.property_string(STDOUT_PATH, path)?;
    }
    if let Some(seed) = &chosen.rng_seed {
        fdt.property(RNG_SEED, seed)?;
    }
    if let Some(seed) = chosen.kaslr_seed {
        fdt.property_u64(KASLR_SEED, seed)?;
    }
    Ok(())
}

fn cpus(fdt: &mut FdtWriter, platform: &Platform<'_>) -> Result<(), vm_fdt::Error> {
    let wide = platform.cpus.iter().any(|&mpidr| mpidr > u64::from(u32::MAX));
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", if wide { 2 } else { 1 })?;
    fdt.property_u32("#size-cells", 0)?;
    for (index, &mpidr) in platform.cpus.iter().enumerate() {
        let cpu = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        if wide {
            fdt.property_u64("reg", mpidr)?;
        } else {
            fdt.property_u32("reg", mpidr as u32)?;
        }
        if platform.topology.is_some() {
            fdt.property_phandle(phandle::CPUS + index as u32)?;
        }
        fdt.end_node(cpu)?;
    }
    if let Some(topology) = platform.topology {
        cpu_map(fdt, topology, platform.cpus.len() as u32)?;
    }
    fdt.end_node(node)
}

/// Sockets are written only where there are several: kernels before 5.19 know clusters alone.
fn cpu_map(fdt: &mut FdtWriter, topology: Topology, cpus: u32) -> Result<(), vm_fdt::Error> {
    let map = fdt.begin_node("cpu-map")?;
    for socket in 0..cpus.div_ceil(topology.per_socket()) {
        let socket_node = (topology.sockets > 1).then(|| fdt.begin_node(&format!("socket{socket}"))).transpose()?;
        let cluster = fdt.begin_node("cluster0")?;
        let first = socket * topology.per_socket();
        let present = (cpus - first).min(topology.per_socket());
        for core in 0..present.div_ceil(topology.threads) {
            let core_node = fdt.begin_node(&format!("core{core}"))?;
            let first = first + core * topology.threads;
            let handle = |index: u32| phandle::CPUS + index;
            if topology.threads == 1 {
                fdt.property_u32("cpu", handle(first))?;
            } else {
                for thread in 0..topology.threads.min(cpus - first) {
                    let thread_node = fdt.begin_node(&format!("thread{thread}"))?;
                    fdt.property_u32("cpu", handle(first + thread))?;
                    fdt.end_node(thread_node)?;
                }
            }
            fdt.end_node(core_node)?;
        }
        fdt.end_node(cluster)?;
        socket_node.map_or(Ok(()), |node| fdt.end_node(node))?;
    }
    fdt.end_node(map)
}

fn psci(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter, platform: &Platform<'_>) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let timers = [ppi::TIMER_SECURE, ppi::TIMER_PHYSICAL, ppi::TIMER_VIRTUAL, ppi::TIMER_HYPERVISOR];
    fdt.property_array_u32("interrupts", timers.map(|number| private(platform, number)).as_flattened())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)?;
    if platform.pmu {
        let node = fdt.begin_node("pmu")?;
        fdt.property_string("compatible", "arm,armv8-pmuv3")?;
        fdt.property_array_u32("interrupts", &private(platform, ppi::PMU))?;
        fdt.end_node(node)?;
    }
    Ok(())
}

fn gic(fdt: &mut FdtWriter, gic: &GicConfig) -> Result<(), vm_fdt::Error> {
    let (compatible, distributor) = match gic {
        GicConfig::V2 { distributor, .. } => ("arm,cortex-a15-gic", *distributor),
        GicConfig::V3 { distributor, .. } => ("arm,gic-v3", *distributor),
    };
    let node = fdt.begin_node(&format!("intc@{distributor:x}"))?;
    fdt.property_string("compatible", compatible)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_phandle(phandle::INTERRUPT_CONTROLLER)?;
    let mut registers = vec![AddressRange::new(distributor, GIC_DISTRIBUTOR.size)];
    match gic {
        GicConfig::V2 { cpu_interface, .. } => {
            registers.push(AddressRange::new(*cpu_interface, GICV2_CPU.size));
        }
        GicConfig::V3 { redistributors, .. } => {
            fdt.property_u32("#redistributor-regions", redistributors.len() as u32)?;
            let size = |count| u64::from(count) * REDISTRIBUTOR_SIZE;
            registers.extend(redistributors.iter().map(|part| AddressRange::new(part.base, size(part.count))));
        }
    }
    reg(fdt, &registers)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    match gic {
        GicConfig::V2 { .. } => {
            let frame = fdt.begin_node(&format!("v2m@{:x}", GICV2M_FRAME.base))?;
            fdt.property_string("compatible", "arm,gic-v2m-frame")?;
            fdt.property_null("msi-controller")?;
            reg(fdt, &[GICV2M_FRAME])?;
            fdt.property_u32("arm,msi-base-spi", spi::FIRST + spi::GICV2M.start)?;
            fdt.property_u32("arm,msi-num-spis", spi::GICV2M.end - spi::GICV2M.start)?;
            fdt.property_phandle(phandle::MSI_CONTROLLER)?;
            fdt.end_node(frame)?;
        }
        GicConfig::V3 { its: Some(its), .. } => {
            let node = fdt.begin_node(&format!("its@{its:x}"))?;
            fdt.property_string("compatible", "arm,gic-v3-its")?;
            fdt.property_null("msi-controller")?;
            fdt.property_u32("#msi-cells", 1)?;
            reg(fdt, &[AddressRange::new(*its, GIC_ITS.size)])?;
            fdt.property_phandle(phandle::MSI_CONTROLLER)?;
            fdt.end_node(node)?;
        }
        GicConfig::V3 { its: None, .. } => {}
    }
    fdt.end_node(node)
}

fn clock(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(phandle::CLOCK)?;
    fdt.end_node(node)
}

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "fdt_test.rs"]
pub(crate) mod test;
