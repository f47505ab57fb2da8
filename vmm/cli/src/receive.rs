//! `skep receive`.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueHint};
use skep_config::Config;
use skep_vmm::migrate::{Address, Listener};
use skep_vmm::monitor::{self, Start};

use crate::exit::{Exit, Failure};
use crate::snapshot::{Here, keep_variables};
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
    #[command(flatten)]
    here: Here,
    /// Keep the firmware's variables in this file: one that holds what they are, or one that is made
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    firmware_vars: Option<PathBuf>,
}

/// Waits for a machine, and runs it.
pub(crate) fn receive(args: ReceiveArgs, started: Instant) -> Result<Exit, Failure> {
    run::host()?;
    log::start(args.here.log(), started);
    let listener = Listener::bind(&args.at)?;
    let place = match (&args.at, listener.port()) {
        (Address::Tcp(place), Some(port)) => format!("tcp:{}:{port}", place.rsplit_once(':').map_or("", |it| it.0)),
        (at, _) => at.to_string(),
    };
    report::say(&format!("skep: waiting for a machine at {place}\n"));
    let adjust = |config: &mut Config| {
        if let Some(file) = &args.firmware_vars {
            keep_variables(config, file)?;
        }
        Ok(args.here.apply(config)?)
    };
    let hypervisor = skep_kvm::open()?;
    let arrival = monitor::receive(listener, &hypervisor, &adjust)?;
    let config = arrival.config.clone();
    run::begin(&config, Start::Arrival(Box::new(arrival)), started)
}
