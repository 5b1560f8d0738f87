//! The compiler for targets without a prebuilt core library (BPF, bare metal).
//!
//! rustup's nightly with `rust-src` if it is there, else Debian's `rustc-web`
//! with `rust-web-src`. Both build `core` from their own sources.

use crate::{places, sh};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest compiler that the workspaces take: `rust-version` in their manifests.
const MINIMUM: &str = env!("CARGO_PKG_RUST_VERSION");

/// A compiler whose sysroot holds the sources of `core`.
pub struct Compiler {
    rustc: PathBuf,
}

impl Compiler {
    /// The first of the two that is installed and new enough.
    pub fn find() -> Option<Self> {
        let nightly =
            sh::output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))
                .ok()
                .map(|path| PathBuf::from(path.trim()));
        nightly
            .into_iter()
            .chain([PathBuf::from("/usr/bin/rustc")])
            .find(|rustc| has_core_sources(rustc) && is_new_enough(rustc))
            .map(|rustc| Self { rustc })
    }

    /// As [`Self::find`], or how to get one.
    pub fn get() -> Result<Self> {
        match Self::find() {
            Some(found) => Ok(found),
            None => bail!(
                "no compiler of at least rustc {MINIMUM} with the sources of core: `apt-get install rustc-web rust-web-src` \
                 (Debian) or `rustup toolchain install nightly --component rust-src`"
            ),
        }
    }

    /// `cargo build --release -Zbuild-std=STD --target TARGET` of the workspace in
    /// `folder`. Yields the folder that holds what was built.
    pub fn build(&self, folder: &Path, target: &str, std: &str, flags: &str) -> Result<PathBuf> {
        let name = Path::new(target).file_stem().unwrap_or_default();
        // One for each, so that they are built side by side.
        let target_dir = places::target().join("no-std").join(name);
        let mut cargo = sh::cargo();
        cargo
            .current_dir(folder)
            .args(["build", "--release", "--locked", "--target", target])
            .arg(format!("-Zbuild-std={std}"))
            .arg("--target-dir")
            .arg(&target_dir)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTUP_TOOLCHAIN");
        if !flags.is_empty() {
            cargo.env("RUSTFLAGS", flags);
        }
        sh::run(&mut cargo)?;
        Ok(target_dir.join(name).join("release"))
    }
}

fn has_core_sources(rustc: &Path) -> bool {
    sh::output(Command::new(rustc).args(["--print", "sysroot"])).is_ok_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
    })
}

/// Debian's first `rustc-web` is years older than its security updates' one.
fn is_new_enough(rustc: &Path) -> bool {
    sh::output(Command::new(rustc).arg("--version"))
        .ok()
        .and_then(|words| version(words.split(' ').nth(1)?))
        .is_some_and(|found| Some(found) >= version(MINIMUM))
}

/// Major and minor of `1.96.0-nightly` and the like.
fn version(words: &str) -> Option<(u32, u32)> {
    let mut parts = words.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("1.97.0-nightly"), Some((1, 97)));
        assert!(version("1.100.0") > version("1.95"));
        assert!(version("1.85.0") < version(MINIMUM));
        assert_eq!(version("unknown"), None);
    }
}
