//! Compiles `proto/*.proto` into a descriptor set that the gRPC front reflects on.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("proto")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".proto") {
            found.push(name);
        }
    }
    found.sort();
    let set = if found.is_empty() {
        Default::default()
    } else {
        protox::compile(found, ["proto"])?
    };
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(format!("{out}/api.bin"), set.encode_to_vec())?;
    Ok(())
}
