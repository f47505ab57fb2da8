//! Guests with a network card on a tap interface of the host, which talk with it.

use super::{Builder, Machine, ip, is_x86_64, trade};

/// What a guest in the network of the tap interface `tap` does: its address, its neighbour, and a transfer of `length` bytes each way.
/// `more` is done between, and `meanwhile` here.
pub fn talk(
    machine: Builder,
    tap: &str,
    length: usize,
    more: &str,
    meanwhile: impl FnOnce(Machine) -> Machine,
) -> Machine {
    let machine = machine.script(&format!(
        "cat /sys/class/net/eth0/address
        ip addr add 192.168.77.2/24 dev eth0; ip link set eth0 up
        echo the card is up
        read go
        ping -c 3 -W 20 192.168.77.1 >/tmp/answers; cat /tmp/answers; grep '3 packets received' /tmp/answers
        {more}
        read go
        yes 0123456789abcde | head -c {length} | nc 192.168.77.1 7000 >/tmp/back
        wc -c </tmp/back; yes edcba9876543210 | head -c {length} | cmp - /tmp/back && echo the same"
    ));
    let mut machine = machine.start();
    machine.wait_for("02:00:00:00:00:07");
    machine.wait_for("the card is up");
    set_up(tap);
    machine.send("go\n");
    machine.wait_for("3 packets received");
    let mut machine = meanwhile(machine);
    let host = trade("192.168.77.1:7000", length);
    machine.send("go\n");
    machine.wait_for(&length.to_string());
    machine.wait_for("the same");
    host.join().unwrap();
    machine.wait_for("skep: script 0");
    machine
}

pub fn set_up(tap: &str) {
    ip(&["addr", "add", "192.168.77.1/24", "dev", tap]);
    ip(&["link", "set", tap, "up"]);
}

/// Debian's generic kernel has a driver for it, a module.
pub fn with_old_card(tap: &str) -> Builder {
    let kernel = if is_x86_64() { "vmlinuz-generic" } else { "Image-generic" };
    let machine = Builder::kernel_with(kernel, "initramfs-generic.cpio.gz").cmdline("loglevel=5");
    machine.args(&["--net", &format!("tap={tap},mac=02:00:00:00:00:07,device=ne2k_pci")])
}
