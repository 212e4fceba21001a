#!/bin/sh
# Runs every test of the workspace. Needs Rust and a C compiler, nothing else; with cargo-nextest
# the tests run side by side, each in a process of its own.
set -eu
cd "$(dirname "$0")/.."

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace
    cargo test --workspace --doc
else
    cargo test --workspace
fi
