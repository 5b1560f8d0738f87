//! `ocs account`, `ocs key`, `ocs audit`, `ocs host list` and `remove`: asked of control over its operator's socket.

use crate::state::State;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Longest time that control may take; a long audit log is long to read.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the installation is.
#[derive(Args)]
pub struct Place {
    /// The installation's state folder.
    #[arg(long, default_value = super::up::DEFAULT_STATE)]
    pub state: PathBuf,
}

/// Quotas and request rates.
#[derive(Clone, Copy, ValueEnum)]
pub enum Limits {
    /// As much as there is.
    Private,
    /// AWS's published defaults.
    Ec2,
}

/// `ocs account`.
#[derive(Subcommand)]
pub enum Accounts {
    /// Makes an account with a first access key, and prints both.
    Create {
        #[command(flatten)]
        place: Place,
        /// Its quotas and request rates.
        #[arg(long, value_enum, default_value = "private")]
        limits: Limits,
    },
    /// Lists accounts and their access keys.
    List(Place),
}

/// `ocs key`.
#[derive(Subcommand)]
pub enum Keys {
    /// Makes a further access key of an account, and prints it.
    Create {
        #[command(flatten)]
        place: Place,
        /// Twelve digits.
        account: String,
    },
    /// Deletes an access key: its signatures are refused from then on.
    Delete {
        #[command(flatten)]
        place: Place,
        /// `AKIA…`.
        key: String,
    },
}

/// `ocs audit`.
#[derive(Subcommand)]
pub enum Audit {
    /// Follows the hash chain of the audit log.
    Verify(Place),
}

/// Runs `ocs account`.
pub fn accounts(command: &Accounts) -> Result<()> {
    let answer = match command {
        Accounts::Create { place, limits } => {
            let limits = match limits {
                Limits::Private => "private",
                Limits::Ec2 => "ec2",
            };
            ask(place, &json!({"create_account": {"limits": limits}}))
        }
        Accounts::List(place) => ask(place, &json!({"list_accounts": {}})),
    }?;
    print(&answer)
}

/// Runs `ocs key`.
pub fn keys(command: &Keys) -> Result<()> {
    let answer = match command {
        Keys::Create { place, account } => ask(place, &json!({"create_key": {"account": account}})),
        Keys::Delete { place, key } => ask(place, &json!({"delete_key": {"key": key}})),
    }?;
    print(&answer)
}

/// Runs `ocs audit`.
pub fn audit(command: &Audit) -> Result<()> {
    let Audit::Verify(place) = command;
    print(&ask(place, &json!({"verify_audit": {}}))?)
}

/// Prints control's answer.
pub fn print(answer: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

/// Asks control.
pub fn ask(place: &Place, request: &Value) -> Result<Value> {
    let path = State::at(&place.state)?.path("run/control/admin.sock");
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("{}: does `ocs up` run there?", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("control does not answer")?;
    let answer: Value = serde_json::from_str(&line).context("control's answer")?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{error}");
    }
    Ok(answer)
}
