//! One launch: from a desired instance to a VMM that runs.
//!
//! `owner.json` comes first and names what will be made, so that a launch cut off
//! anywhere is cleared by [`Machine::clear`] and made afresh. Every descriptor the
//! VMM needs is opened here, for it may open nothing itself.

use super::blocks::Definition;
use super::cgroup::Limits;
use super::error::{Doing, EffectError};
use super::layout::is_plain_file;
use super::ledger::Record;
use super::machine::{Body, Machine, now_s};
use super::nics;
use super::owner::{Owner, RunDir};
use super::plan::{Page, Run, Vmm};
use super::policy::Plugged;
use super::shaping;
use super::spawn;
use super::vmm;
use ocs_node_api as api;
use ocs_storaged_api::VolumeKind;
use ocs_vmm_spec as spec;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// The VMM's user may not open it.
const KVM: &str = "/dev/kvm";
/// EC2 keeps 64 KiB of console output.
const CONSOLE_BYTES: u32 = 64 * 1024;
/// What a guest may draw of the host's entropy: a kernel seeds itself with 64 bytes and
/// refreshes them rarely.
const ENTROPY_BYTES_PER_S: u32 = 64 * 1024;
/// Room beside guest memory in the largest file that a VMM may write.
const FILE_SLACK_BYTES: u64 = 64 << 20;

/// One block device of an instance.
struct Device {
    volume: String,
    /// `VIRTIO_BLK_T_GET_ID`.
    serial: String,
    read_only: bool,
    store: Option<Definition>,
}

/// Descriptors that the VMM inherits, and the numbers that the spec names.
#[derive(Default)]
struct Inherited(Vec<OwnedFd>);

impl Inherited {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> spec::Source {
        let fd = fd.into();
        let number: RawFd = fd.as_raw_fd();
        self.0.push(fd);
        spec::Source::Fd(number)
    }
}

/// The instance store's name at storaged.
fn store_name(id: &str, store: &api::InstanceStore) -> String {
    format!("{id}-ephemeral{}", store.index)
}

/// What a guest reads as a volume's serial: EC2's, the id without its dash.
pub(super) fn serial(volume: &str) -> String {
    volume.replace('-', "")
}

/// Block devices in the guest's order: the root first.
fn devices(desired: &api::Instance) -> Vec<Device> {
    let stores = |root| {
        desired
            .instance_stores
            .iter()
            .filter(move |store| store.root == root)
            .map(|store| {
                let name = store_name(&desired.id, store);
                Device {
                    volume: name.clone(),
                    serial: format!("ephemeral{}", store.index),
                    read_only: false,
                    store: Some(Definition {
                        name,
                        size_bytes: store.size_bytes,
                        kind: VolumeKind::Ephemeral,
                        image: Some(store.image.clone()).filter(|image| !image.is_empty()),
                        snapshot: None,
                        encrypted: false,
                        limits: None,
                    }),
                }
            })
    };
    let attached = desired.attachments.iter().map(|attachment| Device {
        volume: attachment.volume_id.clone(),
        serial: serial(&attachment.volume_id),
        read_only: attachment.read_only,
        store: None,
    });
    stores(true).chain(attached).chain(stores(false)).collect()
}

impl Machine {
    /// Makes a run of `desired`. The run directory must not exist.
    pub(super) fn launch(
        &self,
        desired: &api::Instance,
        body: &mut Body,
    ) -> Result<(), EffectError> {
        let devices = devices(desired);
        let record = self.allot(desired, &devices)?;
        body.seen.page = Some(Page::from(&record));
        let run = RunDir::of(&self.config.layout, &desired.id);
        let mut owner = self.intend(desired, &devices, &run)?;
        let exit = lock_exit_record(&run)?;

        let mut inherited = Inherited::default();
        let block = self.listen_for_storaged(&run, &devices, &mut inherited)?;
        let net = self.plug_taps(desired, &record, &mut owner, &run, &mut inherited)?;
        self.tell_responder(desired, &record)?;
        for (index, device) in devices.iter().enumerate() {
            self.blocks
                .attach(&device.volume, &run.block_socket(index), device.read_only)?;
        }

        let spec = spec::Spec {
            transport: spec::Transport::Pci,
            version: spec::SPEC_VERSION,
            id: desired.id.clone(),
            vcpus: u8::try_from(desired.vcpus)
                .map_err(|_| EffectError::Permanent(format!("{} vCPUs", desired.vcpus)))?,
            memory_mib: desired.memory_mib,
            boot: Some(self.boot(desired, &block, &mut inherited)?),
            restore: None,
            incoming: None,
            cpu: spec::Cpu::Host,
            serial: spec::Serial {
                ring: inherited.add(self.open_console(&desired.id)?),
                capacity_bytes: CONSOLE_BYTES,
            },
            net,
            transmit: shaping::limits(
                &desired.network_rate.unwrap_or_default(),
                record.network_credits.as_ref(),
                now_s(),
            ),
            block,
            control: Some(
                inherited
                    .add(vmm::listen(&run.control_socket()).doing("the VMM's control socket")?),
            ),
            exit_record: Some(inherited.add(exit)),
            kvm: Some(inherited.add(open_kvm()?)),
            rng: Some(spec::Rng {
                bytes_per_s: ENTROPY_BYTES_PER_S,
            }),
            console: None,
            // Nothing is asked for: what the guest does not use it reports by itself.
            balloon: Some(spec::Balloon { target_mib: 0 }),
            vsock: None,
            jail: spec::Jail::Full,
        };
        spec.check()
            .map_err(|e| EffectError::Permanent(e.to_string()))?;
        let process = self.start(desired, &record, &owner, &run, &spec, &inherited)?;
        drop(inherited);

        owner.process = Some(process.id());
        if let Err(error) = run.set_owner(&owner) {
            process.kill().doing("killing a VMM that cannot be noted")?;
            return Err(error).doing("owner.json");
        }
        body.seen.run = Some(Run {
            starts: owner.starts,
            reboots: owner.reboots,
            up: false,
            vmm: Vmm::Alive,
            told: Some(desired.generation),
            asked: None,
        });
        body.process = Some(process.into());
        Ok(())
    }

    /// The ledger's page, with the stores of this start on it.
    fn allot(&self, desired: &api::Instance, devices: &[Device]) -> Result<Record, EffectError> {
        let enis: Vec<String> = desired
            .network_interfaces
            .iter()
            .map(|eni| eni.id.clone())
            .collect();
        let stores = devices
            .iter()
            .filter_map(|device| device.store.as_ref())
            .map(|store| store.name.clone());
        self.ledger
            .allot(&desired.id, &enis, |record| {
                record.starts = desired.starts;
                record.ended = None;
                record.stores = stores.collect();
            })
            .doing("ledger")
    }

    /// Makes the run directory and states in it what will be.
    fn intend(
        &self,
        desired: &api::Instance,
        devices: &[Device],
        run: &RunDir,
    ) -> Result<Owner, EffectError> {
        let mut nonce = [0u8; 16];
        getrandom::fill(&mut nonce).map_err(|e| EffectError::Transient(e.to_string()))?;
        let owner = Owner {
            generation: desired.generation,
            starts: desired.starts,
            reboots: desired.reboots,
            nonce: format!("{:032x}", u128::from_ne_bytes(nonce)),
            boot_id: self.boot_id.clone(),
            volumes: devices
                .iter()
                .filter(|device| device.store.is_none())
                .map(|device| device.volume.clone())
                .collect(),
            plugged: BTreeMap::new(),
            taps: BTreeMap::new(),
            process: None,
            up_since_s: None,
        };
        run.create().doing("run directory")?;
        run.set_owner(&owner).doing("owner.json")?;
        Ok(owner)
    }

    /// A listening socket a device, where storaged's user alone may connect.
    fn listen_for_storaged(
        &self,
        run: &RunDir,
        devices: &[Device],
        inherited: &mut Inherited,
    ) -> Result<Vec<spec::Block>, EffectError> {
        let mut block = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            if let Some(store) = &device.store {
                self.blocks.put(store)?;
            }
            let listener = self.listen_at(&run.block_socket(index))?;
            block.push(spec::Block {
                id: device.serial.clone(),
                listener: inherited.add(listener),
                backend_uid: self.config.storaged_uid(),
                queues: 1,
            });
        }
        Ok(block)
    }

    /// Listens at `path`, where storaged's user alone may connect.
    pub(super) fn listen_at(&self, path: &Path) -> Result<UnixListener, EffectError> {
        let listener = vmm::listen(path).doing(path.display())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).doing(path.display())?;
        chown(path, Some(self.config.storaged_uid()), None).doing(path.display())?;
        Ok(listener)
    }

    /// A tap an ENI, known to the packet path when this returns.
    fn plug_taps(
        &self,
        desired: &api::Instance,
        record: &Record,
        owner: &mut Owner,
        run: &RunDir,
        inherited: &mut Inherited,
    ) -> Result<Vec<spec::Net>, EffectError> {
        let mut net = Vec::new();
        for eni in &desired.network_interfaces {
            let tap = self.make_tap(eni, record, owner)?;
            net.push(nics::net(eni, inherited.add(tap))?);
        }
        run.set_owner(owner).doing("owner.json")?;
        self.plug(desired, record, owner);
        self.board.settle()?;
        Ok(net)
    }

    /// States the ENIs that are plugged in to the switchboard.
    pub(super) fn plug(&self, desired: &api::Instance, record: &Record, owner: &Owner) {
        self.board.plug(
            &desired.id,
            Plugged {
                enis: desired
                    .network_interfaces
                    .iter()
                    .filter(|eni| owner.taps.contains_key(&eni.id))
                    .cloned()
                    .collect(),
                taps: owner.taps.clone(),
                service_addresses: record.service_addresses.clone(),
                account: desired
                    .metadata
                    .as_ref()
                    .map_or_else(String::new, |metadata| metadata.account_id.clone()),
                rate: desired.network_rate.unwrap_or_default(),
            },
        );
    }

    /// The image's kernel; one without has it on its root, which is the first disk.
    fn boot(
        &self,
        desired: &api::Instance,
        block: &[spec::Block],
        inherited: &mut Inherited,
    ) -> Result<spec::Boot, EffectError> {
        let image = desired
            .image
            .as_ref()
            .ok_or_else(|| EffectError::Permanent("no image".to_owned()))?;
        if image.kernel.is_empty() {
            let root = block
                .first()
                .ok_or_else(|| EffectError::Permanent("neither a kernel nor a disk".to_owned()))?;
            return Ok(spec::Boot {
                kernel: None,
                initrd: None,
                disk: Some(root.id.clone()),
                cmdline: image.cmdline.clone(),
                smbios: Some(identity(desired)),
            });
        }
        let initrd = match image.initrd.as_str() {
            "" => None,
            name => Some(inherited.add(self.open_image(name)?)),
        };
        Ok(spec::Boot {
            kernel: Some(inherited.add(self.open_image(&image.kernel)?)),
            initrd,
            disk: None,
            cmdline: image.cmdline.clone(),
            smbios: Some(identity(desired)),
        })
    }

    fn open_image(&self, name: &str) -> Result<File, EffectError> {
        if !is_plain_file(name) {
            return Err(EffectError::Permanent(format!(
                "image file {name:?} is not a plain file name"
            )));
        }
        let path = self.config.layout.images().join(name);
        File::open(&path).map_err(|e| EffectError::Permanent(format!("{}: {e}", path.display())))
    }

    fn open_console(&self, id: &str) -> Result<File, EffectError> {
        let path = self.config.layout.console(id);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .doing(path.display())
    }

    fn start(
        &self,
        desired: &api::Instance,
        record: &Record,
        owner: &Owner,
        run: &RunDir,
        spec: &spec::Spec,
        inherited: &Inherited,
    ) -> Result<super::process::Process, EffectError> {
        let json = serde_json::to_vec_pretty(spec).doing("spec")?;
        File::create(run.spec())
            .and_then(|mut file| file.write_all(&json))
            .doing("spec.json")?;
        let spec = File::open(run.spec()).doing("spec.json")?;
        let limits = Limits {
            vcpus: u64::from(desired.vcpus),
            memory_mib: desired.memory_mib,
        };
        let program = File::open(&self.config.vmm).doing(self.config.vmm.display())?;
        let cgroups = self
            .cgroups
            .create(&desired.id, limits)
            .doing("control groups")?;
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(run.log())
            .doing("vmm.log")?;
        self.vmms
            .start(spawn::Launch {
                program: &program,
                id: &desired.id,
                nonce: &owner.nonce,
                spec: spec.as_fd(),
                inherits: &inherited.0,
                uid: self.config.vmm_uid(record.slot),
                cgroups: &cgroups,
                netns: self.netns.as_ref(),
                log,
                max_file_bytes: (desired.memory_mib << 20) + FILE_SLACK_BYTES,
                max_threads: limits.vcpus + super::cgroup::OVERHEAD_THREADS,
            })
            .doing(format_args!("starting {}", self.config.vmm.display()))
    }
}

/// What the machine says that it is: what a Nitro instance's does, for guests know EC2 by it
/// (EC2 User Guide, "Detect whether a host is an EC2 instance": UUID and serial begin with `ec2`).
fn identity(desired: &api::Instance) -> spec::Smbios {
    const VENDOR: &str = "Amazon EC2";
    let digits = desired.id.bytes().filter(u8::is_ascii_hexdigit);
    // The same at each start, and another for each instance.
    let digits: String = b"ec2"
        .iter()
        .copied()
        .chain(digits.clone().cycle().chain(std::iter::repeat(b'0')))
        .take(32)
        .map(char::from)
        .collect();
    let group = |from, to| digits.get(from..to).unwrap_or_default();
    let uuid = [
        group(0, 8),
        group(8, 12),
        group(12, 16),
        group(16, 20),
        group(20, 32),
    ]
    .join("-");
    spec::Smbios {
        vendor: VENDOR.to_owned(),
        product: desired
            .metadata
            .as_ref()
            .map(|data| data.instance_type.clone())
            .unwrap_or_default(),
        serial: uuid.clone(),
        uuid,
        asset_tag: VENDOR.to_owned(),
        board_asset_tag: desired.id.clone(),
    }
}

/// The exit record, new and locked. The lock belongs to the open file, which the
/// VMM inherits: it lasts exactly as long as the VMM or we hold it.
fn lock_exit_record(run: &RunDir) -> Result<File, EffectError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(run.exit_record())
        .doing("exit.json")?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).doing("exit.json")?;
    Ok(file)
}

/// A host without KVM runs no instance, now or later.
fn open_kvm() -> Result<File, EffectError> {
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    match opened {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(EffectError::Permanent(format!("{KVM}: {e}")))
        }
        other => other.doing(KVM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_says_that_it_is_ec2s_and_which() {
        let of = |id: &str| {
            identity(&api::Instance {
                id: id.to_owned(),
                metadata: Some(api::Metadata {
                    instance_type: "t3.nano".to_owned(),
                    ..api::Metadata::default()
                }),
                ..api::Instance::default()
            })
        };
        let one = of("i-0123456789abcdef0");
        one.check("smbios").unwrap();
        assert_eq!(one.uuid, "ec201234-5678-9abc-def0-0123456789ab");
        assert_eq!((&one.serial, one.product.as_str()), (&one.uuid, "t3.nano"));
        assert_eq!(one.board_asset_tag, "i-0123456789abcdef0");
        assert_ne!(of("i-0123456789abcdef1").uuid, one.uuid);
        of("strange").check("smbios").unwrap();
    }
}
