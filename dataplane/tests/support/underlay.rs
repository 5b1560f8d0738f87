//! The network that hosts stand in: namespaces of the test's own, joined by a cable.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::responder::within;

/// A network namespace; gone with this, panic or not.
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ocs-test-{}-{number}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` with these arguments in it.
    pub fn ip(&self, arguments: &str) {
        let words = ["ip", "-n", &self.name];
        let words: Vec<&str> = words.into_iter().chain(arguments.split(' ')).collect();
        run(&words);
    }

    /// Lays a cable from an interface `here` to one `there` of another namespace.
    pub fn cable(&self, here: &str, other: &Self, there: &str) {
        let pair = format!(
            "link add {here} type veth peer name {there} netns {}",
            other.name
        );
        self.ip(&pair);
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
    }

    /// Does something in it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&PathBuf::from("/run/netns").join(&self.name), work)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// Runs a command that must succeed; what it printed.
pub fn run(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
