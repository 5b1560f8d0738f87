//! A control group for each VMM, outside the node's own: memory, processes and
//! CPU share, by whichever of cgroup v1 and v2 the host has the controllers in.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Beside guest memory: page tables, device state, the VMM itself.
const OVERHEAD_MIB: u64 = 64;
/// Beside one thread a vCPU: one a disk, of which there may be 28 after hot-plug, and those
/// that every VMM has.
pub const OVERHEAD_THREADS: u64 = 40;

/// The period that quotas are of. A group at the least quota of 1 ms rests 19 ms at a time.
const PERIOD_US: u64 = 20_000;
const LEAST_QUOTA_US: u64 = 1_000;

/// What one instance may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Guest memory.
    pub memory_mib: u64,
}

/// The hierarchies, and our folder's name in each.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    name: String,
}

#[derive(Clone, Debug)]
struct Hierarchy {
    root: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Pids,
    Cpu,
    /// What the others' processes have used.
    Usage,
    /// cgroup v2 with the three controllers.
    Unified,
}

impl Cgroups {
    /// Those of this host; `state` gives the folder its name, one an installation.
    pub fn detect(state: &Path) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        Ok(Self {
            hierarchies: hierarchies(&mounts, |root| {
                fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
            }),
            name: format!("ocs-{:016x}", fnv1a(state.as_os_str().as_encoded_bytes())),
        })
    }

    /// Makes the groups of instance `id` with `limits`. Each returned file takes
    /// `0` for "the writer joins".
    pub fn create(&self, id: &str, limits: Limits) -> io::Result<Vec<File>> {
        let mut joins = Vec::new();
        for hierarchy in &self.hierarchies {
            let ours = hierarchy.root.join(&self.name);
            let group = ours.join(id);
            fs::create_dir_all(&group)?;
            if hierarchy.kind == Kind::Unified {
                for parent in [&hierarchy.root, &ours] {
                    fs::write(parent.join("cgroup.subtree_control"), "+memory +pids +cpu")?;
                }
            }
            for (file, value) in hierarchy.kind.limits(limits) {
                fs::write(group.join(file), value.to_string())?;
            }
            joins.push(
                OpenOptions::new()
                    .write(true)
                    .open(group.join("cgroup.procs"))?,
            );
        }
        Ok(joins)
    }

    fn group(&self, kind: Kind, id: &str) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.iter().find(|h| h.kind == kind)?;
        Some(hierarchy.root.join(&self.name).join(id))
    }

    /// CPU time that the group of instance `id` has used, where the host counts it.
    pub fn usage_ns(&self, id: &str) -> io::Result<Option<u64>> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        if let Some(group) = self.group(Kind::Usage, id) {
            let text = fs::read_to_string(group.join("cpuacct.usage"))?;
            return text.trim().parse().map(Some).map_err(|_| bad());
        }
        let Some(group) = self.group(Kind::Unified, id) else {
            return Ok(None);
        };
        let text = fs::read_to_string(group.join("cpu.stat"))?;
        let usage = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        let usage_us: u64 = usage.and_then(|us| us.parse().ok()).ok_or_else(bad)?;
        Ok(Some(usage_us.saturating_mul(1_000)))
    }

    /// Holds the group of instance `id` to so many millionths of a CPU, or to nothing.
    pub fn set_quota(&self, id: &str, ppm: Option<u64>) -> io::Result<()> {
        let quota_us = ppm.map(|ppm| (ppm * PERIOD_US / 1_000_000).max(LEAST_QUOTA_US));
        if let Some(group) = self.group(Kind::Cpu, id) {
            fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            let quota = quota_us.map_or("-1".to_owned(), |us| us.to_string());
            return fs::write(group.join("cpu.cfs_quota_us"), quota);
        }
        let Some(group) = self.group(Kind::Unified, id) else {
            return Ok(());
        };
        let quota = quota_us.map_or("max".to_owned(), |us| us.to_string());
        fs::write(group.join("cpu.max"), format!("{quota} {PERIOD_US}"))
    }

    /// Instances that have a group.
    pub fn ids(&self) -> io::Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let entries = match fs::read_dir(hierarchy.root.join(&self.name)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    ids.extend(entry.file_name().to_str().map(str::to_owned));
                }
            }
        }
        Ok(ids)
    }

    /// Processes in the groups of instance `id`.
    pub fn processes(&self, id: &str) -> io::Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let group = hierarchy.root.join(&self.name).join(id);
            match fs::read_to_string(group.join("cgroup.procs")) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => pids.extend(other?.lines().filter_map(|pid| pid.parse::<i32>().ok())),
            }
        }
        Ok(pids)
    }

    /// Removes the groups of instance `id`, whose processes are gone.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            remove_dir(&hierarchy.root.join(&self.name).join(id))?;
        }
        Ok(())
    }

    /// Removes our folders, which are empty.
    pub fn remove_all(&self) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            remove_dir(&hierarchy.root.join(&self.name))?;
        }
        Ok(())
    }
}

impl Kind {
    fn limits(self, limits: Limits) -> Vec<(&'static str, u64)> {
        let memory = (limits.memory_mib + OVERHEAD_MIB) << 20;
        let threads = limits.vcpus + OVERHEAD_THREADS;
        match self {
            Self::Memory => vec![("memory.limit_in_bytes", memory)],
            Self::Pids => vec![("pids.max", threads)],
            Self::Cpu => vec![("cpu.shares", 1024 * limits.vcpus)],
            Self::Usage => Vec::new(),
            Self::Unified => vec![
                ("memory.max", memory),
                ("pids.max", threads),
                ("cpu.weight", (100 * limits.vcpus).min(10_000)),
            ],
        }
    }
}

/// From `/proc/mounts`; `controllers` reads `cgroup.controllers` of a v2 root.
fn hierarchies(mounts: &str, controllers: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(root), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let root = PathBuf::from(root);
        let mut add = |kind| {
            found.push(Hierarchy {
                root: root.clone(),
                kind,
            });
        };
        match kind {
            "cgroup" => {
                for option in options.split(',') {
                    match option {
                        "memory" => add(Kind::Memory),
                        "pids" => add(Kind::Pids),
                        "cpu" => add(Kind::Cpu),
                        "cpuacct" => add(Kind::Usage),
                        _ => {}
                    }
                }
            }
            "cgroup2" => {
                let has = controllers(&root);
                if ["memory", "pids", "cpu"]
                    .iter()
                    .all(|c| has.split_whitespace().any(|h| h == *c))
                {
                    add(Kind::Unified);
                }
            }
            _ => {}
        }
    }
    found
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::other(format!("{}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// FNV-1a, 64 bits: a stable short name, no secret.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_recognised() {
        let v1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                  cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                  cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let kinds = |mounts: &str, controllers: &str| -> Vec<Kind> {
            hierarchies(mounts, |_| controllers.to_owned())
                .iter()
                .map(|h| h.kind)
                .collect()
        };
        assert_eq!(kinds(v1, ""), [Kind::Cpu, Kind::Usage, Kind::Memory]);
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(kinds(v2, "cpuset cpu io memory pids"), [Kind::Unified]);
        assert_eq!(kinds(v2, "cpuset"), []);
    }

    #[test]
    fn groups_are_made_with_limits_and_removed() {
        let state = PathBuf::from(format!("/test/node/{}", std::process::id()));
        let groups = Cgroups::detect(&state).unwrap();
        struct Cleanup(Cgroups);
        impl Drop for Cleanup {
            fn drop(&mut self) {
                let _ = self.0.remove("i-1");
                let _ = self.0.remove_all();
            }
        }
        let _cleanup = Cleanup(groups.clone());
        let limits = Limits {
            vcpus: 2,
            memory_mib: 64,
        };
        let joins = groups.create("i-1", limits).unwrap();
        assert_eq!(groups.create("i-1", limits).unwrap().len(), joins.len());
        for hierarchy in &groups.hierarchies {
            let group = hierarchy.root.join(&groups.name).join("i-1");
            for (file, value) in hierarchy.kind.limits(limits) {
                let now = fs::read_to_string(group.join(file)).unwrap();
                assert_eq!(now.trim(), value.to_string(), "{file}");
            }
        }
        assert_eq!(groups.ids().unwrap().len(), usize::from(!joins.is_empty()));
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        for hierarchy in &groups.hierarchies {
            let group = hierarchy.root.join(&groups.name).join("i-1");
            fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        if !joins.is_empty() {
            let before = groups.usage_ns("i-1").unwrap().unwrap();
            for (ppm, v1, v2) in [
                (Some(100_000), "2000", "2000 20000"),
                (Some(1), "1000", "1000 20000"),
                (None, "-1", "max 20000"),
            ] {
                groups.set_quota("i-1", ppm).unwrap();
                let read = |group: PathBuf, file| fs::read_to_string(group.join(file)).unwrap();
                let told = match groups.group(Kind::Cpu, "i-1") {
                    Some(group) => (read(group, "cpu.cfs_quota_us"), v1),
                    None => (
                        read(groups.group(Kind::Unified, "i-1").unwrap(), "cpu.max"),
                        v2,
                    ),
                };
                assert_eq!(told.0.trim(), told.1);
            }
            assert!(groups.usage_ns("i-1").unwrap().unwrap() >= before);
        }
        let found = groups.processes("i-1").unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            joins.is_empty() || found == BTreeSet::from([pid]),
            "{found:?}"
        );
        groups.remove("i-1").unwrap();
        groups.remove("i-1").unwrap();
        assert_eq!(groups.ids().unwrap(), BTreeSet::new());
        groups.remove_all().unwrap();
        for hierarchy in &groups.hierarchies {
            assert!(!hierarchy.root.join(&groups.name).exists());
        }
    }
}
