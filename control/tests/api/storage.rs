//! Volumes, snapshots and images: states, codes, and what the node is told.

use crate::support::{text, until};
use crate::world::{World, world};

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

impl World {
    fn volume(&self, params: &[(&str, &str)]) -> String {
        let mut all = vec![("AvailabilityZone", "us-east-1a")];
        all.extend(params);
        first(&self.control.ok("CreateVolume", &all), "volumeId")
    }

    /// Waits until a volume shows a text.
    fn await_volume(&self, id: &str, what: &str) -> String {
        until(&format!("{id}: {what}"), || {
            let body = self.control.ok("DescribeVolumes", &[("VolumeId.1", id)]);
            body.contains(what).then_some(body)
        })
    }

    fn await_snapshot(&self, id: &str, state: &str) {
        until(&format!("{id}: {state}"), || {
            let body = self
                .control
                .ok("DescribeSnapshots", &[("SnapshotId.1", id)]);
            (first(&body, "status") == state).then_some(())
        });
    }

    fn in_zone(&self, zone: &str) -> String {
        let more = [("Placement.AvailabilityZone", zone)];
        let id = self.run("1", &more).remove(0);
        self.await_state(&id, "running");
        id
    }
}

const AVAILABLE: &str = "<status>available</status>";
const ATTACHED: &str = "<status>attached</status>";

#[test]
fn a_volume_is_attached_and_detached_as_its_node_says() {
    let world = world(20);
    let control = &world.control;
    let volume = world.volume(&[("Size", "3"), ("VolumeType", "gp3"), ("Encrypted", "true")]);
    let shown = world.await_volume(&volume, AVAILABLE);
    assert_eq!(first(&shown, "iops"), "3000");
    assert_eq!(first(&shown, "encrypted"), "true");
    {
        let seen = world.node.seen.lock().unwrap();
        let told = &seen.volumes[&volume];
        assert!(told.encrypted && told.size_bytes == 3 << 30);
        assert_eq!(told.limits.unwrap().bytes_per_s, 125 << 20);
    }
    let (instance, other) = (world.in_zone("us-east-1a"), world.in_zone("us-east-1b"));
    let attach = |instance: &str, device: &str| {
        [
            ("VolumeId", volume.clone()),
            ("InstanceId", instance.to_owned()),
            ("Device", device.to_owned()),
        ]
    };
    let call = |action: &str, params: &[(&str, String)]| {
        let params: Vec<(&str, &str)> = params.iter().map(|(n, v)| (*n, v.as_str())).collect();
        control.call(action, &params).1
    };
    let code = |body: String| first(&body, "Code");
    let refused = |params: &[(&str, String)]| code(call("AttachVolume", params));
    assert_eq!(
        refused(&attach(&other, "/dev/sdf")),
        "InvalidVolume.ZoneMismatch"
    );
    assert_eq!(
        refused(&attach(&instance, "floppy drive")),
        "InvalidParameterValue"
    );
    assert_eq!(
        refused(&attach(&instance, "/dev/sda1")),
        "InvalidParameterValue"
    );
    world.node.seen.lock().unwrap().silent = true;
    let body = call("AttachVolume", &attach(&instance, "/dev/sdf"));
    assert_eq!(first(&body, "status"), "attaching", "{body}");
    assert_eq!(refused(&attach(&instance, "/dev/sdg")), "VolumeInUse");
    let shown = world.await_volume(&volume, "in-use");
    assert!(shown.contains("<status>attaching</status>"), "{shown}");
    until("told", || {
        let seen = world.node.seen.lock().unwrap();
        (seen.instances[&instance].attachments.len() == 2).then_some(())
    });
    world.say(&instance, ocs_node_api::Phase::Up, "");
    world.await_volume(&volume, ATTACHED);
    control.refused("DeleteVolume", &[("VolumeId", &volume)], "VolumeInUse");
    let shown = control.ok("DescribeInstances", &[("InstanceId.1", &instance)]);
    assert!(shown.contains("/dev/sdf") && shown.contains(&volume));
    control.refused(
        "DetachVolume",
        &[("VolumeId", &volume), ("InstanceId", &other)],
        "InvalidAttachment.NotFound",
    );
    let body = control.ok("DetachVolume", &[("VolumeId", &volume)]);
    assert_eq!(first(&body, "status"), "detaching");
    control.refused("DetachVolume", &[("VolumeId", &volume)], "IncorrectState");
    world.await_volume(&volume, "<status>detaching</status>");
    until("told", || {
        let seen = world.node.seen.lock().unwrap();
        (seen.instances[&instance].attachments.len() == 1).then_some(())
    });
    world.say(&instance, ocs_node_api::Phase::Up, "");
    let shown = world.await_volume(&volume, AVAILABLE);
    assert!(!shown.contains("attachmentSet><item>"));
    control.refused("DetachVolume", &[("VolumeId", &volume)], "IncorrectState");
    let root = first(
        &control.ok("DescribeInstances", &[("InstanceId.1", &instance)]),
        "volumeId",
    );
    control.refused(
        "DetachVolume",
        &[("VolumeId", &root)],
        "OperationNotPermitted",
    );
    world.node.seen.lock().unwrap().silent = false;
    // To a stopped instance it comes and goes at once.
    control.ok("StopInstances", &[("InstanceId.1", &instance)]);
    world.await_state(&instance, "stopped");
    call("AttachVolume", &attach(&instance, "/dev/sdf"));
    world.await_volume(&volume, ATTACHED);
    control.ok(
        "DetachVolume",
        &[("VolumeId", &volume), ("Device", "/dev/sdf")],
    );
    world.await_volume(&volume, AVAILABLE);
    // One that stays when its instance goes.
    call("AttachVolume", &attach(&instance, "/dev/sdf"));
    control.ok("TerminateInstances", &[("InstanceId.1", &instance)]);
    world.await_volume(&volume, AVAILABLE);
    control.ok("DeleteVolume", &[("VolumeId", &volume)]);
    until("gone", || {
        let gone = control
            .call("DescribeVolumes", &[("VolumeId.1", &volume)])
            .0
            == 400;
        gone.then_some(())
    });
}

#[test]
fn a_volume_is_made_once_a_token_and_modified() {
    let world = world(10);
    let control = &world.control;
    let params = [
        ("Size", "10"),
        ("ClientToken", "t"),
        ("TagSpecification.1.ResourceType", "volume"),
        ("TagSpecification.1.Tag.1.Key", "k"),
        ("TagSpecification.1.Tag.1.Value", "v"),
    ];
    let volume = world.volume(&params);
    assert_eq!(world.volume(&params), volume);
    control.refused(
        "CreateVolume",
        &[
            ("AvailabilityZone", "us-east-1a"),
            ("Size", "11"),
            ("ClientToken", "t"),
        ],
        "IdempotentParameterMismatch",
    );
    let shown = world.await_volume(&volume, AVAILABLE);
    assert!(shown.contains("<key>k</key>"));
    control.refused(
        "ModifyVolume",
        &[("VolumeId", &volume), ("Size", "9")],
        "InvalidParameterValue",
    );
    let body = control.ok(
        "ModifyVolume",
        &[
            ("VolumeId", &volume),
            ("Size", "20"),
            ("VolumeType", "gp3"),
            ("Iops", "4000"),
        ],
    );
    assert_eq!(first(&body, "originalSize"), "10");
    assert_eq!(first(&body, "targetIops"), "4000");
    until("modified", || {
        let body = control.ok("DescribeVolumesModifications", &[("VolumeId.1", &volume)]);
        (first(&body, "modificationState") == "completed").then_some(())
    });
    let told = world.node.seen.lock().unwrap().volumes[&volume].clone();
    assert_eq!(
        (told.size_bytes, told.limits.unwrap().iops),
        (20 << 30, 4000)
    );
    let status = control.ok("DescribeVolumeStatus", &[("VolumeId.1", &volume)]);
    assert_eq!(first(&status, "name"), "io-enabled");
    let attribute = [("VolumeId", volume.as_str()), ("Attribute", "autoEnableIO")];
    assert!(
        control
            .ok("DescribeVolumeAttribute", &attribute)
            .contains("<value>false</value>")
    );
}

#[test]
fn snapshots_and_images_stand_on_each_other() {
    let world = world(20);
    let control = &world.control;
    let instance = world.in_zone("us-east-1a");
    let root = first(
        &control.ok("DescribeInstances", &[("InstanceId.1", &instance)]),
        "volumeId",
    );
    let body = control.ok(
        "CreateSnapshot",
        &[("VolumeId", &root), ("Description", "one")],
    );
    let snapshot = first(&body, "snapshotId");
    assert_eq!(first(&body, "status"), "pending");
    world.await_snapshot(&snapshot, "completed");
    let shown = control.ok("DescribeSnapshots", &[("Owner.1", "self")]);
    assert_eq!(text(&shown, "snapshotId"), std::slice::from_ref(&snapshot));
    assert_eq!(first(&shown, "fullSnapshotSizeInBytes"), "131072");
    assert!(
        control
            .ok("DescribeSnapshots", &[("Owner.1", "amazon")])
            .contains("completed")
    );
    // A volume of it, and one that is larger.
    let volume = world.volume(&[("SnapshotId", &snapshot), ("Size", "5")]);
    world.await_volume(&volume, AVAILABLE);
    assert_eq!(
        world.node.seen.lock().unwrap().volumes[&volume].snapshot,
        snapshot
    );
    // Sharing.
    let permission = [
        ("SnapshotId", snapshot.as_str()),
        ("Attribute", "createVolumePermission"),
    ];
    control.ok(
        "ModifySnapshotAttribute",
        &[
            ("SnapshotId", &snapshot),
            ("CreateVolumePermission.Add.1.UserId", "123456789012"),
        ],
    );
    assert_eq!(
        first(
            &control.ok("DescribeSnapshotAttribute", &permission),
            "userId"
        ),
        "123456789012"
    );
    control.ok("ResetSnapshotAttribute", &permission);
    assert!(
        !control
            .ok("DescribeSnapshotAttribute", &permission)
            .contains("userId")
    );
    // An image of the instance: rebooted, and frozen while it is down.
    let create = [("InstanceId", instance.as_str()), ("Name", "copy")];
    let image = first(&control.ok("CreateImage", &create), "imageId");
    control.refused("CreateImage", &create, "InvalidAMIName.Duplicate");
    let shown = until("available", || {
        let body = control.ok("DescribeImages", &[("ImageId.1", &image)]);
        (first(&body, "imageState") == "available").then_some(body)
    });
    let frozen = first(&shown, "snapshotId");
    {
        let seen = world.node.seen.lock().unwrap();
        assert_eq!(seen.snapshots[&frozen].while_down, instance);
        assert_eq!(seen.snapshots[&frozen].while_down_reboots, 1);
        assert_eq!(seen.instances[&instance].reboots, 1);
    }
    control.refused(
        "DeleteSnapshot",
        &[("SnapshotId", &frozen)],
        "InvalidSnapshot.InUse",
    );
    let run = [
        ("ImageId", image.as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
    ];
    let second = text(&control.ok("RunInstances", &run), "instanceId").remove(0);
    world.await_state(&second, "running");
    {
        let seen = world.node.seen.lock().unwrap();
        let told = &seen.instances[&second];
        assert_eq!(told.image.as_ref().unwrap().kernel, "ocs-probe.elf");
        assert_eq!(
            seen.volumes[&told.attachments[0].volume_id].snapshot,
            frozen
        );
    }
    // Another of the first snapshot, by hand.
    let register = [
        ("Name", "by hand"),
        ("RootDeviceName", "/dev/sda1"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/sda1"),
        ("BlockDeviceMapping.1.Ebs.SnapshotId", snapshot.as_str()),
    ];
    let registered = first(&control.ok("RegisterImage", &register), "imageId");
    let shown = control.ok("DescribeImages", &[("Owner.1", "self")]);
    assert_eq!(text(&shown, "imageId").len(), 2, "{shown}");
    control.ok(
        "ModifyImageAttribute",
        &[
            ("ImageId", &registered),
            ("LaunchPermission.Add.1.Group", "all"),
        ],
    );
    let public = control.ok("DescribeImages", &[("ImageId.1", &registered)]);
    assert_eq!(first(&public, "isPublic"), "true");
    control.ok("DeregisterImage", &[("ImageId", &registered)]);
    control.refused(
        "DescribeImages",
        &[("ImageId.1", &registered)],
        "InvalidAMIID.NotFound",
    );
    control.ok("DeregisterImage", &[("ImageId", &image)]);
    control.ok("DeleteSnapshot", &[("SnapshotId", &frozen)]);
    until("gone", || {
        let params = [("SnapshotId.1", frozen.as_str())];
        (control.call("DescribeSnapshots", &params).0 == 400).then_some(())
    });
}
