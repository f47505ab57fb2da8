#!/bin/busybox sh
# The init of the lab's emulated host: it has /dev/kvm, mounts what it was given on /lab, and runs /lab/.lab/plan.
if [ ! -d /new ]; then
    # From the initramfs to a root directory that can be left: passt shuts itself up in an empty one.
    mkdir /new
    mount -t tmpfs -o mode=755 root /new
    cp -a /bin /sbin /etc /init /modules /new
    cd /new
    mkdir dev lab new proc root run sys tmp
    exec switch_root /new /init
fi
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mount -t debugfs debug /sys/kernel/debug
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
hostname lab
ip link set lo up
# As systemd does.
ulimit -Hn 524288
echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "lab: cannot load $module"
done

# Programs write to the terminal as they would to a file: no newline is changed, and nothing is echoed.
stty raw -echo

# An address, and a way to anywhere, which leads nowhere: passt tells its guest to use those that the host has.
ip link set dummy0 up
ip addr add 192.0.2.1/24 dev dummy0
ip route add default via 192.0.2.254
# One that the guest does not have as well, to be pinged.
ip addr add 198.51.100.1/32 dev dummy0

mount -t ext4 -o noatime /dev/nvme0n1 /lab || { echo "lab: cannot mount what was carried in"; poweroff -f; }
mkdir /out
# Debian's own programs find their libraries where they always do.
[ ! -d /lab/lib ] || { ln -s /lab/lib /lib; ln -s /lab/lib /lib64; }
export PATH=/bin:/sbin:/lab/bin HOME=/root TMPDIR=/tmp TERM=linux LAB_OUT=/out

# Tells the other side what happens, in a line that it knows from the programs' output by the byte and the word it begins with.
mark() { printf '\036%s %s\n' "$word" "$*"; }

# The other side counts on hearing something now and then.
beat() {
    while sleep 10; do mark alive; done &
}

# run NUMBER SECONDS PROGRAM ARGUMENTS...
run() {
    number=$1 seconds=$2
    shift 2
    mark start "$number"
    [ -z "$beat" ] || beat
    # A terminal opened anew: flags that the program sets on it do not outlive it.
    (cd /lab && exec timeout -s KILL "$seconds" "$@") </dev/null >/dev/console 2>&1
    code=$?
    # What it left behind does not disturb the next one.
    kill -9 -1 2>/dev/null
    stty raw -echo
    # The kernel's errors, which would otherwise be printed into the middle of a line.
    dmesg -r -c | grep '^<[0-3]>' | cut -c 4- | sed 's/^/lab: kernel: /'
    mark exit "$number" $code
}

# give_back: what is in /out goes to the second disk, as an archive.
give_back() { tar -cf /dev/nvme1n1 -C /out .; }

# person: a prompt, with the terminal as a person expects it.
person() {
    stty sane
    setsid cttyhack sh
}

. /lab/.lab/plan
sync
mark end
# Waits until all that was written has left the serial port.
stty -echo
poweroff -f
