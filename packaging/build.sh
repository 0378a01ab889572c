#!/usr/bin/env bash
# Builds the Debian package and prints its path.
#
#   packaging/build.sh [PROFILE]     PROFILE of cargo, defaults to dist; `dev` is for tests
#
# Needs cargo-deb (.ci/install deb).
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-dist}
folder=$([ "$profile" = dev ] && echo debug || echo "$profile")

cargo build --locked --quiet --profile "$profile" --bin strongroom >&2
made=target/deb
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
"target/$folder/strongroom" man "$made/man" >&2
for shell in bash zsh fish; do
    "target/$folder/strongroom" completions "$shell" >"$made/completions/$shell"
done
# The same sources give the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
cargo deb --locked --quiet --no-build --no-strip --profile "$profile" --output "$made/" >&2
ls -d "$PWD/$made"/strongroom_*.deb
