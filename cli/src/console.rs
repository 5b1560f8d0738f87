//! `ocs console`: what an instance of this host has written to its serial console, and what
//! it writes from now on.

use crate::state::State;
use anyhow::{Context, Result, ensure};
use clap::Args;
use ocs_vmm_spec::console;
use std::fs::File;
use std::io::{IsTerminal as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// How often one that is followed is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Arguments of `ocs console`.
#[derive(Args)]
pub struct Arguments {
    /// The instance, i-…
    instance: String,
    /// Goes on with what it writes, until it is terminated or Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// The installation's state folder.
    #[arg(long, default_value = super::up::DEFAULT_STATE)]
    state: PathBuf,
}

/// Runs `ocs console`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let id = &arguments.instance;
    let digits = id.strip_prefix("i-").unwrap_or_default();
    ensure!(
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id:?} is no instance's id"
    );
    let path = State::at(&arguments.state)?.path(&format!("run/console/{id}"));
    let file = File::open(&path).with_context(|| format!("{id} has no console on this host"))?;
    let mut out = std::io::stdout();
    let terminal = out.is_terminal();
    let mut seen = 0;
    loop {
        let gone = file.metadata()?.nlink() == 0;
        let (held, written) = console::read(&file).context("the console cannot be read")?;
        let new = news(&held, written, seen);
        seen = written;
        match terminal {
            true => out.write_all(&plain(new))?,
            false => out.write_all(new)?,
        }
        out.flush()?;
        if gone || !arguments.follow {
            return Ok(());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What is new of the output still held, when `seen` of all bytes `written` were seen; of
/// what was overwritten meanwhile nothing is left.
fn news(held: &[u8], written: u64, seen: u64) -> &[u8] {
    let new = usize::try_from(written.saturating_sub(seen)).unwrap_or(usize::MAX);
    &held[held.len().saturating_sub(new)..]
}

/// Output as it may go to a terminal: a guest's words, and none of the commands that
/// terminals obey.
fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .map(|byte| match byte {
            b'\n' | b'\r' | b'\t' | b' '..=b'~' | 0xa0.. => *byte,
            _ => b'?',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocs_vmm_spec::console::RingWriter;

    #[test]
    fn each_byte_is_shown_once_and_what_was_overwritten_never() {
        let file = tempfile::tempfile().unwrap();
        let mut ring = RingWriter::open(file.try_clone().unwrap(), 4096).unwrap();
        let (mut seen, mut shown) = (0, Vec::new());
        let mut look = |shown: &mut Vec<u8>| {
            let (held, written) = console::read(&file).unwrap();
            shown.extend(news(&held, written, seen));
            seen = written;
        };
        ring.write(b"one\n").unwrap();
        look(&mut shown);
        look(&mut shown);
        ring.write(b"two\n").unwrap();
        look(&mut shown);
        assert_eq!(shown, b"one\ntwo\n");
        shown.clear();
        ring.write(&[b'x'; 5000]).unwrap();
        look(&mut shown);
        assert_eq!(shown, [b'x'; 4096]);
    }

    #[test]
    fn a_guest_commands_no_terminal() {
        let said = "a\x1b[2J\x07\u{9b}31mé\r\n";
        let shown = plain(said.as_bytes());
        assert!(!shown.contains(&0x1b) && !shown.contains(&0x9b) && shown.ends_with(b"\r\n"));
    }
}
