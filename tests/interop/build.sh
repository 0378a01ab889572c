#!/usr/bin/env bash
# Builds other people's clients, which the interop tests drive a Strongroom server with, each once:
# nothing is done again until its sources, its locked dependencies or the toolchain change.
#
#   build.sh [vault] [seal] [seal-openbao] [hvac] [node] [cryptography] [pyjwt] [gojwt]      default: all
#
# Prints one line for each, "<name> <path>":
#   vault  a real Vault, server and command line (tests/interop/vault)
#   seal   a program around Vault's transit seal client (tests/interop/seal)
#   seal-openbao  the same program around OpenBao's (its dependencies: tests/interop/seal-openbao)
#   hvac   a Python interpreter that has hvac (tests/interop/hvac)
#   node   a directory with node-vault and the script that uses it (tests/interop/node)
#   cryptography  a Python interpreter that has pyca/cryptography, for tests/stranger/transcript.py (tests/interop/cryptography)
#   pyjwt  a Python interpreter that has PyJWT (tests/interop/pyjwt)
#   gojwt  a program around golang-jwt (tests/interop/gojwt)
# They are kept in $STRONGROOM_INTEROP_CACHE, by default <repository>/.cache/interop.
#
# Exit code 77: a tool is not on this machine (it is named on standard error); 1: a build failed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${STRONGROOM_INTEROP_CACHE:-$(cd "$here/../.." && pwd)/.cache/interop}
# What .ci/install puts there on a machine without a Go that will do.
PATH=$(cd "$here/../.." && pwd)/.cache/go/bin:$PATH

main() {
    [ $# -gt 0 ] || set -- seal seal-openbao hvac cryptography pyjwt gojwt node vault
    mkdir -p "$cache"
    local part
    for part in "$@"; do
        case $part in
        seal-openbao) need go && once "$part" "$(go version)" "$here/$part"/go.{mod,sum} "$here"/seal/*.go ;;
        vault | seal | gojwt) need go && once "$part" "$(go version)" "$here/$part"/{go.mod,go.sum,*.go} ;;
        hvac | cryptography | pyjwt) need python3 && once "$part" "$(python3 -V) $(command -v python3)" "$here/$part/requirements.txt" ;;
        node) need node && need npm && once node "$(node -v) $(npm -v)" "$here/node"/{package.json,package-lock.json,*.js} ;;
        *) echo "build.sh: \"$part\" is none of vault, seal, seal-openbao, hvac, node, cryptography, pyjwt, gojwt" >&2 && exit 2 ;;
        esac
    done
}

need() {
    command -v "$1" >/dev/null || {
        echo "build.sh: $1 is not on this machine; install it or leave these tests out" >&2
        exit 77
    }
}

# once <part> <toolchain> <file>...: builds a part unless the cache has it for these files and this
# toolchain.
once() {
    local part=$1 toolchain=$2 key directory
    shift 2
    key=$({
        echo "$toolchain"
        sha256sum "$here/build.sh" "$@" | cut -d' ' -f1
    } | sha256sum | cut -c1-16)
    directory=$cache/$part-$key
    (
        # Two test programs may want the same part at the same time.
        exec 9>"$cache/$part.lock"
        flock 9
        if [ ! -e "$directory/.complete" ]; then
            rm -rf "$cache/$part"-[0-9a-f]*
            mkdir "$directory"
            echo "build.sh: building $part into $directory" >&2
            "build_${part//-/_}" "$directory" >&2
            touch "$directory/.complete"
        fi
    )
    echo "$part $(product "$part" "$directory")"
}

product() {
    case $1 in
    vault | seal | seal-openbao | gojwt) echo "$2/$1" ;;
    hvac | cryptography | pyjwt) echo "$2/bin/python" ;;
    node) echo "$2" ;;
    esac
}

build_seal() {
    go_build seal "$1"
}

build_gojwt() {
    go_build gojwt "$1"
}

build_seal_openbao() {
    # One program for both: OpenBao's client is a fork with other import paths and the same calls.
    mkdir "$1/source"
    cp "$here"/seal/*.go "$here"/seal-openbao/go.{mod,sum} "$1/source"
    sed -i -e 's#github.com/hashicorp/go-kms-wrapping#github.com/openbao/go-kms-wrapping#' \
        -e 's#"github.com/hashicorp/vault/api"#"github.com/openbao/openbao/api/v2"#' "$1"/source/*.go
    (cd "$1/source" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' go build -trimpath -ldflags='-s -w' -o "$1/seal-openbao" .)
}

build_vault() {
    # Vault is released with the sdk of its own source tree (a `replace` in its go.mod), which the
    # proxy does not have for 1.14.1. The nearest release, 0.9.2, has two assertions ("defines a
    # CreateOperation but no ExistenceCheck") that Vault 1.14.1's tree has not, and that stop a
    # server for two of its paths. So the same `replace` is made here, with 0.9.2 less these two
    # lines.
    local sdk=github.com/hashicorp/vault/sdk released lines
    released=$(cd "$here/vault" && go mod download "$sdk" && go list -mod=readonly -m -f '{{.Dir}}' "$sdk")
    cp -r --no-preserve=mode "$released" "$1/sdk"
    cp "$here"/vault/go.{mod,sum} "$1"
    go mod edit -replace "$sdk=$1/sdk" "$1/go.mod"
    lines=$(grep -c 'panic(.*no ExistenceCheck' "$1/sdk/framework/backend.go" || true)
    [ "$lines" = 2 ] || {
        echo "build.sh: expected two assertions in $released/framework/backend.go, found $lines; has the sdk's version changed?" >&2
        return 1
    }
    sed -i '/panic(.*no ExistenceCheck/d' "$1/sdk/framework/backend.go"
    go_build vault "$1" -modfile "$1/go.mod"
}

# go_build <part> <directory> [flag]...: no cgo, nothing here needs a C compiler; no symbol table,
# which is half the file.
go_build() {
    local part=$1 directory=$2
    shift 2
    (cd "$here/$part" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' go build -trimpath -ldflags='-s -w' "$@" -o "$directory/$part" .)
}

build_hvac() {
    python_with hvac "$1"
}

build_cryptography() {
    python_with cryptography "$1"
}

build_pyjwt() {
    python_with pyjwt "$1"
}

# python_with <part> <directory>: an environment of its own, with the part's pinned packages.
python_with() {
    python3 -m venv "$2"
    "$2/bin/python" -m pip install --quiet --no-deps --only-binary :all: --requirement "$here/$1/requirements.txt"
}

build_node() {
    cp "$here/node"/{package.json,package-lock.json,*.js} "$1"
    (cd "$1" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
}

main "$@"
