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

mod debian;
mod initramfs;
mod judge;
mod kernels;
mod qmp;
mod session;
mod snapshot;
mod stock;
mod terminal;
mod tree;

pub use debian::image as debian;
pub use session::{Forward, Session, Work};
pub use stock::{CMDLINE, StockGuest};

use crate::setup::{self, Need};
use crate::{places, sh};
use anyhow::{Context, Result, bail};
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
    /// Run the VMM's tests with stock kernels (vmm/tests/stock.rs)
    Vmm {
        /// All machines that are saved and moved, instead of one
        #[arg(long)]
        long: bool,
        /// Arguments of the test program, such as a part of a test's name
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run fio, which verifies, in Debian's kernel under QEMU in front of storaged
    Judge,
    /// Make the disk image that `demo --debian` boots, and say where it is
    Debian,
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
        Some(Action::Vmm { long, arguments }) => {
            TestedHost::prepare()?.run(&arguments, long, None, &mut std::io::stdout())
        }
        Some(Action::Judge) => {
            sh::run(sh::cargo().args(["build", "--locked", "--package=ocs-storaged"]))?;
            print!("{}", judge()?);
            Ok(0)
        }
        Some(Action::Debian) => {
            sh::say(&format!("it is {}", debian()?.display()));
            Ok(0)
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

/// An emulated host for `vmm/tests/stock.rs`, with what those tests boot.
pub struct TestedHost {
    program: String,
    snapshot: Snapshot,
    work: Work,
}

impl TestedHost {
    /// Builds the tests and their guests.
    pub fn prepare() -> Result<Self> {
        let program = test_program()?;
        let (snapshot, work) = (prepare()?, Work::new()?);
        stock::tested_guests(work.path())?;
        Ok(Self {
            program,
            snapshot,
            work,
        })
    }

    /// Runs the tests, all of them if `long`, of which a share of so many can be meant; their
    /// lines go to `out`. Yields their exit code.
    pub fn run(
        &self,
        arguments: &[String],
        long: bool,
        share: Option<(usize, usize)>,
        out: &mut dyn std::io::Write,
    ) -> Result<u8> {
        let mut words = vec![self.program.clone(), "--test-threads=1".to_owned()];
        words.extend_from_slice(arguments);
        let mut line = "OCS_STOCK_GUESTS=/lab ".to_owned();
        if let Some((number, of)) = share {
            line += &format!("OCS_STOCK_SHARE={number}/{of} ");
        }
        if long {
            line += "OCS_LONG=1 ";
        }
        line += &shell_line(&words);
        let code = Session::start(&self.snapshot, &self.work, &[])?.run(&line, out)?;
        keep_figures(&self.work)?;
        Ok(code)
    }
}

/// What the tests measured stays where benches leave theirs.
fn keep_figures(work: &Work) -> Result<()> {
    let figures = work.path().join("exits.json");
    if figures.is_file() {
        let folder = places::target().join("bench");
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(figures, folder.join("exits.json"))?;
    }
    Ok(())
}

/// Lets QEMU, Debian's kernel and fio judge storaged, which has been built. Yields what the
/// guest said.
pub fn judge() -> Result<String> {
    setup::ensure(&[Need::Lab, Need::BlockPeers])?;
    judge::run()
}

/// Builds the test program and says where it is.
fn test_program() -> Result<String> {
    let messages = sh::output(sh::cargo().args([
        "test",
        "--locked",
        "--workspace",
        "--test=stock",
        "--no-run",
        "--message-format=json",
    ]))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "stock")
        .find_map(|message| message["executable"].as_str().map(String::from))
        .context("cargo built no test program `stock`")
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
