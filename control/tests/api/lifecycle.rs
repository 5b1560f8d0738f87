//! Instances from launch to oblivion, over the real API with a fake node.

use crate::support::fake_node::FakeNode;
use crate::support::{Control, text, until};
use crate::world::{ami, connect, world};
use ocs_node_api::Phase;

#[test]
fn an_instance_lives_and_leaves_nothing_behind() {
    let world = world(1_000);
    let control = &world.control;
    let before = world.free_addresses();
    let id = world
        .run(
            "1",
            &[("UserData", "aGVsbG8="), ("InstanceType", "t2.micro")],
        )
        .remove(0);
    world.await_state(&id, "running");
    {
        let seen = world.node.seen.lock().unwrap();
        let told = &seen.instances[&id];
        let metadata = told.metadata.as_ref().unwrap();
        assert_eq!(metadata.user_data, b"hello");
        assert_eq!((told.vcpus, told.memory_mib, told.starts), (1, 1_024, 1));
        assert_eq!(told.attachments.len(), 1);
        assert!(seen.volumes.contains_key(&told.attachments[0].volume_id));
        assert!(
            seen.groups
                .contains_key(&told.network_interfaces[0].security_groups[0])
        );
        assert_eq!(metadata.block_device_mapping["root"], "/dev/sda1");
    }
    assert_ne!(world.free_addresses(), before);
    let volume = until("attached", || {
        let body = control.ok("DescribeVolumes", &[]);
        body.contains("in-use")
            .then(|| text(&body, "volumeId").remove(0))
    });
    control.ok("StopInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "stopped");
    assert_eq!(world.reason(&id), "Client.UserInitiatedShutdown");
    control.ok("StartInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "running");
    control.ok("RebootInstances", &[("InstanceId.1", &id)]);
    until("told to reboot", || {
        let seen = world.node.seen.lock().unwrap();
        let told = &seen.instances[&id];
        (told.reboots == 1 && told.starts == 2).then_some(())
    });
    let console = control.ok("GetConsoleOutput", &[("InstanceId", &id)]);
    assert!(text(&console, "output")[0].starts_with("WzAu"), "{console}");
    control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "terminated");
    assert_eq!(world.free_addresses(), before, "the address is free");
    assert!(
        !control
            .ok("DescribeNetworkInterfaces", &[])
            .contains("eni-")
    );
    until("volume gone", || {
        (!control.ok("DescribeVolumes", &[]).contains(volume.as_str())).then_some(())
    });
    control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
    control.refused(
        "StartInstances",
        &[("InstanceId.1", &id)],
        "IncorrectInstanceState",
    );
}

#[test]
fn what_a_node_says_becomes_ec2s_states() {
    let world = world(1_000);
    world.node.seen.lock().unwrap().silent = true;
    let told = |id: &str| {
        until("told", || {
            world
                .node
                .seen
                .lock()
                .unwrap()
                .instances
                .contains_key(id)
                .then_some(())
        });
    };
    let terminate = ("InstanceInitiatedShutdownBehavior", "terminate");

    let failed = world.run("1", &[]).remove(0);
    told(&failed);
    world.say(&failed, Phase::Failed, "");
    world.await_state(&failed, "shutting-down");
    world.say(&failed, Phase::Gone, "");
    // Of the generation before: not believed.
    std::thread::sleep(std::time::Duration::from_millis(200));
    until("told to go", || {
        (world.node.seen.lock().unwrap().instances[&failed].desired()
            == ocs_node_api::Desired::Absent)
            .then_some(())
    });
    world.say(&failed, Phase::Gone, "");
    world.await_state(&failed, "terminated");
    assert_eq!(world.reason(&failed), "Server.InternalError");

    let off = world.run("1", &[]).remove(0);
    told(&off);
    world.say(&off, Phase::Up, "");
    world.await_state(&off, "running");
    world.say(&off, Phase::Down, "");
    world.say(&off, Phase::Down, "Client.InstanceInitiatedShutdown");
    world.await_state(&off, "stopped");
    assert_eq!(world.reason(&off), "Client.InstanceInitiatedShutdown");
    world
        .control
        .ok("StartInstances", &[("InstanceId.1", &off)]);
    world
        .runtime
        .block_on(world.node.say(&off, 1, Phase::Up, ""));
    until("told to start", || {
        (world.node.seen.lock().unwrap().instances[&off].starts == 2).then_some(())
    });
    assert_eq!(
        world.state(&off),
        "pending",
        "a report on generation 1 is out of date"
    );
    world.say(&off, Phase::Up, "");
    world.await_state(&off, "running");

    let ends = world.run("1", &[terminate]).remove(0);
    told(&ends);
    world.say(&ends, Phase::Up, "");
    world.await_state(&ends, "running");
    world.say(&ends, Phase::Down, "Client.InstanceInitiatedShutdown");
    world.await_state(&ends, "shutting-down");
}

#[test]
fn capacity_is_given_out_once_and_comes_back() {
    let world = world(10);
    let control = &world.control;
    let image = ami(control);
    let params = |min, max| {
        [
            ("ImageId", image.as_str()),
            ("InstanceType", "t3.nano"),
            ("MinCount", min),
            ("MaxCount", max),
        ]
    };
    let (status, body) = control.call("RunInstances", &params("6", "6"));
    assert_eq!(
        (status, text(&body, "Code")),
        (500, vec!["InsufficientInstanceCapacity".to_owned()])
    );
    assert!(
        !control
            .ok("DescribeInstances", &[])
            .contains("<instanceId>")
    );
    let got = control.ok("RunInstances", &params("1", "20"));
    let ids: Vec<_> = text(&got, "instanceId");
    assert_eq!(text(&got, "amiLaunchIndex").len(), 5);
    control.refused(
        "RunInstances",
        &params("1", "1"),
        "InsufficientInstanceCapacity",
    );
    world.await_state(&ids[0], "running");
    control.ok("StopInstances", &[("InstanceId.1", &ids[0])]);
    world.await_state(&ids[0], "stopped");
    control.ok("RunInstances", &params("1", "1"));
    control.refused(
        "StartInstances",
        &[("InstanceId.1", &ids[0])],
        "InsufficientInstanceCapacity",
    );
    assert_eq!(world.state(&ids[0]), "stopped");
    control.ok("TerminateInstances", &[("InstanceId.1", &ids[1])]);
    world.await_state(&ids[1], "terminated");
    control.ok("StartInstances", &[("InstanceId.1", &ids[0])]);
}

#[test]
fn tokens_and_rows_survive_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _node = connect(&runtime, &control, 1_000);
    let image = ami(&control);
    let params = [
        ("ImageId", image.as_str()),
        ("MinCount", "150"),
        ("MaxCount", "150"),
        ("InstanceType", "t1.micro"),
        ("ClientToken", "once"),
    ];
    let sorted = |body: &str| {
        let mut ids = text(body, "privateIpAddress");
        ids.sort();
        ids.dedup();
        ids
    };
    let first = control.ok("RunInstances", &params);
    assert_eq!(sorted(&first).len(), 150, "addresses are all different");
    until("all running", || {
        let filter = [
            ("Filter.1.Name", "instance-state-name"),
            ("Filter.1.Value.1", "running"),
        ];
        let body = control.ok("DescribeInstances", &filter);
        (text(&body, "amiLaunchIndex").len() == 150).then_some(())
    });
    let keys = control.keys.clone();
    control.kill();
    let control = Control::start(dir.path());
    assert_eq!(control.keys, keys);
    assert_eq!(
        sorted(&control.ok("RunInstances", &params)),
        sorted(&first),
        "the same answer"
    );
    let mut other = params;
    other[3].1 = "t2.micro";
    control.refused("RunInstances", &other, "IdempotentParameterMismatch");
    assert_eq!(
        sorted(&control.ok("DescribeInstances", &[])),
        sorted(&first)
    );
    assert!(control.stop().success(), "SIGTERM is a clean end");
    let control = Control::start(dir.path());
    let _node = connect(&runtime, &control, 1_000);
    let id = text(&control.ok("DescribeInstances", &[]), "instanceId").remove(0);
    until("adopted", || {
        let body = control.ok("DescribeInstances", &[("InstanceId.1", &id)]);
        body.contains("<name>running</name>").then_some(())
    });
    let body = control.ok("DescribeInstances", &[]);
    let ids = text(&body, "instanceId");
    let names: Vec<String> = (1..=ids.len()).map(|n| format!("InstanceId.{n}")).collect();
    let all: Vec<(&str, &str)> = names
        .iter()
        .map(String::as_str)
        .zip(ids.iter().map(String::as_str))
        .collect();
    control.ok("TerminateInstances", &all);
    until("all terminated", || {
        let filter = [
            ("Filter.1.Name", "instance-state-name"),
            ("Filter.1.Value.1", "terminated"),
        ];
        let body = control.ok("DescribeInstances", &filter);
        (text(&body, "amiLaunchIndex").len() == 150).then_some(())
    });
}

#[test]
fn attributes_change_what_they_say() {
    let world = world(1_000);
    let control = &world.control;
    let id = world
        .run(
            "1",
            &[
                ("DisableApiTermination", "true"),
                ("InstanceType", "t2.nano"),
            ],
        )
        .remove(0);
    world.await_state(&id, "running");
    let this = ("InstanceId", id.as_str());
    control.refused(
        "TerminateInstances",
        &[("InstanceId.1", &id)],
        "OperationNotPermitted",
    );
    control.ok(
        "ModifyInstanceAttribute",
        &[this, ("DisableApiTermination.Value", "false")],
    );
    let larger = [this, ("InstanceType.Value", "t2.medium")];
    control.refused("ModifyInstanceAttribute", &larger, "IncorrectInstanceState");
    control.ok("StopInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "stopped");
    control.ok("ModifyInstanceAttribute", &larger);
    let shown = control.ok(
        "DescribeInstanceAttribute",
        &[this, ("Attribute", "instanceType")],
    );
    assert!(shown.contains("<value>t2.medium</value>"), "{shown}");
    control.ok("StartInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "running");
    control.ok(
        "ModifyInstanceMetadataOptions",
        &[this, ("HttpTokens", "required")],
    );
    until("told of all", || {
        let seen = world.node.seen.lock().unwrap();
        let told = &seen.instances[&id];
        let tokens = told.metadata.as_ref().unwrap().http_tokens_required;
        (told.memory_mib == 4_096 && told.vcpus == 2 && tokens).then_some(())
    });
    control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "terminated");
}

#[test]
fn rules_reach_the_node_and_leave_it() {
    let world = world(1_000);
    let control = &world.control;
    let made = control.ok(
        "CreateSecurityGroup",
        &[("GroupName", "web"), ("GroupDescription", "d")],
    );
    let group = text(&made, "groupId").remove(0);
    let id = world.run("1", &[("SecurityGroupId.1", &group)]).remove(0);
    world.await_state(&id, "running");
    let rules = |count: usize| {
        until("rules", || {
            (world.node.seen.lock().unwrap().groups[&group].rules.len() == count).then_some(())
        });
    };
    rules(1);
    let rule = [
        ("GroupId", group.as_str()),
        ("IpPermissions.1.IpProtocol", "tcp"),
        ("IpPermissions.1.FromPort", "80"),
        ("IpPermissions.1.ToPort", "80"),
        ("IpPermissions.1.Groups.1.GroupId", group.as_str()),
    ];
    control.ok("AuthorizeSecurityGroupIngress", &rule);
    rules(2);
    control.refused(
        "DeleteSecurityGroup",
        &[("GroupId", &group)],
        "DependencyViolation",
    );
    control.ok("RevokeSecurityGroupIngress", &rule);
    rules(1);
    control.ok("TerminateInstances", &[("InstanceId.1", &id)]);
    world.await_state(&id, "terminated");
    control.ok("DeleteSecurityGroup", &[("GroupId", &group)]);
    until("gone", || {
        (!world.node.seen.lock().unwrap().groups.contains_key(&group)).then_some(())
    });
}

#[test]
fn a_node_is_who_its_certificate_says() {
    let world = world(10);
    let address = world.control.ready["node_listen"].as_str().unwrap();
    let dir = &world.control.dir;
    let refused = world
        .runtime
        .block_on(FakeNode::connect_as("other", address, dir, 1, 1));
    assert_eq!(refused.err().unwrap().code(), tonic::Code::PermissionDenied);
}
