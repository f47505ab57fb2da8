#!/bin/sh
# The second half of Debian's root file system: configures the packages that have only been unpacked. It runs in the new system, on a
# machine of its architecture: every maintainer's script runs there.
set -e
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

# No service is started meanwhile.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
# What would have run before the unpacking, with what dpkg tells it.
export DPKG_ROOT= DPKG_ADMINDIR=/var/lib/dpkg DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE DPKG_MAINTSCRIPT_ARCH
DPKG_MAINTSCRIPT_ARCH=$(dpkg --print-architecture)
for script in /var/lib/dpkg/info/*.preinst; do
    DPKG_MAINTSCRIPT_PACKAGE=$(basename "$script" .preinst)
    DPKG_MAINTSCRIPT_PACKAGE=${DPKG_MAINTSCRIPT_PACKAGE%:*}
    "$script" install
done
unset DPKG_ROOT DPKG_ADMINDIR DPKG_MAINTSCRIPT_NAME DPKG_MAINTSCRIPT_PACKAGE DPKG_MAINTSCRIPT_ARCH
# Others take these two for granted.
dpkg --force-depends --force-unsafe-io --configure base-passwd base-files
dpkg --force-unsafe-io --configure --pending
# Nothing may be amiss.
[ -z "$(dpkg --audit)" ]
rm -rf /usr/sbin/policy-rc.d

echo skep >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 skep\n' >/etc/hosts
echo 'LABEL=skep-root / ext4 defaults 0 1' >/etc/fstab
# root logs in without a password: this system is for guests of tests and of the demo.
passwd --quiet --delete root
printf '[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n' >/etc/systemd/network/80-dhcp.network
systemctl --quiet enable systemd-networkd
systemctl --quiet disable systemd-networkd-wait-online
# An emulated host is so slow that devices and services would be given up.
mkdir -p /etc/systemd/system.conf.d
printf '[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n' >/etc/systemd/system.conf.d/patience.conf
# Not for a guest that lives for minutes.
systemctl --quiet disable e2scrub_reap nvmf-autoconnect
depmod "$(ls /usr/lib/modules)"
