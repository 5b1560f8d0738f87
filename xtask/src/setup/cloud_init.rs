//! Debian's cloud-init, unpacked and not installed: installed, it would configure this
//! machine at its next boot.

use crate::{places, sh};
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;

/// Unpacks the package into `target/cloud-init`; where there is no apt-get, its test is
/// skipped.
pub fn ensure() -> Result<()> {
    let folder = places::root().join("target/cloud-init");
    if folder.join("usr").exists() || !sh::has("apt-get") {
        return Ok(());
    }
    sh::step("unpack cloud-init", || {
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        sh::run(
            Command::new("apt-get")
                .args(["download", "cloud-init"])
                .current_dir(&folder),
        )?;
        sh::run(
            Command::new("sh")
                .args([
                    "-c",
                    "dpkg-deb -x cloud-init_*.deb . && rm cloud-init_*.deb",
                ])
                .current_dir(&folder),
        )
    })
}
