//! Devices besides disks and network cards.

use std::io;
use std::path::Path;
use std::sync::Arc;

use skep_config::{Config, Device, DeviceKind};
use skep_virtio::{Balloon, Console, PortConfig, Rng, VhostUserKind, VirtioDevice, Vsock};

use super::{DeviceError, Site, named, port, vhost_user};
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
        DeviceKind::Fs { socket, tag, queues, .. } => {
            vhost_user::connect(site, id, socket, VhostUserKind::Fs { tag: tag.clone() }, *queues)?
        }
        DeviceKind::Rng { .. } => Rng::new(id).map_err(thread)?,
        DeviceKind::Balloon { deflate_on_oom } => {
            let balloon = Balloon::new(id, *deflate_on_oom).map_err(thread)?;
            site.devices.lock().balloon = Arc::downgrade(&balloon);
            balloon
        }
        DeviceKind::Console { socket, ports } => {
            let console = Console::new(id, console_ports(socket, ports)?).map_err(thread)?;
            site.devices.lock().console = Arc::downgrade(&console);
            console
        }
        DeviceKind::Vsock { socket, cid } => Vsock::new(id, u64::from(*cid), socket).map_err(|source| {
            let there = source.kind() == io::ErrorKind::AddrInUse;
            let mend = if there { " (something is there: remove it, or choose another path)" } else { "" };
            DeviceError::Host { what: format!("listen at `{}`{mend}", socket.display()), source }
        })?,
    };
    site.push_virtio(id, &socket, made, None, Vec::new())
}

/// A terminal at `socket`, and a pipe for each name, at a socket with that behind it.
fn console_ports(socket: &Path, names: &[String]) -> Result<Vec<PortConfig>, DeviceError> {
    let port = |name: &str, console: bool, path: &Path| -> Result<PortConfig, DeviceError> {
        Ok(PortConfig { name: name.to_owned(), console, io: Box::new(port::open(path)?) })
    };
    let mut ports = vec![port("console", true, socket)?];
    for name in names {
        let mut path = socket.as_os_str().to_owned();
        path.push(format!("_{name}"));
        ports.push(port(name, false, Path::new(&path))?);
    }
    Ok(ports)
}
