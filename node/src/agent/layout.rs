//! Where everything lies under `--state DIR`.

use std::path::{Path, PathBuf};

/// The state folder, seen by the node.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout under `root`, which should be absolute.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// `DIR` itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `DIR/run`.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The last desired slice.
    #[must_use]
    pub fn slice(&self) -> PathBuf {
        self.root.join("node/slice.json")
    }

    /// CPU credits of all instances.
    #[must_use]
    pub fn cpu_credits(&self) -> PathBuf {
        self.root.join("node/cpu-credits.json")
    }

    /// One durable record an instance.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.root.join("node/instances")
    }

    /// Kernels and first contents.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Run directories, one an instance.
    #[must_use]
    pub fn instances(&self) -> PathBuf {
        self.root.join("run/instances")
    }

    /// Console rings.
    #[must_use]
    pub fn consoles(&self) -> PathBuf {
        self.root.join("run/console")
    }

    /// The console ring of instance `id`.
    #[must_use]
    pub fn console(&self, id: &str) -> PathBuf {
        self.consoles().join(id)
    }

    /// Records that the responder reads.
    #[must_use]
    pub fn responder(&self) -> PathBuf {
        self.root.join("run/responder")
    }

    /// storaged's control socket.
    #[must_use]
    pub fn storaged_socket(&self) -> PathBuf {
        self.root.join("run/storaged/control.sock")
    }

    /// The network namespace that VMMs run in.
    #[must_use]
    pub fn void_netns(&self) -> PathBuf {
        self.root.join("run/netns/void")
    }

    /// Where the packet path's evidence is asked for.
    #[must_use]
    pub fn evidence_socket(&self) -> PathBuf {
        self.root.join("run/evidence.sock")
    }

    /// Flow logs, one a network interface.
    #[must_use]
    pub fn flow_logs(&self) -> PathBuf {
        self.root.join("log/flow")
    }

    /// Held by the one node of this state folder.
    #[must_use]
    pub fn node_lock(&self) -> PathBuf {
        self.root.join("run/node.lock")
    }
}

/// Whether `id` may become a file name: EC2's ids are `[a-z]+-[0-9a-f]{8,17}`;
/// this is wider, and has no dots and no slashes.
#[must_use]
pub fn is_plain_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether `name` is a file of a folder itself: no slash, no leading dot.
#[must_use]
pub fn is_plain_file(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        for good in ["i-0123456789abcdef0", "vol-1", "a"] {
            assert!(is_plain_id(good), "{good}");
        }
        for bad in ["", "..", "i/1", "i-1.", "I-1", &"a".repeat(65)] {
            assert!(!is_plain_id(bad), "{bad}");
        }
        for good in ["ocs-probe.elf", "vmlinuz-6.12+deb_1"] {
            assert!(is_plain_file(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "a\0b"] {
            assert!(!is_plain_file(bad), "{bad}");
        }
    }
}
