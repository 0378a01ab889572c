#!/bin/sh
# Downloads and unpacks Debian packages, with all that they depend on, into a tree. No maintainer
# script runs.
#
#   image/packages.sh TREE PACKAGE...
#
# TREE is replaced. Beside it: TREE.packages, one line a package: name, version, architecture,
# source package, SHA-256 of the .deb. The packages come from the archive that this machine's own
# apt uses, suite trixie with its security updates, into a package list of their own: nothing of the
# machine changes. apt checks the archive's signature against Debian's keyring.
#
# STRONGROOM_IMAGE_CACHE keeps package lists and .deb files between calls (default:
# <repository>/.cache/image).
set -eu
umask 022
export LC_ALL=C

fail() {
    echo "packages.sh: $1" >&2
    exit 1
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tree=$1
shift
cache=${STRONGROOM_IMAGE_CACHE:-$here/../.cache/image}
suite=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -f "$keyring" ] || fail "$keyring is missing; install debian-archive-keyring"
command -v apt-get >/dev/null || fail "needs apt-get"
mkdir -p "$cache/apt"
apt=$(CDPATH='' cd -- "$cache/apt" && pwd)

configure() {
    mkdir -p "$apt/state/lists/partial" "$apt/archives/partial"
    : >"$apt/status"
    cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::AllowInsecureRepositories "false";
APT::Architecture "amd64";
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Binary::apt-get::APT::Keep-Downloaded-Packages "true";
END
    # The machine's own sources say where its archives are.
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    printf 'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n' >>"$apt/apt.conf"
    uris=$(APT_CONFIG="$apt/apt.conf" apt-get update --print-uris 2>/dev/null | sed -n "s,^'\(.*\)/InRelease' .*,\1,p")
    main=$(echo "$uris" | sed -n "s,/dists/$codename\$,,p" | head -n 1)
    security=$(echo "$uris" | sed -n "s,/dists/$codename-security\$,,p" | head -n 1)
    [ -n "$main" ] || fail "no source for $codename in the machine's apt configuration; add one for Debian's main archive"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s %s-updates\nComponents: main\nSigned-By: %s\n' "$main" $suite $suite "$keyring"
        [ -z "$security" ] ||
            printf '\nTypes: deb\nURIs: %s\nSuites: %s-security\nComponents: main\nSigned-By: %s\n' "$security" $suite "$keyring"
    } >"$apt/strongroom.sources"
    printf 'Dir::Etc::SourceList "%s/strongroom.sources";\nDir::Etc::SourceParts "/dev/null";\n' "$apt" >>"$apt/apt.conf"
}

export APT_CONFIG="$apt/apt.conf"
# One list for every tree of a build: two trees of one build never differ in versions.
if [ ! -e "$apt/updated" ]; then
    unset APT_CONFIG
    configure
    export APT_CONFIG="$apt/apt.conf"
    apt-get -qq --error-on=any update >&2 || fail "apt-get update failed for $suite (see above)"
    touch "$apt/updated"
fi

# "Inst NAME (VERSION SOURCE [ARCHITECTURE])", whether or not the file is here already; a colon in a
# version is %3a in the file's name.
list=$(apt-get -qq --simulate install "$@" | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*\[\(.*\)\]).*/\1_\2_\3.deb/p' | sed 's/:/%3a/' | sort) ||
    fail "apt-get can't resolve: $*"
[ -n "$list" ] || fail "apt-get names no package for: $*"
apt-get -qq -y install --download-only "$@" >&2 || fail "apt-get download failed (see above)"

new=$tree.new
rm -rf "$new" "$tree"
mkdir -p "$new"
for name in bin sbin lib lib64; do # as Debian's base-files has it
    mkdir -p "$new/usr/$name"
    ln -s "usr/$name" "$new/$name"
done
: >"$tree.packages"
for file in $list; do
    dpkg-deb -x "$apt/archives/$file" "$new"
    # shellcheck disable=SC2016 # dpkg-deb's own variables
    echo "$(dpkg-deb -W --showformat='${Package} ${Version} ${Architecture} ${source:Package}' "$apt/archives/$file")" \
        "$(sha256sum "$apt/archives/$file" | cut -d' ' -f1)" >>"$tree.packages"
done
mv "$new" "$tree"
