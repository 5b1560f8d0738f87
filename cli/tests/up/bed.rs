//! A folder of programs and a state, and everything of them ended with the test.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a machine under load; no test waits for it but to fail.
const PATIENCE: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65_534;

pub struct Bed {
    folder: tempfile::TempDir,
}

/// A running `ocs up`; killed when dropped.
pub struct Up {
    child: Child,
    log: PathBuf,
}

impl Bed {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let bed = Self { folder };
        fs::create_dir(bed.program("")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_ocs"), bed.program("ocs")).unwrap();
        let own = std::env::current_exe().unwrap();
        for name in [
            "ocs-control",
            "ocs-storaged",
            "ocs-responder",
            "ocs-node",
            "ocs-vmm",
        ] {
            fs::copy(&own, bed.program(name)).unwrap();
        }
        bed
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.path().join("bin").join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn env_path(&self) -> PathBuf {
        self.folder.path().join("env")
    }

    /// Starts `ocs up`.
    pub fn up(&self) -> Up {
        let log = self.folder.path().join("up.log");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = self
            .command(&["up", "--listen", "127.0.0.1:0", "--write-env"])
            .arg(self.env_path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Up { child, log }
    }

    /// Starts `ocs up | head -0`: what it says, nobody reads.
    pub fn up_unheard(&self) -> Up {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = self
            .command(&["up", "--listen", "127.0.0.1:0", "--write-env"])
            .arg(self.env_path())
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .spawn()
            .unwrap();
        let log = PathBuf::from("/dev/null");
        Up { child, log }
    }

    /// The env file, once it is there.
    pub fn env(&self) -> BTreeMap<String, String> {
        self.until("the env file", || self.env_path().exists());
        fs::read_to_string(self.env_path())
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Runs another `ocs` command on the same state, which must end by itself.
    pub fn ocs(&self, arguments: &[&str]) -> Output {
        Self::output(&mut self.command(arguments))
    }

    pub fn ocs_as_nobody(&self, arguments: &[&str]) -> Output {
        Self::output(self.command(arguments).uid(NOBODY))
    }

    fn output(command: &mut Command) -> Output {
        let piped = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("{command:?} does not end: {:?}", child.wait_with_output());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.wait_with_output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program("ocs"));
        command.arg(arguments[0]).arg("--state").arg(self.state());
        command.args(&arguments[1..]).env_remove("RUST_LOG");
        command
    }

    /// The pid of a part that runs, from its lock file.
    pub fn pid(&self, part: &str) -> Option<u32> {
        let lock = self.state().join(format!("run/{part}.lock"));
        let pid = fs::read_to_string(lock).ok()?.trim().parse().ok()?;
        self.processes().contains(&pid).then_some(pid)
    }

    pub fn kill(&self, pid: u32) {
        assert!(self.processes().contains(&pid));
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// Living processes of this bed's programs, `ocs` itself left out.
    pub fn processes(&self) -> Vec<u32> {
        let parts = self.program("ocs-");
        let parts = parts.as_os_str().as_encoded_bytes();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(|pid| {
                // A zombie's command line is empty.
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(parts))
            })
            .collect()
    }

    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            let said = fs::read_to_string(self.folder.path().join("up.log"));
            assert!(
                Instant::now() < deadline,
                "not in time: {what}\n{}",
                said.unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for pid in self.processes() {
            self.kill(pid);
        }
    }
}

impl Up {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        fs::read_to_string(Path::new(&self.log)).unwrap_or_default()
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
