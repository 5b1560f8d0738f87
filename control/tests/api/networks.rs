//! Routes, gateways, ACLs, Elastic IPs and peerings, as the node is told of them.

use crate::support::{text, until};
use crate::world::{World, ami, world};
use ocs_node_api::{Network, route::Target};

/// The text of the first element of a name, or nothing.
pub fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

/// A VPC with a subnet and an instance in it: their ids, and the VPC's number.
pub fn furnished(world: &World, block: &str, subnet: &str) -> (String, String, String, u32) {
    let control = &world.control;
    let vpc = first(&control.ok("CreateVpc", &[("CidrBlock", block)]), "vpcId");
    let subnet = [("VpcId", vpc.as_str()), ("CidrBlock", subnet)];
    let subnet = first(&control.ok("CreateSubnet", &subnet), "subnetId");
    let id = world.run("1", &[("SubnetId", &subnet)]).remove(0);
    let vni = until("told", || {
        let seen = world.node.seen.lock().unwrap();
        Some(seen.instances.get(&id)?.network_interfaces[0].vni)
    });
    (vpc, subnet, id, vni)
}

/// Waits until the node's network is so.
pub fn network(world: &World, vni: u32, what: &str, settled: impl Fn(&Network) -> bool) -> Network {
    until(what, || {
        let seen = world.node.seen.lock().unwrap();
        seen.networks.get(&vni).filter(|n| settled(n)).cloned()
    })
}

/// Where a table of a network leads packets for a destination.
pub fn target(network: &Network, table: &str, cidr: &str) -> Option<Target> {
    let table = network.route_tables.iter().find(|row| row.id == table)?;
    let route = table.routes.iter().find(|r| r.destination_cidr == cidr)?;
    route.target.clone()
}

#[test]
fn routes_lead_where_they_say() {
    let world = world(10);
    let control = &world.control;
    let (vpc, subnet, id, vni) = furnished(&world, "10.1.0.0/16", "10.1.1.0/24");
    let made = control.ok("CreateInternetGateway", &[]);
    let gateway = first(&made, "internetGatewayId");
    let pair = [
        ("InternetGatewayId", gateway.as_str()),
        ("VpcId", vpc.as_str()),
    ];
    let table = first(
        &control.ok("CreateRouteTable", &[("VpcId", &vpc)]),
        "routeTableId",
    );
    let out = [
        ("RouteTableId", table.as_str()),
        ("DestinationCidrBlock", "0.0.0.0/0"),
        ("GatewayId", gateway.as_str()),
    ];
    control.refused("CreateRoute", &out, "InvalidParameterValue");
    control.ok("AttachInternetGateway", &pair);
    control.ok("CreateRoute", &out);
    let associate = [
        ("RouteTableId", table.as_str()),
        ("SubnetId", subnet.as_str()),
    ];
    let association = first(
        &control.ok("AssociateRouteTable", &associate),
        "associationId",
    );
    network(&world, vni, "a way out", |n| {
        target(n, &table, "0.0.0.0/0") == Some(Target::InternetGateway(true))
            && target(n, &table, "10.1.0.0/16") == Some(Target::Local(true))
    });
    let uses = |wanted: &str| {
        let seen = world.node.seen.lock().unwrap();
        (seen.instances[&id].network_interfaces[0].route_table == wanted).then_some(())
    };
    until("told of the table", || uses(&table));
    let all = control.ok("DescribeRouteTables", &[("RouteTableId.1", &table)]);
    assert_eq!(text(&all, "state"), ["associated", "active", "active"]);
    control.refused(
        "DeleteRouteTable",
        &[("RouteTableId", &table)],
        "DependencyViolation",
    );

    let through = [
        ("RouteTableId", table.as_str()),
        ("DestinationCidrBlock", "0.0.0.0/0"),
        ("InstanceId", id.as_str()),
    ];
    control.ok("ReplaceRoute", &through);
    network(&world, vni, "a next hop", |n| {
        target(n, &table, "0.0.0.0/0") == Some(Target::NextHopIp("10.1.1.4".to_owned()))
    });
    let check = [
        ("InstanceId", id.as_str()),
        ("SourceDestCheck.Value", "false"),
    ];
    control.ok("ModifyInstanceAttribute", &check);
    until("told of the check", || {
        let seen = world.node.seen.lock().unwrap();
        (!seen.instances[&id].network_interfaces[0].source_dest_check).then_some(())
    });
    control.ok("ReplaceRoute", &out);
    control.ok("DetachInternetGateway", &pair);
    network(&world, vni, "a blackhole", |n| {
        target(n, &table, "0.0.0.0/0") == Some(Target::Blackhole(true))
    });
    control.ok("DeleteInternetGateway", &[("InternetGatewayId", &gateway)]);
    control.ok("DisassociateRouteTable", &[("AssociationId", &association)]);
    until("back to the main table", || {
        uses(&table).is_none().then_some(())
    });
    control.ok("DeleteRoute", &out[..2]);
    control.ok("DeleteRouteTable", &[("RouteTableId", &table)]);
    network(&world, vni, "without the table", |n| {
        n.route_tables.len() == 1
    });
}

#[test]
fn acls_guard_subnets() {
    let world = world(10);
    let control = &world.control;
    let (vpc, subnet, id, vni) = furnished(&world, "10.2.0.0/16", "10.2.1.0/24");
    let acl = first(
        &control.ok("CreateNetworkAcl", &[("VpcId", &vpc)]),
        "networkAclId",
    );
    let entry = [
        ("NetworkAclId", acl.as_str()),
        ("RuleNumber", "10"),
        ("Protocol", "6"),
        ("RuleAction", "deny"),
        ("Egress", "false"),
        ("CidrBlock", "10.9.0.0/16"),
        ("PortRange.From", "22"),
        ("PortRange.To", "23"),
    ];
    control.ok("CreateNetworkAclEntry", &entry);
    let filter = [
        ("Filter.1.Name", "association.subnet-id"),
        ("Filter.1.Value.1", subnet.as_str()),
    ];
    let held = control.ok("DescribeNetworkAcls", &filter);
    let association = first(&held, "networkAclAssociationId");
    let replace = [
        ("AssociationId", association.as_str()),
        ("NetworkAclId", acl.as_str()),
    ];
    let fresh = first(
        &control.ok("ReplaceNetworkAclAssociation", &replace),
        "newAssociationId",
    );
    assert_ne!(fresh, association);
    until("told of the ACL", || {
        let seen = world.node.seen.lock().unwrap();
        (seen.instances[&id].network_interfaces[0].network_acl == acl).then_some(())
    });
    let told = network(&world, vni, "the entry", |n| {
        n.network_acls
            .iter()
            .any(|row| row.id == acl && row.entries.len() == 1)
    });
    let row = told.network_acls.iter().find(|row| row.id == acl).unwrap();
    let entry = &row.entries[0];
    assert_eq!(
        (
            entry.rule_number,
            entry.protocol,
            entry.from_port,
            entry.to_port,
            entry.allow
        ),
        (10, 6, 22, 23, false)
    );
    control.refused(
        "DeleteNetworkAcl",
        &[("NetworkAclId", &acl)],
        "DependencyViolation",
    );
    let gone = [
        ("NetworkAclId", acl.as_str()),
        ("RuleNumber", "10"),
        ("Egress", "false"),
    ];
    control.ok("DeleteNetworkAclEntry", &gone);
    network(&world, vni, "no entry", |n| {
        n.network_acls
            .iter()
            .any(|row| row.id == acl && row.entries.is_empty())
    });
}

/// What the node was told of an instance's public address: as of its ENI, and as of its
/// metadata.
fn told_public(world: &World, id: &str) -> (Option<String>, String) {
    let seen = world.node.seen.lock().unwrap();
    let told = &seen.instances[id];
    let public = told.network_interfaces[0].public_addresses.first();
    let metadata = told.metadata.as_ref().unwrap();
    (
        public.map(|pair| pair.public_ip.clone()),
        metadata.public_ip.clone(),
    )
}

#[test]
fn elastic_addresses_stand_for_private_ones() {
    let world = world(10);
    let control = &world.control;
    let id = world.run("1", &[]).remove(0);
    world.await_state(&id, "running");
    let own = told_public(&world, &id).1;
    assert_eq!(own, "198.51.100.0", "default subnets give one");
    let made = control.ok("AllocateAddress", &[("Domain", "vpc")]);
    let (allocation, ip) = (first(&made, "allocationId"), first(&made, "publicIp"));
    assert_eq!(ip, "198.51.100.1");
    let of = [
        ("AllocationId", allocation.as_str()),
        ("InstanceId", id.as_str()),
    ];
    let association = first(&control.ok("AssociateAddress", &of), "associationId");
    until("told of the Elastic IP in place of its own address", || {
        (told_public(&world, &id) == (Some(ip.clone()), ip.clone())).then_some(())
    });
    let shown = control.ok(
        "DescribeInstances",
        &[("Filter.1.Name", "ip-address"), ("Filter.1.Value.1", &ip)],
    );
    assert_eq!(
        first(&shown, "dnsName"),
        "ec2-198-51-100-1.compute-1.amazonaws.com"
    );
    control.refused(
        "ReleaseAddress",
        &[("AllocationId", &allocation)],
        "InvalidIPAddress.InUse",
    );
    control.ok("DisassociateAddress", &[("AssociationId", &association)]);
    until("told that it has one of its own again", || {
        let next = "198.51.100.2".to_owned();
        (told_public(&world, &id) == (Some(next.clone()), next)).then_some(())
    });
    control.ok("AssociateAddress", &of);
    control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "terminated");
    let here = [
        ("AllocationId", allocation.as_str()),
        ("NetworkBorderGroup", "us-east-1"),
    ];
    control.ok("ReleaseAddress", &here);
    let again = control.ok("AllocateAddress", &[("Address", &ip)]);
    assert_eq!(first(&again, "publicIp"), ip, "what was released is free");
}

#[test]
fn a_public_address_lasts_from_start_to_stop() {
    let world = world(40);
    let control = &world.control;
    let public = |id: &str| {
        let shown = control.ok("DescribeInstances", &[("InstanceId.1", id)]);
        first(&shown, "ipAddress")
    };
    let asked = |wish| {
        let nic = [
            ("NetworkInterface.1.DeviceIndex", "0"),
            ("NetworkInterface.1.AssociatePublicIpAddress", wish),
        ];
        world.run("1", &nic).remove(0)
    };
    let (with, without) = (world.run("1", &[]).remove(0), asked("false"));
    world.await_state(&with, "running");
    assert_eq!(public(&with), "198.51.100.0");
    assert_eq!(public(&without), "");
    let shown = control.ok("DescribeInstances", &[("InstanceId.1", &with)]);
    assert_eq!(first(&shown, "ipOwnerId"), "amazon");

    let this = [("InstanceId.1", with.as_str())];
    control.ok("StopInstances", &this);
    world.await_state(&with, "stopped");
    assert_eq!(public(&with), "");
    control.ok("StartInstances", &this);
    world.await_state(&with, "running");
    assert_eq!(public(&with), "198.51.100.1", "a new one");

    // The block has sixteen, of which fifteen are left: who asks is refused when all
    // are gone, who does not goes without.
    let many = world.run("16", &[]);
    let held: Vec<String> = many.iter().map(|id| public(id)).collect();
    assert_eq!(held.iter().filter(|ip| !ip.is_empty()).count(), 15);
    control.refused(
        "RunInstances",
        &[
            ("ImageId", &ami(control)),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("NetworkInterface.1.DeviceIndex", "0"),
            ("NetworkInterface.1.AssociatePublicIpAddress", "true"),
        ],
        "InsufficientAddressCapacity",
    );
    control.ok("TerminateInstances", &this);
    world.await_state(&with, "terminated");
    assert_eq!(public(&asked("true")), "198.51.100.1");
}

#[test]
fn peered_vpcs_see_each_other_until_they_do_not() {
    let world = world(10);
    let control = &world.control;
    let (a, _, _, vni_a) = furnished(&world, "10.3.0.0/16", "10.3.1.0/24");
    let (b, _, _, vni_b) = furnished(&world, "10.4.0.0/16", "10.4.1.0/24");
    let pair = [("VpcId", a.as_str()), ("PeerVpcId", b.as_str())];
    let made = control.ok("CreateVpcPeeringConnection", &pair);
    let peering = first(&made, "vpcPeeringConnectionId");
    let this = [("VpcPeeringConnectionId", peering.as_str())];
    control.refused(
        "CreateVpcPeeringConnection",
        &pair,
        "VpcPeeringConnectionAlreadyExists",
    );
    let filter = [
        ("Filter.1.Name", "vpc-id"),
        ("Filter.1.Value.1", a.as_str()),
    ];
    let main = first(&control.ok("DescribeRouteTables", &filter), "routeTableId");
    let route = [
        ("RouteTableId", main.as_str()),
        ("DestinationCidrBlock", "10.4.0.0/16"),
        ("VpcPeeringConnectionId", peering.as_str()),
    ];
    control.ok("CreateRoute", &route);
    network(&world, vni_a, "not yet", |n| {
        target(n, &main, "10.4.0.0/16") == Some(Target::Blackhole(true))
    });
    control.ok("AcceptVpcPeeringConnection", &this);
    let told = network(&world, vni_a, "the peer", |n| {
        target(n, &main, "10.4.0.0/16") == Some(Target::PeerVni(vni_b))
    });
    assert_eq!(told.peerings[0].peer_cidrs, ["10.4.0.0/16"]);
    network(&world, vni_b, "the other side", |n| n.peerings.len() == 1);
    control.refused(
        "RejectVpcPeeringConnection",
        &this,
        "InvalidStateTransition",
    );
    control.refused("DeleteVpc", &[("VpcId", &a)], "DependencyViolation");
    control.ok("DeleteVpcPeeringConnection", &this);
    network(&world, vni_a, "no peer", |n| {
        n.peerings.is_empty() && target(n, &main, "10.4.0.0/16") == Some(Target::Blackhole(true))
    });
}
