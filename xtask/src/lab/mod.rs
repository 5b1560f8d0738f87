//! The lab: an emulated host with AMD-V, where stock Linux boots under `ocs-vmm`.
//!
//! ```text
//!  this machine ── QEMU, TCG ──▶ L1: Debian's kernel, kvm-amd, this machine's `/` by 9p
//!                                 └─ ocs-vmm ──▶ L2: Debian's cloud kernel, unmodified
//!  kernels ─▶ initramfs ─▶ boot ─▶ snapshot        once, kept in the cache
//!  snapshot ─▶ restore ─▶ mount ─▶ command         each time, in about a second
//! ```
//! A functional lab, not a performance lab. L1 sees this machine's files under a
//! layer of its own memory: what it writes is gone with it, except in `/lab`, which
//! is the session's work folder here.

mod initramfs;
mod kernels;
mod qmp;
mod session;
mod snapshot;
mod stock;
mod terminal;
mod tree;

pub use session::{Forward, Session, Work};
pub use stock::{CMDLINE, StockGuest};

use crate::setup::{self, Need};
use crate::sh;
use anyhow::{Result, bail};
use clap::Subcommand;
use snapshot::Snapshot;
use std::path::PathBuf;

/// What to do in the lab; a shell if nothing is named.
#[derive(Subcommand)]
pub enum Action {
    /// Run one command and exit with its code
    Run {
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Put the stock guest's vmlinux, initrd and root.ext4 into a folder
    Guest {
        /// Made if it is not there
        folder: PathBuf,
    },
}

/// The kernels and the snapshot, made if the cache lacks them.
pub fn prepare() -> Result<Snapshot> {
    setup::ensure(&[Need::Lab])?;
    Snapshot::get()
}

/// `cargo xtask lab`. Yields the command's exit code.
pub fn run(action: Option<Action>) -> Result<u8> {
    match action {
        Some(Action::Run { command }) => {
            let (snapshot, work) = (prepare()?, Work::new()?);
            let mut session = Session::start(&snapshot, &work, &[])?;
            session.run(&shell_line(&command), &mut std::io::stdout())
        }
        Some(Action::Guest { folder }) => {
            setup::ensure(&[Need::Lab])?;
            std::fs::create_dir_all(&folder)?;
            let guest = StockGuest::build(&folder)?;
            std::fs::copy(&guest.vmlinux, folder.join("vmlinux"))?;
            sh::say(&format!(
                "{} is in {}; cmdline: {}",
                guest.package,
                folder.display(),
                CMDLINE
            ));
            Ok(0)
        }
        None => {
            if !terminal::is_terminal() {
                bail!(
                    "the lab's shell needs a terminal; `cargo xtask lab run -- COMMAND` does not"
                );
            }
            let (snapshot, work) = (prepare()?, Work::new()?);
            sh::say("the emulated host; /lab is a shared folder, ctrl-D leaves");
            Session::start(&snapshot, &work, &[])?.shell()
        }
    }
}

/// The words as one line for a POSIX shell.
pub fn shell_line(words: &[String]) -> String {
    words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_survive_the_shell() {
        let words = ["echo", "it's", "$HOME", "a b", ""].map(String::from);
        let line = super::shell_line(&words);
        let out = std::process::Command::new("sh")
            .args(["-c", &line])
            .output()
            .unwrap();
        assert_eq!(out.stdout, b"it's $HOME a b \n");
    }
}
