#!/bin/bash
# Builds the bootable image into image/out (make image). Run as root on Debian or a derivative
# of it.
#
#   image/build.sh [OUT]        default: <repository>/image/out
#
# Exit codes: 0 built; 77 this machine can't do it (the reason is on standard error); another: it
# failed.
#
# STRONGROOM_BINARY     a strongroom to put in instead of building the `dist` profile
# STRONGROOM_VERSION    the image's version; default: Cargo.toml's
# STRONGROOM_MINIMUM    the oldest version that may still run once this one has been healthy;
#                       default 0
# STRONGROOM_EXTRA      a directory whose files come over the root's: another PKCS#11 module, say
# STRONGROOM_IMAGE_CACHE  packages and trees; default <repository>/.cache/image
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
out=${1:-$here/out}
cache=${STRONGROOM_IMAGE_CACHE:-$repository/.cache/image}
version=${STRONGROOM_VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$repository/Cargo.toml" | head -n 1)}
minimum=${STRONGROOM_MINIMUM:-0}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$repository" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH STRONGROOM_IMAGE_CACHE=$cache

main() {
    [ "$(id -u)" = 0 ] || cant "needs root: it unpacks packages and mounts folders in a namespace of its own"
    unshare -m true 2>/dev/null ||
        cant "mounts can't be kept to a namespace of their own here: / is no mount point (a chroot?), or that is not allowed (a container?)"
    mkdir -p "$cache" "$out"
    out=$(cd "$out" && pwd)
    "$here/keys.sh" >&2
    packages
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    binary
    cp -r "$here/keys" "$work/keys"
    cp "$here"/{assemble.py,sbom.py,steps.sh,root.list,initrd.list} "$work/"
    cp "$cache/debian.packages" "$work/"
    (cd "$repository" && cargo tree --locked -p strongroom -p strongroom-init -e normal,build --prefix none --format '{p}') | sed 's/ (.*//' | sort -u >"$work/crates"
    cp -rP "$here/root" "$work/overlay-root"
    cp -rP "$here/initrd" "$work/overlay-initrd"
    cp -rP "$here/disk" "$work/disk"
    printf 'NAME=Strongroom\nID=strongroom\nIMAGE_ID=strongroom\nIMAGE_VERSION=%s\nVERSION_ID=%s\nPRETTY_NAME="Strongroom %s"\nMINIMUM_VERSION=%s\n' \
        "$version" "$version" "$version" "$minimum" >"$work/os-release"
    cp -r "$repository/systemd" "$work/units"
    [ -z "${STRONGROOM_EXTRA:-}" ] || cp -rP "$STRONGROOM_EXTRA" "$work/extra"
    inside_tools
    rm -f "$out"/strongroom_*
    mv "$work"/out/* "$out/"
    (cd "$out" && ls -l && sha256sum -- * >SHA256SUMS)
}

fail() {
    echo "build.sh: $1" >&2
    exit 1
}

cant() {
    echo "build.sh: $1" >&2
    exit 77
}

packages() {
    local names
    names=$(cat "$here/tools.packages")
    # shellcheck disable=SC2086 # words
    [ -e "$cache/tools.$(sum "$names")" ] || { "$here/packages.sh" "$cache/tools" $names && touch "$cache/tools.$(sum "$names")"; }
    names=$(cat "$here/image.packages")
    # shellcheck disable=SC2086
    [ -e "$cache/debian.$(sum "$names")" ] || { "$here/packages.sh" "$cache/debian" $names && touch "$cache/debian.$(sum "$names")"; }
}

sum() {
    echo "$1" | sha256sum | cut -c1-16
}

binary() {
    if [ -z "${STRONGROOM_BINARY:-}" ]; then
        (cd "$repository" && cargo build --profile dist --locked --bin strongroom) >&2
        STRONGROOM_BINARY=${CARGO_TARGET_DIR:-$repository/target}/dist/strongroom
    fi
    strip -o "$work/strongroom" "$STRONGROOM_BINARY"
    # Static: in the initrd it needs nothing and takes nothing from beside it.
    local target=x86_64-unknown-linux-gnu
    (cd "$repository" && CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --profile dist --locked --package strongroom-init --target $target) >&2
    strip -o "$work/init" "${CARGO_TARGET_DIR:-$repository/target}/$target/dist/strongroom-init"
}

# The tools come from trixie and need their own C library: they run with their tree as
# root, in a mount namespace that goes away by itself.
inside_tools() {
    # shellcheck disable=SC2016 # for the inner shell
    unshare -m bash -euc '
        mount --make-rprivate /
        mount --bind "$1" "$1"
        mkdir -p "$1"/{proc,dev,tmp,work,debian}
        mount --rbind /dev "$1/dev"
        mount -t tmpfs tmpfs "$1/dev/shm" # faketime names its semaphore after its process: an old one of another build would be in its way
        mount -t proc proc "$1/proc"
        mount -t tmpfs tmpfs "$1/tmp"
        mount --bind "$2" "$1/work"
        mount --bind "$3" "$1/debian"
        exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C TZ=UTC "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH" "STRONGROOM_CMDLINE=${STRONGROOM_CMDLINE:-}" bash /work/steps.sh "$4"
    ' - "$cache/tools" "$work" "$cache/debian" "$version"
}

main
