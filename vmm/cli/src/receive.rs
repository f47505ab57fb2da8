//! `skep receive`.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueHint};
use skep_config::{Config, LogLevel, Serial};
use skep_vmm::migrate::{Address, Listener};
use skep_vmm::monitor::{self, Start};

use crate::exit::{Exit, Failure};
use crate::snapshot::{Instead, connect, replace};
use crate::{log, report, run};

pub(crate) const EXAMPLES: &str = "\
Examples:
  skep receive tcp:0.0.0.0:4444 --control vm.sock
          on the host that the machine goes to
  skep ctl vm.sock migrate tcp:192.0.2.7:4444
          on the host that it comes from
  skep receive unix:vm.move --disk disk0=/mnt/vm/disk.img
          a machine whose disk has another path here: the same image, or a copy that is held the same";

#[derive(Debug, Args)]
pub(crate) struct ReceiveArgs {
    /// Where to wait for it
    #[arg(value_name = "unix:PATH|tcp:HOST:PORT")]
    at: Address,
    /// Listen at this Unix socket for `skep ctl`, when the machine has come
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,
    /// Where the first serial port leads, as for `skep run`
    #[arg(long, value_name = "stdio|file=FILE|pty|socket=PATH|none")]
    serial: Option<Serial>,
    /// Use another path for a disk's image
    #[arg(long, value_name = "ID=FILE")]
    disk: Vec<Instead>,
    /// Connect a network card to another tap interface
    #[arg(long, value_name = "ID=TAP")]
    tap: Vec<Instead>,
    /// How much is logged
    #[arg(long)]
    log: Option<LogLevel>,
    /// Print exits by kind and the time to the first instruction at the end
    #[arg(long)]
    stats: bool,
}

/// Waits for a machine, and runs it.
pub(crate) fn receive(args: ReceiveArgs, started: Instant) -> Result<Exit, Failure> {
    run::host()?;
    log::start(args.log.unwrap_or_default(), started);
    let listener = Listener::bind(&args.at)?;
    let place = match (&args.at, listener.port()) {
        (Address::Tcp(place), Some(port)) => format!("tcp:{}:{port}", place.rsplit_once(':').map_or("", |it| it.0)),
        (at, _) => at.to_string(),
    };
    report::say(&format!("skep: waiting for a machine at {place}\n"));
    let adjust = |config: &mut Config| {
        config.control.clone_from(&args.control);
        config.serial = args.serial.clone().unwrap_or_default();
        config.log = args.log.unwrap_or_default();
        config.stats = args.stats;
        connect(config, &args.tap)?;
        Ok(replace(config, &args.disk)?)
    };
    let hypervisor = skep_kvm::open()?;
    let arrival = monitor::receive(listener, &hypervisor, &adjust)?;
    let config = arrival.config.clone();
    run::begin(&config, Start::Arrival(Box::new(arrival)), started)
}
