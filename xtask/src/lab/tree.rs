//! Small file trees: busybox, a kernel's modules, scripts.

use super::kernels::Kernel;
use crate::sh;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A folder that becomes an initramfs or a disk image.
pub struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    /// With `folders` in it and Debian's static busybox as `/bin/busybox`.
    pub fn new(folders: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let tree = Self { folder };
        for name in folders.iter().chain(&["bin"]) {
            fs::create_dir_all(tree.path().join(name))?;
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).is_file())
            .context("busybox is missing")?;
        fs::copy(busybox, tree.path().join("bin/busybox"))?;
        Ok(tree)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A script at `path`.
    pub fn script(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path().join(path);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Debian's program `name` with the libraries that it is linked to, where it looks for them.
    pub fn program(&self, name: &str) -> Result<()> {
        let program = sh::output(Command::new("sh").args(["-c", &format!("command -v {name}")]))?;
        let program = program.trim();
        let libraries = sh::output(Command::new("ldd").arg(program))?;
        let libraries = libraries.split_whitespace().filter(|w| w.starts_with('/'));
        for file in libraries.chain([program]) {
            let to = self.path().join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("no folder")?)?;
            fs::copy(file, &to).with_context(|| file.to_owned())?;
        }
        Ok(())
    }

    /// The modules `names` of `kernel` with what they need in `/modules`, and in
    /// `/modules/order` the order of their insertion.
    pub fn modules(&self, kernel: &Kernel, names: &[&str]) -> Result<()> {
        let folder = self.path().join("modules");
        fs::create_dir_all(&folder)?;
        let mut order = String::new();
        for (name, bytes) in kernel.modules(names)? {
            fs::write(folder.join(&name), bytes)?;
            order.push_str(&name);
            order.push('\n');
        }
        fs::write(folder.join("order"), order)?;
        Ok(())
    }

    /// As a newc archive (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).
    pub fn archive(&self) -> Result<Vec<u8>> {
        let out = Command::new("sh")
            .args(["-c", "find . | sort | busybox cpio -o -H newc 2>/dev/null"])
            .current_dir(self.path())
            .stdin(Stdio::null())
            .output()
            .context("cannot start busybox cpio")?;
        ensure!(
            out.status.success() && !out.stdout.is_empty(),
            "busybox cpio packed nothing"
        );
        Ok(out.stdout)
    }
}
