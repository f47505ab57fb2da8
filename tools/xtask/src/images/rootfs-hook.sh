#!/bin/sh
# What mmdebstrap does, on this machine, with a root file system ($1) into which it has unpacked all packages: it notes for dpkg that they are
# unpacked, so that an emulated processor need not unpack them again; adds what comes from elsewhere; where the maintainers' scripts can run
# here, runs them; and puts all onto the disk that file descriptor 9 is. Here files have the owners that they shall have, whoever has called.
set -e
root=$1 info=$1/var/lib/dpkg/info
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

printf '1\n' >"$info/format"
for deb in "$root"/var/cache/apt/archives/*.deb; do
    control=$scratch/control
    dpkg-deb --control "$deb" "$control"
    name=$(sed -n 's/^Package: //p' "$control/control")
    # Packages that can be installed for several architectures have their files noted with the architecture.
    if grep -q '^Multi-Arch: same$' "$control/control"; then name=$name:$SKEP_ARCH; fi
    sed '/^Package: /a Status: install ok unpacked' "$control/control" >>"$root/var/lib/dpkg/status"
    printf '\n' >>"$root/var/lib/dpkg/status"
    rm "$control/control"
    for file in "$control"/*; do
        if [ -e "$file" ]; then mv "$file" "$info/$name.${file##*/}"; fi
    done
    dpkg-deb --fsys-tarfile "$deb" | tar -t | sed 's,^\.,,; s,/$,,; s,^$,/.,' >"$info/$name.list"
    rm -r "$deb" "$control"
done

mkdir -p "$root/usr/lib/modules" "$root/opt" "$root/usr/local/bin"
cp -R "$SKEP_MODULES"/* "$root/usr/lib/modules"
cp -R "$SKEP_FIO" "$root/opt/fio"
printf '#!/bin/sh\nexec /opt/fio/lib/%s --library-path /opt/fio/lib /opt/fio/bin/fio "$@"\n' "$SKEP_LOADER" >"$root/usr/local/bin/fio"
chmod 755 "$root/usr/local/bin/fio"
cp "$SKEP_CONFIGURE" "$root/configure"
if [ -n "$SKEP_NATIVE" ]; then
    chroot "$root" sh /configure
    rm "$root/configure"
fi
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin
# Without what mmdebstrap has mounted there for the scripts.
mkdir "$scratch/bare"
unshare --mount sh -ec 'mount --bind "$1" "$2"; mke2fs -q -F -t ext4 -L skep-root -d "$2" /proc/self/fd/9' - "$root" "$scratch/bare"
