//! Python environments: the clients that tests drive, and the benches' peer, in the
//! versions that their `requirements.txt` pin.

use crate::{places, sh};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clients' interpreter; [`clients`] has made it.
pub fn python() -> PathBuf {
    places::venv().join("bin/python")
}

/// aws CLI and boto3, in `target/venv`.
pub fn clients() -> Result<()> {
    let requirements = places::root().join("xtask/requirements.txt");
    ensure("aws CLI and boto3", &requirements, &places::venv())
}

/// Ansible in `target/venv-ansible`, and there in `collections` its modules for AWS alone:
/// the package that has them has a hundred others.
pub fn ansible() -> Result<()> {
    let requirements = places::root().join("tests/system/ansible/requirements.txt");
    let venv = places::root().join("target/venv-ansible");
    ensure("Ansible", &requirements, &venv)?;
    let collections = venv.join("collections");
    if collections.exists() {
        return Ok(());
    }
    let package = venv.join("package");
    sh::step("install the collection amazon.aws", || {
        sh::run(
            Command::new(venv.join("bin/python"))
                .args(["-m", "pip", "download", "--quiet", "--no-deps"])
                .args(["--disable-pip-version-check", ANSIBLE, "-d"])
                .arg(&package),
        )?;
        let part = venv.join("collections.part");
        sh::run(
            Command::new(venv.join("bin/python"))
                .args(["-c", UNPACK])
                .args([&package, &part]),
        )?;
        fs::remove_dir_all(&package).context("cannot remove the package")?;
        fs::rename(part, &collections).context("cannot mark the collection as whole")
    })
}

/// The package with the collections.
const ANSIBLE: &str = "ansible==10.7.0";
/// Unpacks `amazon.aws` of the wheel in the first folder into the second.
const UNPACK: &str = "
import pathlib, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).iterdir()))
names = [name for name in wheel.namelist() if name.startswith('ansible_collections/amazon/aws/')]
wheel.extractall(sys.argv[2], names)
";

/// moto_server, in `target/venv-bench`, where the benches look for it.
pub fn bench_peer() -> Result<()> {
    let requirements = places::root().join("benches/requirements.txt");
    let venv = places::root().join("target/venv-bench");
    ensure("moto_server", &requirements, &venv)
}

/// Makes the environment, unless one of these very requirements stands.
fn ensure(what: &str, requirements: &Path, venv: &Path) -> Result<()> {
    let wanted = fs::read_to_string(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let stamp = venv.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|held| held == wanted) {
        return Ok(());
    }
    sh::step(&format!("install {what} into {}", venv.display()), || {
        if venv.exists() {
            fs::remove_dir_all(venv).context("cannot remove the outdated environment")?;
        }
        sh::run(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
        sh::run(
            Command::new(venv.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet"])
                .args(["--disable-pip-version-check", "--no-deps", "-r"])
                .arg(requirements),
        )?;
        fs::write(&stamp, &wanted).context("cannot mark the environment as whole")
    })
}
