//! Answers keep to the model: control checks each against it in debug builds
//! and would break the connection.

use crate::world::world;
use ocs_control::wire::ec2;
use ocs_control::wire::shapes::Shape;

#[test]
fn every_read_keeps_to_the_model() {
    let world = world(10);
    let id = world.run("1", &[("InstanceType", "m1.small")]).remove(0);
    world.await_state(&id, "running");
    let mut read = 0;
    let needs = |input| matches!(ec2().shape(input), Shape::Structure { required, .. } if !required.is_empty());
    for (action, operation) in &ec2().operations {
        let params: &[(&str, &str)] = match action.as_str() {
            "DescribeLaunchTemplateVersions" => &[("LaunchTemplateVersion.1", "$Latest")],
            _ => &[],
        };
        if action.starts_with("Describe") && !operation.input.is_some_and(needs) {
            world.control.ok(action, params);
            read += 1;
        }
    }
    assert!(read >= 17, "{read}");
    world.control.ok("GetInstanceMetadataDefaults", &[]);
    let input = ec2().operations["DescribeInstanceAttribute"].input.unwrap();
    let member = ec2()
        .members(input)
        .iter()
        .find(|member| member.name == "Attribute")
        .unwrap();
    let Shape::String {
        values: Some(attributes),
    } = ec2().shape(member.shape)
    else {
        panic!("attributes are an enumeration");
    };
    for attribute in attributes {
        let params = [
            ("InstanceId", id.as_str()),
            ("Attribute", attribute.as_str()),
        ];
        let (status, body) = world.control.call("DescribeInstanceAttribute", &params);
        let refused = body.contains("InvalidParameterValue");
        assert!(status == 200 || refused, "{attribute}: {body}");
    }
}
