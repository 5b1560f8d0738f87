//! From a launch's plan to rows: reservation, instances, interfaces, volumes.

mod plan;

pub use plan::{Disks, NewVolume, Nic, NicSource, Plan, Public};

use super::private_addresses::Wanted;
use super::{Ctx, ipv6_addresses, place, public, subnet_reservations};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::wire::ApiError;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

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
    if max > 1 && plan.nics.iter().any(Nic::is_one_of_a_kind) {
        return Err(ApiError::combination(
            "A private address or a network interface that exists cannot be used with more than \
             one instance.",
        ));
    }
    let mut maps: BTreeMap<SubnetId, Held> = BTreeMap::new();
    let mut free = max;
    for nic in &plan.nics {
        if let NicSource::New { subnet, wanted, .. } = &nic.source {
            let here = plan.nics.iter().filter(|n| n.subnet() == subnet.id);
            let needed: usize = here.map(Nic::addresses).sum();
            let map = addresses_of(tx, subnet.id)?;
            // Who names an address launches one instance, and may name a reserved one.
            let any = match plan.nics.iter().any(Nic::is_one_of_a_kind) {
                true => map.free(),
                false => map.free_unasked(),
            };
            let fit = any / u32::try_from(needed).unwrap_or(u32::MAX).max(1);
            free = free.min(fit);
            if free < min {
                return Err(no_address(subnet.id));
            }
            for wanted in wanted.primary.iter().chain(&wanted.secondary) {
                take_this(&mut map.clone(), *wanted)?;
            }
            let held = Held {
                ipv4: map,
                ipv6: None,
            };
            maps.insert(subnet.id, held);
        }
    }
    let only = node_of(&plan.disks)?;
    let nodes = place::take(ctx, tx, plan.kind, free, plan.placement.as_ref(), only)?;
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
    for (index, place) in (0_u32..).zip(nodes) {
        instances.push(one(ctx, tx, plan, id, index, place, &mut maps)?);
    }
    maps.into_values().try_for_each(|held| tx.put(held.ipv4))?;
    Ok((id, instances))
}

/// Which addresses of a subnet interfaces have.
struct Held {
    /// To be written back.
    ipv4: Addresses,
    /// Known once any was taken.
    ipv6: Option<BTreeSet<Ipv6Addr>>,
}

/// A subnet's address map, to be written back.
///
/// # Errors
/// `InvalidSubnetID.NotFound`.
pub fn addresses_of(tx: &Tx<'_>, subnet: SubnetId) -> Result<Addresses, ApiError> {
    let map = tx
        .get::<Addresses>(&subnet)
        .ok_or_else(|| SubnetId::not_found(subnet))?;
    Ok(Addresses {
        reserved: subnet_reservations::ipv4(tx.view, &tx.scope, subnet),
        ..map.as_ref().clone()
    })
}

/// A new, unattached interface with an address of its own, not yet written.
///
/// # Errors
/// `InvalidIPAddress.InUse`, `InsufficientFreeAddressesInSubnet`.
pub fn interface(
    subnet: &Subnet,
    addresses: &mut Addresses,
    asked: &Wanted,
    groups: Vec<GroupId>,
) -> Result<Interface, ApiError> {
    let mut secondary = Vec::with_capacity(asked.total());
    // Those that are named first: none of them is given for another.
    let primary = asked.primary.map(|wanted| take_this(addresses, wanted));
    for wanted in &asked.secondary {
        secondary.push(take_this(addresses, *wanted)?);
    }
    let mut any = || addresses.take().ok_or_else(|| no_address(subnet.id));
    let private_ip = primary.unwrap_or_else(&mut any)?;
    for _ in 0..asked.more {
        secondary.push(any()?);
    }
    Ok(Interface {
        id: InterfaceId::random(),
        vpc: subnet.vpc,
        subnet: subnet.id,
        zone: subnet.zone.clone(),
        mac: mac(private_ip)?,
        private_ip,
        secondary,
        ipv6: Vec::new(),
        groups,
        description: String::new(),
        source_dest_check: true,
        attachment: None,
        nat_gateway: None,
        connect_endpoint: None,
        left: None,
        wants_public: false,
        public_ip: None,
        tags: Tags::new(),
    })
}

/// The one node that holds the snapshots of a launch, if it has any.
fn node_of(disks: &Disks) -> Result<Option<&str>, ApiError> {
    let mut nodes = disks
        .volumes
        .iter()
        .filter_map(|volume| volume.source.as_ref()?.node.as_deref());
    let first = nodes.next();
    if nodes.any(|node| Some(node) != first) {
        return Err(ApiError::new(
            "UnsupportedOperation",
            "The snapshots of one instance must be on one host.",
        ));
    }
    Ok(first)
}

/// The error for a subnet that is full.
pub fn no_address(subnet: SubnetId) -> ApiError {
    ApiError::new(
        "InsufficientFreeAddressesInSubnet",
        format!(
            "There are not enough free addresses in subnet '{subnet}' to satisfy the requested \
             number of instances."
        ),
    )
}

/// Takes a certain address of a subnet.
///
/// # Errors
/// `InvalidIPAddress.InUse`, `InvalidParameterValue`.
pub fn take_this(addresses: &mut Addresses, wanted: Ipv4Addr) -> Result<Ipv4Addr, ApiError> {
    if !addresses.cidr.contains(&wanted) {
        return Err(ApiError::value(
            wanted,
            "PrivateIpAddress",
            "The address does not fall within the subnet's address range.",
        ));
    }
    if addresses.is_kept(wanted) {
        return Err(subnet_reservations::for_prefixes(wanted));
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

/// Attaches a launch's interfaces to a new instance, and writes them.
fn plug(
    ctx: &Ctx,
    tx: &mut Tx<'_>,
    plan: &Plan,
    instance: InstanceId,
    maps: &mut BTreeMap<SubnetId, Held>,
    at_s: i64,
) -> Result<Vec<Interface>, ApiError> {
    let mut rows = Vec::with_capacity(plan.nics.len());
    for nic in &plan.nics {
        let mut row = match &nic.source {
            NicSource::Existing(row) => row.as_ref().clone(),
            NicSource::New {
                subnet,
                groups,
                wanted,
                ipv6,
                description,
                public,
            } => {
                let held = maps.get_mut(&subnet.id);
                let held = held.ok_or_else(|| SubnetId::not_found(subnet.id))?;
                let mut row = Interface {
                    description: description.clone(),
                    tags: plan.interface_tags.clone(),
                    wants_public: *public != Public::No,
                    ipv6: ipv6_addresses::take(tx, &mut held.ipv6, subnet, ipv6)?,
                    ..interface(subnet, &mut held.ipv4, wanted, groups.clone())?
                };
                public::assign(&ctx.core, tx, &mut row)?;
                if *public == Public::Asked && row.public_ip.is_none() {
                    return Err(public::insufficient());
                }
                row
            }
        };
        row.attachment = Some(InterfaceAttachment {
            id: AttachmentId::random(),
            instance,
            device_index: nic.index,
            delete_on_termination: nic.delete_on_termination,
            at_s,
            attaching: 0,
            detaching: 0,
            force: false,
        });
        tx.put(row.clone())?;
        rows.push(row);
    }
    Ok(rows)
}

fn one(
    ctx: &Ctx,
    tx: &mut Tx<'_>,
    plan: &Plan,
    reservation: ReservationId,
    launch_index: u32,
    place: place::Place,
    maps: &mut BTreeMap<SubnetId, Held>,
) -> Result<InstanceId, ApiError> {
    let (id, at_s) = (InstanceId::random(), now_s());
    let node = place.node;
    let interfaces = plug(ctx, tx, plan, id, maps, at_s)?;
    let primary = interfaces
        .first()
        .ok_or_else(|| ApiError::internal(&"a launch without an interface"))?;
    let mut mappings = Vec::with_capacity(plan.disks.volumes.len());
    for new in &plan.disks.volumes {
        let volume = volume_row(new, plan, &node, id, at_s)?;
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
        vpc: primary.vpc,
        subnet: primary.subnet,
        private_ip: primary.private_ip,
        interfaces: interfaces.iter().map(|row| row.id).collect(),
        leaving: Vec::new(),
        groups: primary.groups.clone(),
        mappings,
        detaching: Vec::new(),
        force_detach: Vec::new(),
        store_disks: plan.disks.store.clone(),
        root_device: plan.root_device.clone(),
        metadata: plan.metadata.clone(),
        key_name: plan
            .key
            .as_ref()
            .map(|key| key.name.clone())
            .unwrap_or_default(),
        public_key: plan
            .key
            .as_ref()
            .map(|key| format!("{} {}", key.public_key, key.name))
            .unwrap_or_default(),
        user_data: None,
        monitoring: plan.monitoring,
        credits: plan.credits.clone(),
        placement_group: plan.placement.as_ref().map(|(group, _)| group.id),
        partition: place.partition,
        disable_termination: plan.disable_termination,
        disable_stop: plan.disable_stop,
        terminate_on_shutdown: plan.terminate_on_shutdown,
        client_token: plan.client_token.clone(),
        tags: plan.instance_tags.clone(),
    })?;
    Ok(id)
}

fn volume_row(
    new: &NewVolume,
    plan: &Plan,
    node: &str,
    instance: InstanceId,
    at_s: i64,
) -> Result<Volume, ApiError> {
    let given = new.given()?;
    let source = new.source.as_ref();
    Ok(Volume {
        id: VolumeId::random(),
        zone: plan.zone.clone(),
        node: node.to_owned(),
        size_gib: new.size_gib,
        volume_type: given.volume_type,
        iops: given.iops,
        throughput_mib_s: given.throughput_mib_s,
        image: source.map(|s| s.image.clone()).unwrap_or_default(),
        snapshot: source.and_then(|source| source.snapshot),
        of_snapshot: source.is_some_and(|source| source.node.is_some()),
        encrypted: new.encrypted || source.is_some_and(|source| source.encrypted),
        boot: source.and_then(|source| source.boot.clone()),
        modification: None,
        auto_enable_io: false,
        state: VolumeState::Creating,
        generation: 1,
        created_at_s: at_s,
        attachment: Some(VolumeAttachment {
            instance,
            device: new.device.clone(),
            delete_on_termination: new.delete_on_termination,
            at_s,
            attaching: 0,
            detaching: 0,
        }),
        tags: plan.volume_tags.clone(),
    })
}
