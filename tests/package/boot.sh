#!/usr/bin/env bash
# Installs the Debian package into a clean system, boots that system, and holds a ceremony in it.
#
#   tests/package/boot.sh PACKAGE.deb      PACKAGE.deb from packaging/build.sh
#
# The system is Debian's minimal one, of this machine's release, with systemd as process 1 in
# namespaces of its own: processes, mounts, network, cgroups. guest.sh runs in it; what it prints
# comes out here, one `fact NAME VALUE` a line. The tree without the package is kept in .cache.
#
# Exit codes: 0 the guest ended well; 1 it did not; 77 this machine can't do it (the reason is on
# standard error).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
package=$(realpath "$1")
cache=$here/../../.cache
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
tree=$cache/package-$release-1.tar # raise the number when the list of packages changes

cant() {
    echo "boot.sh: $1" >&2
    exit 77
}
[ "$(id -u)" = 0 ] || cant "needs root, to make namespaces"
command -v mmdebstrap >/dev/null || cant "mmdebstrap is missing: .ci/install test"
[ -n "$release" ] || cant "/etc/os-release names no release of Debian"
grep -qw cgroup2 /proc/filesystems || cant "the kernel has no cgroup2"
unshare --mount true 2>/dev/null || cant "mounts can't be kept to a namespace of their own here: / is no mount point (a chroot?), or that is not allowed (a container?)"

mkdir -p "$cache"
exec 9>"$tree.lock"
flock 9
if [ ! -e "$tree" ]; then
    mmdebstrap --quiet --format=tar --variant=minbase --include=systemd,systemd-sysv,init-system-helpers,softhsm2,openssl,libgcc-s1 \
        --aptopt='Acquire::Languages "none"' "$release" "$tree.new" >&2 || cant "Debian's minimal system can't be made (see above)"
    mv "$tree.new" "$tree"
fi
flock -u 9

work=$(mktemp -d "${TMPDIR:-/tmp}/sr-boot.XXXXXX")
trap 'rm -rf -- "$work"' EXIT
root=$work/root
mkdir "$root"
tar -C "$root" --exclude=./dev -xf "$tree"
mkdir -p "$root/dev"
cp "$package" "$root/strongroom.deb"
cp "$here/guest.sh" "$root/guest.sh"
export DEBIAN_FRONTEND=noninteractive
unshare --mount --pid --fork --mount-proc="$root/proc" chroot "$root" apt-get install --yes --no-install-recommends /strongroom.deb >"$work/apt" 2>&1 || {
    cat "$work/apt" >&2
    echo "boot.sh: the package can't be installed" >&2
    exit 1
}

# A unit can't raise what this machine's root may not raise; on a real one it can.
if ! (ulimit -Hl unlimited) 2>/dev/null; then
    mkdir -p "$root/etc/systemd/system/strongroom.service.d"
    printf '[Service]\nLimitMEMLOCK=\nOOMScoreAdjust=\n' >"$root/etc/systemd/system/strongroom.service.d/limits.conf"
    echo "fact limits.raised no"
fi
cat >"$root/etc/systemd/system/guest.service" <<'EOF'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c '/guest.sh >/guest.out 2>&1; echo "exit $?" >>/guest.out'
ExecStartPost=/bin/systemctl --no-block poweroff
TimeoutStartSec=170
EOF
mkdir -p "$root/etc/systemd/system/default.target.wants"
ln -s ../guest.service "$root/etc/systemd/system/default.target.wants/guest.service"

cat >"$work/init" <<EOF
mount --make-rprivate /
mount --bind $root $root
cd $root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    touch dev/\$device
    mount --bind /dev/\$device dev/\$device
done
mkdir dev/shm dev/pts dev/mqueue
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mkdir dev/hugepages
ln -s /proc/self/fd dev/fd
pivot_root . mnt
umount -l /mnt
# As systemd has it on a real machine: credentials are mounted from a child's namespace.
mount --make-rshared /
exec env -i container=strongroom-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd </dev/null >/dev/null 2>&1
EOF
# Process 1 ends by a signal when it is told to power off.
timeout 180 unshare --mount --pid --fork --kill-child --mount-proc --net --uts --ipc --cgroup bash "$work/init" || true
[ -e "$root/guest.out" ] || {
    echo "boot.sh: systemd did not come up as process 1 in namespaces here" >&2
    exit 77
}
cat "$root/guest.out"
[ "$(tail -n 1 "$root/guest.out")" = "exit 0" ]
