//! The stock guest: Debian's cloud kernel as Debian ships it, an initial RAM disk with
//! its drivers, an ext4 root with busybox and three scripts.

use super::kernels::{Flavour, Kernel};
use super::tree::Tree;
use crate::sh;
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The drivers that the cloud kernel has as modules; PCI, ext4 and the rest are built in.
const MODULES: &[&str] = &["virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon"];

/// The series that most of the lab runs.
pub const NEWEST: &str = "6.12";
/// Debian's kernels that the VMM's own tests boot: bookworm's backport and its own.
const SERIES: [&str; 2] = [NEWEST, "6.1"];
/// What those tests use of it.
const TESTED_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "evdev",
    "button",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
];

/// Puts what `vmm/tests/stock.rs` boots into `folder`: for each series a vmlinux and an
/// initial RAM disk; and a disk that holds both as an installed Debian does.
pub fn tested_guests(folder: &Path) -> Result<()> {
    let tools = [
        ("vsock", "xtask/src/lab/l2-vsock.rs"),
        ("moves", "xtask/src/lab/l2-moves.rs"),
    ];
    for (name, source) in tools {
        build_tool(&folder.join(name), source)?;
    }
    for series in SERIES {
        let kernel = Kernel::get(series, Flavour::Cloud)?;
        let initrd = Tree::new(&["dev", "proc", "sys", "tmp"])?;
        initrd.modules(&kernel, TESTED_MODULES)?;
        initrd.script("init", include_str!("l2-vmm.sh"))?;
        for (name, _) in tools {
            fs::copy(folder.join(name), initrd.path().join("bin").join(name))?;
        }
        fs::write(folder.join(format!("initrd-{series}")), initrd.archive()?)?;
        std::os::unix::fs::symlink(kernel.vmlinux(), folder.join(format!("vmlinux-{series}")))?;
    }
    installed_disk(folder)
}

/// `disk`: Debian's packed kernel and the initrd of its series in `/boot`, with GRUB's menu.
fn installed_disk(folder: &Path) -> Result<()> {
    let kernel = Kernel::get(NEWEST, Flavour::Cloud)?;
    let version = kernel.package.trim_start_matches("linux-image-").to_owned();
    let root = Tree::new(&["boot/grub"])?;
    let boot = root.path().join("boot");
    fs::copy(kernel.vmlinuz()?, boot.join(format!("vmlinuz-{version}")))?;
    let initrd = folder.join(format!("initrd-{NEWEST}"));
    fs::copy(initrd, boot.join(format!("initrd.img-{version}")))?;
    // As `update-grub` writes it, but for what GRUB alone needs.
    let menu = format!(
        "menuentry 'Debian GNU/Linux' --class debian {{\n\
         \tlinux\t/boot/vmlinuz-{version} root=/dev/vda ro console=ttyS0 quiet panic=-1\n\
         \tinitrd\t/boot/initrd.img-{version}\n}}\n"
    );
    fs::write(boot.join("grub/grub.cfg"), menu)?;
    make_ext4(&root, &folder.join("disk"), "56M")
}

/// An ext4 file system of `size` with what `tree` holds.
fn make_ext4(tree: &Tree, image: &Path, size: &str) -> Result<()> {
    sh::output(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096", "-F", "-L", "root", "-d"])
            .arg(tree.path())
            .arg(image)
            .arg(size)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"),
    )?;
    Ok(())
}

/// A program of the guest's beside busybox, static as that is.
fn build_tool(to: &Path, source: &str) -> Result<()> {
    let source = crate::places::root().join(source);
    sh::run(
        Command::new("rustc")
            .args(["--edition", "2024", "-Copt-level=1", "-Cstrip=symbols"])
            .args(["-Ctarget-feature=+crt-static", "-o"])
            .arg(to)
            .arg(source)
            .current_dir(crate::places::root()),
    )
}

/// The guest's command line.
pub const CMDLINE: &str = "console=ttyS0 quiet root=/dev/vda rw panic=-1";

/// The files of one image.
pub struct StockGuest {
    /// The kernel package, for the record.
    pub package: String,
    /// Uncompressed, as `ocs-vmm` boots it through its PVH entry.
    pub vmlinux: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
    /// The root volume's first content.
    pub root: PathBuf,
}

impl StockGuest {
    /// Makes initrd and root in `folder`.
    pub fn build(folder: &Path) -> Result<Self> {
        let kernel = Kernel::get(NEWEST, Flavour::Cloud)?;
        let initrd = Tree::new(&["dev", "proc", "sys", "new"])?;
        initrd.modules(&kernel, MODULES)?;
        initrd.script("init", include_str!("l2-initrd.sh"))?;
        let guest = Self {
            vmlinux: kernel.vmlinux(),
            initrd: folder.join("initrd"),
            root: folder.join("root.ext4"),
            package: kernel.package,
        };
        fs::write(&guest.initrd, initrd.archive()?)?;

        let root = Tree::new(&["dev", "proc", "sys", "sbin", "tmp", "etc"])?;
        root.script("sbin/init", include_str!("l2-init.sh"))?;
        root.script("bin/dhcp-script", include_str!("l2-dhcp.sh"))?;
        fs::write(root.path().join("etc/hosts"), "127.0.0.1 localhost\n")?;
        sh::run(
            Command::new(root.path().join("bin/busybox"))
                .args(["--install", "-s"])
                .arg(root.path().join("bin")),
        )?;
        relink(&root.path().join("bin"))?;
        make_ext4(&root, &guest.root, "96M")?;
        Ok(guest)
    }
}

/// `--install` links to where busybox lies now; in the image it lies beside its links.
fn relink(bin: &Path) -> Result<()> {
    for entry in fs::read_dir(bin)? {
        let path = entry?.path();
        if path.is_symlink() {
            fs::remove_file(&path)?;
            std::os::unix::fs::symlink("busybox", &path)?;
        }
    }
    Ok(())
}
