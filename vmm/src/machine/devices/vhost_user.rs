//! Devices whose backend is another program.

use std::path::Path;
use std::sync::Arc;

use skep_virtio::vhost_user::PATIENCE;
use skep_virtio::{VhostUser, VhostUserConfig, VhostUserKind, VirtioDevice};

use super::{DeviceError, Site};

/// Connects to the backend at `socket`, which follows guest memory from now on.
pub(super) fn connect(
    site: Site<'_>,
    id: &str,
    socket: &Path,
    kind: VhostUserKind,
    queues: u16,
) -> Result<Arc<dyn VirtioDevice>, DeviceError> {
    let config = VhostUserConfig { name: id.to_owned(), socket: socket.to_owned(), kind, queues, patience: PATIENCE };
    let device = VhostUser::new(&config)?;
    site.memory.listen(device.listener())?;
    Ok(device)
}
