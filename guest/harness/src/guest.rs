//! One probe under QEMU.

use crate::services;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The slowest machine that still counts: an emulated guest on a loaded host.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// The guest's network.
pub enum Network {
    /// No NIC: the orders go to the command line.
    None,
    /// Orders by user data; `169.254.160.99:9000` echoes, `169.254.160.99:80` serves
    /// a million letters, `169.254.160.99:1` answers nobody.
    User,
}

/// A running probe, killed when dropped.
pub struct Guest {
    qemu: Child,
    folder: TempDir,
}

/// The image, as `cargo xtask build` leaves it.
fn image() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/artifacts/ocs-probe.elf");
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask build`",
        path.display()
    );
    path
}

/// A sparse disk image in `folder`.
pub fn disk_image(folder: &Path, name: &str, size_bytes: u64) -> PathBuf {
    let path = folder.join(name);
    let file = File::create(&path).expect("the folder is writable");
    file.set_len(size_bytes).expect("a sparse file");
    path
}

impl Guest {
    /// Starts a probe with these orders and disks.
    pub fn start(orders: &[&str], network: Network, disks: &[&Path]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "64"])
            .args(["-display", "none", "-no-reboot", "-monitor", "stdio"])
            .arg("-serial")
            .arg(format!("file:{}", folder.path().join("console").display()))
            .arg("-kernel")
            .arg(image());
        match network {
            Network::None => {
                let line = format!("orders={}", orders.join(";"));
                qemu.args(["-nic", "none", "-append", &line]);
            }
            Network::User => {
                let metadata = services::metadata(folder.path(), &orders.join("\n"));
                let letters = services::letters(folder.path(), 1_000_000);
                qemu.arg("-netdev").arg(format!(
                    "user,id=n,restrict=on,net=169.254.160.0/20,dhcpstart=169.254.160.15\
                     ,guestfwd=tcp:169.254.169.254:80-cmd:{}\
                     ,guestfwd=tcp:169.254.160.99:80-cmd:{}\
                     ,guestfwd=tcp:169.254.160.99:9000-cmd:cat",
                    metadata.display(),
                    letters.display(),
                ));
                qemu.args(["-device", "virtio-net-pci,disable-legacy=on,netdev=n"]);
            }
        }
        for (index, disk) in disks.iter().enumerate() {
            qemu.arg("-drive").arg(format!(
                "file={},format=raw,if=none,id=d{index}",
                disk.display()
            ));
            qemu.arg("-device").arg(format!(
                "virtio-blk-pci,disable-legacy=on,drive=d{index},serial=vol{index}"
            ));
        }
        let qemu = qemu
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 starts (apt-get install qemu-system-x86)");
        Self { qemu, folder }
    }

    /// All console lines so far, without their times and what firmware wrote.
    pub fn lines(&self) -> Vec<String> {
        let bytes = fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(|line| Some(line.strip_prefix('[')?.split_once("] ")?.1.to_owned()))
            .collect()
    }

    /// Waits for a line that begins like this, and returns it.
    pub fn wait_for(&self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.lines();
            if let Some(line) = lines.iter().find(|line| line.starts_with(start)) {
                return line.clone();
            }
            assert!(
                Instant::now() < deadline,
                "no line {start:?} on the console:\n{}",
                lines.join("\n")
            );
            std::thread::sleep(POLL);
        }
    }

    /// Gives QEMU's monitor a command.
    pub fn monitor(&mut self, command: &str) {
        let input = self.qemu.stdin.as_mut().expect("it is piped");
        writeln!(input, "{command}").expect("QEMU runs");
    }

    /// Waits until the machine has gone.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.qemu.try_wait().expect("it is our child") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "QEMU still runs; the console:\n{}",
                self.lines().join("\n")
            );
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have gone by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
