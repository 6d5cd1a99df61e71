#!/usr/bin/env bash
# Holds the dependencies against deny.toml: licences, sources and, where the advisory database can be reached, advisories and
# yanked releases. cargo-deny is built into the build directory if it is not installed (about 3 minutes, once).
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
tools="${CARGO_TARGET_DIR:-$PWD/target}/tools"
export PATH="$tools/bin:$PATH"
if ! cargo deny --version > /dev/null 2>&1; then
    CARGO_TARGET_DIR="$tools/build" cargo install cargo-deny --version "$version" --locked --root "$tools"
    rm -rf "$tools/build"
fi
checks=(bans licenses sources)
if fetched=$(cargo deny fetch db 2>&1); then
    checks+=(advisories)
else
    echo "ADVISORIES ARE NOT CHECKED: the advisory database cannot be fetched: $(tail -1 <<< "$fetched")"
fi
cargo deny check --hide-inclusion-graph "${checks[@]}"
