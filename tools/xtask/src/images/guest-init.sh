#!/bin/busybox sh
# The init of the test guests. It greets, says what it found, and does what skep.action= on the command line says:
#   poweroff (default), reboot, panic, shell, echo (answers "got LINE" to each line until "bye", then powers off),
#   wait (for ever). skep.dmesg: prints the kernel's messages first. skep.fdt: prints the device tree in hexadecimal first.
#   skep.script=BASE64: runs a shell script first, in / with -e, and says "skep: script CODE" when it has ended.
#   skep.root=DEVICE, skep.root=PARTNAME=NAME: goes on with the system on that disk or partition, once the modules are loaded.
#   skep.warn: lets the kernel warn, so that a test sees that warnings are seen.
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
/bin/busybox mount -t proc proc /proc
echo "skep: hello from Debian guest init: $(busybox uname -a)"

mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
echo "skep: cpus $(nproc)"
echo "skep: memory $(awk '/^MemTotal:/ { print $2 }' /proc/meminfo) KiB"
echo "skep: clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"

if [ -e /modules/order ]; then
    for module in $(cat /modules/order); do
        # Without UEFI there are no variables.
        [ "$module" != efivarfs.ko ] || [ -d /sys/firmware/efi ] || continue
        insmod "/modules/$module" || echo "skep: cannot load $module"
    done
fi

[ ! -d /sys/firmware/efi/efivars ] || mount -t efivarfs efivarfs /sys/firmware/efi/efivars

# A partition of that name; its disk may be found a little later.
partition() {
    for try in $(seq 600); do
        for found in $(grep -lx "$1" /sys/class/block/*/uevent); do
            found=${found%/uevent}
            echo "/dev/${found##*/}"
            return
        done
        usleep 100000
    done
}

action=poweroff
for word in $(cat /proc/cmdline); do
    case $word in
        skep.action=*) action=${word#skep.action=} ;;
        skep.dmesg) dmesg ;;
        skep.script=*)
            echo "${word#skep.script=}" | base64 -d >/tmp/script
            sh -e /tmp/script
            echo "skep: script $?"
            ;;
        skep.root=*)
            root=${word#skep.root=}
            case $root in PARTNAME=*) root=$(partition "$root") ;; esac
            mkdir /root-disk
            mount -t ext4 "$root" /root-disk && { umount /sys/firmware/efi/efivars 2>/dev/null; umount /dev/pts /tmp /sys /proc; } &&
                exec switch_root /root-disk /sbin/init </dev/console >/dev/console 2>&1
            echo "skep: cannot go on with $root"
            ;;
        skep.warn) echo "<4>skep: a warning of the test's own" >/dev/kmsg ;;
        skep.fdt)
            echo "skep: board $(tr '\0' ' ' </proc/device-tree/compatible)"
            hexdump -v -e '32/1 "%02x" "\n"' /sys/firmware/fdt | sed 's/^/skep: fdt /'
            ;;
    esac
done

case $action in
    poweroff) ;;
    reboot) reboot -f ;;
    panic) echo c >/proc/sysrq-trigger ;;
    shell) setsid cttyhack sh ;;
    echo)
        stty -echo
        echo "skep: echo ready"
        while IFS= read -r line && [ "$line" != bye ]; do echo "got $line"; done
        echo "skep: bye"
        ;;
    wait)
        echo "skep: waiting"
        while :; do sleep 86400; done
        ;;
    *) echo "skep: no such action: $action" ;;
esac
poweroff -f
