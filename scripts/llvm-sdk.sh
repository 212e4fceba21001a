#!/bin/sh
# Lays down the LLVM that Burn's GPU compiler links, from two wheels of PyPI, for machines that
# cannot reach the place from which its build script downloads it.
#
#     sh scripts/llvm-sdk.sh          once; then: cargo build --release --features cuda
#
# It needs python3 with pip and unzips 660 MB into the folder that the build script looks into. What
# is there already is left alone. LLVM's licence (Apache-2.0 with LLVM exceptions) lies beside it.
set -eu

# The versions that `tracel-llvm-bundler`, as Cargo.lock has it, asks for.
bundle=23.1.0-4
wheels="mlc-llvm-static==23.1.1.post0 mlc-llvm-static-extra-targets==23.1.1.post0"

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "llvm-sdk.sh: these wheels are for x86-64 Linux, and this is $(uname -sm); let the build download its LLVM" >&2
    exit 1
fi
lock=$(dirname "$0")/../Cargo.lock
if ! grep -A1 '^name = "tracel-llvm-bundler"' "$lock" | grep -q "\"$bundle\""; then
    echo "llvm-sdk.sh: Cargo.lock has another tracel-llvm-bundler than $bundle; this script needs its version" >&2
    exit 1
fi

sdk=${XDG_DATA_HOME:-$HOME/.local/share}/tracel/tracel-llvm-$bundle
if [ -e "$sdk/.tracel-llvm-installed" ]; then
    echo "llvm-sdk.sh: $sdk is there"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086 # two requirements
python3 -m pip download --quiet --no-deps --dest "$work" $wheels
for wheel in "$work"/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/out"
done
chmod +x "$work"/out/mlc_llvm_static/static/bin/*
cp -r "$work"/out/mlc_llvm_static/licenses "$work"/out/mlc_llvm_static/static/
# Whole or not at all: the mark is made in the new folder before it gets its name.
touch "$work"/out/mlc_llvm_static/static/.tracel-llvm-installed
mkdir -p "$(dirname "$sdk")"
rm -rf "$sdk" "$sdk.new"
mv "$work"/out/mlc_llvm_static/static "$sdk.new"
mv "$sdk.new" "$sdk"
echo "llvm-sdk.sh: laid down in $sdk"
