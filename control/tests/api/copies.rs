//! Copies of snapshots and images, snapshots of one instant, encryption by default.

use crate::support::{text, until};
use crate::world::{World, ami, world};

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

impl World {
    /// Waits until a snapshot is taken; how DescribeSnapshots shows it.
    fn taken(&self, id: &str) -> String {
        until(&format!("{id} is completed"), || {
            let body = self
                .control
                .ok("DescribeSnapshots", &[("SnapshotId.1", id)]);
            (first(&body, "status") == "completed").then_some(body)
        })
    }

    /// An instance that runs, and its volumes by device.
    pub fn instance(&self, more: &[(&str, &str)]) -> (String, Vec<String>) {
        let id = self.run("1", more).remove(0);
        self.await_state(&id, "running");
        let body = self
            .control
            .ok("DescribeInstances", &[("InstanceId.1", &id)]);
        (id, text(&body, "volumeId"))
    }

    fn snapshot_of(&self, volume: &str) -> String {
        let body = self.control.ok("CreateSnapshot", &[("VolumeId", volume)]);
        let id = first(&body, "snapshotId");
        self.taken(&id);
        id
    }
}

const DATA: [(&str, &str); 6] = [
    ("BlockDeviceMapping.1.DeviceName", "/dev/sdf"),
    ("BlockDeviceMapping.1.Ebs.VolumeSize", "2"),
    ("BlockDeviceMapping.2.DeviceName", "/dev/sdg"),
    ("BlockDeviceMapping.2.Ebs.VolumeSize", "3"),
    ("TagSpecification.1.ResourceType", "volume"),
    ("TagSpecification.1.Tag.1.Key", "of-the-volume"),
];

#[test]
fn snapshots_of_an_instance_are_told_as_one_instant() {
    let world = world(20);
    let control = &world.control;
    let (instance, volumes) = world.instance(&DATA);
    assert_eq!(volumes.len(), 3);
    let id = ("InstanceSpecification.InstanceId", instance.as_str());
    let all = [
        id,
        ("Description", "all"),
        ("CopyTagsFromSource", "volume"),
        ("TagSpecification.1.ResourceType", "snapshot"),
        ("TagSpecification.1.Tag.1.Key", "of-the-call"),
    ];
    let body = control.ok("CreateSnapshots", &all);
    let made = text(&body, "snapshotId");
    assert_eq!(text(&body, "volumeId"), volumes);
    assert_eq!(text(&body, "volumeSize"), ["1", "2", "3"]);
    for key in ["of-the-volume", "of-the-call"] {
        assert_eq!(body.matches(&format!("<key>{key}</key>")).count(), 3);
    }
    for snapshot in &made {
        world.taken(snapshot);
        let told = world.node.seen.lock().unwrap().snapshots[snapshot].clone();
        let mut with: Vec<String> = told.with.into_iter().map(|of| of.id).collect();
        with.push(snapshot.clone());
        with.sort();
        let mut expected = made.clone();
        expected.sort();
        assert_eq!(with, expected);
    }
    let some = [
        id,
        ("InstanceSpecification.ExcludeBootVolume", "true"),
        ("InstanceSpecification.ExcludeDataVolumeId.1", &volumes[2]),
    ];
    let body = control.ok("CreateSnapshots", &some);
    assert_eq!(text(&body, "volumeId"), [volumes[1].clone()]);
    let alone = world
        .node
        .seen
        .lock()
        .unwrap()
        .snapshots
        .values()
        .last()
        .cloned();
    assert!(alone.is_some());
    control.refused(
        "CreateSnapshots",
        &[
            id,
            ("InstanceSpecification.ExcludeDataVolumeId.1", &volumes[0]),
        ],
        "InvalidParameterValue",
    );
    control.refused(
        "CreateSnapshots",
        &[
            id,
            ("InstanceSpecification.ExcludeBootVolume", "true"),
            ("InstanceSpecification.ExcludeDataVolumeId.1", &volumes[1]),
            ("InstanceSpecification.ExcludeDataVolumeId.2", &volumes[2]),
        ],
        "InvalidParameterValue",
    );
    control.ok("TerminateInstances", &[("InstanceId.1", &instance)]);
    world.await_state(&instance, "terminated");
    control.refused("CreateSnapshots", &[id], "InvalidInstanceID.NotFound");
}

#[test]
fn a_snapshot_is_copied_and_lives_on() {
    let world = world(20);
    let control = &world.control;
    let (_, volumes) = world.instance(&[]);
    let from = world.snapshot_of(&volumes[0]);
    let region = ("SourceRegion", "us-east-1");
    let copy = |more: &[(&str, &str)]| {
        let mut params = vec![region, ("SourceSnapshotId", from.as_str())];
        params.extend(more);
        first(&control.ok("CopySnapshot", &params), "snapshotId")
    };
    let url = format!(
        "https://ec2.us-east-1.amazonaws.com/?Action=CopySnapshot&SourceSnapshotId={from}\
         &DestinationRegion=us-east-1&X-Amz-Signature=0"
    );
    let plain = copy(&[
        ("DestinationRegion", "us-east-1"),
        ("PresignedUrl", &url),
        ("Encrypted", "false"),
        ("TagSpecification.1.ResourceType", "snapshot"),
        ("TagSpecification.1.Tag.1.Key", "k"),
    ]);
    let sealed = copy(&[("Encrypted", "true"), ("Description", "sealed")]);
    let shown = world.taken(&plain);
    assert_eq!(first(&shown, "volumeId"), "vol-fffffffffffffffff");
    assert_eq!(first(&shown, "encrypted"), "false");
    assert!(shown.contains("<key>k</key>"));
    let shown = world.taken(&sealed);
    assert_eq!(first(&shown, "encrypted"), "true");
    assert_eq!(first(&shown, "description"), "sealed");
    {
        let seen = world.node.seen.lock().unwrap();
        let told = seen.snapshots[&sealed].copy.clone().unwrap();
        assert_eq!((told.snapshot, told.size_bytes), (from.clone(), 1 << 30));
        assert!(told.encrypted && !seen.snapshots[&plain].copy.clone().unwrap().encrypted);
    }
    control.ok("DeleteSnapshot", &[("SnapshotId", &from)]);
    let volume = [
        ("AvailabilityZone", "us-east-1a"),
        ("SnapshotId", sealed.as_str()),
    ];
    let made = control.ok("CreateVolume", &volume);
    assert_eq!(first(&made, "encrypted"), "true");
    // What a public image begins as has copies, too; of another region's as well.
    let images = control.ok("DescribeImages", &[("ImageId.1", &ami(control))]);
    let public = first(&images, "snapshotId");
    let body = control.ok(
        "CopySnapshot",
        &[region, ("SourceSnapshotId", public.as_str())],
    );
    world.taken(&first(&body, "snapshotId"));
    for (params, code) in [
        (
            [
                ("SourceRegion", "nowhere-1"),
                ("SourceSnapshotId", plain.as_str()),
            ],
            "InvalidRegion",
        ),
        (
            [region, ("SourceSnapshotId", from.as_str())],
            "InvalidSnapshot.NotFound",
        ),
        (
            [region, ("SourceSnapshotId", "snap-1")],
            "InvalidSnapshotID.Malformed",
        ),
    ] {
        control.refused("CopySnapshot", &params, code);
    }
    for more in [
        ("DestinationRegion", "eu-west-1"),
        ("PresignedUrl", url.as_str()),
    ] {
        let params = [region, ("SourceSnapshotId", plain.as_str()), more];
        control.refused("CopySnapshot", &params, "InvalidParameterValue");
    }
}

#[test]
fn an_image_is_copied_with_its_snapshots() {
    let world = world(20);
    let control = &world.control;
    let (instance, _) = world.instance(&DATA);
    let create = [
        ("InstanceId", instance.as_str()),
        ("Name", "first"),
        ("NoReboot", "true"),
        ("TagSpecification.1.ResourceType", "image"),
        ("TagSpecification.1.Tag.1.Key", "of-the-first"),
    ];
    let image = first(&control.ok("CreateImage", &create), "imageId");
    let available = |id: &str| {
        until("available", || {
            let body = control.ok("DescribeImages", &[("ImageId.1", id)]);
            (first(&body, "imageState") == "available").then_some(body)
        })
    };
    let shown = available(&image);
    // All of its snapshots are of one instant.
    for snapshot in text(&shown, "snapshotId") {
        let seen = world.node.seen.lock().unwrap();
        assert_eq!(seen.snapshots[&snapshot].with.len(), 2);
    }
    let from = [
        ("SourceImageId", image.as_str()),
        ("SourceRegion", "us-east-1"),
    ];
    let mut params = from.to_vec();
    params.extend([
        ("Name", "second"),
        ("Encrypted", "true"),
        ("CopyImageTags", "true"),
        ("ClientToken", "once"),
    ]);
    let copy = first(&control.ok("CopyImage", &params), "imageId");
    assert_eq!(first(&control.ok("CopyImage", &params), "imageId"), copy);
    let copied = available(&copy);
    assert_eq!(text(&copied, "encrypted"), ["true"; 3]);
    assert_eq!(first(&copied, "sourceImageId"), image);
    assert!(copied.contains("<key>of-the-first</key>"));
    let shared = |body: &str| text(body, "snapshotId");
    assert!(
        shared(&shown)
            .iter()
            .all(|id| !shared(&copied).contains(id))
    );
    control.ok("DeregisterImage", &[("ImageId", &image)]);
    let run = [
        ("ImageId", copy.as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
    ];
    let second = text(&control.ok("RunInstances", &run), "instanceId").remove(0);
    world.await_state(&second, "running");
    {
        let seen = world.node.seen.lock().unwrap();
        let root = &seen.instances[&second].attachments[0].volume_id;
        assert!(seen.volumes[root].encrypted);
        assert_eq!(seen.volumes[root].snapshot, shared(&copied)[0]);
    }
    let public = ami(control);
    let own = [
        ("SourceImageId", public.as_str()),
        ("SourceRegion", "us-east-1"),
        ("Name", "of the public one"),
    ];
    let own = first(&control.ok("CopyImage", &own), "imageId");
    assert_eq!(first(&available(&own), "isPublic"), "false");
    for (params, code) in [
        (
            [from[0], from[1], ("Name", "third")],
            "InvalidAMIID.NotFound",
        ),
        (
            [
                ("SourceImageId", copy.as_str()),
                from[1],
                ("Name", "second"),
            ],
            "InvalidAMIName.Duplicate",
        ),
        (
            [
                ("SourceImageId", copy.as_str()),
                ("SourceRegion", "x"),
                ("Name", "third"),
            ],
            "InvalidRegion",
        ),
    ] {
        control.refused("CopyImage", &params, code);
    }
}

#[test]
fn encryption_by_default_is_a_regions() {
    let world = world(20);
    let control = &world.control;
    let state = |action: &str| first(&control.ok(action, &[]), "ebsEncryptionByDefault");
    let volume = || {
        let params = [("AvailabilityZone", "us-east-1a"), ("Size", "1")];
        first(&control.ok("CreateVolume", &params), "encrypted")
    };
    assert_eq!(state("GetEbsEncryptionByDefault"), "false");
    assert_eq!(volume(), "false");
    assert_eq!(state("EnableEbsEncryptionByDefault"), "true");
    assert_eq!(state("GetEbsEncryptionByDefault"), "true");
    assert_eq!(volume(), "true");
    let (_, volumes) = world.instance(&DATA);
    for id in volumes {
        assert!(
            world.node.seen.lock().unwrap().volumes[&id].encrypted,
            "{id}"
        );
    }
    assert_eq!(state("DisableEbsEncryptionByDefault"), "false");
    assert_eq!(volume(), "false");
    for action in ["GetEbsDefaultKmsKeyId", "ResetEbsDefaultKmsKeyId"] {
        assert_eq!(first(&control.ok(action, &[]), "kmsKeyId"), "alias/aws/ebs");
    }
    control.ok("ModifyEbsDefaultKmsKeyId", &[("KmsKeyId", "alias/aws/ebs")]);
    control.refused(
        "ModifyEbsDefaultKmsKeyId",
        &[("KmsKeyId", "alias/mine")],
        "InvalidKmsKey.NotFound",
    );
}
