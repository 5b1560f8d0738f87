//! From a launch's plan to rows: reservation, instances, interfaces, volumes.

use super::types::InstanceType;
use super::{Ctx, place};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::wire::ApiError;
use std::net::Ipv4Addr;

/// A launch, resolved.
#[derive(Debug)]
pub struct Plan {
    /// Type.
    pub kind: InstanceType,
    /// What is booted.
    pub boot: Boot,
    /// `/dev/sda1`.
    pub root_device: String,
    /// Block devices.
    pub disks: Disks,
    /// Zone name.
    pub zone: String,
    /// VPC.
    pub vpc: VpcId,
    /// Subnet.
    pub subnet: SubnetId,
    /// Security groups.
    pub groups: Vec<GroupId>,
    /// The address asked for.
    pub private_ip: Option<Ipv4Addr>,
    /// Of the interface.
    pub description: String,
    /// Metadata options.
    pub metadata: MetadataOptions,
    /// Base64.
    pub user_data: String,
    /// The caller's token.
    pub client_token: String,
    /// `DisableApiTermination`.
    pub disable_termination: bool,
    /// `DisableApiStop`.
    pub disable_stop: bool,
    /// `InstanceInitiatedShutdownBehavior` is `terminate`.
    pub terminate_on_shutdown: bool,
    /// Tags of instances.
    pub instance_tags: Tags,
    /// Tags of volumes.
    pub volume_tags: Tags,
    /// Tags of interfaces.
    pub interface_tags: Tags,
}

/// Block devices of each instance of a launch.
#[derive(Debug, Default)]
pub struct Disks {
    /// Volumes in device order, the root first if it is one.
    pub volumes: Vec<NewVolume>,
    /// Instance-store disks, the root first if it is one.
    pub store: Vec<StoreDisk>,
}

/// A volume to make.
#[derive(Debug)]
pub struct NewVolume {
    /// `/dev/sda1`.
    pub device: String,
    /// Size.
    pub size_gib: u32,
    /// `gp2`, ….
    pub volume_type: String,
    /// It ends with the instance.
    pub delete_on_termination: bool,
    /// First content, or nothing.
    pub image: String,
    /// The snapshot that stands for that content.
    pub snapshot: Option<SnapshotId>,
}

/// Reserves capacity and addresses for `max` instances, `min` at least, and
/// writes their rows.
///
/// # Errors
/// `InsufficientInstanceCapacity`, `InsufficientFreeAddressesInSubnet`,
/// `InvalidIPAddress.InUse`.
pub fn launch(
    ctx: &Ctx,
    tx: &mut Tx<'_>,
    plan: &Plan,
    min: u32,
    max: u32,
) -> Result<(ReservationId, Vec<InstanceId>), ApiError> {
    let (vcpus, memory_mib) = (plan.kind.vcpus, plan.kind.memory_mib);
    let addresses = tx.get::<Addresses>(&plan.subnet);
    let mut addresses = addresses
        .ok_or_else(|| SubnetId::not_found(plan.subnet))?
        .as_ref()
        .clone();
    let free = addresses.free();
    if free < min {
        return Err(no_address(plan.subnet));
    }
    if plan.private_ip.is_some() && max > 1 {
        return Err(ApiError::combination(
            "The parameter privateIpAddress cannot be used with more than one instance.",
        ));
    }
    let asked = plan
        .private_ip
        .map(|wanted| take_this(&mut addresses, wanted))
        .transpose()?;
    let nodes = place::take(ctx, tx, vcpus, memory_mib, max.min(free))?;
    if u32::try_from(nodes.len()).is_ok_and(|placed| placed < min) {
        return Err(place::insufficient(&plan.zone));
    }
    let reservation = Reservation {
        id: ReservationId::random(),
        user_data: plan.user_data.clone(),
    };
    let id = reservation.id;
    if !reservation.user_data.is_empty() {
        tx.put(reservation)?;
    }
    let mut instances = Vec::with_capacity(nodes.len());
    for (index, node) in (0_u32..).zip(nodes) {
        let address = asked
            .or_else(|| addresses.take())
            .ok_or_else(|| no_address(plan.subnet))?;
        instances.push(one(tx, plan, id, index, node, address)?);
    }
    tx.put(addresses)?;
    Ok((id, instances))
}

fn no_address(subnet: SubnetId) -> ApiError {
    ApiError::new(
        "InsufficientFreeAddressesInSubnet",
        format!(
            "There are not enough free addresses in subnet '{subnet}' to satisfy the requested \
             number of instances."
        ),
    )
}

fn take_this(addresses: &mut Addresses, wanted: Ipv4Addr) -> Result<Ipv4Addr, ApiError> {
    if !addresses.cidr.contains(&wanted) {
        return Err(ApiError::value(
            wanted,
            "PrivateIpAddress",
            "The address does not fall within the subnet's address range.",
        ));
    }
    addresses
        .take_this(wanted)
        .then_some(wanted)
        .ok_or_else(|| {
            ApiError::new(
                "InvalidIPAddress.InUse",
                format!("Address {wanted} is in use."),
            )
        })
}

/// A locally administered address; EC2's begin so, too.
fn mac(vpc_unique: Ipv4Addr) -> Result<String, ApiError> {
    // The four bytes of the address keep it unique in its VPC; the fifth is random.
    let mut byte = [0];
    getrandom::fill(&mut byte).map_err(|error| ApiError::internal(&error))?;
    let [a, b, c, d] = vpc_unique.octets();
    Ok(format!(
        "02:{:02x}:{a:02x}:{b:02x}:{c:02x}:{d:02x}",
        byte[0]
    ))
}

fn one(
    tx: &mut Tx<'_>,
    plan: &Plan,
    reservation: ReservationId,
    launch_index: u32,
    node: String,
    private_ip: Ipv4Addr,
) -> Result<InstanceId, ApiError> {
    let (id, at_s) = (InstanceId::random(), now_s());
    let interface = Interface {
        id: InterfaceId::random(),
        vpc: plan.vpc,
        subnet: plan.subnet,
        zone: plan.zone.clone(),
        mac: mac(private_ip)?,
        private_ip,
        groups: plan.groups.clone(),
        description: plan.description.clone(),
        source_dest_check: true,
        attachment: Some(InterfaceAttachment {
            id: AttachmentId::random(),
            instance: id,
            device_index: 0,
            delete_on_termination: true,
            at_s,
        }),
        tags: plan.interface_tags.clone(),
    };
    let mut mappings = Vec::with_capacity(plan.disks.volumes.len());
    for new in &plan.disks.volumes {
        let volume = volume_row(new, plan, &node, id, at_s);
        mappings.push(Mapping {
            device: new.device.clone(),
            volume: volume.id,
        });
        tx.put(volume)?;
    }
    tx.put(Instance {
        id,
        reservation,
        launch_index,
        boot: plan.boot.clone(),
        instance_type: plan.kind.name.to_owned(),
        vcpus: plan.kind.vcpus,
        memory_mib: plan.kind.memory_mib,
        zone: plan.zone.clone(),
        node,
        state: State::Pending,
        generation: 1,
        state_generation: 1,
        has_run: false,
        starts: 1,
        reboots: 0,
        reserved: true,
        launched_at_s: at_s,
        terminated_at_s: None,
        reason: Some(Reason {
            code: "pending".to_owned(),
            message: "pending".to_owned(),
        }),
        transition: String::new(),
        vpc: plan.vpc,
        subnet: plan.subnet,
        private_ip,
        interfaces: vec![interface.id],
        groups: plan.groups.clone(),
        mappings,
        store_disks: plan.disks.store.clone(),
        root_device: plan.root_device.clone(),
        metadata: plan.metadata.clone(),
        disable_termination: plan.disable_termination,
        disable_stop: plan.disable_stop,
        terminate_on_shutdown: plan.terminate_on_shutdown,
        client_token: plan.client_token.clone(),
        tags: plan.instance_tags.clone(),
    })?;
    tx.put(interface)?;
    Ok(id)
}

fn volume_row(new: &NewVolume, plan: &Plan, node: &str, instance: InstanceId, at_s: i64) -> Volume {
    Volume {
        id: VolumeId::random(),
        zone: plan.zone.clone(),
        node: node.to_owned(),
        size_gib: new.size_gib,
        volume_type: new.volume_type.clone(),
        iops: (new.volume_type != "standard").then(|| match new.volume_type.as_str() {
            "gp3" => 3_000,
            // gp2: 3 a GiB, 100 at least.
            _ => (new.size_gib * 3).clamp(100, 16_000),
        }),
        image: new.image.clone(),
        snapshot: new.snapshot,
        state: VolumeState::Creating,
        generation: 1,
        created_at_s: at_s,
        attachment: Some(VolumeAttachment {
            instance,
            device: new.device.clone(),
            delete_on_termination: new.delete_on_termination,
            at_s,
        }),
        tags: plan.volume_tags.clone(),
    }
}
