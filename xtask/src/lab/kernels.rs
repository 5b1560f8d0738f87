//! Debian's kernels, downloaded and unpacked into the cache.
//!
//! The host needs the generic flavour (kvm-amd, 9p); guests take the cloud flavour,
//! as Debian's cloud images do. Nothing is installed on this machine.

use crate::{places, sh};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's flavours of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// All drivers: the lab's host.
    Generic,
    /// Virtual hardware only: the lab's guests.
    Cloud,
}

/// One unpacked kernel package.
pub struct Kernel {
    /// `linux-image-6.12.1+deb12-cloud-amd64`.
    pub package: String,
    folder: PathBuf,
}

impl Kernel {
    /// The newest of `series` (`6.12`) in the cache, else the newest that Debian has.
    pub fn get(series: &str, flavour: Flavour) -> Result<Self> {
        let cache = places::cache()?.join("kernels");
        fs::create_dir_all(&cache)?;
        let cached = fs::read_dir(&cache)?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
        if let Some(package) = newest(cached, series, flavour) {
            let folder = cache.join(&package);
            return Ok(Self { package, folder });
        }
        let prefix = format!("linux-image-{series}.");
        let offered = sh::output(Command::new("apt-cache").args(["pkgnames", &prefix]))?;
        let Some(package) = newest(offered.lines().map(String::from), series, flavour) else {
            bail!("Debian's package list has no {prefix}…-amd64; run `apt-get update` first");
        };
        let folder = cache.join(&package);
        sh::step(&format!("fetch {package} for the lab"), || {
            unpack(&cache, &package, &folder)
        })?;
        Ok(Self { package, folder })
    }

    /// The uncompressed ELF, with a PVH entry.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The kernel as Debian packs it.
    pub fn vmlinuz(&self) -> Result<PathBuf> {
        packed(&self.folder)
    }

    /// The module `name` and what it needs, in order of insertion, those built in left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let versions = self.folder.join("lib/modules");
        let tree = fs::read_dir(&versions)?
            .next()
            .context("the kernel package has no modules")??
            .path();
        let files = sh::output(Command::new("find").arg(&tree).args(["-name", "*.ko*"]))?;
        let builtin = fs::read_to_string(tree.join("modules.builtin"))?;
        let mut order = Vec::new();
        for name in names {
            insert_with_needs(name, &files, &builtin, &mut order)?;
        }
        Ok(order)
    }
}

/// The newest package of this series and flavour among `names`.
fn newest(names: impl Iterator<Item = String>, series: &str, flavour: Flavour) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    names
        .filter(|name| {
            name.strip_prefix(&prefix)
                .and_then(|rest| rest.strip_suffix("-amd64"))
                .is_some_and(|version| match flavour {
                    Flavour::Cloud => version.ends_with("-cloud"),
                    Flavour::Generic => !version.contains('-'),
                })
        })
        .max_by_key(|name| {
            name.split(|c: char| !c.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect::<Vec<u64>>()
        })
}

fn unpack(cache: &Path, package: &str, folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(cache)?;
    sh::run(
        Command::new("apt-get")
            .args(["download", "-q", package])
            .current_dir(&scratch),
    )?;
    let archive = fs::read_dir(&scratch)?
        .next()
        .context("apt-get download left no file")??
        .path();
    let tree = scratch.path().join("tree");
    sh::run(Command::new("dpkg").arg("-x").arg(&archive).arg(&tree))?;
    let compressed = payload(&fs::read(packed(&tree)?)?)?;
    fs::write(
        tree.join("vmlinux"),
        decompress(&compressed, scratch.path())?,
    )?;
    // Last and in one go: a package folder is whole or not there.
    fs::rename(&tree, folder).with_context(|| format!("cannot keep {}", folder.display()))
}

/// The bzImage in a package's tree.
fn packed(tree: &Path) -> Result<PathBuf> {
    fs::read_dir(tree.join("boot"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .context("the kernel package has no vmlinuz")
}

/// A bzImage's compressed kernel (Linux, `Documentation/arch/x86/boot.rst`:
/// `setup_sects`, `payload_offset`, `payload_length`), without the size behind it.
fn payload(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let find = || -> Option<&[u8]> {
        let setup = match image.get(0x1f1)? {
            0 => 4,
            &sectors => usize::from(sectors),
        };
        let start = (setup + 1) * 512 + word(0x248)?;
        image.get(start..start + word(0x24c)?.checked_sub(4)?)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") && image.get(0x202..0x206).is_none() {
        bail!("not a bzImage: no boot header");
    }
    find()
        .map(<[u8]>::to_vec)
        .context("not a bzImage: no payload")
}

/// Debian compresses kernels with zstd, xz or lz4, by release.
fn decompress(compressed: &[u8], scratch: &Path) -> Result<Vec<u8>> {
    let tool = match compressed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', ..] => "xz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        _ => bail!("the kernel is compressed with neither zstd, xz nor lz4"),
    };
    filter(tool, compressed, scratch)
}

/// `tool -dc` of `bytes`.
fn filter(tool: &str, bytes: &[u8], scratch: &Path) -> Result<Vec<u8>> {
    let file = scratch.join("compressed");
    fs::write(&file, bytes)?;
    let out = Command::new(tool)
        .args(["-dcq"])
        .stdin(fs::File::open(&file)?)
        .output()
        .with_context(|| format!("cannot start {tool}"))?;
    if !out.status.success() {
        bail!(
            "{tool}: {}",
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(out.stdout)
}

fn insert_with_needs(
    name: &str,
    files: &str,
    builtin: &str,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    // Files say `virtio-rng.ko`, dependencies `virtio_rng`: the kernel knows no difference.
    let plain = |text: &str| text.replace('-', "_");
    let is_it = |path: &&str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        plain(file.split(".ko").next().unwrap_or(file)) == plain(name)
    };
    if order.iter().any(|(held, _)| *held == plain(name))
        || builtin.lines().any(|path| is_it(&path))
    {
        return Ok(());
    }
    let path = files
        .lines()
        .find(is_it)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let mut bytes = fs::read(path)?;
    if path.ends_with(".xz") {
        bytes = filter("xz", &bytes, tempfile::tempdir()?.path())?;
    }
    for need in needs_of(&bytes) {
        insert_with_needs(&need, files, builtin, order)?;
    }
    order.push((plain(name), bytes));
    Ok(())
}

/// The names behind `depends=` in a module's `.modinfo`.
fn needs_of(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(String::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_flavour_is_taken() {
        let names = [
            "linux-image-6.12.9+deb12-amd64",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12.117+deb12-amd64-unsigned",
            "linux-image-6.12.118+deb12-rt-amd64",
            "linux-image-6.12.43+deb12-cloud-amd64",
            "linux-image-6.1.0-54-cloud-amd64",
        ];
        let pick = |flavour| newest(names.iter().map(|&name| name.to_owned()), "6.12", flavour);
        assert_eq!(pick(Flavour::Generic).as_deref(), Some(names[1]));
        assert_eq!(pick(Flavour::Cloud).as_deref(), Some(names[4]));
        let old = newest(
            names.iter().map(|&name| name.to_owned()),
            "6.1",
            Flavour::Cloud,
        );
        assert_eq!(old.as_deref(), Some(names[5]));
    }

    #[test]
    fn a_module_names_its_needs() {
        assert_eq!(
            needs_of(b"\0license=GPL\0depends=kvm,ccp\0name=x\0"),
            ["kvm", "ccp"]
        );
        assert!(needs_of(b"\0depends=\0").is_empty());
        assert!(needs_of(b"").is_empty());
    }

    #[test]
    fn what_is_no_bzimage_is_refused() {
        assert!(payload(&[0; 100]).is_err());
        assert!(payload(&[0xff; 4096]).is_err());
    }
}
