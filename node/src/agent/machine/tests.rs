//! The machine on a real file system with real processes, cut off at every effect.

use super::*;
use crate::agent::blocks::Definition;
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

const ID: &str = "i-1";
const STORE: &str = "i-1-ephemeral0";

/// What outlives the node: storaged's table, the packet path, VMMs. Each call may
/// be the node's last, before it takes effect or just after.
#[derive(Default)]
struct World {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Calls until the node dies.
    fuse: Option<u32>,
    /// Volumes, and which making of that name it is.
    volumes: BTreeMap<String, u32>,
    made: u32,
    attached: BTreeSet<String>,
    policy: Policy,
    vmms: Vec<Child>,
    /// Of the VMM that was started last.
    devices: BTreeMap<String, DeviceStatus>,
    taps: u32,
}

struct Crash;

impl World {
    fn touch<T>(&self, effect: impl FnOnce(&mut Inner) -> T) -> T {
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

    fn alive(&self) -> usize {
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
    fn snapshot(&self, _snapshot: &str, _volume: &str) -> Result<(), EffectError> {
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
            w.devices = devices;
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

fn device(kind: DeviceKind) -> DeviceStatus {
    DeviceStatus {
        kind,
        slot: 1,
        state: DeviceState::Plugged,
        driven: true,
    }
}

/// The VMM writes its record and ends.
fn exit(world: &mut Inner, run: &RunDir, reason: ExitReason) {
    let record = ExitRecord {
        reason,
        message: "words".into(),
    };
    std::fs::write(run.exit_record(), serde_json::to_vec(&record).unwrap()).unwrap();
    for vmm in &mut world.vmms {
        let _ = vmm.kill();
        let _ = vmm.wait();
    }
}

struct Host {
    world: Arc<World>,
    layout: Layout,
    _folder: tempfile::TempDir,
    crashes: u32,
}

impl Host {
    fn new(fuse: u32) -> Self {
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
    fn node(&self) -> Machine {
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
            vmms: Box::new(fake()),
            cgroups: Cgroups::detect(self.layout.root()).unwrap(),
            netns: None,
            boot_id: process::boot_id().unwrap(),
        }
    }

    /// Works until rest; a node that dies is followed by another.
    fn converge(&mut self, desired: &api::Instance, goal: Goal, host_stopping: bool) -> Seen {
        loop {
            let run = || self.converge_once(desired, goal, host_stopping);
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(seen) => return seen,
                Err(cause) if cause.is::<Crash>() => self.crashes += 1,
                Err(cause) => resume_unwind(cause),
            }
        }
    }

    fn converge_once(&self, desired: &api::Instance, goal: Goal, host_stopping: bool) -> Seen {
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

fn desired() -> api::Instance {
    api::Instance {
        id: ID.into(),
        generation: 1,
        vcpus: 1,
        memory_mib: 64,
        image: Some(api::Image {
            kernel: "kernel".into(),
            ..api::Image::default()
        }),
        attachments: vec![api::Attachment {
            volume_id: "vol-1".into(),
            ..api::Attachment::default()
        }],
        instance_stores: vec![api::InstanceStore {
            size_bytes: 4096,
            ..api::InstanceStore::default()
        }],
        network_interfaces: vec![api::NetworkInterface {
            id: "eni-1".into(),
            vni: 1,
            mac: "02:00:00:00:00:01".into(),
            private_ip: "10.0.0.4".into(),
            subnet_cidr: "10.0.0.0/24".into(),
            vpc_cidr: "10.0.0.0/16".into(),
            mtu: 1500,
            ..api::NetworkInterface::default()
        }],
        metadata: Some(api::Metadata {
            http_put_response_hop_limit: 1,
            ..api::Metadata::default()
        }),
        starts: 1,
        ..api::Instance::default()
    }
}

/// The life of an instance, with the node killed at its `fuse`th effect. True: it was.
fn life(fuse: u32) -> bool {
    let mut host = Host::new(fuse);
    let world = Arc::clone(&host.world);
    let volume = |name: &str| world.inner.lock().unwrap().volumes.get(name).copied();
    let attached = || world.inner.lock().unwrap().attached.clone();
    let ports = || world.inner.lock().unwrap().policy.ports.len();
    let nics = || {
        let inner = world.inner.lock().unwrap();
        let nics = inner.devices.iter();
        let nics = nics.filter(|(_, device)| device.kind == DeviceKind::Net);
        nics.map(|(id, _)| id.clone()).collect::<Vec<_>>()
    };
    let up = |host: &mut Host, desired: &api::Instance| {
        let seen = host.converge(desired, Goal::Run, false);
        let run = seen.run.unwrap();
        assert!(run.up && run.vmm == Vmm::Alive, "{run:?}");
        assert_eq!((run.starts, run.reboots), (desired.starts, desired.reboots));
        assert_eq!(world.alive(), 1);
        let cards: Vec<String> = desired
            .network_interfaces
            .iter()
            .map(|eni| eni.id.clone())
            .collect();
        assert_eq!(ports(), cards.len());
        assert_eq!(nics(), cards);
        assert_eq!(
            attached(),
            BTreeSet::from(["vol-1".to_owned(), STORE.to_owned()])
        );
        let told = std::fs::read_dir(host.layout.responder()).unwrap().count();
        assert_eq!(told, cards.len());
    };
    let mut wanted = desired();
    up(&mut host, &wanted);
    let store = volume(STORE);

    // A second interface comes, and goes.
    wanted.generation = 2;
    wanted.network_interfaces.push(api::NetworkInterface {
        id: "eni-2".into(),
        mac: "02:00:00:00:00:02".into(),
        private_ip: "10.0.0.5".into(),
        ..wanted.network_interfaces[0].clone()
    });
    up(&mut host, &wanted);
    wanted.generation = 3;
    wanted.network_interfaces.pop();
    up(&mut host, &wanted);

    wanted.generation = 4;
    wanted.reboots = 1;
    up(&mut host, &wanted);
    assert_eq!(volume(STORE), store, "a reboot keeps the instance store");

    // The guest powers itself off: DOWN, once and for this start.
    let run = RunDir::of(&host.layout, ID);
    exit(
        &mut world.inner.lock().unwrap(),
        &run,
        ExitReason::GuestShutdown,
    );
    for _ in 0..2 {
        let seen = host.converge(&wanted, Goal::Run, false);
        assert_eq!(seen.run, None);
        let end = seen.page.unwrap().ended.unwrap();
        assert_eq!(end.reason_code, "Client.InstanceInitiatedShutdown");
        assert_eq!((world.alive(), ports()), (0, 0));
        assert_eq!(volume(STORE), None, "a stop erases the instance store");
        assert!(attached().is_empty());
    }

    wanted.generation = 5;
    wanted.starts = 2;
    up(&mut host, &wanted);
    assert_ne!(volume(STORE), store);

    // The guest resets itself: the same start goes on.
    let store = volume(STORE);
    exit(
        &mut world.inner.lock().unwrap(),
        &run,
        ExitReason::GuestReset,
    );
    up(&mut host, &wanted);
    assert_eq!(volume(STORE), store);

    wanted.generation = 6;
    host.converge(&wanted, Goal::Run, true);
    let seen = host.converge(&wanted, Goal::Run, false);
    assert_eq!(
        seen.page.unwrap().ended.unwrap().reason_code,
        "Server.ScheduledStop"
    );
    assert_eq!(world.alive(), 0);

    wanted.starts = 3;
    up(&mut host, &wanted);
    host.converge(&wanted, Goal::Absent, false);
    assert_eq!((world.alive(), ports()), (0, 0));
    assert_eq!(volume(STORE), None);
    for folder in [
        host.layout.instances(),
        host.layout.consoles(),
        host.layout.responder(),
        host.layout.ledger(),
    ] {
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    host.crashes > 0
}

#[test]
fn a_node_killed_at_any_effect_leaves_nothing_lost_doubled_or_behind() {
    let mut effects = 0;
    while life(effects) {
        effects += 1;
    }
    assert!(effects > 100, "only {effects} effects were cut off");
}

#[test]
fn after_a_boot_of_the_host_what_ran_runs_again() {
    let mut host = Host::new(u32::MAX);
    let wanted = desired();
    host.converge(&wanted, Goal::Run, false);
    let run = RunDir::of(&host.layout, ID);
    let before = run.owner().unwrap();
    // The power failed: no last words, and another process has its number.
    run.set_owner(&crate::agent::owner::Owner {
        boot_id: "the boot before".into(),
        process: Process::open_pid(1).unwrap().map(|p| p.id()),
        ..before.clone()
    })
    .unwrap();
    for vmm in &mut host.world.inner.lock().unwrap().vmms {
        vmm.kill().unwrap();
        vmm.wait().unwrap();
    }
    let seen = host.converge(&wanted, Goal::Run, false);
    assert_eq!(seen.run.unwrap().vmm, Vmm::Alive);
    assert_ne!(run.owner().unwrap().nonce, before.nonce);
    assert_eq!(host.world.alive(), 1);
}

#[test]
fn a_vmm_whose_owner_file_is_lost_is_replaced_not_doubled() {
    for lose in [
        (|owner| std::fs::remove_file(owner).unwrap()) as fn(&std::path::Path),
        |owner| std::fs::write(owner, "{").unwrap(),
    ] {
        let mut host = Host::new(u32::MAX);
        let wanted = desired();
        host.converge(&wanted, Goal::Run, false);
        let run = RunDir::of(&host.layout, ID);
        let before = run.owner().unwrap();
        lose(&run.path().join("owner.json"));
        let seen = host.converge(&wanted, Goal::Run, false);
        assert_eq!(seen.run.unwrap().vmm, Vmm::Alive);
        assert_ne!(run.owner().unwrap().nonce, before.nonce);
        assert_eq!(host.world.alive(), 1);
    }
}

#[test]
fn an_instance_that_cannot_be_launched_says_why() {
    let host = Host::new(u32::MAX);
    let node = host.node();
    for (spoil, named) in [
        (
            (|d| d.image.as_mut().unwrap().kernel = "none".into()) as fn(&mut api::Instance),
            "none",
        ),
        (|d| d.image.as_mut().unwrap().kernel = "../x".into(), "../x"),
        (|d| d.memory_mib = 1, "memory_mib"),
        (|d| d.metadata = None, "metadata"),
        (|d| d.network_interfaces[0].mtu = 100_000, "100000"),
    ] {
        let mut desired = desired();
        spoil(&mut desired);
        let mut body = Body::default();
        let error = node
            .execute(ID, &Step::Launch, Some(&desired), &mut body)
            .unwrap_err();
        assert!(matches!(error, EffectError::Permanent(_)), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
        let mut body = node.survey(ID, &body).unwrap();
        node.execute(ID, &Step::Clear, None, &mut body).unwrap();
        assert!(!RunDir::of(&host.layout, ID).exists());
        assert_eq!(host.world.alive(), 0);
    }
    // What storaged may hold is told by name.
    let stores = &node.ledger.get(ID).unwrap().stores;
    assert_eq!(*stores, BTreeSet::from([STORE.to_owned()]));
}
