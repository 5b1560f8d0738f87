//! IPv6 blocks, addresses, rules and entries, as callers see them and the node is told.

use crate::support::{text, until};
use crate::world::{World, world};
use ocs_node_api as api;

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

/// A VPC with an IPv6 block: its id, and the block's prefix up to the subnet's number.
fn vpc(world: &World, block: &str) -> (String, String) {
    let made = world.control.ok(
        "CreateVpc",
        &[
            ("CidrBlock", block),
            ("AmazonProvidedIpv6CidrBlock", "true"),
        ],
    );
    let ipv6 = first(&made, "ipv6CidrBlock");
    let (prefix, length) = ipv6.split_once("::/").unwrap();
    assert_eq!(length, "56");
    // Of a /56 the last byte of the fourth group numbers the subnets.
    let groups: Vec<&str> = prefix.split(':').collect();
    let mut groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
    groups.resize(4, "0".to_owned());
    let last = u16::from_str_radix(&groups[3], 16).unwrap();
    groups[3] = format!("{:x}", last >> 8);
    (first(&made, "vpcId"), groups.join(":"))
}

/// The `n`th /64 of a VPC's block.
fn subnet_block(prefix: &str, n: u8) -> String {
    let (front, last) = prefix.rsplit_once(':').unwrap();
    let last = u16::from_str_radix(last, 16).unwrap() << 8 | u16::from(n);
    format!("{front}:{last:x}::/64")
}

fn subnet(world: &World, vpc: &str, v4: &str, v6: &str) -> String {
    let made = world.control.ok(
        "CreateSubnet",
        &[("VpcId", vpc), ("CidrBlock", v4), ("Ipv6CidrBlock", v6)],
    );
    assert_eq!(first(&made, "ipv6CidrBlock"), v6);
    first(&made, "subnetId")
}

/// The interface of an instance, once the node is told of one that is so.
fn told(
    world: &World,
    id: &str,
    settled: impl Fn(&api::NetworkInterface) -> bool,
) -> api::NetworkInterface {
    until("told", || {
        let seen = world.node.seen.lock().unwrap();
        let interface = seen.instances.get(id)?.network_interfaces.first()?;
        settled(interface).then(|| interface.clone())
    })
}

#[test]
fn blocks_are_given_divided_and_taken_back() {
    let world = world(4);
    let control = &world.control;
    let (one, prefix) = vpc(&world, "10.1.0.0/16");
    let (_, other) = vpc(&world, "10.2.0.0/16");
    assert_ne!(prefix, other, "no two VPCs have one block");
    let block = subnet_block(&prefix, 1);
    let home = subnet(&world, &one, "10.1.1.0/24", &block);
    let bad = |v4: &str, v6: &str, code: &str| {
        let params = [
            ("VpcId", one.as_str()),
            ("CidrBlock", v4),
            ("Ipv6CidrBlock", v6),
        ];
        control.refused("CreateSubnet", &params, code);
    };
    bad("10.1.2.0/24", &block, "InvalidSubnet.Conflict");
    bad(
        "10.1.2.0/24",
        &subnet_block(&other, 1),
        "InvalidSubnet.Range",
    );
    bad(
        "10.1.2.0/24",
        &block.replace("/64", "/65"),
        "InvalidSubnet.Range",
    );
    bad("10.1.2.0/24", "10.1.2.0/24", "InvalidParameterValue");

    let filter = [
        (
            "Filter.1.Name",
            "ipv6-cidr-block-association.ipv6-cidr-block",
        ),
        ("Filter.1.Value.1", block.as_str()),
    ];
    let found = control.ok("DescribeSubnets", &filter);
    assert_eq!(text(&found, "subnetId"), [home.as_str()]);
    let tables = control.ok(
        "DescribeRouteTables",
        &[("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", &one)],
    );
    let local = text(&tables, "destinationIpv6CidrBlock");
    assert_eq!(local.len(), 1);
    let table = first(&tables, "routeTableId");
    let gateway = first(
        &control.ok("CreateInternetGateway", &[]),
        "internetGatewayId",
    );
    let named = [("InternetGatewayId", gateway.as_str())];
    let attached = [named[0], ("VpcId", one.as_str())];
    control.ok("AttachInternetGateway", &attached);
    let way = [
        ("RouteTableId", table.as_str()),
        ("DestinationIpv6CidrBlock", "2001:db8:0:1::7/32"),
    ];
    let outside = [way[0], way[1], ("GatewayId", gateway.as_str())];
    control.refused("ReplaceRoute", &outside, "InvalidRoute.NotFound");
    control.ok("CreateRoute", &outside);
    control.ok("CreateRoute", &outside);
    control.ok("ReplaceRoute", &outside);
    let state = |prefix: &str| {
        let filter = [
            ("Filter.1.Name", "route.destination-ipv6-cidr-block"),
            ("Filter.1.Value.1", prefix),
        ];
        text(&control.ok("DescribeRouteTables", &filter), "state")
    };
    assert!(state("2001:db8:1::/48").is_empty());
    let of_route = |states: Vec<String>| states.iter().any(|state| state == "blackhole");
    assert!(!of_route(state("2001:db8::/32")));
    control.ok("DetachInternetGateway", &attached);
    assert!(of_route(state("2001:db8::/32")), "its gateway is gone");
    control.ok("AttachInternetGateway", &attached);
    for (parameter, value, code) in [
        (
            "DestinationIpv6CidrBlock",
            "10.0.0.0/8",
            "InvalidParameterValue",
        ),
        (
            "DestinationIpv6CidrBlock",
            block.as_str(),
            "InvalidParameterValue",
        ),
        (
            "DestinationCidrBlock",
            "2001:db8::/32",
            "InvalidParameterValue",
        ),
    ] {
        let request = [way[0], (parameter, value), outside[2]];
        control.refused("CreateRoute", &request, code);
    }
    let both = [
        outside[0],
        outside[1],
        outside[2],
        ("DestinationCidrBlock", "0.0.0.0/0"),
    ];
    control.refused("CreateRoute", &both, "InvalidParameterCombination");
    control.ok("DeleteRoute", &way);
    control.refused("DeleteRoute", &way, "InvalidRoute.NotFound");

    // A block in use stays; one of a subnet goes and comes.
    let shown = control.ok("DescribeVpcs", &[("VpcId.1", &one)]);
    let of_vpc = text(&shown, "associationId")
        .into_iter()
        .find(|id| shown.contains(&format!("{id}</associationId><ipv6CidrBlock>")))
        .unwrap();
    let of_vpc = [("AssociationId", of_vpc.as_str())];
    control.refused(
        "DisassociateVpcCidrBlock",
        &of_vpc,
        "InvalidCidrBlock.InUse",
    );
    let association = first(&found, "associationId");
    let association = [("AssociationId", association.as_str())];
    control.ok("DisassociateSubnetCidrBlock", &association);
    control.refused(
        "DisassociateSubnetCidrBlock",
        &association,
        "InvalidSubnetCidrBlockAssociationID.NotFound",
    );
    let again = [
        ("SubnetId", home.as_str()),
        ("Ipv6CidrBlock", block.as_str()),
    ];
    control.ok("AssociateSubnetCidrBlock", &again);
    control.refused("AssociateSubnetCidrBlock", &again, "CidrLimitExceeded");
    control.ok("DeleteSubnet", &[("SubnetId", &home)]);
    control.ok("DisassociateVpcCidrBlock", &of_vpc);
    let more = [
        ("VpcId", one.as_str()),
        ("AmazonProvidedIpv6CidrBlock", "true"),
    ];
    for _ in 0..5 {
        control.ok("AssociateVpcCidrBlock", &more);
    }
    control.refused("AssociateVpcCidrBlock", &more, "CidrLimitExceeded");
    let both = [more[0], more[1], ("CidrBlock", "10.3.0.0/16")];
    control.refused(
        "AssociateVpcCidrBlock",
        &both,
        "InvalidParameterCombination",
    );
}

#[test]
fn addresses_are_given_told_moved_and_taken_back() {
    let world = world(8);
    let control = &world.control;
    let (vpc, prefix) = vpc(&world, "10.1.0.0/16");
    let block = subnet_block(&prefix, 7);
    let home = subnet(&world, &vpc, "10.1.1.0/24", &block);
    let address = |last: &str| block.replace(":/64", &format!(":{last}"));
    let plain = world.run("1", &[("SubnetId", &home)]).remove(0);
    let bare = told(&world, &plain, |_| true);
    assert!(bare.ipv6_addresses.is_empty());
    assert_eq!(bare.subnet_ipv6_cidr, block);

    let assign = [
        ("SubnetId", home.as_str()),
        ("AssignIpv6AddressOnCreation.Value", "true"),
    ];
    control.ok("ModifySubnetAttribute", &assign);
    let given = world.run("1", &[("SubnetId", &home)]).remove(0);
    let one = told(&world, &given, |it| !it.ipv6_addresses.is_empty());
    let [only] = one.ipv6_addresses.as_slice() else {
        panic!("{one:?}");
    };
    let within: ipnet::Ipv6Net = block.parse().unwrap();
    assert!(within.contains(&only.parse::<std::net::Ipv6Addr>().unwrap()));
    assert_eq!(one.vpc_ipv6_cidrs.len(), 1);
    let shown = control.ok("DescribeInstances", &[("InstanceId.1", &given)]);
    assert!(text(&shown, "ipv6Address").iter().all(|ip| ip == only));

    let named = address("abc");
    let by_name = world
        .run(
            "1",
            &[
                ("SubnetId", &home),
                ("Ipv6Address.1.Ipv6Address", &named),
                ("MetadataOptions.HttpProtocolIpv6", "enabled"),
            ],
        )
        .remove(0);
    assert_eq!(
        told(&world, &by_name, |_| true).ipv6_addresses,
        [named.as_str()]
    );
    let tells = world.node.seen.lock().unwrap().instances[&by_name].clone();
    assert!(tells.metadata.unwrap().http_protocol_ipv6);
    let two = world.run("1", &[("SubnetId", &home), ("Ipv6AddressCount", "2")]);
    let two = told(&world, &two[0], |_| true);
    assert_eq!(two.ipv6_addresses.len(), 2);
    let image = crate::world::ami(control);
    let launch = |more: &[(&str, &str)], code: &str| {
        let mut params = vec![
            ("ImageId", image.as_str()),
            ("MinCount", "1"),
            ("MaxCount", "1"),
        ];
        params.extend(more);
        control.refused("RunInstances", &params, code);
    };
    let in_home = ("SubnetId", home.as_str());
    launch(&[in_home, names(&named)], "InvalidIPAddress.InUse");
    launch(&[in_home, names("::1")], "InvalidParameterValue");
    launch(&[in_home, names(&address("3"))], "InvalidParameterValue");
    launch(&[in_home, names("10.0.0.9")], "InvalidParameterValue");
    let third = address("abd");
    launch(
        &[in_home, names(&third), ("Ipv6AddressCount", "1")],
        "InvalidParameterCombination",
    );
    launch(
        &[in_home, ("Ipv6AddressCount", "99")],
        "PrivateIpAddressLimitExceeded",
    );
    launch(&[("Ipv6AddressCount", "1")], "InvalidParameterValue");

    // Of an interface that runs.
    let eni = ("NetworkInterfaceId", two.id.as_str());
    let more = [eni, ("Ipv6Addresses.1", third.as_str())];
    control.ok("AssignIpv6Addresses", &more);
    let three = told(&world, &of(&world, &two.id), |it| {
        it.ipv6_addresses.len() == 3
    });
    assert!(three.ipv6_addresses.contains(&third));
    let taken = [eni, ("Ipv6Addresses.1", named.as_str())];
    control.refused("AssignIpv6Addresses", &taken, "InvalidIPAddress.InUse");
    control.refused("AssignIpv6Addresses", &[eni], "MissingParameter");
    control.ok("UnassignIpv6Addresses", &more);
    control.refused("UnassignIpv6Addresses", &more, "InvalidParameterValue");
    told(&world, &of(&world, &two.id), |it| {
        it.ipv6_addresses == two.ipv6_addresses
    });
    let found = control.ok("DescribeSubnets", &[("SubnetId.1", &home)]);
    let association = first(&found, "associationId");
    control.refused(
        "DisassociateSubnetCidrBlock",
        &[("AssociationId", &association)],
        "InvalidCidrBlock.InUse",
    );
    let made = control.ok(
        "CreateNetworkInterface",
        &[in_home, ("Ipv6AddressCount", "2")],
    );
    assert_eq!(text(&made, "ipv6Address").len(), 2);

    // One that is not attached may have as many as some type allows, a launch what its own does.
    let limit = "PrivateIpAddressLimitExceeded";
    let alone = first(&made, "networkInterfaceId");
    let eni = ("NetworkInterfaceId", alone.as_str());
    for most in ["2147483647", "200"] {
        let count = ("Ipv6AddressCount", most);
        control.refused("CreateNetworkInterface", &[in_home, count], limit);
        control.refused("AssignIpv6Addresses", &[eni, count], limit);
        let count = ("SecondaryPrivateIpAddressCount", most);
        control.refused("CreateNetworkInterface", &[in_home, count], limit);
        control.refused("AssignPrivateIpAddresses", &[eni, count], limit);
    }
    control.ok("AssignIpv6Addresses", &[eni, ("Ipv6AddressCount", "10")]);
    let existing = [
        ("InstanceType", "t3.nano"),
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.NetworkInterfaceId", alone.as_str()),
    ];
    launch(&existing, limit);
}

fn names(ip: &str) -> (&str, &str) {
    ("Ipv6Address.1.Ipv6Address", ip)
}

/// The instance that has an interface.
fn of(world: &World, eni: &str) -> String {
    let seen = world.node.seen.lock().unwrap();
    let mut instances = seen.instances.values();
    let has = |it: &&api::Instance| it.network_interfaces.iter().any(|nic| nic.id == eni);
    instances.find(has).unwrap().id.clone()
}

#[test]
fn what_passes_by_ipv6_is_said_by_rules_and_entries() {
    let world = world(4);
    let control = &world.control;
    let made = control.ok("CreateVpc", &[("CidrBlock", "10.1.0.0/16")]);
    let vpc = first(&made, "vpcId");
    let by_vpc = [
        ("Filter.1.Name", "vpc-id"),
        ("Filter.1.Value.1", vpc.as_str()),
    ];
    let egress = |group: &str| {
        let shown = control.ok("DescribeSecurityGroups", &[("GroupId.1", group)]);
        text(&shown, "cidrIpv6")
    };
    let group = |name: &str| {
        let params = [
            ("GroupName", name),
            ("GroupDescription", name),
            ("VpcId", vpc.as_str()),
        ];
        first(&control.ok("CreateSecurityGroup", &params), "groupId")
    };
    let (as_made, changed) = (group("as-made"), group("changed"));
    let all = [
        ("GroupId", changed.as_str()),
        ("IpPermissions.1.IpProtocol", "-1"),
        ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0"),
    ];
    control.ok("RevokeSecurityGroupEgress", &all);
    let block = [
        ("VpcId", vpc.as_str()),
        ("AmazonProvidedIpv6CidrBlock", "true"),
    ];
    let block = first(
        &control.ok("AssociateVpcCidrBlock", &block),
        "ipv6CidrBlock",
    );
    assert_eq!(egress(&as_made), ["::/0"]);
    assert!(
        egress(&changed).is_empty(),
        "its owner has said what leaves"
    );
    assert_eq!(egress(&group("later")), ["::/0"]);
    let acls = control.ok("DescribeNetworkAcls", &by_vpc);
    assert_eq!(text(&acls, "ipv6CidrBlock").len(), 4);
    let acl = first(&acls, "networkAclId");

    let entry = |cidr: (&'static str, &'static str)| {
        [
            ("NetworkAclId", acl.clone()),
            ("RuleNumber", "50".to_owned()),
            ("Protocol", "58".to_owned()),
            ("Icmp.Type", "-1".to_owned()),
            ("Icmp.Code", "-1".to_owned()),
            ("RuleAction", "deny".to_owned()),
            ("Egress", "false".to_owned()),
            (cidr.0, cidr.1.to_owned()),
        ]
    };
    let good = entry(("Ipv6CidrBlock", "fd00::/8"));
    let bad = entry(("Ipv6CidrBlock", "10.0.0.0/8"));
    let pairs = |list: &[(&'static str, String)]| -> Vec<(&'static str, String)> { list.to_vec() };
    let call = |list: Vec<(&'static str, String)>| {
        let list: Vec<(&str, &str)> = list.iter().map(|(a, b)| (*a, b.as_str())).collect();
        control.call("CreateNetworkAclEntry", &list)
    };
    assert_eq!(call(pairs(&bad)).0, 400);
    let mut both = pairs(&good);
    both.push(("CidrBlock", "10.0.0.0/8".to_owned()));
    assert_eq!(call(both).0, 400);
    assert_eq!(call(pairs(&good)).0, 200);

    // The node hears of both, and of the way.
    let subnet = subnet(&world, &vpc, "10.1.1.0/24", &block.replace("/56", "/64"));
    let rule = [
        ("GroupId", changed.as_str()),
        ("IpPermissions.1.IpProtocol", "tcp"),
        ("IpPermissions.1.FromPort", "80"),
        ("IpPermissions.1.ToPort", "80"),
        ("IpPermissions.1.Ipv6Ranges.1.CidrIpv6", "fd00::/8"),
    ];
    control.ok("AuthorizeSecurityGroupIngress", &rule);
    let more = [
        ("SubnetId", subnet.as_str()),
        ("SecurityGroupId.1", &changed),
    ];
    let id = world.run("1", &more).remove(0);
    let interface = told(&world, &id, |_| true);
    let (network, rules) = until("told", || {
        let seen = world.node.seen.lock().unwrap();
        let network = seen.networks.get(&interface.vni)?.clone();
        Some((network, seen.groups.get(&changed)?.rules.clone()))
    });
    let cidr = api::rule::Peer::Cidr("fd00::/8".to_owned());
    assert!(rules.iter().any(|rule| rule.peer == Some(cidr.clone())));
    assert!(network.cidrs.contains(&block));
    let entries = network.network_acls.iter().flat_map(|acl| &acl.entries);
    let of_ipv6 = entries.filter(|entry| entry.cidr.contains(':'));
    let mut numbers: Vec<u32> = of_ipv6.map(|entry| entry.rule_number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [50, 101, 101]);
    let table = network
        .route_tables
        .iter()
        .find(|it| it.id == interface.route_table);
    let routes = &table.unwrap().routes;
    let local = routes.iter().find(|route| route.destination_cidr == block);
    assert_eq!(local.unwrap().target, Some(api::route::Target::Local(true)));
}
