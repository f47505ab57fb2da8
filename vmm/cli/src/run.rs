//! `skep run`, `skep hello` and `skep check`.

use std::path::Path;
use std::time::Instant;

use skep_arch::kernel::KernelError;
use skep_arch::layout::Row;
use skep_block::Locking;
use skep_config::{Action, ArchKind, Config, Device};
use skep_guests::{HELLO_AARCH64, HELLO_X86_64};
use skep_vmm::boot::BootFiles;
use skep_vmm::console::refuse_inputs;
use skep_vmm::machine::Machine;
use skep_vmm::monitor::Start;
use skep_vmm::run::StopReason;
use skep_vmm::{Ending, Error, monitor};

use crate::args::{CheckArgs, HelloArgs, RunArgs};
use crate::exit::{Exit, Failure};
use crate::{log, pages, report, stats};

/// Runs the machine of the flags and the file, or prints what is asked for instead.
pub(crate) fn run(args: RunArgs, started: Instant) -> Result<Exit, Failure> {
    let config_file = args.flags.config.clone();
    let config = args.flags.config(host()?)?;
    log::start(config.log, started);
    if args.dump_config {
        pages::print(config.to_toml()?.as_bytes())?;
        return Ok(Exit::Done);
    }
    if args.print_layout {
        let layout = Machine::layout(&config, &skep_kvm::open()?)?;
        pages::print(layout_text(&layout).as_bytes())?;
        return Ok(Exit::Done);
    }
    let files = open(&config, config_file.as_deref(), true)?;
    if let Some(caveat) = skep_kvm::caveat() {
        tracing::warn!("{caveat}");
    }
    finish(&config, files, started)
}

/// Boots the guest that is built in.
pub(crate) fn hello(args: HelloArgs, started: Instant) -> Result<Exit, Failure> {
    let mut config = Config::new(host()?);
    // It resets when it is asked to, to show that it can.
    config.on.reset = Action::Exit;
    // It has no driver for it.
    config.device = vec![Device::rng(false)];
    args.machine.apply(&mut config);
    config.finish()?;
    log::start(config.log, started);
    let image = match config.arch() {
        ArchKind::X86_64 => HELLO_X86_64,
        ArchKind::Aarch64 => HELLO_AARCH64,
    };
    let files = BootFiles::embedded("the guest that is built in", image, &args.words.join(" "))?;
    finish(&config, files, started)
}

/// Checks everything that can be checked without a hypervisor.
pub(crate) fn check(args: CheckArgs) -> Result<Exit, Failure> {
    let config_file = args.flags.config.clone();
    let config = args.flags.config(host()?)?;
    let boots = match open(&config, config_file.as_deref(), false)? {
        BootFiles::Kernel(files) => format!("kernel {}", files.kernel.info().format.name()),
        BootFiles::Firmware(_) => "firmware".to_owned(),
    };
    let text = format!("machine {} ({}), {boots}: the config is sound\n", config.machine, config.arch());
    pages::print(text.as_bytes())?;
    Ok(Exit::Done)
}

pub(crate) fn host() -> Result<ArchKind, Failure> {
    ArchKind::host().ok_or(Failure::Host)
}

/// Opens the files that the config names, and refuses a kernel for the other architecture, and output to one of the files.
fn open(config: &Config, config_file: Option<&Path>, run: bool) -> Result<BootFiles, Failure> {
    let boot = &config.boot;
    let inputs = [
        ("kernel", boot.kernel.as_deref()),
        ("initramfs", boot.initrd.as_deref()),
        ("device tree", boot.dtb.as_deref()),
        ("firmware", boot.firmware.as_deref()),
        ("firmware's variables", boot.firmware_vars.as_ref().map(|vars| vars.file.as_path())),
    ];
    let inputs = inputs.into_iter().chain([("config file", config_file)]);
    refuse_inputs(&config.serial, inputs.filter_map(|(role, path)| Some((role, path?)))).map_err(Error::Console)?;
    let files =
        BootFiles::open(&config.boot.source()?, config.arch(), if run { Locking::Now } else { Locking::Never })?;
    if let BootFiles::Kernel(files) = &files {
        let kernel = files.kernel.info().architecture;
        if kernel != config.arch() {
            let source = KernelError::WrongArchitecture { kernel: kernel.name(), machine: config.arch() };
            return Err(Error::Kernel { path: files.path.clone(), source }.into());
        }
    }
    Ok(files)
}

fn finish(config: &Config, files: BootFiles, started: Instant) -> Result<Exit, Failure> {
    begin(config, Start::Boot(Box::new(files)), started)
}

/// Runs a machine to its end, and tells of it.
pub(crate) fn begin(config: &Config, start: Start, started: Instant) -> Result<Exit, Failure> {
    let outcome = monitor::run(config, &skep_kvm::open()?, start, started)?;
    conclude(&outcome.ending);
    if config.stats {
        report::say(&stats::text(&outcome));
    }
    Ok(Exit::from(&outcome.ending))
}

/// Tells how the machine ended, where that is not what its guest or its user meant.
fn conclude(ending: &Ending) {
    match ending {
        Ending::PowerOff | Ending::Moved | Ending::Stopped(StopReason::Console | StopReason::Control) => {}
        Ending::Reset => report::say("skep: the guest asked for a reset\n"),
        Ending::Panic => report::say("skep: the guest's kernel panicked\n"),
        Ending::TripleFault { vcpu } => report::say(&format!("skep: vCPU {vcpu} shut down after a triple fault\n")),
        Ending::Stopped(StopReason::Signal(number)) => report::say(&format!("skep: ended by signal {number}\n")),
        Ending::Failed(error) => {
            if let Some(registers) = error.registers() {
                tracing::error!("the registers at the failure:\n{registers}");
            }
            report::print(error);
        }
    }
}

fn layout_text(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}
