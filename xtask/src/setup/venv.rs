//! The Python environment: aws CLI and boto3 in the versions that `requirements.txt` pins.

use crate::{places, sh};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const REQUIREMENTS: &str = include_str!("../../requirements.txt");

/// The environment's interpreter; `ensure` has made it.
pub fn python() -> PathBuf {
    places::venv().join("bin/python")
}

/// Makes the environment, unless one of these very requirements stands.
pub fn ensure() -> Result<()> {
    let venv = places::venv();
    let stamp = venv.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|held| held == REQUIREMENTS) {
        return Ok(());
    }
    sh::step("install aws CLI and boto3 into target/venv", || {
        if venv.exists() {
            fs::remove_dir_all(&venv).context("cannot remove the outdated environment")?;
        }
        sh::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let requirements = places::root().join("xtask/requirements.txt");
        sh::run(
            Command::new(python())
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                ])
                .args(["--no-deps", "-r"])
                .arg(requirements),
        )?;
        fs::write(&stamp, REQUIREMENTS).context("cannot mark the environment as whole")
    })
}
