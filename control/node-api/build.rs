//! Compiles the protocol without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/node.proto");
    let files = protox::compile(["node.proto"], ["proto"])?;
    // serde: the node keeps its last slice as JSON; absent members read as default.
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default)]")
        .compile_fds(files)?;
    Ok(())
}
