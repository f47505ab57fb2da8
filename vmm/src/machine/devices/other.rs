//! Devices besides disks and network cards.

use std::io;
use std::sync::Arc;

use skep_config::{Config, Device, DeviceKind};
use skep_virtio::{Balloon, Rng, VirtioDevice, Vsock};

use super::{DeviceError, Site, named};
use crate::Error;

/// Makes the other devices of `config`.
pub(super) fn add(site: Site<'_>, config: &Config) -> Result<(), Error> {
    for device in config.device.iter().filter(|device| device.is_present()) {
        add_one(site, device).map_err(named(device.kind.name()))?;
    }
    Ok(())
}

fn add_one(site: Site<'_>, device: &Device) -> Result<(), DeviceError> {
    let id = device.kind.name();
    let socket = site.socket(device.place)?;
    let thread = |source| DeviceError::Host { what: "start a device's thread".to_owned(), source };
    let made: Arc<dyn VirtioDevice> = match &device.kind {
        DeviceKind::Rng { .. } => Rng::new(id).map_err(thread)?,
        DeviceKind::Balloon { deflate_on_oom } => Balloon::new(id, *deflate_on_oom).map_err(thread)?,
        DeviceKind::Vsock { socket, cid } => Vsock::new(id, u64::from(*cid), socket).map_err(|source| {
            let there = source.kind() == io::ErrorKind::AddrInUse;
            let mend = if there { " (something is there: remove it, or choose another path)" } else { "" };
            DeviceError::Host { what: format!("listen at `{}`{mend}", socket.display()), source }
        })?,
    };
    site.push_virtio(id, &socket, made, None, Vec::new())
}
