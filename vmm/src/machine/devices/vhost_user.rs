//! Devices whose backend is another program.

use std::path::Path;
use std::sync::Arc;

use skep_virtio::net::VhostUserNet;
use skep_virtio::vhost_user::PATIENCE;
use skep_virtio::{VhostUser, VhostUserConfig, VhostUserKind, VirtioDevice};

use super::{DeviceError, Site};

fn config(id: &str, socket: &Path, kind: VhostUserKind, queues: u16) -> VhostUserConfig {
    VhostUserConfig { name: id.to_owned(), socket: socket.to_owned(), kind, queues, patience: PATIENCE }
}

/// Connects to the backend at `socket`, which follows guest memory from now on.
pub(super) fn connect(
    site: Site<'_>,
    id: &str,
    socket: &Path,
    kind: VhostUserKind,
    queues: u16,
) -> Result<Arc<dyn VirtioDevice>, DeviceError> {
    let device = VhostUser::new(&config(id, socket, kind, queues))?;
    site.memory.listen(device.listener())?;
    Ok(device)
}

/// The same for the frames of a network card.
pub(super) fn connect_card(
    site: Site<'_>,
    id: &str,
    socket: &Path,
    pairs: u16,
    mac: [u8; 6],
) -> Result<Arc<dyn VirtioDevice>, DeviceError> {
    let card = VhostUserNet::new(&config(id, socket, VhostUserKind::Net, pairs), mac)?;
    site.memory.listen(card.backend().listener())?;
    Ok(card)
}
