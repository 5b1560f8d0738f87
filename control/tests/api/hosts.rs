//! Two nodes: what each is told of the other's interfaces.

use crate::support::fake_node::FakeNode;
use crate::support::{text, until};
use crate::world::{World, world};
use ocs_node_api::{Hello, RemoteEndpoint};
use serde_json::{Value, json};

const HERE: &str = "192.0.2.1";
const THERE: &str = "192.0.2.2";

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

/// Connects a node by its certificate's file, reached at an underlay address.
fn connect(world: &World, certificate: &str, name: &str, underlay: &str, mtu: u32) -> FakeNode {
    try_connect(world, certificate, name, underlay, mtu).unwrap()
}

fn try_connect(
    world: &World,
    certificate: &str,
    name: &str,
    underlay: &str,
    mtu: u32,
) -> Result<FakeNode, tonic::Status> {
    let hello = Hello {
        node: name.to_owned(),
        vcpus: 100,
        memory_mib: 1 << 20,
        underlay_address: underlay.to_owned(),
        guest_mtu: mtu,
        outside: true,
        ..Hello::default()
    };
    let address = world.control.ready["node_listen"].as_str().unwrap();
    let dir = &world.control.dir;
    let connected = FakeNode::connect_saying(certificate, hello, address, dir);
    world.runtime.block_on(connected)
}

#[test]
fn the_certificate_of_a_host_that_has_not_come_yet_can_be_voided() {
    let world = world(1);
    let removed = remove(&world, "other", false, CERTIFIED_S);
    assert_eq!(removed["had_joined"], false);
    let late = try_connect(&world, "other", "other", THERE, 1450);
    assert_eq!(late.err().unwrap().code(), ocs_node_api::REMOVED);
    assert_eq!(hosts(&world), ["fake"]);
}

#[test]
fn a_node_that_is_reached_at_no_address_is_refused_by_name() {
    let world = world(1);
    let refused = try_connect(&world, "node", "fake", "192.0.2.300", 1450);
    let status = refused.err().unwrap();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(status.message().contains("underlay_address"), "{status}");
}

/// An instance on each of two nodes, here first, in a subnet.
fn one_each(world: &World, nodes: [&FakeNode; 2], subnet: &str) -> [String; 2] {
    let control = &world.control;
    let name = format!("apart-{subnet}");
    let group = [("GroupName", name.as_str()), ("Strategy", "spread")];
    control.ok("CreatePlacementGroup", &group);
    let more = [
        ("SubnetId", subnet),
        ("Placement.GroupName", name.as_str()),
        ("InstanceType", "t3.micro"),
    ];
    let ids = world.run("2", &more);
    nodes.map(|node| {
        until("placed", || {
            let seen = node.seen.lock().unwrap();
            ids.iter()
                .find(|id| seen.instances.contains_key(*id))
                .cloned()
        })
    })
}

/// Address and network of an instance's interface, as its node was told.
fn place(node: &FakeNode, id: &str) -> (u32, String, u32) {
    let seen = node.seen.lock().unwrap();
    let interface = &seen.instances[id].network_interfaces[0];
    (interface.vni, interface.private_ip.clone(), interface.mtu)
}

/// Waits until what a node is told of an address is so.
fn told(
    node: &FakeNode,
    at: &(u32, String, u32),
    what: &str,
    so: impl Fn(Option<&RemoteEndpoint>) -> bool,
) {
    until(what, || {
        let seen = node.seen.lock().unwrap();
        so(seen.remotes.get(&(at.0, at.1.clone()))).then_some(())
    });
}

#[test]
fn each_node_knows_the_others_interfaces_and_no_strangers() {
    let world = world(1);
    let control = &world.control;
    let here = connect(&world, "node", "fake", HERE, 1450);
    let there = connect(&world, "other", "other", THERE, 1400);
    let vpc = |block: &str, subnet: &str| {
        let vpc = first(&control.ok("CreateVpc", &[("CidrBlock", block)]), "vpcId");
        let subnet = [("VpcId", vpc.as_str()), ("CidrBlock", subnet)];
        (
            vpc.clone(),
            first(&control.ok("CreateSubnet", &subnet), "subnetId"),
        )
    };
    let (a, in_a) = vpc("10.1.0.0/16", "10.1.1.0/24");
    let ids = one_each(&world, [&here, &there], &in_a);
    let near = place(&here, &ids[0]);
    let far = place(&there, &ids[1]);
    assert_eq!((near.2, far.2), (1400, 1400), "what every uplink carries");
    told(&here, &far, "of the far one", |seen| {
        seen.is_some_and(|one| one.host == THERE && one.security_groups.len() == 1 && !one.forwards)
    });
    told(&there, &near, "of the near one", |seen| {
        seen.is_some_and(|one| one.host == HERE)
    });
    told(&here, &near, "nothing of its own", |seen| seen.is_none());

    let group = [
        ("GroupName", "g"),
        ("GroupDescription", "g"),
        ("VpcId", a.as_str()),
    ];
    let group = first(&control.ok("CreateSecurityGroup", &group), "groupId");
    let join = [
        ("InstanceId", ids[1].as_str()),
        ("GroupId.1", group.as_str()),
    ];
    control.ok("ModifyInstanceAttribute", &join);
    told(&here, &far, "of its new group", |seen| {
        seen.is_some_and(|one| one.security_groups == [group.as_str()])
    });
    let check = [
        ("InstanceId", ids[1].as_str()),
        ("SourceDestCheck.Value", "false"),
    ];
    control.ok("ModifyInstanceAttribute", &check);
    told(&here, &far, "that it forwards", |seen| {
        seen.is_some_and(|one| one.forwards)
    });

    // A VPC that is only there is no concern of here, until it is peered with one that is.
    let (b, in_b) = vpc("10.2.0.0/16", "10.2.1.0/24");
    let pair = one_each(&world, [&here, &there], &in_b);
    let stranger = place(&there, &pair[1]);
    told(&here, &stranger, "of the same VPC's", |seen| seen.is_some());
    let gone = place(&here, &pair[0]);
    control.ok("TerminateInstances", &[("InstanceId.1", &pair[0])]);
    told(&there, &gone, "that it is gone", |seen| seen.is_none());
    let fresh = connect(&world, "node", "fake", HERE, 1450);
    told(&fresh, &far, "in a snapshot", |seen| seen.is_some());
    told(&fresh, &stranger, "nothing of a strange VPC", |seen| {
        seen.is_none()
    });
    let peering = [("VpcId", a.as_str()), ("PeerVpcId", b.as_str())];
    let peering = control.ok("CreateVpcPeeringConnection", &peering);
    let peering = first(&peering, "vpcPeeringConnectionId");
    let this = [("VpcPeeringConnectionId", peering.as_str())];
    control.ok("AcceptVpcPeeringConnection", &this);
    told(&fresh, &stranger, "of the peer's", |seen| seen.is_some());
    control.ok("DeleteVpcPeeringConnection", &this);
    told(&fresh, &stranger, "nothing of a stranger again", |seen| {
        seen.is_none()
    });

    // A host that moves is found at its new address.
    let _moved = connect(&world, "other", "other", "192.0.2.9", 1500);
    told(&fresh, &far, "where it is now", |seen| {
        seen.is_some_and(|one| one.host == "192.0.2.9")
    });
    until("of the new MTU", || {
        (place(&fresh, &ids[0]).2 == 1450).then_some(())
    });
}

/// When the tests' certificates begin, and a time before (Unix seconds).
const CERTIFIED_S: i64 = 200_000_000;
const BEFORE_S: i64 = 0;

fn remove(world: &World, name: &str, force: bool, void_until_s: i64) -> Value {
    let request = json!({"name": name, "force": force, "void_until_s": void_until_s});
    world.control.operator(&json!({"remove_host": request}))
}

fn hosts(world: &World) -> Vec<String> {
    let listed = world.control.operator(&json!({"list_hosts": {}}));
    let hosts = listed["hosts"].as_array().unwrap().iter();
    hosts
        .map(|host| host["name"].as_str().unwrap().to_owned())
        .collect()
}

/// A subnet with a way out: its id.
fn subnet(control: &crate::support::Control) -> String {
    let vpc = control.ok("CreateVpc", &[("CidrBlock", "10.3.0.0/16")]);
    let vpc = first(&vpc, "vpcId");
    let gateway = control.ok("CreateInternetGateway", &[]);
    let gateway = first(&gateway, "internetGatewayId");
    let pair = [("InternetGatewayId", gateway.as_str()), ("VpcId", &vpc)];
    control.ok("AttachInternetGateway", &pair);
    let subnet = [("VpcId", vpc.as_str()), ("CidrBlock", "10.3.1.0/24")];
    first(&control.ok("CreateSubnet", &subnet), "subnetId")
}

#[test]
fn a_removed_host_takes_with_it_what_it_held() {
    let world = world(1);
    let control = &world.control;
    let here = connect(&world, "node", "fake", HERE, 1450);
    let there = connect(&world, "other", "other", THERE, 1450);
    let subnet = subnet(control);
    let ids = one_each(&world, [&here, &there], &subnet);
    let near = place(&here, &ids[0]);
    told(&there, &near, "of the near one", |seen| seen.is_some());
    ids.iter().for_each(|id| world.await_state(id, "running"));

    // What it holds beside: a snapshot, a volume made of it, a NAT gateway, an endpoint.
    let root = control.ok(
        "DescribeVolumes",
        &[
            ("Filter.1.Name", "attachment.instance-id"),
            ("Filter.1.Value.1", ids[0].as_str()),
        ],
    );
    let root = first(&root, "volumeId");
    let snapshot = control.ok("CreateSnapshot", &[("VolumeId", &root)]);
    let snapshot = first(&snapshot, "snapshotId");
    let status = |action: &str, name: &str, id: &str, element: &str| {
        first(&control.ok(action, &[(name, id)]), element)
    };
    until("the snapshot", || {
        let state = status("DescribeSnapshots", "SnapshotId.1", &snapshot, "status");
        (state == "completed").then_some(())
    });
    let made = [
        ("SnapshotId", snapshot.as_str()),
        ("AvailabilityZone", "us-east-1a"),
    ];
    let volume = first(&control.ok("CreateVolume", &made), "volumeId");
    let address = control.ok("AllocateAddress", &[("Domain", "vpc")]);
    let allocation = first(&address, "allocationId");
    let nat = [("SubnetId", subnet.as_str()), ("AllocationId", &allocation)];
    let nat = first(&control.ok("CreateNatGateway", &nat), "natGatewayId");
    until("the NAT gateway", || {
        here.seen.lock().unwrap().nat_gateways.get(&nat).map(|_| ())
    });
    let made = control.ok("CreateInstanceConnectEndpoint", &[("SubnetId", &subnet)]);
    let endpoint = first(&made, "instanceConnectEndpointId");
    let carries = |node: &FakeNode| {
        let seen = node.seen.lock().unwrap();
        seen.connect_endpoints.get(&endpoint).map(|_| ())
    };
    until("the endpoint", || carries(&here));
    let endpoint_state = || {
        let named = [("InstanceConnectEndpointId.1", endpoint.as_str())];
        first(
            &control.ok("DescribeInstanceConnectEndpoints", &named),
            "state",
        )
    };

    let refused = remove(&world, "fake", false, CERTIFIED_S);
    let says = refused["error"].as_str().unwrap();
    assert!(
        says.contains("1 instances, 2 volumes and 1 snapshots") && says.contains("--force"),
        "{says}"
    );
    assert_eq!(hosts(&world), ["fake", "other"]);
    assert_eq!(world.state(&ids[0]), "running");

    let removed = remove(&world, "fake", true, CERTIFIED_S);
    assert_eq!(removed["had_joined"], true);
    assert_eq!(
        removed["held"],
        json!({"instances": 1, "volumes": 2, "snapshots": 1, "nat_gateways": 1})
    );
    assert_eq!(hosts(&world), ["other"]);
    assert_eq!(world.state(&ids[0]), "terminated");
    assert_eq!(world.reason(&ids[0]), "Server.InternalError");
    assert_eq!(world.state(&ids[1]), "running");
    told(&there, &near, "that it is gone", |seen| seen.is_none());
    until("the NAT gateway has moved", || {
        there
            .seen
            .lock()
            .unwrap()
            .nat_gateways
            .get(&nat)
            .map(|_| ())
    });
    until("the endpoint has moved", || carries(&there));
    assert_eq!(endpoint_state(), "create-complete");
    control.refused(
        "DescribeVolumes",
        &[("VolumeId.1", &root)],
        "InvalidVolume.NotFound",
    );
    assert_eq!(
        status("DescribeVolumes", "VolumeId.1", &volume, "status"),
        "error"
    );
    let health = control.ok("DescribeVolumeStatus", &[("VolumeId.1", &volume)]);
    assert!(health.contains("<status>impaired</status>"), "{health}");
    assert_eq!(
        status("DescribeSnapshots", "SnapshotId.1", &snapshot, "status"),
        "error"
    );
    for (action, id) in [
        ("DeleteVolume", ("VolumeId", volume.as_str())),
        ("DeleteSnapshot", ("SnapshotId", snapshot.as_str())),
    ] {
        control.ok(action, &[id]);
    }
    control.refused(
        "DescribeVolumes",
        &[("VolumeId.1", &volume)],
        "InvalidVolume.NotFound",
    );

    // Its certificate is void, whatever it says; the other's is not.
    let back = try_connect(&world, "node", "fake", HERE, 1450)
        .err()
        .unwrap();
    assert_eq!(back.code(), ocs_node_api::REMOVED);
    assert!(back.message().contains("has been removed"), "{back}");
    assert_eq!(hosts(&world), ["other"]);

    // A host that holds nothing needs no force, and may join anew by a newer certificate.
    control.ok("DeleteNatGateway", &[("NatGatewayId", &nat)]);
    control.ok("TerminateInstances", &[("InstanceId.1", &ids[1])]);
    until("nothing is held", || {
        (remove(&world, "other", false, BEFORE_S)["removed"] == "other").then_some(())
    });
    assert_eq!(hosts(&world), Vec::<String>::new());
    // Nobody is left to carry it.
    assert_eq!(endpoint_state(), "create-failed");
    let gone = [("InstanceConnectEndpointId", endpoint.as_str())];
    let body = control.ok("DeleteInstanceConnectEndpoint", &gone);
    assert_eq!(first(&body, "state"), "delete-complete");
    let _again = connect(&world, "other", "other", THERE, 1450);
    until("it is back", || (hosts(&world) == ["other"]).then_some(()));
}
