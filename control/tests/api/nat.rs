//! NAT gateways and secondary private addresses, as nodes are told of them.

use crate::support::{text, until};
use crate::world::{World, world};
use ocs_node_api::{NatGateway, route::Target};

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

/// A VPC with an internet gateway, and a subnet in it: their ids, and the gateway's.
fn vpc(world: &World) -> (String, String, String) {
    let control = &world.control;
    let vpc = control.ok("CreateVpc", &[("CidrBlock", "10.7.0.0/16")]);
    let vpc = first(&vpc, "vpcId");
    let subnet = [("VpcId", vpc.as_str()), ("CidrBlock", "10.7.1.0/24")];
    let subnet = first(&control.ok("CreateSubnet", &subnet), "subnetId");
    let gateway = first(
        &control.ok("CreateInternetGateway", &[]),
        "internetGatewayId",
    );
    (vpc, subnet, gateway)
}

fn told(world: &World, id: &str, what: &str, so: impl Fn(&NatGateway) -> bool) -> NatGateway {
    until(what, || {
        let seen = world.node.seen.lock().unwrap();
        seen.nat_gateways.get(id).filter(|row| so(row)).cloned()
    })
}

fn state(world: &World, id: &str) -> String {
    let body = world
        .control
        .ok("DescribeNatGateways", &[("NatGatewayId.1", id)]);
    first(&body, "state")
}

fn await_state(world: &World, id: &str, wanted: &str) {
    until(&format!("{id} {wanted}"), || {
        (state(world, id) == wanted).then_some(())
    });
}

#[test]
fn a_nat_gateway_lives_on_a_node_and_leaves_nothing() {
    let world = world(10);
    let control = &world.control;
    let (vpc, subnet, gateway) = vpc(&world);
    let made = control.ok("AllocateAddress", &[("Domain", "vpc")]);
    let (allocation, public) = (first(&made, "allocationId"), first(&made, "publicIp"));
    let here = [
        ("SubnetId", subnet.as_str()),
        ("AllocationId", allocation.as_str()),
        ("ClientToken", "once"),
    ];
    // Without a way out it fails, and says why itself.
    let doomed = control.ok("CreateNatGateway", &here[..2]);
    assert_eq!(first(&doomed, "state"), "pending");
    let doomed = first(&doomed, "natGatewayId");
    let shown = control.ok("DescribeNatGateways", &[("NatGatewayId.1", &doomed)]);
    assert_eq!(first(&shown, "state"), "failed");
    assert_eq!(first(&shown, "failureCode"), "Gateway.NotAttached");
    control.ok("DeleteNatGateway", &[("NatGatewayId", &doomed)]);
    assert_eq!(state(&world, &doomed), "deleted");
    control.refused(
        "DeleteNatGateway",
        &[("NatGatewayId", &doomed)],
        "NatGatewayNotFound",
    );

    let pair = [
        ("InternetGatewayId", gateway.as_str()),
        ("VpcId", vpc.as_str()),
    ];
    control.ok("AttachInternetGateway", &pair);
    let nat = first(&control.ok("CreateNatGateway", &here), "natGatewayId");
    assert_eq!(
        first(&control.ok("CreateNatGateway", &here), "natGatewayId"),
        nat
    );
    await_state(&world, &nat, "available");
    let seen = told(&world, &nat, "told of it", |_| true);
    assert_eq!(
        (
            seen.private_ip.as_str(),
            seen.public_ip.as_str(),
            seen.subnet_cidr.as_str()
        ),
        ("10.7.1.4", public.as_str(), "10.7.1.0/24")
    );
    assert!(
        world
            .node
            .seen
            .lock()
            .unwrap()
            .networks
            .contains_key(&seen.vni)
    );

    // Its interface and its address are its own.
    let by_ip = [
        ("Filter.1.Name", "addresses.private-ip-address"),
        ("Filter.1.Value.1", "10.7.1.4"),
    ];
    let shown = control.ok("DescribeNetworkInterfaces", &by_ip);
    assert_eq!(first(&shown, "interfaceType"), "nat_gateway");
    let eni = first(&shown, "networkInterfaceId");
    control.refused(
        "DeleteNetworkInterface",
        &[("NetworkInterfaceId", &eni)],
        "InvalidNetworkInterface.InUse",
    );
    let shown = control.ok("DescribeAddresses", &[("AllocationId.1", &allocation)]);
    let association = first(&shown, "associationId");
    control.refused(
        "DisassociateAddress",
        &[("AssociationId", &association)],
        "AuthFailure",
    );
    control.refused("DetachInternetGateway", &pair, "DependencyViolation");
    control.refused(
        "DeleteSubnet",
        &[("SubnetId", &subnet)],
        "DependencyViolation",
    );
    let second = first(&control.ok("CreateNatGateway", &here[..2]), "natGatewayId");
    let shown = control.ok("DescribeNatGateways", &[("NatGatewayId.1", &second)]);
    assert_eq!(first(&shown, "failureCode"), "Resource.AlreadyAssociated");

    // A route to it is a next hop, and a blackhole once it goes.
    let table = first(
        &control.ok("CreateRouteTable", &[("VpcId", &vpc)]),
        "routeTableId",
    );
    let route = [
        ("RouteTableId", table.as_str()),
        ("DestinationCidrBlock", "0.0.0.0/0"),
        ("NatGatewayId", nat.as_str()),
    ];
    control.ok("CreateRoute", &route);
    let leads = |wanted: &Target| {
        let networks = &world.node.seen.lock().unwrap().networks;
        let tables = &networks.get(&seen.vni)?.route_tables;
        let routes = &tables.iter().find(|row| row.id == table)?.routes;
        let route = routes.iter().find(|r| r.destination_cidr == "0.0.0.0/0")?;
        (route.target.as_ref() == Some(wanted)).then_some(())
    };
    until("a next hop", || {
        leads(&Target::NextHopIp("10.7.1.4".to_owned()))
    });
    let away = [
        ("RouteTableId", table.as_str()),
        ("SubnetId", subnet.as_str()),
    ];
    control.ok("AssociateRouteTable", &away);
    told(&world, &nat, "told of its subnet's table", |row| {
        row.route_table == table
    });

    control.ok("DeleteNatGateway", &[("NatGatewayId", &nat)]);
    until("a blackhole", || leads(&Target::Blackhole(true)));
    await_state(&world, &nat, "deleted");
    let shown = control.ok("DescribeAddresses", &[("AllocationId.1", &allocation)]);
    assert_eq!(first(&shown, "associationId"), "");
    assert_eq!(
        first(
            &control.ok("DescribeNetworkInterfaces", &by_ip),
            "networkInterfaceId"
        ),
        ""
    );
    control.ok("DetachInternetGateway", &pair);
    let shown = control.ok("DescribeRouteTables", &[("RouteTableId.1", &table)]);
    assert!(
        text(&shown, "state").contains(&"blackhole".to_owned()),
        "{shown}"
    );
}

#[test]
fn secondary_addresses_come_move_and_go() {
    let world = world(10);
    let control = &world.control;
    let (vpc, subnet, gateway) = vpc(&world);
    let pair = [
        ("InternetGatewayId", gateway.as_str()),
        ("VpcId", vpc.as_str()),
    ];
    control.ok("AttachInternetGateway", &pair);
    let nic = [
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.SubnetId", subnet.as_str()),
        ("NetworkInterface.1.SecondaryPrivateIpAddressCount", "1"),
    ];
    let id = world.run("1", &nic).remove(0);
    world.await_state(&id, "running");
    let addresses = || {
        let seen = world.node.seen.lock().unwrap();
        let nic = &seen.instances[&id].network_interfaces[0];
        let pairs = nic.public_addresses.iter();
        let pairs = pairs.map(|pair| (pair.private_ip.clone(), pair.public_ip.clone()));
        (nic.secondary_private_ips.clone(), pairs.collect::<Vec<_>>())
    };
    assert_eq!(addresses(), (vec!["10.7.1.5".to_owned()], vec![]));
    let filter = [
        ("Filter.1.Name", "attachment.instance-id"),
        ("Filter.1.Value.1", id.as_str()),
    ];
    let eni = first(
        &control.ok("DescribeNetworkInterfaces", &filter),
        "networkInterfaceId",
    );
    let this = ("NetworkInterfaceId", eni.as_str());

    let given = control.ok(
        "AssignPrivateIpAddresses",
        &[this, ("PrivateIpAddress.1", "10.7.1.40")],
    );
    assert_eq!(text(&given, "privateIpAddress"), ["10.7.1.40"]);
    until("told of both", || {
        (addresses().0 == ["10.7.1.5", "10.7.1.40"]).then_some(())
    });
    let shown = control.ok("DescribeNetworkInterfaces", &filter);
    assert_eq!(text(&shown, "primary"), ["true", "false", "false"]);

    // An Elastic IP for the second, beside none for the first.
    let made = control.ok("AllocateAddress", &[("Domain", "vpc")]);
    let (allocation, public) = (first(&made, "allocationId"), first(&made, "publicIp"));
    let of = [
        ("AllocationId", allocation.as_str()),
        this,
        ("PrivateIpAddress", "10.7.1.40"),
    ];
    control.ok("AssociateAddress", &of);
    let pairs = vec![("10.7.1.40".to_owned(), public)];
    until("told of the pair", || {
        (addresses().1 == pairs).then_some(())
    });
    let shown = control.ok("DescribeAddresses", &[("AllocationId.1", &allocation)]);
    assert_eq!(first(&shown, "privateIpAddress"), "10.7.1.40");

    // It moves to another interface, if that may be, and its Elastic IP is free.
    let other = control.ok("CreateNetworkInterface", &[("SubnetId", &subnet)]);
    let other = first(&other, "networkInterfaceId");
    let take = [
        ("NetworkInterfaceId", other.as_str()),
        ("PrivateIpAddress.1", "10.7.1.40"),
        ("AllowReassignment", "true"),
    ];
    control.refused(
        "AssignPrivateIpAddresses",
        &take[..2],
        "InvalidParameterValue",
    );
    control.ok("AssignPrivateIpAddresses", &take);
    until("told that it left", || {
        (addresses() == (vec!["10.7.1.5".to_owned()], vec![])).then_some(())
    });
    let shown = control.ok("DescribeAddresses", &[("AllocationId.1", &allocation)]);
    assert_eq!(first(&shown, "associationId"), "");

    // As many as the type has room for, and no more; the primary one stays.
    control.refused(
        "AssignPrivateIpAddresses",
        &[this, ("SecondaryPrivateIpAddressCount", "40")],
        "PrivateIpAddressLimitExceeded",
    );
    control.refused(
        "UnassignPrivateIpAddresses",
        &[this, ("PrivateIpAddress.1", "10.7.1.4")],
        "InvalidParameterValue",
    );
    control.refused(
        "UnassignPrivateIpAddresses",
        &[this, ("PrivateIpAddress.1", "10.7.1.40")],
        "InvalidParameterValue",
    );
    control.ok(
        "UnassignPrivateIpAddresses",
        &[this, ("PrivateIpAddress.1", "10.7.1.5")],
    );
    until("told of none", || addresses().0.is_empty().then_some(()));
    control.ok("DeleteNetworkInterface", &[("NetworkInterfaceId", &other)]);
    control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "terminated");
    let shown = control.ok("DescribeSubnets", &[("SubnetId.1", &subnet)]);
    assert_eq!(
        first(&shown, "availableIpAddressCount"),
        "251",
        "all are free again"
    );
}
