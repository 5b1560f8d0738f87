//! Vectors of EC2's wire protocol: files of botocore's source package, which its wheel lacks.

use crate::{places, sh};
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;

/// The package, by content: the clients' version of it.
const PACKAGE: &str = "botocore==1.44.5 \\
    --hash=sha256:a988f39e3a4484def0b8010f41128f71157da0515a4804fccce4739aa8f216da
";
/// Copies the vectors of the package in the first folder into the second.
const UNPACK: &str = "
import pathlib, sys, tarfile
package = tarfile.open(next(pathlib.Path(sys.argv[1]).glob('*.tar.gz')))
for name in package.getnames():
    for direction in ('input', 'output'):
        if name.endswith(f'/tests/unit/protocols/{direction}/ec2.json') and '/legacy/' not in name:
            text = package.extractfile(name).read()
            pathlib.Path(sys.argv[2], f'{direction}.json').write_bytes(text)
";

/// Puts `input.json` and `output.json` into `target/wire-vectors`.
pub fn ensure() -> Result<()> {
    let folder = places::root().join("target/wire-vectors");
    let stamp = folder.join("package.txt");
    if fs::read_to_string(&stamp).is_ok_and(|held| held == PACKAGE) {
        return Ok(());
    }
    sh::step("fetch the wire protocol's vectors", || {
        let package = folder.join("package");
        fs::create_dir_all(&package).with_context(|| package.display().to_string())?;
        let wanted = package.join("requirements.txt");
        fs::write(&wanted, PACKAGE).context("cannot write the requirement")?;
        sh::run(
            Command::new("python3")
                .args(["-m", "pip", "download", "--quiet", "--no-deps"])
                .args(["--disable-pip-version-check", "--no-binary", "botocore"])
                .arg("-r")
                .arg(&wanted)
                .arg("-d")
                .arg(&package),
        )?;
        sh::run(
            Command::new("python3")
                .args(["-c", UNPACK])
                .args([&package, &folder]),
        )?;
        fs::remove_dir_all(&package).context("cannot remove the package")?;
        fs::write(&stamp, PACKAGE).context("cannot mark the vectors as whole")
    })
}
