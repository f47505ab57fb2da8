//! The aarch64 machine: QEMU's `virt` contract.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use skep_arch::aarch64::acpi::Caches;
use skep_arch::aarch64::boot::{Placement, check_cmdline};
use skep_arch::aarch64::fdt::devices as nodes;
use skep_arch::aarch64::fdt::{self, Chosen, Node};
use skep_arch::aarch64::layout::{self, Layout, spi};
use skep_arch::aarch64::mpidr;
use skep_arch::acpi::devices::{self as acpi_nodes, Event, GenericEvents};
use skep_arch::acpi::{self, Dsdt, Ecam, SerialConsole, SerialKind, Table};
use skep_arch::kernel::initrd_length;
use skep_arch::layout::{AddressRange, Row};
use skep_arch::smbios;
use skep_bus::{Action, AddressSpace};
use skep_chipset::flash::Geometry;
use skep_chipset::fw_cfg::MEMORY_REGION;
use skep_chipset::{
    Flash, FwCfg, Pl011, Pl011Config, Pl031, Pl031Config, Pl061, Pl061Config, PvPanic, SerialPort, V2m, V2mConfig,
    gpio, pl011, pl031,
};
use skep_config::{Config, Cpus, Irqchip};
use skep_hypervisor::aarch64::{
    BootState, Features, Gic, GicSupport, GicVersion, Interrupts, Io, VcpuConfig, VmConfig, registers,
};
use skep_hypervisor::{Aarch64, Capabilities, MemoryIo, Vcpu, Vm};
use skep_irq::{IrqLine, LineDescription, LineTable, MsiTarget, Polarity, Trigger};
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, MemoryMap};
use skep_pci::{ECAM_REGION, GenericHostBridge, IoSpace, NoMessages, RootComplex, Window, Windows};
use skep_state::Component;

use super::firmware::{Overlay, Piece, Told, fw_cfg, late, reach, renew_generation, vars_bank};
use super::pci::{Pci, window};
use super::platform::{Ejected, Named, Plan, Platform, Services, load_error, rng_seed, smallest_bits, topology};
use crate::Error;
use crate::boot::KernelFiles;
use crate::run::BoxedIo;

/// The devices of a `virt` machine.
pub struct Board {
    memory_space: AddressSpace,
    pub(super) gic: Arc<dyn Gic>,
    uart: Arc<Pl011>,
    components: Vec<Named>,
    lines: LineTable,
    pci: Pci<Aarch64>,
    /// Something takes message-signalled interrupts.
    has_messages: bool,
    gpio: Arc<Pl061>,
    firmware: Option<FirmwareBoard>,
}

/// What a machine with firmware has besides.
struct FirmwareBoard {
    fw_cfg: Arc<FwCfg>,
    flash: Option<Arc<Flash>>,
    code: Arc<Backing>,
    overlay: Overlay,
    /// Edges that a generic event device tells of.
    power_button: IrqLine,
    generation: IrqLine,
    /// The processors', as the first of them tells.
    caches: OnceLock<Caches>,
}

/// Lines that PCI's interrupt pins share.
const INTX: Range<u32> = spi::PCI_FIRST..spi::PCI_FIRST + 4;
/// PCI's I/O space, less the ports that are ISA's.
const PCI_IO: Window = Window { base: 0x1000, size: layout::PCI_IO.size - 0x1000 };

impl Platform for Aarch64 {
    type Layout = Layout;
    type Board = Board;

    fn address_bits(ram: u64) -> u8 {
        // 40 bits are what every host has, and what three levels of stage-2 tables reach.
        smallest_bits(ram, |bits| layout::max_ram(bits, GicVersion::V3, 1))
    }

    fn plan(config: &Config, backend: &'static str, capabilities: &Capabilities<Self>) -> Result<Plan<Self>, Error> {
        let max = config.cpus.max;
        let gic = choose_gic(config, backend, &capabilities.arch.gics)?;
        let features = Features {
            sve: config.cpu_features.sve,
            pointer_authentication: config.cpu_features.pauth,
            pmu: config.cpu_features.pmu.unwrap_or(capabilities.arch.pmu),
        };
        if let Some(what) = capabilities.arch.lacks(features) {
            let mend = "leave it out of cpu-features".to_owned();
            return Err(Error::Lacking { what: what.to_owned(), backend, mend });
        }
        let bits = Self::address_bits(config.memory.size.bytes()).min(capabilities.address_bits);
        let layout = Layout::new(config.memory.size.bytes(), bits, gic.version, max)?;
        let vm = VmConfig { gic: layout.gic_config(gic.its), spis: spi::count(gic.version) };
        // A GIC takes no CPU once it is initialised, so those that may come later are made now, powered off.
        let possible: Vec<u64> = (0..max).map(|index| mpidr(gic.version, index)).collect();
        let vcpus = possible.iter().map(|&mpidr| VcpuConfig { mpidr, features }).collect();
        let counter = Some(capabilities.arch.counter_hz);
        Ok(Plan { ram: layout.ram.clone(), layout, vm, vcpus, possible, counter })
    }

    fn describe(layout: &Layout) -> Vec<Row> {
        layout.describe()
    }

    fn assemble(
        config: &Config,
        plan: &Plan<Self>,
        vm: &Arc<dyn Vm<Self>>,
        interrupts: Interrupts,
        services: Services,
        _ram: Arc<Backing>,
        ejected: Ejected,
    ) -> Result<Arc<Board>, Error> {
        let Interrupts { gic, lines, its } = interrupts;
        let space = AddressSpace::memory();
        let lines = LineTable::new(lines, spi::FIRST..=spi::FIRST + plan.vm.spis - 1);
        let line = |number| lines.line(spi::FIRST + number, Trigger::Level, Polarity::High);
        let mut components: Vec<Named> = Vec::new();

        let clock = services.clock;
        let uart = Pl011::new(Pl011Config { irq: line(spi::UART)?, clock: clock.clone(), out: services.serial });
        space.map("pl011", layout::UART.base, layout::UART.size, 0, uart.clone())?;
        components.push(("pl011".to_owned(), uart.clone() as Arc<dyn Component>));

        let rtc = Pl031::new(Pl031Config { irq: line(spi::RTC)?, clock: clock.clone() });
        space.map("pl031", layout::RTC.base, layout::RTC.size, 0, rtc.clone())?;
        components.push(("pl031".to_owned(), rtc as Arc<dyn Component>));

        let gpio = Pl061::new(Pl061Config { irq: line(spi::GPIO)?, clock: clock.clone() });
        space.map("pl061", layout::GPIO.base, layout::GPIO.size, 0, gpio.clone())?;
        components.push(("pl061".to_owned(), gpio.clone() as Arc<dyn Component>));

        // It holds no state.
        let panic = Arc::new(PvPanic::new(services.requests));
        space.map("pvpanic", layout::PVPANIC.base, 1, 0, panic)?;

        let msi = match plan.layout.gic {
            GicVersion::V3 => its,
            GicVersion::V2 => {
                let edge = |n| lines.line(spi::FIRST + n, Trigger::Edge, Polarity::High);
                let spis = spi::GICV2M.map(edge).collect::<Result<Vec<IrqLine>, _>>()?;
                let frame = Arc::new(V2m::new(V2mConfig { base: layout::GICV2M_FRAME.base, lines: spis }));
                space.map("v2m", layout::GICV2M_FRAME.base, layout::GICV2M_FRAME.size, 0, frame.clone())?;
                Some(frame as Arc<dyn MsiTarget>)
            }
        };
        let has_messages = msi.is_some();
        let intx = INTX.map(line).collect::<Result<_, _>>()?;
        let pci =
            Pci::new(vm.clone(), services.memory.clone(), msi.unwrap_or_else(|| Arc::new(NoMessages)), intx, ejected);
        pci.root.add_chipset(0, Arc::new(GenericHostBridge::default()))?;
        let ecam = plan.layout.ecam;
        space.map("ECAM", ecam.base, ecam.size, ECAM_REGION, pci.root.clone())?;
        components.push(("pci".to_owned(), pci.root.clone()));
        let firmware = match services.firmware {
            Some(mut files) => {
                let pci = format!("pci@{:x}", ecam.base);
                let told = Told {
                    product: "virt-1",
                    pci: &pci,
                    family: smbios::ARMV8,
                    ram: &plan.ram,
                    max_cpus: u16::try_from(config.cpus.max).unwrap_or(u16::MAX),
                    items: Vec::new(),
                    files: Vec::new(),
                };
                let memory = &services.memory;
                let fw_cfg = fw_cfg(config, memory, &mut files, told)?;
                let range = layout::FW_CFG;
                space.map("fw_cfg", range.base, range.size, MEMORY_REGION, fw_cfg.clone())?;
                components.push(("fw_cfg".to_owned(), fw_cfg.clone()));
                let vars = files.vars.take();
                let bank = |vars| vars_bank(vars, layout::FLASH_VARS.base, Geometry::VIRT, &clock);
                let flash = vars.map(bank).transpose()?;
                if let Some(flash) = &flash {
                    space.map("flash", flash.base(), flash.size(), 0, flash.clone())?;
                    components.push(("flash".to_owned(), flash.clone()));
                }
                let overlay = Overlay::new(memory.clone(), vm.posted_writes());
                let edge = |number| lines.line(spi::FIRST + number, Trigger::Edge, Polarity::High);
                let caches = OnceLock::new();
                let (power_button, generation) = (edge(spi::GED_POWER)?, edge(spi::GED_GENERATION)?);
                Some(FirmwareBoard { fw_cfg, flash, code: files.code, overlay, power_button, generation, caches })
            }
            None => None,
        };
        let board =
            Arc::new(Board { memory_space: space, gic, uart, components, lines, pci, has_messages, gpio, firmware });
        if let Some(firmware) = &board.firmware {
            let (this, plan, cpus) = (Arc::downgrade(&board), plan.clone(), config.cpus.clone());
            firmware.fw_cfg.set_late(Box::new(move || match this.upgrade().map(|board| board.tables(&plan, &cpus)) {
                Some(Ok(tables)) => late(tables),
                Some(Err(error)) => {
                    tracing::error!(%error, "firmware gets no ACPI tables");
                    Vec::new()
                }
                None => Vec::new(),
            }));
            Self::remap(&board);
        }
        Ok(board)
    }

    fn remap(board: &Board) {
        let Some(firmware) = &board.firmware else { return };
        firmware.overlay.update(|| {
            let code = Piece::rom("firmware", layout::FLASH_CODE.base, &firmware.code);
            reach(code, firmware.flash.as_deref())
        });
    }

    fn relocate(board: &Board) {
        let io = IoSpace::Window { base: layout::PCI_IO.base, size: layout::PCI_IO.size };
        board.pci.update(&board.memory_space, io, Vec::new);
        Self::remap(board);
    }

    fn pci(board: &Board) -> &Arc<RootComplex> {
        &board.pci.root
    }

    fn place(plan: &Plan<Self>, board: &Board) -> Result<(), Error> {
        board.pci.root.place(&Windows {
            io: PCI_IO,
            memory32: window(layout::PCI_MMIO32),
            memory64: window(plan.layout.pci_mmio64),
        })?;
        Self::relocate(board);
        Ok(())
    }

    fn io(board: &Arc<Board>, _index: u32) -> BoxedIo<Self> {
        Box::new(VcpuIo(board.clone()))
    }

    fn load(
        config: &Config,
        plan: &Plan<Self>,
        board: &Board,
        memory: &MemoryMap,
        files: &mut KernelFiles,
        _memory_is_zero: bool,
    ) -> Result<skep_hypervisor::aarch64::BootState, Error> {
        let failed = load_error(&files.path);
        check_cmdline(&files.cmdline).map_err(&failed)?;
        let initrd = files.initrd.as_mut().map(initrd_length).transpose().map_err(&failed)?;
        let placement = Placement::new(&files.kernel, initrd, &plan.layout).map_err(&failed)?;
        let ram = memory.ram();
        placement.load(&files.kernel, &mut files.file, files.initrd.as_mut(), &*ram).map_err(&failed)?;
        let cmdline = str::from_utf8(&files.cmdline).map_err(|e| Error::Tables(format!("the command line: {e}")))?;
        let seed = rng_seed(config)?;
        let chosen = Chosen {
            bootargs: Some(cmdline),
            initrd: placement.initrd,
            stdout_path: Some(board.uart_node().path()),
            rng_seed: Some(seed),
            // Not the same bytes as the generator's seed: the kernel wipes each on its own.
            kaslr_seed: Some(u64::from_le_bytes(std::array::from_fn(|i| seed[i] ^ seed[31 - i] ^ 0x5a))),
        };
        let tree = match &files.dtb {
            Some(dtb) => fdt::replace_chosen(dtb, &Chosen { stdout_path: None, ..chosen })
                .map_err(|e| Error::Tables(format!("--dtb: {e}")))?,
            None => board.device_tree(config, plan, chosen)?,
        };
        placement.write_fdt(&tree, &*ram).map_err(&failed)?;
        Ok(placement.boot_state())
    }

    fn start_firmware(
        config: &Config,
        plan: &Plan<Self>,
        board: &Board,
        memory: &MemoryMap,
    ) -> Result<Option<BootState>, Error> {
        let chosen = Chosen {
            stdout_path: Some(board.uart_node().path()),
            rng_seed: Some(rng_seed(config)?),
            ..Chosen::default()
        };
        let tree = board.device_tree(config, plan, chosen)?;
        let ram = memory.ram();
        ram.write_slice(&tree, GuestAddress(layout::RAM_BASE)).map_err(|e| Error::Tables(e.to_string()))?;
        Ok(Some(BootState { pc: layout::FLASH_CODE.base, x: [0; 4] }))
    }

    fn meet(board: &Board, first: &mut dyn Vcpu<Self>) {
        // A machine without firmware has a device tree, which does not tell of caches: Linux asks the processor then.
        let Some(firmware) = &board.firmware else { return };
        let registers = match first.identity() {
            Ok(identity) => identity.registers,
            Err(error) => return tracing::warn!("firmware is not told of the processors' caches: {error}"),
        };
        let clidr = registers.iter().find(|(register, _)| *register == registers::CLIDR_EL1);
        // A machine has one first vCPU for its whole life.
        let _ = firmware.caches.set(Caches(clidr.and_then(|(_, value)| *value).unwrap_or_default()));
    }

    fn press_power_button(board: &Board) -> bool {
        let listens = board.gpio.press(gpio::POWER_BUTTON_PIN);
        let Some(firmware) = &board.firmware else { return listens };
        // An operating system that is told of the machine by ACPI listens to this one, and nobody can say whether.
        firmware.power_button.assert();
        firmware.power_button.deassert();
        true
    }

    fn flash(board: &Board) -> Option<&Arc<Flash>> {
        board.firmware.as_ref()?.flash.as_ref()
    }

    fn renew_generation(board: &Board, memory: &MemoryMap) -> Result<bool, Error> {
        let Some(firmware) = &board.firmware else { return Ok(false) };
        let renewed = renew_generation(&firmware.fw_cfg, memory)?;
        if renewed {
            firmware.generation.assert();
            firmware.generation.deassert();
        }
        Ok(renewed)
    }

    fn components(board: &Board) -> &[Named] {
        &board.components
    }

    fn reset_interrupts(board: &Board) -> Result<(), Error> {
        Ok(board.gic.reset()?)
    }

    fn serial(board: &Board) -> Arc<dyn SerialPort> {
        board.uart.clone()
    }
}

impl Board {
    fn description(&self, number: u32) -> Result<LineDescription, Error> {
        Ok(self.lines.line(spi::FIRST + number, Trigger::Level, Polarity::High)?.description())
    }

    fn uart_node(&self) -> nodes::Pl011 {
        let line =
            LineDescription { number: spi::FIRST + spi::UART, trigger: Trigger::Level, polarity: Polarity::High };
        nodes::Pl011(nodes::PrimeCell { registers: layout::UART, line, peripheral_id: Some(pl011::PERIPHERAL_ID) })
    }

    fn device_tree(&self, config: &Config, plan: &Plan<Aarch64>, chosen: Chosen<'_>) -> Result<Vec<u8>, Error> {
        let uart = self.uart_node();
        let rtc = nodes::Pl031(nodes::PrimeCell {
            registers: layout::RTC,
            line: self.description(spi::RTC)?,
            peripheral_id: Some(pl031::PERIPHERAL_ID),
        });
        let gpio = nodes::Pl061 {
            cell: nodes::PrimeCell {
                registers: layout::GPIO,
                line: self.description(spi::GPIO)?,
                peripheral_id: Some(gpio::PERIPHERAL_ID),
            },
            power_button: gpio::POWER_BUTTON_PIN.into(),
        };
        let panic = nodes::Pvpanic(layout::PVPANIC);
        let intx = INTX.map(|number| self.description(number)).collect::<Result<Vec<_>, _>>()?;
        let pci = fdt::PciHost {
            ecam: self.pci.buses(plan.layout.ecam),
            io: layout::PCI_IO,
            memory32: layout::PCI_MMIO32,
            memory64: plan.layout.pci_mmio64,
            lines: &intx,
            messages: self.has_messages,
        };
        let banks = [layout::FLASH_CODE, layout::FLASH_VARS];
        let (flash, fw_cfg) = (nodes::Flash(&banks), nodes::FwCfg(layout::FW_CFG));
        let mut devices: Vec<&dyn Node> = vec![&uart, &rtc, &gpio, &panic, &pci];
        if self.firmware.is_some() {
            devices.extend([&flash as &dyn Node, &fw_cfg]);
        }
        let cpus = &config.cpus;
        let platform = fdt::Platform {
            ram: &plan.ram,
            cpus: present(plan, cpus),
            topology: Some(topology(cpus)?),
            pmu: has_monitor(plan),
            gic: &plan.vm.gic,
            devices: &devices,
            chosen,
        };
        fdt::build(&platform).map_err(|e| Error::Tables(e.to_string()))
    }
}

impl Board {
    /// The ACPI tables of the machine, for firmware to place.
    fn tables(&self, plan: &Plan<Aarch64>, cpus: &Cpus) -> Result<Vec<Table>, Error> {
        let edge =
            |number| LineDescription { number: spi::FIRST + number, trigger: Trigger::Edge, polarity: Polarity::High };
        let console =
            SerialConsole { kind: SerialKind::Pl011, registers: layout::UART, line: self.description(spi::UART)? };
        let mut dsdt = Dsdt::new();
        dsdt.device(&acpi_nodes::Serial {
            kind: console.kind,
            number: 1,
            registers: console.registers,
            line: console.line,
        });
        for (number, memory) in [(0, layout::FLASH_CODE), (1, layout::FLASH_VARS)] {
            dsdt.device(&acpi_nodes::Flash { number, memory });
        }
        dsdt.device(&acpi_nodes::FwCfg(acpi_nodes::Registers::Memory(layout::FW_CFG)));
        dsdt.device(&acpi_nodes::Pvpanic(acpi_nodes::Registers::Memory(layout::PVPANIC)));
        dsdt.device(&acpi_nodes::Generation);
        let button = GenericEvents::POWER_BUTTON;
        dsdt.device(&GenericEvents {
            events: vec![
                Event { line: edge(spi::GED_POWER), device: button },
                Event { line: edge(spi::GED_GENERATION), device: acpi_nodes::Generation::NAME },
            ],
        });
        let intx = INTX.map(|number| self.description(number)).collect::<Result<Vec<_>, _>>()?;
        let ecam = self.pci.buses(plan.layout.ecam);
        dsdt.device(&acpi::PciHost {
            ecam,
            config_ports: None,
            io: &[AddressRange::new(0, layout::PCI_IO.size)],
            io_offset: layout::PCI_IO.base,
            memory32: &[layout::PCI_MMIO32],
            memory64: plan.layout.pci_mmio64,
            lines: &intx,
            lpc_bridge: None,
        });
        Ok(skep_arch::aarch64::acpi::tables(
            &skep_arch::aarch64::acpi::Platform {
                cpus: present(plan, cpus),
                topology: topology(cpus)?,
                pmu: has_monitor(plan),
                caches: self.firmware.as_ref().and_then(|firmware| firmware.caches.get()).copied().unwrap_or_default(),
                gic: &plan.vm.gic,
                console: Some(console),
                ecam: &[Ecam { segment: 0, region: ecam }],
            },
            dsdt,
        ))
    }
}

/// Whether the processors have a performance monitor.
fn has_monitor(plan: &Plan<Aarch64>) -> bool {
    plan.vcpus.iter().all(|vcpu| vcpu.features.pmu)
}

/// The processors that there are at power-on, of those that there may be.
fn present<'a>(plan: &'a Plan<Aarch64>, cpus: &Cpus) -> &'a [u64] {
    plan.possible.get(..cpus.count as usize).unwrap_or(&plan.possible)
}

/// The best GIC that the host offers, or the one asked for.
fn choose_gic(config: &Config, backend: &'static str, offered: &[GicSupport]) -> Result<GicSupport, Error> {
    let max = config.cpus.max;
    let wanted = match config.irqchip {
        Irqchip::Auto => None,
        Irqchip::Gicv2 => Some(GicVersion::V2),
        Irqchip::Gicv3 => Some(GicVersion::V3),
    };
    let names = || match offered.iter().map(|gic| if gic.version == GicVersion::V2 { "gicv2" } else { "gicv3" }) {
        names if names.len() == 0 => "it offers no GIC at all".to_owned(),
        names => format!("it offers {}: choose by --irqchip", names.collect::<Vec<_>>().join(" and ")),
    };
    let gic = offered.iter().find(|gic| wanted.is_none_or(|version| gic.version == version));
    let what = || match wanted {
        Some(GicVersion::V2) => "GICv2".to_owned(),
        Some(GicVersion::V3) => "GICv3".to_owned(),
        None => "an interrupt controller for guests".to_owned(),
    };
    let gic = *gic.ok_or_else(|| Error::Lacking { what: what(), backend, mend: names() })?;
    if max > gic.max_vcpus {
        let mend = match gic.version {
            GicVersion::V2 => " with a GICv2; choose fewer by --cpus",
            GicVersion::V3 => " with a GICv3; choose fewer by --cpus",
        };
        return Err(Error::Vcpus { wanted: max, backend, limit: gic.max_vcpus, mend });
    }
    Ok(gic)
}

/// What an aarch64 vCPU calls back into.
struct VcpuIo(Arc<Board>);

impl MemoryIo for VcpuIo {
    fn memory_read(&mut self, gpa: u64, data: &mut [u8]) {
        if !self.0.memory_space.read(gpa, data) {
            tracing::debug!("the guest reads {} bytes at {gpa:#x}, where nothing is", data.len());
        }
    }

    fn memory_write(&mut self, gpa: u64, data: &[u8]) {
        match self.0.memory_space.write(gpa, data) {
            Some(Action::None) => {}
            Some(Action::Remap) => Aarch64::remap(&self.0),
            Some(Action::Relocate) => Aarch64::relocate(&self.0),
            None => tracing::debug!("the guest writes {} bytes at {gpa:#x}, where nothing is", data.len()),
        }
    }
}

impl Io for VcpuIo {}
