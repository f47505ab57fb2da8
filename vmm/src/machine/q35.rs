//! The x86_64 machine: a Q35-compatible PC.

mod firmware;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use skep_arch::acpi::{self, Dsdt, Ecam, PciHost, SerialConsole, SerialKind, devices};
use skep_arch::layout::{AddressRange, GIB, Row};
use skep_arch::x86_64::acpi::{Cpu, Legacy, OVERRIDES, PowerManagement};
use skep_arch::x86_64::boot::{self, Setup};
use skep_arch::x86_64::cpuid::{Identity, Options};
use skep_arch::x86_64::layout::{self, Layout, gsi};
use skep_bus::{Action, AddressSpace, Device};
use skep_chipset::{
    DebugCon, Flash, GsiLines, I8042, I8042Config, I8254, I8254Config, I8259, I8259Config, IoApic, IoApicConfig,
    MachineRequest, Pm, PmConfig, Port92, PortRange, PvPanic, ResetControl, Rtc, RtcConfig, SerialPort, Uart16550,
    Uart16550Config, debugcon, i8042, i8254, i8259, ioapic, pm, port92, pvpanic, rtc, uart16550,
};
use skep_config::Config;
use skep_hypervisor::x86_64::{BootState, Interrupts, Io, VmConfig};
use skep_hypervisor::{Capabilities, Kick, MemoryIo, Vcpu, Vm, X86_64};
use skep_irq::{IrqLine, LineDescription, LineTable, LineTarget, Polarity, Trigger};
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, MemoryMap};
use skep_pci::{ECAM_REGION, IoSpace, LpcBridge, Mapping, Mch, PORTS_REGION, PirqRouter, RootComplex, Space, Windows};
use skep_state::Component;

use super::firmware::{Firmware, late, renew_generation};
use super::pci::{Pci, window};
use super::platform::{Ejected, Named, Plan, Platform, Services, load_error, rng_seed, smallest_bits, topology};
use super::saved::{address_bits, feature_list};
use crate::Error;
use crate::boot::KernelFiles;
use crate::run::BoxedIo;
use firmware::{FirmwareBoard, SMI_COMMAND};

/// The I/O APIC's id. Local APIC ids may be the same: they are different buses.
const IOAPIC_ID: u8 = 0;

/// Device numbers on bus 0.
const MCH: u8 = 0;
const LPC: u8 = 31;

/// The devices of a Q35 machine.
pub struct Board {
    memory_space: AddressSpace,
    port_space: AddressSpace,
    pic: Arc<I8259>,
    ioapic: Arc<IoApic>,
    uart: Arc<Uart16550>,
    external: Arc<ExternalInterrupt>,
    components: Vec<Named>,
    lines: LineTable,
    pci: Pci<X86_64>,
    mch: Arc<Mch>,
    lpc: Arc<LpcBridge>,
    pm: Arc<Pm>,
    firmware: Option<FirmwareBoard>,
}

/// The eight ports of PCI configuration mechanism 1, in which the reset control register has one.
struct ConfigPorts {
    root: Arc<RootComplex>,
    reset_control: Arc<ResetControl>,
}

impl ConfigPorts {
    fn is_reset_control(offset: u64, data: &[u8]) -> bool {
        offset == u64::from(layout::port::RESET_CONTROL) - layout::port::PCI_CONFIG.base && data.len() == 1
    }
}

impl Device for ConfigPorts {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        if Self::is_reset_control(offset, data) {
            return self.reset_control.read(region, offset, data);
        }
        self.root.read(PORTS_REGION, offset, data);
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        if Self::is_reset_control(offset, data) {
            return self.reset_control.write(region, offset, data);
        }
        self.root.write(PORTS_REGION, offset, data)
    }
}

/// The PIC's INTR wire to the first vCPU.
#[derive(Default)]
struct ExternalInterrupt {
    asserted: AtomicBool,
    first: OnceLock<Arc<dyn Kick>>,
}

impl LineTarget for ExternalInterrupt {
    fn set_level(&self, _line: u32, asserted: bool) {
        self.asserted.store(asserted, Ordering::Release);
        if let (true, Some(first)) = (asserted, self.first.get()) {
            first.kick();
        }
    }

    /// The wire has no record of its own. A vCPU looks at it before it runs.
    fn restore_level(&self, _line: u32, asserted: bool) {
        self.asserted.store(asserted, Ordering::Release);
    }
}

impl Platform for X86_64 {
    type Layout = Layout;
    type Board = Board;

    fn address_bits(ram: u64) -> u8 {
        smallest_bits(ram, layout::max_ram)
    }

    fn plan(config: &Config, backend: &'static str, capabilities: &Capabilities<Self>) -> Result<Plan<Self>, Error> {
        let ram = config.memory.size.bytes();
        let mut layout = Layout::new(ram, Self::address_bits(ram).min(capabilities.address_bits))?;
        let cpus = &config.cpus;
        let topology = topology(cpus)?;
        let options = Options { topology, pmu: false, machine_check: false };
        let identity = Identity::new(&capabilities.arch, &options)?;
        let mut vcpus: Vec<_> = (0..cpus.count).map(|index| identity.vcpu(index)).collect();
        if let Some(cpu) = &config.cpu {
            let list = feature_list(cpu)?;
            let mend = "choose another `--cpu`, or a host that has it";
            let lacking = |what| Error::Lacking { what, backend, mend: mend.to_owned() };
            vcpus.iter_mut().try_for_each(|vcpu| list.limit(vcpu)).map_err(lacking)?;
            if let Some(bits) = vcpus.first().and_then(|first| address_bits(&first.cpuid)) {
                layout = layout.within(bits)?;
            }
        }
        let possible = (0..cpus.max).map(|index| identity.apic_ids().id(index).into()).collect();
        let (vm, counter) = (VmConfig { ioapic_pins: gsi::COUNT }, capabilities.arch.tsc_khz);
        Ok(Plan { ram: layout.ram.clone(), layout, vm, vcpus, possible, counter })
    }

    fn describe(layout: &Layout) -> Vec<Row> {
        layout.describe()
    }

    fn lasting_ram(part: AddressRange) -> Vec<AddressRange> {
        firmware::lasting_ram(part)
    }

    fn assemble(
        config: &Config,
        plan: &Plan<Self>,
        vm: &Arc<dyn Vm<Self>>,
        interrupts: Interrupts,
        services: Services,
        ram: Arc<Backing>,
        ejected: Ejected,
    ) -> Result<Arc<Board>, Error> {
        let Services { clock, requests, serial, memory: map, firmware: files } = services;
        let external = Arc::new(ExternalInterrupt::default());
        let wire = LineDescription { number: 0, trigger: Trigger::Level, polarity: Polarity::High };
        let pic = Arc::new(I8259::new(I8259Config { intr: IrqLine::to(external.clone(), wire) }));
        let pins = gsi::COUNT as usize;
        let apics = interrupts.apics;
        let ioapic = Arc::new(IoApic::new(IoApicConfig { apics: apics.clone(), pins, id: IOAPIC_ID }));
        let gsis = Arc::new(GsiLines::new(pic.clone(), ioapic.clone()));
        let lines = LineTable::new(gsis, 0..=gsi::COUNT - 1);
        let edge = |number| lines.line(number, Trigger::Edge, Polarity::High);
        let level = |number| lines.line(number, Trigger::Level, Polarity::High);

        let memory_space = AddressSpace::memory();
        memory_space.map("ioapic", layout::IOAPIC.base, ioapic::SIZE, 0, ioapic.clone())?;
        let mut ports = Ports { space: AddressSpace::ports(), components: Vec::new() };
        ports.components.push(("ioapic".to_owned(), ioapic.clone()));
        ports.add("i8259", &i8259::PORTS, pic.clone())?;
        let pit = I8254::new(I8254Config { irq: edge(gsi::TIMER)?, clock: clock.clone() });
        ports.add("i8254", &i8254::PORTS, pit)?;
        let (low, high): (Vec<_>, Vec<_>) = plan.ram.iter().partition(|part| part.base < layout::HIGH_RAM_BASE);
        let size = |parts: Vec<&AddressRange>| parts.into_iter().map(|part| part.size).sum();
        let mut memory = rtc::memory_size(size(low), size(high));
        if files.is_some() {
            // How many vCPUs there are besides the first.
            memory.push((0x5f, u8::try_from(config.cpus.count.saturating_sub(1)).unwrap_or(u8::MAX)));
        }
        let rtc = Rtc::new(RtcConfig { irq: edge(gsi::RTC)?, clock: clock.clone(), memory });
        ports.add("rtc", &rtc::PORTS, rtc)?;
        let keyboard_controller = I8042::new(I8042Config {
            keyboard_irq: edge(gsi::KEYBOARD)?,
            auxiliary_irq: edge(gsi::MOUSE)?,
            requests: requests.clone(),
        });
        ports.add("i8042", &i8042::PORTS, Arc::new(keyboard_controller))?;
        ports.add("port92", &[port92::PORTS], Arc::new(Port92::new(requests.clone())))?;
        let reset_control = Arc::new(ResetControl::new(requests.clone()));
        ports.components.push(("reset-control".to_owned(), reset_control.clone()));
        // Firmware places it.
        let base = files.is_none().then_some(layout::port::PM.base as u16);
        let pm_config = PmConfig { sci: level(gsi::SCI)?, clock: clock.clone(), requests: requests.clone(), base };
        let pm = Pm::new(pm_config);
        ports.add("pm", &[pm::APM_PORTS], pm.clone())?;
        let uart = Uart16550::new(Uart16550Config { irq: edge(gsi::COM1)?, clock: clock.clone(), out: serial });
        let com1 = layout::port::COM1;
        let com1 = PortRange { base: com1.base as u16, size: uart16550::PORT_COUNT as u16, region: 0 };
        ports.add("uart16550", &[com1], uart.clone())?;
        // These two hold no state.
        ports.map("pvpanic", &[pvpanic::PORTS], Arc::new(PvPanic::new(requests.clone())))?;
        ports.map("debugcon", &[debugcon::PORTS], Arc::new(DebugCon::new()))?;

        // After those who have lines of ISA: tables call a line as its first holder does.
        let router = Arc::new(PirqRouter::new(&lines, gsi::PCI_FIRST)?);
        let pci = Pci::new(vm.clone(), map.clone(), apics, router.lines(), ejected);
        let (mch, lpc) = (Arc::new(Mch::default()), Arc::new(LpcBridge::new(base, router)));
        pci.root.add_chipset(MCH, mch.clone())?;
        pci.root.add_chipset(LPC, lpc.clone())?;
        let config_ports = Arc::new(ConfigPorts { root: pci.root.clone(), reset_control });
        let range = layout::port::PCI_CONFIG;
        ports.space.map("pci-config", range.base, range.size, 0, config_ports)?;
        ports.components.push(("pci".to_owned(), pci.root.clone()));
        let firmware = files
            .map(|files| {
                let (posting, clock) = (vm.posted_writes(), clock.clone());
                let firmware = Firmware { files, ram, posting, clock };
                FirmwareBoard::new(config, plan, &map, firmware)
            })
            .transpose()?;
        if let Some(firmware) = &firmware {
            mch.on_smm_wanted(move || requests.send(MachineRequest::SmmWanted));
            let range = layout::port::FW_CFG;
            ports.space.map("fw_cfg", range.base, range.size, firmware::FW_CFG_REGION, firmware.fw_cfg.clone())?;
            ports.components.push(("fw_cfg".to_owned(), firmware.fw_cfg.clone()));
            if let Some(flash) = &firmware.flash {
                let base = flash.base();
                memory_space.map("flash", base, flash.size(), 0, flash.clone())?;
                ports.components.push(("flash".to_owned(), flash.clone()));
            }
        }

        let Ports { space: port_space, components } = ports;
        let board = Arc::new(Board {
            memory_space,
            port_space,
            pic,
            ioapic,
            uart,
            external,
            components,
            lines,
            pci,
            mch,
            lpc,
            pm,
            firmware,
        });
        if let Some(firmware) = &board.firmware {
            let (this, plan) = (Arc::downgrade(&board), plan.clone());
            firmware.fw_cfg.set_late(Box::new(move || match this.upgrade().map(|board| tables(&plan, &board)) {
                Some(Ok(tables)) => late(tables),
                Some(Err(error)) => {
                    tracing::error!(%error, "firmware gets no ACPI tables");
                    Vec::new()
                }
                None => Vec::new(),
            }));
        }
        Self::relocate(&board);
        Ok(board)
    }

    fn remap(board: &Board) {
        if let Some(firmware) = &board.firmware {
            firmware.remap(&board.mch);
        }
    }

    fn relocate(board: &Board) {
        let fixed = || {
            board.pm.place(board.lpc.pm_base());
            let ecam = board.mch.ecam().map(|(base, size)| Mapping {
                name: "ECAM".to_owned(),
                space: Space::Memory,
                base,
                size,
                region: ECAM_REGION,
                device: board.pci.root.clone(),
                doorbells: Vec::new(),
            });
            let pm = board.pm.range().map(|range| Mapping {
                name: "pm".to_owned(),
                space: Space::Io,
                base: range.base.into(),
                size: range.size.into(),
                region: range.region,
                device: board.pm.clone(),
                doorbells: Vec::new(),
            });
            let shadow = board.firmware.as_ref().map(|firmware| firmware.mappings(&board.mch));
            ecam.into_iter().chain(pm).chain(shadow.into_iter().flatten()).collect()
        };
        board.pci.update(&board.memory_space, IoSpace::Ports(&board.port_space), fixed);
        Self::remap(board);
    }

    fn pci(board: &Board) -> &Arc<RootComplex> {
        &board.pci.root
    }

    fn place(plan: &Plan<Self>, board: &Board) -> Result<(), Error> {
        board.mch.set_ecam(layout::ECAM.base);
        board.pci.root.place(&Windows {
            io: window(layout::port::PCI_IO),
            memory32: window(layout::PCI_MMIO32),
            memory64: window(plan.layout.pci_mmio64),
        })?;
        Self::relocate(board);
        Ok(())
    }

    fn io(board: &Arc<Board>, index: u32) -> BoxedIo<Self> {
        Box::new(VcpuIo { board: board.clone(), is_first: index == 0 })
    }

    fn load(
        config: &Config,
        plan: &Plan<Self>,
        board: &Board,
        memory: &MemoryMap,
        files: &mut KernelFiles,
        memory_is_zero: bool,
    ) -> Result<BootState, Error> {
        let ram = memory.ram();
        let tables = acpi::link(tables(plan, board)?);
        let failed = load_error(&files.path);
        let too_small = || Error::Tables("low memory has no room for them: give the guest more by --memory".to_owned());
        let place = plan.layout.acpi_tables(tables.tables.bytes.len() as u64).ok_or_else(too_small)?;
        let (bytes, rsdp) = tables.place(place.base).map_err(|e| Error::Tables(e.to_string()))?;
        for (bytes, gpa) in [(&bytes, place.base), (&rsdp, layout::ACPI.base)] {
            ram.write_slice(bytes, GuestAddress(gpa)).map_err(|e| Error::Tables(e.to_string()))?;
        }
        let setup = Setup {
            layout: &plan.layout,
            cmdline: &files.cmdline,
            tables: Some(place),
            rsdp: Some(layout::ACPI.base),
            rng_seed: Some(rng_seed(config)?),
            protocol: None,
            memory_is_zero,
        };
        let entry = boot::load(&files.kernel, &mut files.file, files.initrd.as_mut(), &*ram, &setup).map_err(failed)?;
        Ok(entry.boot_state())
    }

    fn start_firmware(
        _config: &Config,
        _plan: &Plan<Self>,
        _board: &Board,
        _memory: &MemoryMap,
    ) -> Result<Option<BootState>, Error> {
        // The processor's reset vector is firmware's.
        Ok(None)
    }

    fn press_power_button(board: &Board) -> bool {
        board.pm.press_power_button()
    }

    fn flash(board: &Board) -> Option<&Arc<Flash>> {
        board.firmware.as_ref()?.flash.as_ref()
    }

    fn renew_generation(board: &Board, memory: &MemoryMap) -> Result<bool, Error> {
        let Some(firmware) = &board.firmware else { return Ok(false) };
        let renewed = renew_generation(&firmware.fw_cfg, memory)?;
        if renewed {
            board.pm.raise_gpe(layout::GENERATION_EVENT);
        }
        Ok(renewed)
    }

    fn components(board: &Board) -> &[Named] {
        &board.components
    }

    fn reset_interrupts(_board: &Board) -> Result<(), Error> {
        // The local APICs are the vCPUs', and the others are components.
        Ok(())
    }

    fn serial(board: &Board) -> Arc<dyn SerialPort> {
        board.uart.clone()
    }

    fn meet(board: &Board, first: &mut dyn Vcpu<Self>) {
        // It takes external interrupts. A machine has one first vCPU for its whole life.
        let _ = board.external.first.set(first.kicker());
    }
}

/// The I/O APIC's inputs of PCI's interrupt pins, by global system interrupt.
fn intx_of(lines: &LineTable) -> impl Fn(u32) -> Result<IrqLine, skep_irq::IrqError> {
    |number| lines.line(number, Trigger::Level, Polarity::Low)
}

/// The port space while it is filled.
struct Ports {
    space: AddressSpace,
    components: Vec<Named>,
}

impl Ports {
    fn add<D: Device + Component + 'static>(
        &mut self,
        name: &str,
        ranges: &[PortRange],
        device: Arc<D>,
    ) -> Result<(), Error> {
        self.map(name, ranges, device.clone())?;
        self.components.push((name.to_owned(), device));
        Ok(())
    }

    fn map(&self, name: &str, ranges: &[PortRange], device: Arc<dyn Device>) -> Result<(), Error> {
        for range in ranges {
            self.space.map(name, range.base.into(), range.size.into(), range.region, device.clone())?;
        }
        Ok(())
    }
}

/// The ACPI tables of the machine, which tell where firmware has put what it places.
fn tables(plan: &Plan<X86_64>, board: &Board) -> Result<Vec<acpi::Table>, Error> {
    let line = |number, trigger| Ok::<_, Error>(board.lines.line(number, trigger, Polarity::High)?.description());
    let com1 = SerialConsole {
        kind: SerialKind::Ns16550,
        registers: layout::port::COM1,
        line: line(gsi::COM1, Trigger::Edge)?,
    };
    let mut dsdt = Dsdt::new();
    let firmware = board.firmware.is_some();
    let ecam = board.mch.ecam().filter(|_| firmware).map_or(layout::ECAM, |(base, size)| AddressRange::new(base, size));
    let mut memory32 = vec![layout::PCI_MMIO32];
    let mut memory64 = plan.layout.pci_mmio64;
    if firmware {
        dsdt.device(&devices::FwCfg(devices::Registers::Ports(layout::port::FW_CFG)));
        dsdt.device(&devices::Generation);
        dsdt.root(&devices::GenerationEvent { number: layout::GENERATION_EVENT });
        memory32 = layout::pci_mmio32_around(plan.layout.low_ram(), ecam);
        if let Some((first, last)) = board.pci.root.memory64() {
            let base = first & !(GIB - 1);
            memory64 = AddressRange::between(base, (last | (GIB - 1)).saturating_add(1).max(base));
        }
    }
    dsdt.device(&devices::Serial { kind: com1.kind, number: 1, registers: com1.registers, line: com1.line });
    dsdt.device(&devices::CmosRtc { ports: layout::port::RTC, line: line(gsi::RTC, Trigger::Edge)? });
    dsdt.device(&devices::Pvpanic(devices::Registers::Ports(AddressRange::new(pvpanic::PORTS.base.into(), 1))));
    let intx = (gsi::PCI_FIRST..gsi::COUNT).map(intx_of(&board.lines)).map(|line| Ok(line?.description()));
    let intx = intx.collect::<Result<Vec<_>, Error>>()?;
    dsdt.device(&PciHost {
        ecam: board.pci.buses(ecam),
        config_ports: Some(layout::port::PCI_CONFIG),
        io: &layout::port::PCI_FORWARDED,
        io_offset: 0,
        memory32: &memory32,
        memory64,
        lines: &intx,
        lpc_bridge: Some(LPC),
    });
    let present = plan.vcpus.len();
    let cpu = |(index, apic_id): (usize, &u64)| Cpu { apic_id: *apic_id as u32, present: index < present };
    let cpus: Vec<_> = plan.possible.iter().enumerate().map(cpu).collect();
    let mut power = PowerManagement::default();
    if firmware {
        power.base = board.pm.range().map_or(power.base, |range| range.base);
        power.smi_command = Some(SMI_COMMAND);
    }
    let platform = skep_arch::x86_64::acpi::Platform {
        cpus: &cpus,
        ioapic_id: IOAPIC_ID,
        overrides: &OVERRIDES,
        power,
        legacy: Legacy { i8042: false, vga: false, cmos_rtc: true, aspm: false },
        console: Some(com1),
        ecam: &[Ecam { segment: 0, region: board.pci.buses(ecam) }],
    };
    Ok(skep_arch::x86_64::acpi::tables(&platform, dsdt))
}

/// What an x86_64 vCPU calls back into.
struct VcpuIo {
    board: Arc<Board>,
    is_first: bool,
}

impl MemoryIo for VcpuIo {
    fn memory_read(&mut self, gpa: u64, data: &mut [u8]) {
        if !self.board.memory_space.read(gpa, data) {
            tracing::debug!("the guest reads {} bytes at {gpa:#x}, where nothing is", data.len());
        }
    }

    fn memory_write(&mut self, gpa: u64, data: &[u8]) {
        match self.board.memory_space.write(gpa, data) {
            Some(Action::None) => {}
            Some(Action::Remap) => X86_64::remap(&self.board),
            Some(Action::Relocate) => X86_64::relocate(&self.board),
            None => tracing::debug!("the guest writes {} bytes at {gpa:#x}, where nothing is", data.len()),
        }
    }
}

impl Io for VcpuIo {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        if !self.board.port_space.read(port.into(), data) {
            tracing::debug!("the guest reads {} bytes at port {port:#x}, where nothing is", data.len());
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        match self.board.port_space.write(port.into(), data) {
            Some(Action::None) => {}
            Some(Action::Remap) => X86_64::remap(&self.board),
            Some(Action::Relocate) => X86_64::relocate(&self.board),
            None => tracing::debug!("the guest writes {data:02x?} to port {port:#x}, where nothing is"),
        }
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.board.ioapic.end_of_interrupt(vector);
    }

    fn external_interrupt(&self) -> bool {
        self.is_first && self.board.external.asserted.load(Ordering::Acquire)
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.external_interrupt().then(|| self.board.pic.acknowledge())
    }
}
