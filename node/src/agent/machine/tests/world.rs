//! The world around a node that dies at any effect: storaged, the packet path and VMMs that
//! outlive it, over a real file system and real processes.

use super::super::*;
use super::ID;
use crate::agent::blocks::{Copied, Definition};
use crate::agent::layout::Layout;
use crate::agent::network::Network;
use crate::agent::owner::RunDir;
use crate::agent::plan::{Goal, Volumes, Want, plan};
use crate::agent::process::NONCE_VARIABLE;
use crate::agent::spawn::Launch;
use ocs_dataplane::model::Policy;
use ocs_storaged_api::VolumeStatus;
use ocs_vmm_spec::control::{DeviceKind, DeviceState, DeviceStatus, RunState};
use ocs_vmm_spec::exit::{ExitReason, ExitRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// What outlives the node: storaged's table, the packet path, VMMs. Each call may
/// be the node's last, before it takes effect or just after.
#[derive(Default)]
pub(super) struct World {
    pub(super) inner: Mutex<Inner>,
}

#[derive(Default)]
pub(super) struct Inner {
    /// Calls until the node dies.
    pub(super) fuse: Option<u32>,
    /// Volumes, and which making of that name it is.
    pub(super) volumes: BTreeMap<String, u32>,
    pub(super) made: u32,
    pub(super) attached: BTreeSet<String>,
    pub(super) policy: Policy,
    pub(super) vmms: Vec<Child>,
    /// Of the VMM that was started last.
    pub(super) credits: Option<u64>,
    /// Likewise.
    pub(super) devices: BTreeMap<String, DeviceStatus>,
    pub(super) taps: u32,
    /// Interfaces of the VMM that was started last that offer no offloads any more.
    pub(super) withdrawn: BTreeSet<String>,
    /// Taps that go by XDP.
    pub(super) finished: BTreeSet<u32>,
}

/// What a VMM says of its network credits when it ends: beyond what comes meanwhile.
pub(super) const LEFT_CREDITS: u64 = 1 << 40;

struct Crash;

impl World {
    pub(super) fn touch<T>(&self, effect: impl FnOnce(&mut Inner) -> T) -> T {
        self.burn();
        let done = effect(&mut self.inner.lock().unwrap());
        self.burn();
        done
    }

    fn burn(&self) {
        let blown = {
            let mut inner = self.inner.lock().unwrap();
            match inner.fuse.as_mut() {
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    false
                }
                None => false,
            }
        };
        if blown {
            self.inner.lock().unwrap().fuse = None;
            resume_unwind(Box::new(Crash));
        }
    }

    pub(super) fn alive(&self) -> usize {
        let mut inner = self.inner.lock().unwrap();
        let running = |child: &mut Child| child.try_wait().unwrap().is_none();
        inner.vmms.iter_mut().map(running).filter(|r| *r).count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for vmm in &mut self.inner.get_mut().unwrap().vmms {
            let _ = vmm.kill();
            let _ = vmm.wait();
        }
    }
}

struct Fake(Arc<World>);

impl Blocks for Fake {
    fn put(&self, volume: &Definition) -> Result<(), EffectError> {
        self.0.touch(|w| {
            if !w.volumes.contains_key(&volume.name) {
                w.made += 1;
                let made = w.made;
                w.volumes.insert(volume.name.clone(), made);
            }
        });
        Ok(())
    }
    fn attach(&self, name: &str, socket: &Path, _read_only: bool) -> Result<(), EffectError> {
        assert!(socket.exists());
        self.0.touch(|w| w.attached.insert(name.to_owned()));
        Ok(())
    }
    fn detach(&self, name: &str) -> Result<(), EffectError> {
        self.0.touch(|w| w.attached.remove(name));
        Ok(())
    }
    fn delete(&self, name: &str) -> Result<(), EffectError> {
        self.0.touch(|w| {
            w.attached.remove(name);
            w.volumes.remove(name);
        });
        Ok(())
    }
    fn list(&self) -> Result<Vec<VolumeStatus>, EffectError> {
        Ok(Vec::new())
    }
    fn snapshot(
        &self,
        _snapshot: &str,
        _volume: &str,
        _with: Vec<ocs_storaged_api::SnapshotOf>,
    ) -> Result<(), EffectError> {
        Ok(())
    }
    fn copy(&self, _snapshot: &str, _copy: &Copied) -> Result<(), EffectError> {
        Ok(())
    }
    fn delete_snapshot(&self, _snapshot: &str) -> Result<(), EffectError> {
        Ok(())
    }
    fn snapshots(&self) -> Result<Vec<ocs_storaged_api::SnapshotStatus>, EffectError> {
        Ok(Vec::new())
    }
}

impl Network for Fake {
    fn create_tap(&self, _name: &str) -> Result<(OwnedFd, u32), EffectError> {
        let ifindex = self.0.touch(|w| {
            w.taps += 1;
            w.taps
        });
        Ok((File::open("/dev/null").unwrap().into(), ifindex))
    }
    fn finishes_taps(&self) -> bool {
        true
    }
    fn finish_tap(&self, ifindex: u32) -> Result<(), EffectError> {
        self.0.touch(|w| {
            assert!(
                !w.withdrawn.is_empty(),
                "it may still send unfinished frames"
            );
            w.finished.insert(ifindex);
        });
        Ok(())
    }
    fn apply(&self, policy: &Policy) -> Result<(), EffectError> {
        self.0.touch(|w| w.policy = policy.clone());
        Ok(())
    }
    fn collect_garbage(&self) -> Result<(), EffectError> {
        self.0.touch(|_| ());
        Ok(())
    }
}

/// A VMM that sleeps, holds its descriptors, and obeys its power button.
impl Vmms for Fake {
    fn start(&self, launch: Launch<'_>) -> io::Result<Process> {
        assert_eq!(self.0.alive(), 0, "a second VMM");
        let file = File::from(launch.spec.try_clone_to_owned()?);
        let spec: ocs_vmm_spec::Spec = serde_json::from_reader(file).unwrap();
        let nets = spec.net.iter().map(|net| (&net.id, DeviceKind::Net));
        let blocks = spec
            .block
            .iter()
            .map(|block| (&block.id, DeviceKind::Block));
        let devices = nets.chain(blocks);
        let devices = devices.map(|(id, kind)| (id.clone(), device(kind)));
        let devices: BTreeMap<_, _> = devices.collect();
        let keep: Vec<i32> = launch.inherits.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new("sleep");
        command
            .arg("1000")
            .env(NONCE_VARIABLE, launch.nonce)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: fcntl alone, between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for fd in &keep {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                }
                Ok(())
            });
        }
        let pid = self.0.touch(|w| {
            let child = command.spawn().unwrap();
            let pid = child.id();
            for mut group in launch.cgroups {
                group.write_all(pid.to_string().as_bytes()).unwrap();
            }
            w.vmms.push(child);
            w.credits = spec.transmit.credits;
            w.devices = devices;
            w.withdrawn.clear();
            pid
        });
        Process::open_pid(i32::try_from(pid).unwrap())?.ok_or_else(|| io::Error::other("gone"))
    }
    fn call(
        &self,
        run: &RunDir,
        request: &Request,
        _passed: &[BorrowedFd<'_>],
        _timeout: Duration,
    ) -> io::Result<Reply> {
        match request {
            Request::Status => Ok(Reply::Status {
                protocol: ocs_vmm_spec::control::PROTOCOL_VERSION,
                id: ID.into(),
                state: RunState::Running,
                block_connected: BTreeMap::new(),
                devices: self.0.inner.lock().unwrap().devices.clone(),
                changes: 0,
                started_ns: 1,
                first_run_ns: 2,
            }),
            Request::AddNet { net } => {
                let net = (net.id.clone(), device(DeviceKind::Net));
                self.0.touch(|w| {
                    let before = w.devices.insert(net.0.clone(), net.1);
                    assert_eq!(before, None, "plugged twice");
                });
                Ok(Reply::Ok)
            }
            Request::WithdrawOffloads { id } => {
                self.0.touch(|w| w.withdrawn.insert(id.clone()));
                Ok(Reply::Ok)
            }
            Request::RemoveNet { id, .. } => {
                self.0.touch(|w| w.devices.remove(id));
                Ok(Reply::Ok)
            }
            _ => {
                self.0.touch(|w| exit(w, run, ExitReason::GuestShutdown));
                Ok(Reply::Ok)
            }
        }
    }
}

pub(super) fn device(kind: DeviceKind) -> DeviceStatus {
    DeviceStatus {
        kind,
        slot: 1,
        state: DeviceState::Plugged,
        driven: true,
        features: 0,
    }
}

/// The VMM writes its record and ends.
pub(super) fn exit(world: &mut Inner, run: &RunDir, reason: ExitReason) {
    let record = ExitRecord {
        transmit_credits: Some(LEFT_CREDITS),
        reason,
        message: "words".into(),
    };
    std::fs::write(run.exit_record(), serde_json::to_vec(&record).unwrap()).unwrap();
    for vmm in &mut world.vmms {
        let _ = vmm.kill();
        let _ = vmm.wait();
    }
}

pub(super) struct Host {
    pub(super) world: Arc<World>,
    pub(super) layout: Layout,
    _folder: tempfile::TempDir,
    pub(super) crashes: u32,
}

impl Host {
    pub(super) fn new(fuse: u32) -> Self {
        // In memory: the durability of each write is the ledger's business, not this test's.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let layout = Layout::new(folder.path());
        for path in [
            layout.instances(),
            layout.consoles(),
            layout.responder(),
            layout.images(),
        ] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(layout.images().join("kernel"), "").unwrap();
        let world = Arc::new(World::default());
        world.inner.lock().unwrap().fuse = Some(fuse);
        Self {
            world,
            layout,
            _folder: folder,
            crashes: 0,
        }
    }

    /// A node that has just been started.
    pub(super) fn node(&self) -> Machine {
        let fake = || Fake(Arc::clone(&self.world));
        Machine {
            config: Config {
                layout: self.layout.clone(),
                uid_base: 400_000,
                vmm: "/bin/true".into(),
                stop_grace: Duration::from_secs(10),
            },
            ledger: Ledger::open(&self.layout.ledger()).unwrap(),
            blocks: Box::new(fake()),
            board: Switchboard::new(Box::new(fake())),
            endpoints: Arc::default(),
            vmms: Box::new(fake()),
            cgroups: Cgroups::detect(self.layout.root()).unwrap(),
            netns: None,
            boot_id: process::boot_id().unwrap(),
        }
    }

    /// Works until rest; a node that dies is followed by another.
    pub(super) fn converge(
        &mut self,
        desired: &api::Instance,
        goal: Goal,
        host_stopping: bool,
    ) -> Seen {
        loop {
            let run = || self.converge_once(desired, goal, host_stopping);
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(seen) => return seen,
                Err(cause) if cause.is::<Crash>() => self.crashes += 1,
                Err(cause) => resume_unwind(cause),
            }
        }
    }

    pub(super) fn converge_once(
        &self,
        desired: &api::Instance,
        goal: Goal,
        host_stopping: bool,
    ) -> Seen {
        let node = self.node();
        let want = Want {
            generation: desired.generation,
            goal,
            starts: desired.starts,
            reboots: desired.reboots,
            volumes: Volumes::Ready,
            host_stopping,
        };
        let mut body = node.survey(ID, &Body::default()).unwrap();
        node.adopt(desired, &body);
        for _ in 0..50 {
            let step = plan(&want, &body.seen, Instant::now());
            if step == Step::Rest {
                node.board.settle().unwrap();
                let devices = self.world.inner.lock().unwrap().devices.clone();
                if body.process.is_some() {
                    node.finish_taps(ID, &devices).unwrap();
                }
                return body.seen;
            }
            node.execute(ID, &step, Some(desired), &mut body).unwrap();
            body = node.survey(ID, &body).unwrap();
        }
        panic!("no rest: {body:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(groups) = Cgroups::detect(self.layout.root()) {
            let _ = groups.remove(ID);
            let _ = groups.remove_all();
        }
    }
}
