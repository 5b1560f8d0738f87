//! Where things are: the checkout, what is built, what is kept between checkouts.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// What one crate builds for another to embed.
pub fn artifacts() -> PathBuf {
    root().join("target/artifacts")
}

/// The Python environment with the clients that tests drive.
pub fn venv() -> PathBuf {
    root().join("target/venv")
}

/// What is costly to make and the same for every checkout: `$OCS_CACHE`, else `~/.cache/ocs`.
pub fn cache() -> Result<PathBuf> {
    let path = match std::env::var_os("OCS_CACHE") {
        Some(path) => PathBuf::from(path),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither OCS_CACHE nor HOME is set")?)
                .join(".cache/ocs")
        }
    };
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
