//! Launch templates below a request's own parameters.

use crate::actions::{first, told};
use crate::support::text;
use crate::world::{ami, world};

#[test]
fn launch_templates_lie_below_requests() {
    let world = world(100);
    let control = &world.control;
    let image = ami(control);
    let made = control.ok(
        "CreateLaunchTemplate",
        &[
            ("LaunchTemplateName", "web"),
            ("LaunchTemplateData.ImageId", &image),
            ("LaunchTemplateData.InstanceType", "t3.micro"),
            ("LaunchTemplateData.UserData", "aGVsbG8="),
            (
                "LaunchTemplateData.TagSpecification.1.ResourceType",
                "instance",
            ),
            ("LaunchTemplateData.TagSpecification.1.Tag.1.Key", "role"),
            ("LaunchTemplateData.TagSpecification.1.Tag.1.Value", "web"),
        ],
    );
    let id = first(&made, "launchTemplateId");
    control.ok(
        "CreateLaunchTemplateVersion",
        &[
            ("LaunchTemplateId", &id),
            ("SourceVersion", "1"),
            ("LaunchTemplateData.InstanceType", "t3.small"),
        ],
    );
    let run = |more: &[(&str, &str)]| {
        let mut params = vec![("MinCount", "1"), ("MaxCount", "1")];
        params.extend(more);
        first(&control.ok("RunInstances", &params), "instanceId")
    };
    let plain = run(&[("LaunchTemplate.LaunchTemplateName", "web")]);
    let told_plain = told(&world, &plain, |_| true);
    assert_eq!(told_plain.memory_mib, 1_024);
    assert_eq!(told_plain.metadata.unwrap().user_data, b"hello");
    let newest = [
        ("LaunchTemplate.LaunchTemplateId", id.as_str()),
        ("LaunchTemplate.Version", "$Latest"),
    ];
    assert_eq!(told(&world, &run(&newest), |_| true).memory_mib, 2_048);
    let mut over = newest.to_vec();
    over.push(("InstanceType", "t3.nano"));
    assert_eq!(told(&world, &run(&over), |_| true).memory_mib, 512);
    let tags = control.ok("DescribeInstances", &[("InstanceId.1", &plain)]);
    assert!(
        tags.contains("aws:ec2launchtemplate:id") && tags.contains("<key>role</key>"),
        "{tags}"
    );
    control.ok(
        "ModifyLaunchTemplate",
        &[("LaunchTemplateId", &id), ("SetDefaultVersion", "2")],
    );
    let versions = control.ok(
        "DescribeLaunchTemplateVersions",
        &[("LaunchTemplateId", &id)],
    );
    assert_eq!(text(&versions, "versionNumber"), ["2", "1"]);
    assert_eq!(text(&versions, "defaultVersion"), ["true", "false"]);
    let gone = [
        ("LaunchTemplateId", id.as_str()),
        ("LaunchTemplateVersion.1", "2"),
        ("LaunchTemplateVersion.2", "1"),
    ];
    let gone = control.ok("DeleteLaunchTemplateVersions", &gone);
    assert!(
        gone.contains("<successfullyDeletedLaunchTemplateVersionSet><item>"),
        "{gone}"
    );
    assert!(
        gone.contains("<unsuccessfullyDeletedLaunchTemplateVersionSet><item>"),
        "{gone}"
    );
    let data = control.ok("GetLaunchTemplateData", &[("InstanceId", &plain)]);
    assert_eq!(
        (first(&data, "imageId"), first(&data, "userData")),
        (image, "aGVsbG8=".to_owned())
    );
    control.ok("DeleteLaunchTemplate", &[("LaunchTemplateName", "web")]);
    control.refused(
        "RunInstances",
        &[
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("LaunchTemplate.LaunchTemplateId", &id),
        ],
        "InvalidLaunchTemplateId.NotFound",
    );
}
