//! A Debian as its cloud images are: stock packages, nothing of them changed, on a GPT disk
//! with a kernel of its own. cloud-init makes of it at its first boot what metadata say.
//!
//! Debian's own images are files beside its package archive, which a machine may not reach;
//! this is made from the packages that they are made from. What is written here is what their
//! build writes too: `fstab`, GRUB's menu, and no identity (`machine-id`, SSH host keys).

use crate::setup::{self, Need};
use crate::{places, sh};
use anyhow::{Context, Result};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

const RELEASE: &str = "bookworm";
/// Of the package `debian-cloud-images-packages`, what a small server needs and all that
/// decides how the image finds its cloud; GRUB is not, since nobody here runs it.
const PACKAGES: &str = "apparmor,ca-certificates,chrony,cloud-guest-utils,cloud-init,\
    cloud-initramfs-growroot,curl,dbus,e2fsprogs,ethtool,fdisk,gdisk,init,initramfs-tools,iproute2,\
    iputils-ping,isc-dhcp-client,less,libnss-resolve,libpam-systemd,linux-image-cloud-amd64,\
    locales,netplan.io,openssh-server,procps,rsyslog,sudo,systemd-resolved,systemd-sysv,udev,\
    unattended-upgrades,vim-tiny,whiptail";
/// Where a package manager keeps what it is told of mirrors.
const SOURCES: [&str; 2] = [
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list",
];
/// The disk; its partition begins at 1 MiB and ends 1 MiB before the disk does.
const DISK_MIB: u64 = 1_536;

/// The disk image, made if the cache lacks it (some minutes, as root).
pub fn image() -> Result<PathBuf> {
    let folder = places::cache()?.join("debian");
    fs::create_dir_all(&folder)?;
    let mut hash = DefaultHasher::new();
    include_str!("debian.rs").hash(&mut hash);
    let image = folder.join(format!("{RELEASE}-{:016x}.qcow2", hash.finish()));
    if !image.is_file() {
        setup::ensure(&[Need::Lab, Need::Debian])?;
        sh::step("make a Debian with cloud-init from its packages", || {
            let scratch = tempfile::tempdir_in(&folder)?;
            let root = scratch.path().join("root");
            bootstrap(&root)?;
            finish(&root)?;
            let disk = scratch.path().join("disk");
            make_disk(&root, &disk)?;
            let packed = scratch.path().join("packed");
            sh::run(
                Command::new("qemu-img")
                    .args(["convert", "-f", "raw", "-O", "qcow2"])
                    .args([&disk, &packed]),
            )?;
            // Last and in one go: an image is whole or not there.
            fs::rename(&packed, &image).context("cannot keep the image")
        })?;
    }
    Ok(image)
}

fn bootstrap(root: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={PACKAGES}"))
        .arg(RELEASE)
        .arg(root)
        .args(SOURCES.iter().filter(|path| Path::new(path).is_file()));
    sh::run(&mut mmdebstrap)
}

/// What a package archive does not hold.
fn finish(root: &Path) -> Result<()> {
    let write = |path: &str, text: &str| {
        fs::write(root.join(path), text).with_context(|| format!("cannot write {path}"))
    };
    write(
        "etc/fstab",
        "LABEL=root / ext4 rw,discard,errors=remount-ro 0 1\n",
    )?;
    write("etc/hostname", "localhost\n")?;
    write("etc/machine-id", "")?;
    for entry in fs::read_dir(root.join("etc/ssh"))? {
        let path = entry?.path();
        if path.to_string_lossy().contains("ssh_host_") {
            fs::remove_file(path)?;
        }
    }
    let boot = root.join("boot");
    let version = fs::read_dir(&boot)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
        .context("the kernel's package left no kernel")?;
    fs::create_dir_all(boot.join("grub"))?;
    // As `update-grub` writes it on Debian's images, but for what GRUB alone needs.
    let menu = format!(
        "menuentry 'Debian GNU/Linux' --class debian {{\n\
         \tlinux\t/boot/vmlinuz-{version} root=LABEL=root ro console=tty0 console=ttyS0,115200\n\
         \tinitrd\t/boot/initrd.img-{version}\n}}\n"
    );
    write("boot/grub/grub.cfg", &menu)
}

fn make_disk(root: &Path, disk: &Path) -> Result<()> {
    fs::File::create(disk)?.set_len(DISK_MIB << 20)?;
    let table = format!(
        "label: gpt\nstart=1MiB, size={}MiB, type=linux\n",
        DISK_MIB - 2
    );
    let script = disk.with_extension("table");
    fs::write(&script, table)?;
    let path = "/usr/sbin:/sbin:/usr/bin:/bin";
    let partition = Command::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(disk)
        .stdin(fs::File::open(&script)?)
        .env("PATH", path)
        .status()
        .context("cannot start sfdisk")?;
    anyhow::ensure!(partition.success(), "sfdisk ended with {partition}");
    sh::output(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096", "-F", "-L", "root"])
            .args(["-E", "offset=1048576", "-d"])
            .arg(root)
            .arg(disk)
            .arg(format!("{}M", DISK_MIB - 2))
            .env("PATH", path),
    )?;
    Ok(())
}
