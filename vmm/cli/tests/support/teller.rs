//! Between a disk's vhost-user backend and its front end: it shows the disk smaller than it is, until the test lets it grow, and tells the front end of
//! that, which not all backends do. All else passes.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

const HEADER: usize = 12;
/// Descriptors that one message can carry.
const MOST_FDS: usize = 8;
/// `VHOST_USER_SET_BACKEND_REQ_FD` and `VHOST_USER_GET_CONFIG`, and the bytes of the latter's answer before the configuration space.
const SET_CHANNEL: u32 = 21;
const GET_CONFIG: u32 = 24;
const BEFORE_CONFIG: usize = 12;
/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, of the protocol's version 1, without a body.
const CHANGED: [u32; 3] = [2, 1, 0];

#[derive(Default)]
struct Shared {
    /// Sectors at most.
    most: u64,
    /// The channel by which a backend speaks of its own accord.
    channel: Option<UnixStream>,
}

/// What stands between.
pub struct Teller(Arc<Mutex<Shared>>);

impl Teller {
    /// Listens at `socket` for one front end, and passes on what it and the backend at `backend` say. No more than `most` sectors are shown.
    pub fn start(socket: &Path, backend: PathBuf, most: u64) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let shared = Arc::new(Mutex::new(Shared { most, channel: None }));
        let theirs = shared.clone();
        thread::spawn(move || {
            let (front, _) = listener.accept().unwrap();
            let back = UnixStream::connect(backend).unwrap();
            let (to, from) = (back.try_clone().unwrap(), front.try_clone().unwrap());
            let of_front = theirs.clone();
            thread::spawn(move || pass(&from, &to, &of_front, false));
            pass(&back, &front, &theirs, true);
        });
        Self(shared)
    }

    /// Shows the whole disk, and says so.
    pub fn grow(&self) {
        let mut shared = self.0.lock().unwrap();
        shared.most = u64::MAX;
        let message: Vec<u8> = CHANGED.iter().flat_map(|word| word.to_le_bytes()).collect();
        shared.channel.as_ref().unwrap().write_all(&message).unwrap();
    }
}

/// Passes messages on until one side is closed.
fn pass(from: &UnixStream, to: &UnixStream, shared: &Mutex<Shared>, answers: bool) {
    while let Some((mut message, fds)) = receive(from) {
        let request = u32::from_le_bytes(message[..4].try_into().unwrap());
        let mut shared = shared.lock().unwrap();
        if answers && request == GET_CONFIG {
            // The capacity is the first that a disk's configuration space has.
            let capacity = &mut message[HEADER + BEFORE_CONFIG..][..8];
            let sectors = u64::from_le_bytes((&*capacity).try_into().unwrap());
            capacity.copy_from_slice(&sectors.min(shared.most).to_le_bytes());
        } else if !answers && request == SET_CHANNEL {
            shared.channel = Some(fds[0].try_clone().unwrap().into());
        }
        drop(shared);
        if send(to, &message, &fds).is_none() {
            break;
        }
    }
    for side in [from, to] {
        // The other direction may have closed it.
        let _ = side.shutdown(Shutdown::Both);
    }
}

fn receive(mut from: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut message)], &mut control, flags).ok()?.bytes;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let fds = rights.flatten().collect();
    from.read_exact(&mut message[got..]).ok()?;
    let size = u32::from_le_bytes(message[8..].try_into().unwrap());
    message.resize(HEADER + size as usize, 0);
    from.read_exact(&mut message[HEADER..]).ok()?;
    Some((message, fds))
}

fn send(mut to: &UnixStream, message: &[u8], fds: &[OwnedFd]) -> Option<()> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(borrowed.is_empty() || control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    let sent = sendmsg(to, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).ok()?;
    to.write_all(&message[sent..]).ok()
}
