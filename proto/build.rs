//! Compiles the .proto files with protox, so that building needs no `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "muster/spec.proto",
        "muster/cluster.proto",
        "muster/rank.proto",
        "muster/worker.proto",
        "muster/client.proto",
        "muster/log.proto",
        "muster/peer.proto",
        "muster/operator.proto",
    ];
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(files, [&root])?;
    tonic_prost_build::configure()
        .btree_map(".")
        // Shared by the messages to all ranks of a world, and copied by none.
        .bytes(".muster.v1.Peers.addresses")
        .compile_fds(descriptors)?;
    Ok(())
}
