//! This terminal, handed through to the lab's shell.

use anyhow::Result;
use std::process::{Command, Stdio};

/// Is standard input a terminal?
pub fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdin())
}

/// Raw mode until dropped.
pub struct RawTerminal {
    before: String,
}

impl RawTerminal {
    /// Every key goes to the lab, ctrl-C too.
    pub fn enter() -> Result<Self> {
        let before = String::from_utf8_lossy(&stty(&["-g"])?).trim().to_owned();
        stty(&["raw", "-echo"])?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing better is left to do with a terminal that takes no setting.
        let _ = stty(&[&self.before]);
    }
}

fn stty(args: &[&str]) -> Result<Vec<u8>> {
    Ok(Command::new("stty")
        .args(args)
        .stdin(Stdio::inherit())
        .output()?
        .stdout)
}
