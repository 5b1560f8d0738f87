//! What tools ask before they go on, and attributes that are kept and told.

use crate::support::{text, until};
use crate::world::{World, world};

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

fn vpc(world: &World) -> String {
    first(&world.control.ok("DescribeVpcs", &[]), "vpcId")
}

#[test]
fn what_there_is_none_of_is_an_empty_list() {
    let world = world(10);
    let control = &world.control;
    for (action, set, id, code) in [
        (
            "DescribeVpcEndpoints",
            "vpcEndpointSet",
            "VpcEndpointId.1",
            "InvalidVpcEndpointId.NotFound",
        ),
        (
            "DescribeFlowLogs",
            "flowLogSet",
            "FlowLogId.1",
            "InvalidFlowLogId.NotFound",
        ),
        (
            "DescribeHosts",
            "hostSet",
            "HostId.1",
            "InvalidHostID.NotFound",
        ),
        (
            "DescribeVpnGateways",
            "vpnGatewaySet",
            "VpnGatewayId.1",
            "InvalidVpnGatewayID.NotFound",
        ),
        (
            "DescribeCarrierGateways",
            "carrierGatewaySet",
            "CarrierGatewayId.1",
            "InvalidCarrierGatewayID.NotFound",
        ),
        (
            "DescribeReservedInstances",
            "reservedInstancesSet",
            "ReservedInstancesId.1",
            "InvalidReservedInstancesId.NotFound",
        ),
        (
            "DescribeCapacityReservations",
            "capacityReservationSet",
            "CapacityReservationId.1",
            "InvalidCapacityReservationId.NotFound",
        ),
        (
            "DescribeClassicLinkInstances",
            "instancesSet",
            "InstanceId.1",
            "InvalidInstanceID.NotLinkable",
        ),
    ] {
        let body = control.ok(action, &[]);
        assert!(body.contains(&format!("<{set}/>")), "{body}");
        control.refused(action, &[(id, "x-1")], code);
    }
    let vpc = vpc(&world);
    for (action, id) in [
        ("DescribeVpcClassicLink", "VpcId.1"),
        ("DescribeVpcClassicLinkDnsSupport", "VpcIds.1"),
    ] {
        let body = control.ok(action, &[(id, &vpc)]);
        assert_eq!(first(&body, "vpcId"), vpc);
        assert!(body.contains(">false<"), "{body}");
        let none = [(id, "vpc-0123456789abcdef0")];
        control.refused(action, &none, "InvalidVpcID.NotFound");
    }
    let formats = control.ok("DescribeIdFormat", &[("Resource", "instance")]);
    assert_eq!(first(&formats, "useLongIds"), "true");
    control.refused(
        "DescribeIdFormat",
        &[("Resource", "x")],
        "InvalidParameterValue",
    );
    let formats = control.ok("DescribeAggregateIdFormat", &[]);
    assert_eq!(first(&formats, "useLongIdsAggregated"), "true");
    let serial = control.ok("GetSerialConsoleAccessStatus", &[]);
    assert_eq!(first(&serial, "serialConsoleAccessEnabled"), "false");
    let id = world.run("1", &[]).remove(0);
    world.await_state(&id, "running");
    let screen = [("InstanceId", id.as_str()), ("WakeUp", "true")];
    control.refused("GetConsoleScreenshot", &screen, "UnsupportedOperation");
}

#[test]
fn attributes_are_kept_told_and_reset() {
    let world = world(10);
    let control = &world.control;
    let id = world.run("1", &[]).remove(0);
    world.await_state(&id, "running");
    let shown = control.ok("DescribeInstances", &[("InstanceId.1", &id)]);
    let (volume, instance) = (first(&shown, "volumeId"), id.as_str());
    let check = || {
        let seen = world.node.seen.lock().unwrap();
        seen.instances[instance].network_interfaces[0].source_dest_check
    };
    let off = [("InstanceId", instance), ("SourceDestCheck.Value", "false")];
    control.ok("ModifyInstanceAttribute", &off);
    until("it is off", || (!check()).then_some(()));
    let reset = |attribute| [("InstanceId", instance), ("Attribute", attribute)];
    control.ok("ResetInstanceAttribute", &reset("sourceDestCheck"));
    until("it is on", || check().then_some(()));
    control.refused(
        "ResetInstanceAttribute",
        &reset("kernel"),
        "UnsupportedOperation",
    );
    control.refused(
        "ResetInstanceAttribute",
        &reset("userData"),
        "InvalidParameterValue",
    );

    let auto = [
        ("VolumeId", volume.as_str()),
        ("AutoEnableIO.Value", "true"),
    ];
    control.ok("ModifyVolumeAttribute", &auto);
    let told = [("VolumeId", volume.as_str()), ("Attribute", "autoEnableIO")];
    assert_eq!(
        first(&control.ok("DescribeVolumeAttribute", &told), "value"),
        "true"
    );
    control.ok("EnableVolumeIO", &[("VolumeId", &volume)]);
    control.refused("ModifyVolumeAttribute", &auto[..1], "MissingParameter");

    let report = [
        ("InstanceId.1", instance),
        ("Status", "impaired"),
        ("ReasonCode.1", "unresponsive"),
        ("Description", "it hangs"),
    ];
    control.ok("ReportInstanceStatus", &report);
    control.refused("ReportInstanceStatus", &report[..2], "MissingParameter");
    control.ok("StopInstances", &[("InstanceId.1", instance)]);
    world.await_state(instance, "stopped");
    control.refused("ReportInstanceStatus", &report, "IncorrectInstanceState");
}

#[test]
fn peering_options_are_what_they_are() {
    let world = world(10);
    let control = &world.control;
    let a = vpc(&world);
    let made = control.ok("CreateVpc", &[("CidrBlock", "10.9.0.0/16")]);
    let b = first(&made, "vpcId");
    let create = [("VpcId", a.as_str()), ("PeerVpcId", b.as_str())];
    let made = control.ok("CreateVpcPeeringConnection", &create);
    let peering = first(&made, "vpcPeeringConnectionId");
    let id = ("VpcPeeringConnectionId", peering.as_str());
    let dns = "RequesterPeeringConnectionOptions.AllowDnsResolutionFromRemoteVpc";
    let action = "ModifyVpcPeeringConnectionOptions";
    control.refused(action, &[id, (dns, "false")], "OperationNotPermitted");
    control.ok("AcceptVpcPeeringConnection", &[id]);
    let body = control.ok(action, &[id, (dns, "false")]);
    assert_eq!(first(&body, "allowDnsResolutionFromRemoteVpc"), "false");
    control.refused(action, &[id, (dns, "true")], "UnsupportedOperation");
}

#[test]
fn groups_of_a_vpc_are_listed_for_it() {
    let world = world(10);
    let control = &world.control;
    let vpc = vpc(&world);
    let body = control.ok("GetSecurityGroupsForVpc", &[("VpcId", &vpc)]);
    assert_eq!(first(&body, "groupName"), "default");
    assert_eq!(first(&body, "primaryVpcId"), vpc);
    let named = [
        ("VpcId", vpc.as_str()),
        ("Filter.1.Name", "group-name"),
        ("Filter.1.Value.1", "other"),
    ];
    assert!(text(&control.ok("GetSecurityGroupsForVpc", &named), "groupId").is_empty());
    let group = first(&body, "groupId");
    control.ok("DescribeSecurityGroupReferences", &[("GroupId.1", &group)]);
    let none = [("GroupId.1", "sg-0123456789abcdef0")];
    control.refused(
        "DescribeSecurityGroupReferences",
        &none,
        "InvalidGroup.NotFound",
    );
}

#[test]
fn what_is_blocked_is_not_made_public() {
    let world = world(10);
    let control = &world.control;
    let id = world.run("1", &[]).remove(0);
    world.await_state(&id, "running");
    let create = [
        ("InstanceId", id.as_str()),
        ("Name", "mine"),
        ("NoReboot", "true"),
    ];
    let image = first(&control.ok("CreateImage", &create), "imageId");
    let shown = control.ok("DescribeImages", &[("ImageId.1", &image)]);
    let snapshot = first(&shown, "snapshotId");
    let image = [
        ("ImageId", image.as_str()),
        ("LaunchPermission.Add.1.Group", "all"),
    ];
    let all = ("CreateVolumePermission.Add.1.Group", "all");
    let snapshot = [("SnapshotId", snapshot.as_str()), all];

    let state = |action| first(&control.ok(action, &[]), "imageBlockPublicAccessState");
    assert_eq!(state("GetImageBlockPublicAccessState"), "unblocked");
    let on = [("ImageBlockPublicAccessState", "block-new-sharing")];
    control.ok("EnableImageBlockPublicAccess", &on);
    assert_eq!(state("GetImageBlockPublicAccessState"), "block-new-sharing");
    control.refused("ModifyImageAttribute", &image, "OperationNotPermitted");
    assert_eq!(state("DisableImageBlockPublicAccess"), "unblocked");
    control.ok("ModifyImageAttribute", &image);

    let state = |action| first(&control.ok(action, &[]), "state");
    let on = |state| control.ok("EnableSnapshotBlockPublicAccess", &[("State", state)]);
    control.refused(
        "EnableSnapshotBlockPublicAccess",
        &[("State", "unblocked")],
        "InvalidParameterValue",
    );
    on("block-new-sharing");
    control.refused(
        "ModifySnapshotAttribute",
        &snapshot,
        "OperationNotPermitted",
    );
    assert_eq!(state("DisableSnapshotBlockPublicAccess"), "unblocked");
    control.ok("ModifySnapshotAttribute", &snapshot);
    on("block-all-sharing");
    assert_eq!(
        state("GetSnapshotBlockPublicAccessState"),
        "block-all-sharing"
    );
    // It stays shared, and may be taken back.
    let told = [snapshot[0], ("Attribute", "createVolumePermission")];
    assert_eq!(
        first(&control.ok("DescribeSnapshotAttribute", &told), "group"),
        "all"
    );
    control.ok("ResetSnapshotAttribute", &told);
    control.refused(
        "ModifySnapshotAttribute",
        &snapshot,
        "OperationNotPermitted",
    );
}
