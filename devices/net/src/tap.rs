//! Tap interfaces.
#![allow(unsafe_code)] // The ioctls of /dev/net/tun.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::NetError;
use crate::guest;
use crate::link::{GuestSlice, HEADER, Link, LinkInfo, LinkQueue, Offloads, announcement};

const TUN: &str = "/dev/net/tun";

/// A queue pair of the interface.
struct Queue {
    file: Arc<File>,
    open: bool,
    attached: bool,
}

/// A tap interface of the host.
pub struct Tap {
    name: String,
    offloads: Offloads,
    queues: Mutex<Vec<Queue>>,
}

fn request(name: &str, flags: i32) -> libc::ifreq {
    // SAFETY: an ifreq of zeroes is an empty name and empty values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

/// An ioctl that takes an interface request.
fn interface_ioctl(file: &File, command: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the request lives during the call.
    done(unsafe { libc::ioctl(file.as_raw_fd(), command, &raw mut *request) })
}

/// An ioctl that takes the address of a number.
fn number_ioctl(file: &File, command: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: as above.
    done(unsafe { libc::ioctl(file.as_raw_fd(), command, &raw const value) })
}

/// An ioctl that takes a number itself.
fn value_ioctl(file: &File, command: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: no memory is passed.
    done(unsafe { libc::ioctl(file.as_raw_fd(), command, value) })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel's `TUN_F_` flags.
fn tun_flags(offloads: Offloads) -> libc::c_ulong {
    // Its bits are those of the kernel; without the checksum none of the others is taken.
    if offloads.contains(Offloads::CHECKSUM) { offloads.bits().into() } else { 0 }
}

impl Tap {
    /// Opens the interface `name`, which is made if it isn't there and the user may, with `queues` queue pairs.
    ///
    /// # Errors
    /// [`NetError::Name`], or [`NetError::Tap`] where the host refuses.
    pub fn open(name: &str, queues: u16) -> Result<Self, NetError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('/') {
            return Err(NetError::Name(name.to_owned()));
        }
        let count = queues.max(1);
        let queue = |_| {
            Self::open_file(name, count > 1).map(|file| Queue { file: Arc::new(file), open: false, attached: true })
        };
        let queues = (0..count).map(queue).collect::<Result<Vec<_>, _>>()?;
        // Segmentation of UDP came later to the kernel than the rest.
        let segments = Offloads::TSO4 | Offloads::TSO6 | Offloads::TSO_ECN;
        let candidates = [Offloads::all(), Offloads::CHECKSUM | segments, Offloads::CHECKSUM];
        let takes = |offloads: &Offloads| {
            let first = queues.first();
            first.is_some_and(|queue| value_ioctl(&queue.file, libc::TUNSETOFFLOAD, tun_flags(*offloads)).is_ok())
        };
        let offloads = candidates.into_iter().find(takes).unwrap_or_default();
        let tap = Self { name: name.to_owned(), offloads, queues: Mutex::new(queues) };
        tap.set_offloads(Offloads::empty())?;
        Ok(tap)
    }

    fn open_file(name: &str, several: bool) -> Result<File, NetError> {
        let refused = |what, mend| move |source| NetError::Tap { what, name: name.to_owned(), source, mend };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options
            .open(TUN)
            .map_err(refused("open /dev/net/tun for", " (is the module `tun` loaded, and may this user open it?)"))?;
        let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
        let mend = " (make it for this user: ip tuntap add mode tap user NAME, with `multi_queue` if there are several queue pairs)";
        interface_ioctl(&file, libc::TUNSETIFF, &mut request(name, flags)).map_err(refused("attach to", mend))?;
        number_ioctl(&file, libc::TUNSETVNETHDRSZ, HEADER as i32).map_err(refused("set the header of", ""))?;
        number_ioctl(&file, libc::TUNSETVNETLE, 1).map_err(refused("set the byte order of", ""))?;
        Ok(file)
    }

    fn refused(&self, what: &'static str) -> impl Fn(io::Error) -> NetError + '_ {
        move |source| NetError::Tap { what, name: self.name.clone(), source, mend: "" }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mtu(&self) -> Option<u16> {
        let mut request = request(&self.name, 0);
        // SAFETY: a socket that is closed again; the request lives during the call.
        let result = unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            let result = libc::ioctl(socket, libc::SIOCGIFMTU as libc::Ioctl, &raw mut request);
            libc::close(socket);
            result
        };
        // SAFETY: the kernel has filled the field that the ioctl is for.
        done(result).ok().and_then(|()| u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok())
    }
}

impl Link for Tap {
    fn announce(&self, mac: [u8; 6]) {
        let Some(file) = self.lock().first().map(|queue| queue.file.clone()) else { return };
        if let Err(error) = (&*file).write_all(&announcement(mac)) {
            // One that is down has nobody behind it who would have to know.
            tracing::debug!("`{}` takes no announcement: {error}", self.name);
        }
    }

    fn info(&self) -> LinkInfo {
        LinkInfo { queues: self.lock().len() as u16, offloads: self.offloads, mtu: self.mtu() }
    }

    fn open_queue(&self, queue: u16) -> Result<Box<dyn LinkQueue>, NetError> {
        let mut queues = self.lock();
        let count = queues.len() as u16;
        let place = queues.get_mut(usize::from(queue)).filter(|place| !place.open);
        let place = place.ok_or(NetError::Queue { queue, count })?;
        place.open = true;
        Ok(Box::new(TapQueue(place.file.clone())))
    }

    fn set_offloads(&self, offloads: Offloads) -> Result<(), NetError> {
        let queues = self.lock();
        let Some(queue) = queues.first() else { return Ok(()) };
        value_ioctl(&queue.file, libc::TUNSETOFFLOAD, tun_flags(offloads & self.offloads))
            .map_err(self.refused("set the offloads of"))
    }

    fn set_active_queues(&self, count: u16) -> Result<(), NetError> {
        let mut queues = self.lock();
        if queues.len() == 1 {
            return Ok(());
        }
        for (index, queue) in queues.iter_mut().enumerate() {
            let attached = index < usize::from(count);
            if attached != queue.attached {
                let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
                interface_ioctl(&queue.file, libc::TUNSETQUEUE, &mut request("", flags))
                    .map_err(self.refused("change the queues of"))?;
                queue.attached = attached;
            }
        }
        Ok(())
    }
}

struct TapQueue(Arc<File>);

impl LinkQueue for TapQueue {
    fn send(&mut self, frame: &[GuestSlice<'_>]) -> io::Result<()> {
        guest::write(self.0.as_fd(), frame).map(|_| ())
    }

    fn receive(&mut self, room: &[GuestSlice<'_>]) -> io::Result<usize> {
        guest::read(self.0.as_fd(), room)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
