//! Breaks one part in a real way, to show that its row of the table can turn false.

use super::installation::Installation;
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The part to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// A rule that nobody was told of lets everyone reach B
    Policy,
    /// The metadata service's record of A names another instance
    Imds,
    /// Somebody writes into A's disk file
    Block,
    /// The node's note of who owns A's VMM is lost
    Adopt,
    /// The node hangs when the instances are terminated
    Cleanup,
}

impl Sabotage {
    /// How the claim that must turn false begins.
    pub fn breaks(self) -> &'static str {
        match self {
            Self::Policy => "TCP from A to B is refused by default",
            Self::Imds => "A saw its own instance id",
            Self::Block => "64 MiB of instance store",
            Self::Adopt => "everything is adopted",
            Self::Cleanup => "terminated: no process",
        }
    }
}

/// Waits for A's metadata record, with the responder frozen so that A cannot have read
/// it, and puts another instance's id into it.
pub fn falsify_metadata(up: &Installation, id: &str) -> Result<()> {
    let folder = up.state().join("run/responder");
    let record = find(&folder, Duration::from_secs(20), |text| text.contains(id))?;
    let text = fs::read_to_string(&record)?;
    fs::write(&record, text.replace(id, "i-0badbadbadbadbad0"))
        .with_context(|| format!("cannot falsify {}", record.display()))
}

/// Removes A's `owner.json`.
pub fn lose_owner(up: &Installation, id: &str) -> Result<()> {
    let path = up.state().join("run/instances").join(id).join("owner.json");
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Writes garbage over a volume's file until dropped.
pub struct Scribbler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scribbler {
    /// Begins as soon as storaged has a file whose name holds `id`.
    pub fn start(state: &Path, id: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (folder, id, seen) = (state.join("storaged"), id.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                for file in files_with(&folder, &id) {
                    scribble(&file);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Scribbler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there would only mean less garbage.
            let _ = thread.join();
        }
    }
}

/// A page of garbage in each of the first 64 MiB, without a change of size.
fn scribble(path: &Path) {
    let Ok(file) = fs::OpenOptions::new().write(true).open(path) else {
        return;
    };
    let size = file.metadata().map_or(0, |data| data.len());
    for mib in (0..64u64).filter(|mib| (mib + 1) << 20 <= size) {
        // The file may be deleted under us: then there is nothing to spoil.
        let _ = file.write_all_at(&[0xa5; 4096], (mib << 20) + 8192);
    }
}

fn files_with(folder: &Path, part: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .flat_map(|path| {
            if path.is_dir() {
                files_with(&path, part)
            } else {
                vec![path]
            }
        })
        .filter(|path| path.display().to_string().contains(part))
        .collect()
}

/// The first file in `folder` whose text satisfies `wanted`.
fn find(folder: &Path, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        for path in files_with(folder, ".json") {
            if fs::read_to_string(&path).is_ok_and(|text| wanted(&text)) {
                return Ok(path);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("no such file in {} within {limit:?}", folder.display())
}
