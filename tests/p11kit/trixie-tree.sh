#!/bin/sh
# Makes a directory with p11-kit 0.25 (client, server) and SoftHSM2, and prints its path.
#
#   tests/p11kit/trixie-tree.sh [TREE]      TREE defaults to <repository>/.cache/p11kit
#
# Why: SoftHSM runs inside the process that loads it, so a key "in the HSM" would be found in the
# server's own memory. With `p11-kit server` between them it lives in another process, as with real
# hardware. Debian bookworm's p11-kit 0.24 refuses AES-GCM and attribute templates over its RPC;
# trixie's 0.25 passes them. Its libraries need trixie's C library, so the tree brings that as well.
#
# TREE is written whole or not at all, and one that is there already is left alone; remove it to
# make it again. On a machine whose own p11-kit is 0.25 or newer nothing is downloaded: the tree is
# then only links to the system's files.
#
#   TREE/exec PROGRAM [ARG...]       runs a program with the tree's C library (exec(2): the process id stays)
#   TREE/p11-kit-client.so           the PKCS#11 module that the client loads
#   TREE/libsofthsm2.so              the PKCS#11 module that the server serves
#   TREE/private/p11-kit-{server,remote}
#
# Exit codes: 0 made or there already; 1 it can't be made (the reason is on standard error).
set -eu
umask 022

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tree=${1:-$here/../../.cache/p11kit}
layout=1 # raise it when the layout of the tree changes, so that cached trees are made again
suite=trixie
packages="libp11-kit0 p11-kit p11-kit-modules libffi8 libc6 libsofthsm2 libssl3t64 libstdc++6 libgcc-s1 libzstd1 zlib1g"

fail() {
    echo "trixie-tree.sh: $1" >&2
    exit 1
}

finish() { # puts the tree in its place in one step
    echo "$layout" >"$new/layout"
    rm -rf -- "$tree"
    mv -T -- "$new" "$tree"
    (CDPATH='' cd -- "$tree" && pwd)
    exit 0
}

mkdir -p -- "$(dirname -- "$tree")"
exec 9>"$tree.lock" # tests run side by side: one makes the tree, the others wait for it
flock 9
if [ "$(cat "$tree/layout" 2>/dev/null)" = "$layout" ] && "$tree/exec" /bin/true 2>/dev/null; then
    CDPATH='' cd -- "$tree" && pwd
    exit 0
fi

new=$(mktemp -d "$tree.new.XXXXXX")
chmod 755 "$new"
apt=$(mktemp -d) # apart from $new: apt's own sandbox user must be able to reach it, wherever the repository lies
chmod 755 "$apt"
trap 'rm -rf -- "$new" "$apt"' EXIT
mkdir "$new/private"

first_of() { # the first argument that is a file
    for candidate; do
        if [ -f "$candidate" ]; then
            echo "$candidate"
            return
        fi
    done
}

# The machine's own p11-kit, when it is new enough and whole.
arch=$(dpkg --print-architecture 2>/dev/null) || fail "needs dpkg: this script works on Debian and its derivatives"
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo "$(uname -m)-linux-gnu")
version=$(p11-kit --version 2>/dev/null | sed -n 's/^p11-kit //p;1q' || true)
client=$(first_of "/usr/lib/$multiarch/pkcs11/p11-kit-client.so" /usr/lib/pkcs11/p11-kit-client.so)
softhsm=$(first_of "/usr/lib/$multiarch/softhsm/libsofthsm2.so" /usr/lib/softhsm/libsofthsm2.so)
server=$(first_of /usr/libexec/p11-kit/p11-kit-server /usr/lib/p11-kit/p11-kit-server)
if [ -n "$version" ] && dpkg --compare-versions "$version" ge 0.25 && [ -n "$client" ] && [ -n "$softhsm" ] && [ -n "$server" ]; then
    ln -s "$client" "$new/p11-kit-client.so"
    ln -s "$softhsm" "$new/libsofthsm2.so"
    ln -s "$server" "$new/private/p11-kit-server"
    ln -s "$(dirname "$server")/p11-kit-remote" "$new/private/p11-kit-remote"
    printf '%s\n' '#!/bin/sh' 'exec "$@"' >"$new/exec"
    chmod 755 "$new/exec"
    finish
fi

# Otherwise trixie's packages, by the machine's own apt and the mirror it already uses, with a
# package list of their own, so that nothing of the machine changes. apt checks the archive's
# signature against Debian's keyring, which on bookworm has held trixie's keys since 2023.3+deb12u1.
command -v apt-get >/dev/null || fail "needs apt-get"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$keyring" ] || fail "$keyring is missing; install debian-archive-keyring"
mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
: >"$apt/status"
[ "$(id -u)" != 0 ] || chown _apt "$apt/debs"
cat >"$apt/apt.conf" <<EOF
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::AllowInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
EOF
export APT_CONFIG="$apt/apt.conf"

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get update --print-uris | sed -n "s,^'\(.*\)/dists/$codename/InRelease' .*,\1,p" | head -n 1)
[ -n "$mirror" ] || fail "no source for $codename in the machine's apt configuration; add one for Debian's main archive"

cat >"$apt/trixie.sources" <<EOF
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Signed-By: $keyring
EOF
cat >>"$apt/apt.conf" <<EOF
Dir::Etc::SourceList "$apt/trixie.sources";
Dir::Etc::SourceParts "/dev/null";
EOF

apt-get -qq --error-on=any update >&2 || fail "apt-get update failed for $suite (see above)"
# shellcheck disable=SC2086 # the package names are words
(cd "$apt/debs" && apt-get -qq download $packages >&2) || fail "apt-get download failed (see above)"
mkdir "$new/root"
for deb in "$apt/debs"/*.deb; do
    dpkg-deb -x "$deb" "$new/root"
done
rm -rf "$new/root/usr/share" "$new/root/etc" "$new/root/var"

lib=usr/lib/$multiarch
loader=$(cd "$new" && find root/usr/lib* -maxdepth 2 -name 'ld-linux*.so.*' -type f | head -n 1)
[ -n "$loader" ] || fail "no dynamic loader in libc6 for $arch"
ln -s "root/$lib/pkcs11/p11-kit-client.so" "$new/p11-kit-client.so"
ln -s "root/$lib/softhsm/libsofthsm2.so" "$new/libsofthsm2.so"
# --library-path, unlike LD_LIBRARY_PATH, is not handed down to the programs that this one starts.
cat >"$new/exec" <<EOF
#!/bin/sh
tree=\$(CDPATH='' cd -- "\$(dirname -- "\$0")" && pwd)
program=\$(command -v -- "\$1") || { echo "exec: \$1: not found" >&2; exit 127; }
shift
exec "\$tree/$loader" --library-path "\$tree/root/$lib" "\$program" "\$@"
EOF
for name in p11-kit-server p11-kit-remote; do
    cat >"$new/private/$name" <<EOF
#!/bin/sh
tree=\$(CDPATH='' cd -- "\$(dirname -- "\$0")/.." && pwd)
exec "\$tree/exec" "\$tree/root/usr/libexec/p11-kit/$name" "\$@"
EOF
done
chmod 755 "$new/exec" "$new/private/p11-kit-server" "$new/private/p11-kit-remote"

# Each file that is loaded must find all of its libraries in the tree: a package missing from the
# list shows here.
for file in libsofthsm2.so p11-kit-client.so root/usr/libexec/p11-kit/p11-kit-server root/usr/libexec/p11-kit/p11-kit-remote; do
    "$new/$loader" --list --library-path "$new/root/$lib" "$new/$file" >"$apt/libraries" 2>&1 || fail "$file: $(cat "$apt/libraries")"
    if grep -E '=> (not found|/(usr/)?lib)' "$apt/libraries" >&2; then
        fail "$file: a library (above) is not in the tree; add its package to the list in this script"
    fi
done
finish
