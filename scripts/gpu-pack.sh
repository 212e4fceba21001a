#!/bin/sh
# Builds muster with CUDA, and packs it for a machine with a GPU:
#
#     sh scripts/gpu-pack.sh [FILE]          [muster.xz]; at most 40 MB
#
# It needs neither CUDA nor a GPU; where the build cannot download its LLVM, scripts/llvm-sdk.sh lays
# that down first. Compressing takes some minutes more: the quicker ways come out just above 40 MB.
set -eu
cd "$(dirname "$0")/.."
file=${1:-muster.xz}
cargo build --release --locked --features cuda -p muster
target=${CARGO_TARGET_DIR:-target}
cp "$target/release/muster" "$target/release/muster-cuda"
strip "$target/release/muster-cuda"
xz -T1 -9e -c "$target/release/muster-cuda" >"$file"
bytes=$(wc -c <"$file")
echo "$file: $bytes bytes"
if [ "$bytes" -gt 40000000 ]; then
    echo "gpu-pack.sh: $file is larger than 40 MB" >&2
    exit 1
fi
