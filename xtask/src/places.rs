//! Where things are: the checkout, what is built, what is kept between checkouts.

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
