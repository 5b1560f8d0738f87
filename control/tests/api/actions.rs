//! What further actions make of a launch, as the node is told of it.

use crate::support::{text, until};
use crate::world::{World, ami, world};
use ocs_node_api::Instance;

/// The first text of an element.
pub fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

/// What the node knows of an instance, once it does.
pub fn told(world: &World, id: &str, settled: impl Fn(&Instance) -> bool) -> Instance {
    until("told", || {
        let seen = world.node.seen.lock().unwrap();
        seen.instances.get(id).filter(|told| settled(told)).cloned()
    })
}

#[test]
fn a_key_pair_reaches_the_guest_and_outlives_its_row() {
    let world = world(10);
    let control = &world.control;
    let made = control.ok("CreateKeyPair", &[("KeyName", "k"), ("KeyType", "ed25519")]);
    assert!(made.contains("BEGIN OPENSSH PRIVATE KEY"), "{made}");
    let shown = control.ok("DescribeKeyPairs", &[("IncludePublicKey", "true")]);
    let public = first(&shown, "publicKey");
    assert_eq!(
        first(&shown, "keyFingerprint"),
        first(&made, "keyFingerprint")
    );
    control.refused(
        "CreateKeyPair",
        &[("KeyName", "k")],
        "InvalidKeyPair.Duplicate",
    );
    let id = world.run("1", &[("KeyName", "k")]).remove(0);
    control.ok("DeleteKeyPair", &[("KeyName", "k")]);
    control.ok("DeleteKeyPair", &[("KeyName", "k")]);
    let told = told(&world, &id, |_| true).metadata.unwrap();
    assert_eq!(
        (told.key_name.as_str(), told.public_key),
        ("k", public.clone())
    );
    let row = control.ok("DescribeInstances", &[("InstanceId.1", &id)]);
    assert_eq!(first(&row, "keyName"), "k");
    let line = public.rsplit_once(' ').unwrap().0;
    let material = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, line);
    let import = [
        ("KeyName", "again"),
        ("PublicKeyMaterial", material.as_str()),
    ];
    let imported = control.ok("ImportKeyPair", &import);
    assert_eq!(
        first(&imported, "keyFingerprint"),
        first(&made, "keyFingerprint")
    );
    let rsa = control.ok("CreateKeyPair", &[("KeyName", "r")]);
    assert!(rsa.contains("BEGIN RSA PRIVATE KEY"));
    assert_eq!(first(&rsa, "keyFingerprint").len(), 59);
}

#[test]
fn a_vpc_of_ones_own_has_its_own_network_and_options() {
    let world = world(10);
    let control = &world.control;
    let mut vnis = Vec::new();
    for _ in 0..2 {
        let vpc = control.ok("CreateVpc", &[("CidrBlock", "10.7.0.0/16")]);
        let vpc = first(&vpc, "vpcId");
        for name in ["cidr", "cidr-block"] {
            let filter = [("Filter.1.Name", name), ("Filter.1.Value.1", "10.7.0.0/16")];
            let found = control.ok("DescribeVpcs", &filter);
            assert!(text(&found, "vpcId").contains(&vpc), "{found}");
        }
        let subnet = [("VpcId", vpc.as_str()), ("CidrBlock", "10.7.3.0/24")];
        let subnet = first(&control.ok("CreateSubnet", &subnet), "subnetId");
        let conflict = [("VpcId", vpc.as_str()), ("CidrBlock", "10.7.3.128/25")];
        control.refused("CreateSubnet", &conflict, "InvalidSubnet.Conflict");
        let options = [
            ("DhcpConfiguration.1.Key", "domain-name-servers"),
            ("DhcpConfiguration.1.Value.1", "10.7.0.9"),
            ("DhcpConfiguration.2.Key", "domain-name"),
            ("DhcpConfiguration.2.Value.1", "corp.example"),
        ];
        let options = first(&control.ok("CreateDhcpOptions", &options), "dhcpOptionsId");
        let id = world.run("1", &[("SubnetId", &subnet)]).remove(0);
        let nic = told(&world, &id, |_| true).network_interfaces.remove(0);
        assert_eq!(
            (
                nic.private_ip.as_str(),
                nic.vpc_cidr.as_str(),
                nic.domain_name.as_str()
            ),
            ("10.7.3.4", "10.7.0.0/16", "ec2.internal")
        );
        vnis.push(nic.vni);
        let associate = [("VpcId", vpc.as_str()), ("DhcpOptionsId", options.as_str())];
        control.ok("AssociateDhcpOptions", &associate);
        let nic = told(&world, &id, |told| {
            told.network_interfaces[0].domain_name == "corp.example"
        });
        assert_eq!(nic.network_interfaces[0].domain_name_servers, ["10.7.0.9"]);
        control.refused(
            "DeleteDhcpOptions",
            &[("DhcpOptionsId", &options)],
            "DependencyViolation",
        );
        control.refused("DeleteVpc", &[("VpcId", &vpc)], "DependencyViolation");
        control.refused(
            "DeleteSubnet",
            &[("SubnetId", &subnet)],
            "DependencyViolation",
        );
        control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
        world.await_state(&id, "terminated");
        control.ok("DeleteSubnet", &[("SubnetId", &subnet)]);
        control.ok("DeleteVpc", &[("VpcId", &vpc)]);
        control.refused(
            "DescribeVpcs",
            &[("VpcId.1", &vpc)],
            "InvalidVpcID.NotFound",
        );
        control.ok("DeleteDhcpOptions", &[("DhcpOptionsId", &options)]);
    }
    assert_ne!(
        vnis[0], vnis[1],
        "two VPCs of the same block are two networks"
    );
    let left = control.ok("DescribeRouteTables", &[]);
    assert_eq!(text(&left, "routeTableAssociationId").len(), 1, "{left}");
    let default = first(&control.ok("DescribeVpcs", &[]), "vpcId");
    control.refused("CreateDefaultVpc", &[], "DefaultVpcAlreadyExists");
    control.refused("DeleteVpc", &[("VpcId", &default)], "DependencyViolation");
}

#[test]
fn an_interface_of_ones_own_outlives_the_instance() {
    let world = world(10);
    let control = &world.control;
    let subnets = control.ok("DescribeSubnets", &[]);
    let subnet = first(&subnets, "subnetId");
    let own = control.ok(
        "CreateNetworkInterface",
        &[
            ("SubnetId", &subnet),
            ("Description", "mine"),
            ("ClientToken", "t"),
        ],
    );
    let again = control.ok(
        "CreateNetworkInterface",
        &[
            ("SubnetId", &subnet),
            ("Description", "mine"),
            ("ClientToken", "t"),
        ],
    );
    let (eni, ip) = (
        first(&own, "networkInterfaceId"),
        first(&own, "privateIpAddress"),
    );
    assert_eq!(first(&again, "networkInterfaceId"), eni);
    let launch = [
        ("InstanceType", "t3.micro"),
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.NetworkInterfaceId", eni.as_str()),
        ("NetworkInterface.2.DeviceIndex", "1"),
        ("NetworkInterface.2.SubnetId", subnet.as_str()),
    ];
    let id = world.run("1", &launch).remove(0);
    let nics = told(&world, &id, |_| true).network_interfaces;
    assert_eq!(
        (nics[0].id.as_str(), nics[0].private_ip.as_str()),
        (eni.as_str(), ip.as_str())
    );
    assert_eq!(nics.len(), 2);
    control.refused(
        "DeleteNetworkInterface",
        &[("NetworkInterfaceId", &eni)],
        "InvalidNetworkInterface.InUse",
    );
    control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "terminated");
    let left = control.ok("DescribeNetworkInterfaces", &[]);
    assert_eq!(text(&left, "networkInterfaceId"), [eni.as_str()]);
    assert_eq!(first(&left, "status"), "available");

    let id = world
        .run("1", &[("SubnetId", &subnet), ("InstanceType", "t3.micro")])
        .remove(0);
    world.await_state(&id, "running");
    let attach = [
        ("InstanceId", id.as_str()),
        ("NetworkInterfaceId", eni.as_str()),
        ("DeviceIndex", "1"),
    ];
    let status = |eni: &str, wanted: &str| {
        until(wanted, || {
            let shown = control.ok(
                "DescribeNetworkInterfaces",
                &[("NetworkInterfaceId.1", eni)],
            );
            (first(&shown, "status") == wanted).then_some(())
        });
    };
    // Running, then stopped.
    for state in ["running", "stopped"] {
        let attachment = first(
            &control.ok("AttachNetworkInterface", &attach),
            "attachmentId",
        );
        control.refused(
            "AttachNetworkInterface",
            &attach,
            "InvalidNetworkInterface.InUse",
        );
        told(&world, &id, |told| told.network_interfaces.len() == 2);
        status(&eni, "attached");
        control.ok("DetachNetworkInterface", &[("AttachmentId", &attachment)]);
        told(&world, &id, |told| told.network_interfaces.len() == 1);
        status(&eni, "available");
        if state == "running" {
            control.ok("StopInstances", &[("InstanceId.1", &id)]);
            world.await_state(&id, "stopped");
        }
    }
    control.ok("DeleteNetworkInterface", &[("NetworkInterfaceId", &eni)]);
}

#[test]
fn placement_groups_decide_on_hosts() {
    let world = world(100);
    let control = &world.control;
    for strategy in ["spread", "cluster", "partition"] {
        control.ok(
            "CreatePlacementGroup",
            &[("GroupName", strategy), ("Strategy", strategy)],
        );
    }
    let image = ami(control);
    let run = |group, more: &[(&str, &str)]| {
        let mut params = vec![
            ("ImageId", image.as_str()),
            ("MinCount", "1"),
            ("MaxCount", "2"),
        ];
        params.push(("Placement.GroupName", group));
        params.extend(more);
        control.call("RunInstances", &params)
    };
    // There is one host: of a spread group it takes one instance.
    let (_, one) = run("spread", &[]);
    assert_eq!(text(&one, "amiLaunchIndex").len(), 1, "{one}");
    let (status, body) = run("spread", &[]);
    assert_eq!(
        (status, first(&body, "Code").as_str()),
        (500, "InsufficientInstanceCapacity")
    );
    assert_eq!(text(&run("cluster", &[]).1, "amiLaunchIndex").len(), 2);
    let (_, third) = run("partition", &[("Placement.PartitionNumber", "2")]);
    assert_eq!(text(&third, "partitionNumber"), ["2", "2"]);
    let id = first(&third, "instanceId");
    let metadata = told(&world, &id, |_| true).metadata.unwrap();
    assert_eq!(
        (
            metadata.placement_group_name.as_str(),
            metadata.partition_number
        ),
        ("partition", 2)
    );
    assert_eq!(
        run("partition", &[("Placement.PartitionNumber", "1")]).0,
        500
    );
    control.refused(
        "DeletePlacementGroup",
        &[("GroupName", "spread")],
        "InvalidPlacementGroup.InUse",
    );
}

#[test]
fn attributes_of_a_stopped_instance_change_its_next_start() {
    let world = world(10);
    let control = &world.control;
    let id = world
        .run("1", &[("InstanceType", "t3.nano"), ("UserData", "b25l")])
        .remove(0);
    world.await_state(&id, "running");
    let of = ("InstanceId", id.as_str());
    let data = [of, ("UserData.Value", "dHdv")];
    control.refused("ModifyInstanceAttribute", &data, "IncorrectInstanceState");
    control.ok("StopInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "stopped");
    control.ok("ModifyInstanceAttribute", &data);
    control.ok(
        "ModifyInstanceAttribute",
        &[of, ("InstanceType.Value", "t3.small")],
    );
    control.ok("StartInstances", &[("InstanceId.1", &id)]);
    let told = told(&world, &id, |told| told.starts == 2);
    assert_eq!((told.vcpus, told.memory_mib), (2, 2_048));
    assert_eq!(told.metadata.unwrap().user_data, b"two");
    let shown = control.ok(
        "DescribeInstanceAttribute",
        &[of, ("Attribute", "userData")],
    );
    assert!(shown.contains("dHdv"), "{shown}");
    let on = control.ok("MonitorInstances", &[("InstanceId.1", &id)]);
    assert!(on.contains("<state>pending</state>"), "{on}");
    let row = control.ok("DescribeInstances", &[("InstanceId.1", &id)]);
    assert!(
        row.contains("<monitoring><state>enabled</state></monitoring>"),
        "{row}"
    );
    let credits = control.ok(
        "DescribeInstanceCreditSpecifications",
        &[("InstanceId.1", &id)],
    );
    assert_eq!(first(&credits, "cpuCredits"), "unlimited");
}
