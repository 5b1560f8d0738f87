//! What the disk allows whoever answers after an fsync: callers that wait for their record,
//! and one thread that writes all that wait and syncs once. Nothing else is done, so no
//! store can be faster; ours has its rows, their index and the API's work on top.

use super::CONNECTIONS;
use anyhow::Result;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// About what the rows of a launch come to.
pub const RECORD_BYTES: usize = 4_096;
/// The file is written round and round: growing it would cost further writes.
const FILE_BYTES: usize = 16 << 20;

/// A file whose blocks are all there.
pub struct Log {
    file: File,
    at: usize,
}

impl Log {
    /// In a folder of the disk.
    pub fn new(folder: &std::path::Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        file.write_all_at(&vec![1; FILE_BYTES], 0)?;
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    /// Records made durable, and syncs, each a second.
    pub fn per_second(&mut self, time: Duration) -> Result<Vec<f64>> {
        let (mut records, mut syncs) = (0, 0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let (queue, waiting) = mpsc::channel();
            let mut answers = Vec::new();
            for caller in 0..CONNECTIONS {
                let (answer, durable) = mpsc::channel();
                answers.push(answer);
                let queue = queue.clone();
                scope.spawn(
                    move || {
                        while queue.send(caller).is_ok() && durable.recv().is_ok() {}
                    },
                );
            }
            while start.elapsed() < time {
                let mut group = vec![waiting.recv()?];
                group.extend(waiting.try_iter());
                let bytes = group.len() * RECORD_BYTES;
                if self.at + bytes > FILE_BYTES {
                    self.at = 0;
                }
                self.file.write_all_at(&vec![2; bytes], self.at as u64)?;
                self.file.sync_data()?;
                self.at += bytes;
                (records, syncs) = (records + group.len(), syncs + 1);
                for caller in group {
                    answers[caller].send(())?;
                }
            }
            anyhow::Ok(())
        })?;
        let elapsed = start.elapsed().as_secs_f64();
        Ok(vec![records as f64 / elapsed, f64::from(syncs) / elapsed])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_share_syncs() {
        let mut log = Log::new(&std::env::temp_dir()).unwrap();
        let rates = log.per_second(Duration::from_millis(100)).unwrap();
        assert!(rates[1] > 0.0 && rates[0] >= rates[1], "{rates:?}");
        assert!(rates[0] <= rates[1] * CONNECTIONS as f64, "{rates:?}");
    }
}
