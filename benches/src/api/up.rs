//! RunInstances to the probe's first console byte, with every real part: the
//! system is `ocs up`, the host this one.

use super::aws::{Client, Credentials, instance_ids};
use super::fleet;
use crate::boot;
use crate::process::Guarded;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const TIME_OUT: Duration = Duration::from_secs(60);
/// One virtual CPU, as the bare start has.
const INSTANCE_TYPE: &str = "t2.nano";
/// What a small transaction writes.
const BLOCK_BYTES: usize = 4096;

/// A running `ocs up`; it is stopped, and takes its instances along, when dropped.
pub struct Up<'a> {
    runtime: &'a Runtime,
    process: Guarded,
    state: PathBuf,
    client: Client,
    image: String,
    _dir: TempDir,
}

impl<'a> Up<'a> {
    /// Starts `ocs up` on a new state in `disk_dir`.
    pub fn start(runtime: &'a Runtime, program: &Path, disk_dir: &Path) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "run_to_first_instruction_ms starts `ocs up`, which only root can"
        );
        let dir = tempfile::tempdir_in(std::path::absolute(disk_dir)?)?;
        // The parts' own users pass through it.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711))?;
        let (state, env, log) = (
            dir.path().join("s"),
            dir.path().join("env"),
            dir.path().join("up.log"),
        );
        let mut process = Guarded::spawn(
            Command::new(program)
                .args(["up", "--listen", "127.0.0.1:0", "--state"])
                .arg(&state)
                .arg("--write-env")
                .arg(&env),
            &log,
        )?;
        let ready = process.wait_until(TIME_OUT, false, || env.exists());
        let variables = ready
            .and_then(|()| Ok(variables(&fs::read_to_string(&env)?)))
            .with_context(|| fs::read_to_string(&log).unwrap_or_default());
        let up = |variables: HashMap<String, String>| -> Result<(Client, String)> {
            let get = |name: &str| {
                let value = variables.get(name).cloned();
                value.with_context(|| format!("ocs up wrote no {name}"))
            };
            let endpoint = get("OCS_ENDPOINT")?;
            let host = endpoint.trim_start_matches("http://").to_owned();
            let credentials = Credentials {
                access_key: get("AWS_ACCESS_KEY_ID")?,
                secret_key: get("AWS_SECRET_ACCESS_KEY")?,
            };
            Ok((Client::new(host, credentials), get("OCS_PROBE_AMI")?))
        };
        match variables.and_then(up) {
            Ok((client, image)) => Ok(Self {
                runtime,
                process,
                state,
                client,
                image,
                _dir: dir,
            }),
            Err(error) => {
                process.stop(TIME_OUT)?;
                Err(error)
            }
        }
    }

    /// One launch: milliseconds from the call to the first byte in the console ring.
    pub fn run_to_first_byte(&mut self) -> Result<Vec<f64>> {
        let start = Instant::now();
        let answer = self.runtime.block_on(self.client.call(
            "RunInstances",
            &[
                ("ImageId", &self.image),
                ("InstanceType", INSTANCE_TYPE),
                ("MinCount", "1"),
                ("MaxCount", "1"),
            ],
        ))?;
        let ids = instance_ids(&answer)?;
        ensure!(ids.len() == 1, "RunInstances named {} instances", ids.len());
        let ring = self.state.join("run/console").join(&ids[0]);
        let mut file = None;
        self.process
            .wait_until(TIME_OUT, false, || boot::has_output(&mut file, &ring))
            .with_context(|| format!("the first byte of {}", ids[0]))?;
        let elapsed = start.elapsed();
        self.runtime
            .block_on(fleet::terminate(&self.client, &ids))?;
        Ok(vec![ms(elapsed)])
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.process.stop(TIME_OUT) {
            eprintln!("ocs up did not stop cleanly: {error:#}");
        }
    }
}

/// One 4 KiB write and its `fdatasync`, in milliseconds.
pub fn one_fsync(file: &File) -> Result<f64> {
    let start = Instant::now();
    file.write_all_at(&[1; BLOCK_BYTES], 0)?;
    file.sync_data()?;
    Ok(ms(start.elapsed()))
}

fn ms(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e3
}

/// The `NAME=VALUE` lines of an env file.
fn variables(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_env_file_is_read() {
        let read = variables("OCS_ENDPOINT=http://127.0.0.1:1\nA=b+c=\nexport OCS_ENDPOINT A\n");
        assert_eq!(read["OCS_ENDPOINT"], "http://127.0.0.1:1");
        assert_eq!(read["A"], "b+c=");
        assert_eq!(read.len(), 2);
    }
}
