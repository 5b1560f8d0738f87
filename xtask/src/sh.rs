//! Running commands: shown as they run, checked when they end.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Says what is about to happen.
pub fn say(what: &str) {
    eprintln!("\x1b[1;34m==>\x1b[0m {what}");
}

/// Runs one long step, with its duration said at the end.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(what);
    let start = Instant::now();
    let result = work().with_context(|| format!("{what}: failed"))?;
    eprintln!("    done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}

/// Shows the command line, runs it with our output, and fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    eprintln!("    $ {line}");
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start: {line}"))?;
    if !status.success() {
        bail!("{status}: {line}");
    }
    Ok(())
}

/// What the command prints on its standard output; fails if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start: {line}"))?;
    if !out.status.success() {
        bail!(
            "{}: {line}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Does the command run and succeed? Its output is dropped.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Is there an executable of this name on PATH or in a folder of system tools?
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|folder| folder.join(program).is_file())
}

/// Are we root?
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail (geteuid(2)).
    unsafe { libc::geteuid() == 0 }
}

/// From now on this thread, and what it starts, runs when nothing else wants to.
pub fn when_idle() {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: `priority` lives for the call, which changes the calling thread alone
    // (sched_setscheduler(2)). Where it is refused, the work is done at once instead.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) };
}

/// The folder that the command was given in.
pub fn folder() -> Result<std::path::PathBuf> {
    std::env::current_dir().context("the current folder is gone")
}

/// `cargo`, in the checkout, as the toolchain that runs us.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::places::root());
    cargo
}

fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
