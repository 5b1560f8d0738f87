//! The images folder: kernels and first contents by name, and the manifest that
//! control reads.
//!
//! Imported files are named by their SHA-256, so importing the same twice costs
//! nothing and no running instance's file ever changes.

use crate::state::{State, write_whole};
use anyhow::{Context, Result, bail, ensure};
use ocs_disk_image::{CHUNK_BYTES, Format, ImageError, MAX_BYTES, Reader};
use ring::digest;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

const PROBE: &str = "ocs-probe";
const PROBE_INSTANCE_STORE: &str = "ocs-probe-instance-store";
const PROBE_KERNEL: &str = "ocs-probe.elf";
const PROBE_ROOT: &str = "ocs-probe-root.img";
/// What the probe's root volume begins with, so that a guest can tell it.
const PROBE_ROOT_SIGNATURE: &[u8] = b"OCS-PROBE-ROOT-1\n";
const PROBE_ROOT_BYTES: usize = 64 * 1024;
/// Copies that are not whole begin with this.
const PART: &str = ".import-";

/// One image, as control's `--images-manifest` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name; one image a name.
    pub name: String,
    /// Kernel, a file of the folder; empty: the root disk holds it.
    #[serde(default)]
    pub kernel: String,
    /// Initrd, a file of the folder or empty.
    #[serde(default)]
    pub initrd: String,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// The root volume's first content, a file of the folder or empty.
    #[serde(default)]
    pub root_image: String,
    /// The root volume's size.
    pub root_size_gib: u64,
    /// Where the root volume lives.
    pub root_type: RootType,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// EC2's root device types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RootType {
    /// A persistent volume.
    Ebs,
    /// Erased at stop.
    InstanceStore,
}

/// Where the manifest lies.
pub fn manifest_path(state: &State) -> PathBuf {
    state.path("images/manifest.json")
}

/// Puts the probe guest's files and entries into the images folder.
///
/// # Errors
/// Also where this `ocs` was built without the probe.
pub fn install_probe(state: &State) -> Result<()> {
    let kernel = state.path("images").join(PROBE_KERNEL);
    let elf = embedded_probe()
        .context("this ocs was built without the probe guest; build it with `cargo xtask build`")?;
    if fs::read(&kernel).ok().as_deref() != Some(elf) {
        write_whole(&kernel, elf, 0o644, 0)?;
    }
    let mut root = vec![0u8; PROBE_ROOT_BYTES];
    root[..PROBE_ROOT_SIGNATURE.len()].copy_from_slice(PROBE_ROOT_SIGNATURE);
    write_whole(&state.path("images").join(PROBE_ROOT), &root, 0o644, 0)?;
    for (name, root_type) in [
        (PROBE, RootType::Ebs),
        (PROBE_INSTANCE_STORE, RootType::InstanceStore),
    ] {
        put(
            state,
            Image {
                name: name.into(),
                kernel: PROBE_KERNEL.into(),
                initrd: String::new(),
                cmdline: String::new(),
                root_image: PROBE_ROOT.into(),
                root_size_gib: 1,
                root_type,
                other: serde_json::Map::new(),
            },
        )?;
    }
    Ok(())
}

#[cfg(has_probe)]
fn embedded_probe() -> Option<&'static [u8]> {
    Some(include_bytes!(env!("OCS_PROBE_ELF")))
}

#[cfg(not(has_probe))]
fn embedded_probe() -> Option<&'static [u8]> {
    None
}

/// The image of this name.
pub fn find(state: &State, name: &str) -> Result<Image> {
    let images = load(&manifest_path(state))?;
    let mut images = images.into_iter();
    images
        .find(|image| image.name == name)
        .with_context(|| format!("--name {name}: there is no such image"))
}

fn load(path: &Path) -> Result<Vec<Image>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not a manifest", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(path.display().to_string()),
    }
}

/// Writes `image` into the manifest, in the place of one of its name.
pub fn put(state: &State, image: Image) -> Result<()> {
    let folder = File::open(state.path("images")).context("the images folder")?;
    // One writer at a time; let go when `folder` is closed.
    flock(&folder, FlockOperation::LockExclusive).context("locking the images folder")?;
    let path = manifest_path(state);
    let mut images = load(&path)?;
    match images.iter_mut().find(|known| known.name == image.name) {
        Some(known) if *known == image => return Ok(()),
        Some(known) => *known = image,
        None => images.push(image),
    }
    write_whole(&path, &serde_json::to_vec_pretty(&images)?, 0o644, 0)
}

/// Copies the disk in `source` into the images folder, byte for byte and with holes for
/// zeros; returns its name there.
pub fn add_file(state: &State, source: &Path, format: Format) -> Result<String> {
    let folder = state.path("images");
    remove_leftovers(&folder)?;
    let part = folder.join(format!("{PART}{}", std::process::id()));
    let mut kept = None;
    let copied = File::create(&part).map_err(Into::into).and_then(|to| {
        // Held to the end: who finds the file unlocked knows that its writer died.
        flock(&to, FlockOperation::LockExclusive)?;
        copy_sparse(source, format, kept.insert(to))
    });
    let result = copied.and_then(|hash| {
        let name = format!("sha256-{hash}");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o644))?;
        fs::rename(&part, folder.join(&name))?;
        Ok(name)
    });
    if result.is_err() {
        // The copy's error is the one to tell.
        let _ = fs::remove_file(&part);
    }
    result.with_context(|| format!("importing {}", source.display()))
}

/// Refuses names that EC2's RegisterImage refuses (3–128 of letters, digits and
/// `()[] ./-'@_`), and those of the installation's own images.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    ensure!(
        (3..=128).contains(&name.len()) && name.chars().all(plain),
        "--name {name:?}: must have 3 to 128 letters, digits or ()[] ./-'@_"
    );
    if [PROBE, PROBE_INSTANCE_STORE].contains(&name) {
        bail!("--name {name}: belongs to the installation itself");
    }
    Ok(())
}

/// Removes copies whose writers died.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PART)
            && let Ok(file) = File::open(entry.path())
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Opens a disk image that the operator chose.
pub fn open(source: &Path, format: Option<Format>) -> Result<Reader<File>> {
    let open = || {
        let from = File::open(source)?;
        ensure!(from.metadata()?.is_file(), "not a regular file");
        let format = format.map_or_else(|| Format::guess(&from), Ok)?;
        Ok(Reader::open(from, format, MAX_BYTES)?)
    };
    open().with_context(|| source.display().to_string())
}

fn copy_sparse(source: &Path, format: Format, to: &File) -> Result<String> {
    let reader = open(source, Some(format))?;
    ensure!(reader.size_bytes() > 0, "the file is empty");
    let zeros = vec![0u8; CHUNK_BYTES];
    let mut context = digest::Context::new(&digest::SHA256);
    let hash_zeros = |context: &mut digest::Context, mut count: u64| {
        while count > 0 {
            let part = count.min(CHUNK_BYTES as u64);
            context.update(&zeros[..part as usize]);
            count -= part;
        }
    };
    let mut done = 0;
    reader.chunks(|at, chunk| {
        hash_zeros(&mut context, at - done);
        context.update(chunk);
        done = at + chunk.len() as u64;
        to.write_all_at(chunk, at).map_err(ImageError::from)
    })?;
    hash_zeros(&mut context, reader.size_bytes() - done);
    to.set_len(reader.size_bytes())?;
    to.sync_all()?;
    let hash = context.finish();
    Ok(hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn state() -> (tempfile::TempDir, State) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        let state = State::at(folder.path()).unwrap();
        (folder, state)
    }

    fn image(name: &str, cmdline: &str) -> Image {
        Image {
            name: name.into(),
            kernel: "sha256-1".into(),
            initrd: String::new(),
            cmdline: cmdline.into(),
            root_image: String::new(),
            root_size_gib: 1,
            root_type: RootType::Ebs,
            other: serde_json::Map::new(),
        }
    }

    #[test]
    fn an_imported_file_is_equal_sparse_and_named_by_content() {
        let (folder, state) = state();
        let source = folder.path().join("source");
        let mut content = vec![0u8; 8 << 20];
        content[..3].copy_from_slice(b"abc");
        content[(8 << 20) - 1] = 1;
        fs::write(&source, &content).unwrap();
        let name = add_file(&state, &source, Format::Raw).unwrap();
        assert_eq!(add_file(&state, &source, Format::Raw).unwrap(), name);
        let copy = state.path("images").join(&name);
        assert!(fs::read(&copy).unwrap() == content);
        assert!(copy.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(fs::read_dir(state.path("images")).unwrap().count(), 1);
    }

    #[test]
    fn the_hash_is_sha_256() {
        let (folder, state) = state();
        let source = folder.path().join("source");
        fs::write(&source, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "sha256-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(add_file(&state, &source, Format::Raw).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_imported_leaves_nothing() {
        let (folder, state) = state();
        let empty = folder.path().join("empty");
        fs::write(&empty, "").unwrap();
        for source in [&empty, folder.path(), &folder.path().join("absent")] {
            assert!(add_file(&state, source, Format::Raw).is_err(), "{source:?}");
        }
        let cut = folder.path().join("cut.qcow2");
        fs::write(&cut, b"QFI\xfb\0\0\0\x03").unwrap();
        let error = add_file(&state, &cut, Format::Qcow2).unwrap_err();
        assert!(format!("{error:#}").contains("the header"), "{error:#}");
        assert_eq!(fs::read_dir(state.path("images")).unwrap().count(), 0);
    }

    #[test]
    fn a_qcow2_is_the_disk_that_it_holds() {
        let (folder, state) = state();
        let (raw, qcow2) = (folder.path().join("raw"), folder.path().join("qcow2"));
        let mut content = vec![0u8; (3 << 20) + 512];
        content[70_000..70_003].copy_from_slice(b"abc");
        fs::write(&raw, &content).unwrap();
        let file = File::create(&qcow2).unwrap();
        let reader = open(&raw, None).unwrap();
        let mut writer =
            ocs_disk_image::Writer::new(&file, Format::Qcow2, reader.size_bytes()).unwrap();
        reader.chunks(|at, chunk| writer.put(at, chunk)).unwrap();
        writer.finish().unwrap();
        assert_eq!(open(&qcow2, None).unwrap().size_bytes(), (3 << 20) + 512);
        let name = add_file(&state, &qcow2, Format::Qcow2).unwrap();
        assert_eq!(add_file(&state, &raw, Format::Raw).unwrap(), name);
        assert!(fs::read(state.path("images").join(name)).unwrap() == content);
    }

    #[test]
    fn what_a_dead_import_left_goes_and_what_a_live_one_writes_stays() {
        let (_folder, state) = state();
        let folder = state.path("images");
        let (dead, live) = (folder.join(".import-1"), folder.join(".import-2"));
        fs::write(&dead, "half").unwrap();
        let file = File::create(&live).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        remove_leftovers(&folder).unwrap();
        assert!(!dead.exists() && live.exists());
    }

    #[test]
    fn the_manifest_holds_one_entry_a_name_and_keeps_what_it_does_not_know() {
        let (_folder, state) = state();
        let path = manifest_path(&state);
        let known = r#"[{"name":"own","kernel":"k","root_size_gib":2,"root_type":"instance-store","imds_support":"v2.0"}]"#;
        fs::write(&path, known).unwrap();
        put(&state, image("debian", "a")).unwrap();
        put(&state, image("debian", "b")).unwrap();
        let images: Vec<Image> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(images[0].other["imds_support"], "v2.0");
        assert_eq!(images[0].root_type, RootType::InstanceStore);
        assert_eq!(images[1], image("debian", "b"));
    }

    #[test]
    fn names_are_ec2_s() {
        check_name("Debian 12 (cloud)").unwrap();
        for bad in [
            "",
            "ab",
            "a\nb",
            "name,comma",
            "ocs-probe",
            &"a".repeat(129),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
