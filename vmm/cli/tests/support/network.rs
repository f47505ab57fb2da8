//! A network that guests boot from: a namespace of the test's own, and dnsmasq on a tap interface in it.
#![allow(unsafe_code)] // A namespace.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::ip;

/// The host's address.
pub const HOST: &str = "192.168.79.1";

/// Has this thread, and what it starts from here on, be in a network namespace of its own.
pub fn leave() {
    // SAFETY: it has no pointers.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
}

/// Gives the host its address on the tap interface `tap`.
pub fn reach(tap: &str) {
    ip(&["addr", "add", &format!("{HOST}/24"), "dev", tap]);
    ip(&["link", "set", tap, "up"]);
}

/// A program of the host's side, which ends with the test.
pub struct Server(Child);

impl Server {
    /// dnsmasq on `tap`, which hands addresses out, and the files below `files`; `more` says of which file it tells whom.
    pub fn dnsmasq(tap: &str, files: &Path, leases: &Path, more: &[&str]) -> Self {
        let mut command = Command::new("dnsmasq");
        let fixed = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--group=root",
            "--pid-file=",
            "--log-facility=-",
            "--port=0",
            "--bind-interfaces",
            "--no-ping",
            "--dhcp-range=192.168.79.10,192.168.79.99,255.255.255.0",
            "--enable-tftp",
        ];
        command.args(fixed).args(more);
        command.arg(format!("--interface={tap}"));
        command.arg(format!("--dhcp-leasefile={}", leases.display()));
        command.arg(format!("--tftp-root={}", files.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|e| panic!("can't start dnsmasq: {e}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
