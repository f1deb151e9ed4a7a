//! Compiles `proto/` with `protox`, so that no system `protoc` is needed, and keeps the descriptors for reflection.

use prost::Message;
use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 5] = [
    "proto/taphouse/v1/alerts.proto",
    "proto/taphouse/v1/capture.proto",
    "proto/taphouse/v1/flows.proto",
    "proto/taphouse/v1/sketches.proto",
    "proto/taphouse/v1/slices.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out_dir.join("taphouse.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes("taphouse.v1.QueryResponse.arrow_ipc").compile_fds(descriptors)?;
    Ok(())
}
