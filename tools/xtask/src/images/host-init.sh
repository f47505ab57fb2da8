#!/bin/busybox sh
# The init of the lab's emulated host: it has /dev/kvm, mounts what it was given on /lab, and runs /lab/.lab/plan.
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
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "lab: cannot load $module"
done

# Programs write to the terminal as they would to a file: no newline is changed, and nothing is echoed.
stty raw -echo

mount -t ext4 -o noatime /dev/nvme0n1 /lab || { echo "lab: cannot mount what was carried in"; poweroff -f; }
export PATH=/bin:/sbin HOME=/root TMPDIR=/tmp TERM=linux
. /lab/.lab/plan
sync
poweroff -f
