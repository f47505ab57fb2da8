//! Stock Debian kernels with a network card on a tap interface of the host.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use support::talk::{set_up, talk, with_old_card};
use support::{Builder, Machine};

/// Its card, made anew as a clone's on another interface, has the address that its driver knows, and one of its own once that has begun anew.
#[test]
fn a_guest_talks_with_its_host_over_a_tap_interface() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, snapshot] = ["vm.sock", "snapshot"].map(|name| folder.path().join(name).display().to_string());
    let words = ["--cpus", "2", "--net", "tap=skep0,queues=2,mac=02:00:00:00:00:07", "--control", &socket];
    let begin_anew = "echo its queues: $(ls /sys/class/net/eth0/queues); echo put me away; read go
        card=$(basename $(readlink /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net
        echo $card >unbind; echo $card >bind; cd /
        read new </sys/class/net/eth0/address; echo it has $new
        case $new in 02:00:00:00:00:07) false;; ?[26ae]:*) ;; *) false;; esac
        ip addr add 192.168.77.2/24 dev eth0; ip link set eth0 up; ping -c 1 -W 20 192.168.77.1; echo the clone is up";
    let clone = |mut machine: Machine| {
        machine.wait_for("put me away");
        Builder::command(&["ctl", &socket, "save", &snapshot, "--quit"]).finish().expect_code(0);
        machine.finish().expect_code(14).expect_console("its queues: rx-0 rx-1 tx-0 tx-1");
        let words = ["restore", &snapshot, "--clone", "--tap", "net0=skep3", "--log", "info"];
        let mut clone = Builder::command(&words).start();
        clone.wait_for_log("restored from");
        set_up("skep3");
        clone.send("go\n");
        clone.wait_for("the clone is up");
        clone
    };
    let machine = Builder::debian_with_virtio().args(&words);
    talk(machine, "skep0", 4 << 20, begin_anew, clone).finish().expect_code(0);
}

#[test]
fn an_old_network_card_is_one_that_debian_knows() {
    let machine = with_old_card("skep1");
    // All hosts, which the card's filter lets through because its driver has chosen the bit of their address; and all that there is.
    let groups = "ping -c 2 -W 20 ff02::1%eth0
        ip link set eth0 promisc on; ip link set eth0 promisc off
        grep -E 'eth0' /proc/interrupts; lspci -n 2>/dev/null || cat /sys/bus/pci/devices/*/uevent | grep 10EC";
    let end = talk(machine, "skep1", 128 << 10, groups, |machine| machine).finish();
    end.expect_code(0);
    // Its driver's watchdog counts seconds, of which a busy emulated host may lose some.
    for word in ["mismatched", "nobody cared"] {
        assert!(!end.console.contains(word), "{}", end.console);
    }
}
