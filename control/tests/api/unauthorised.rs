//! Every operation, called by those who may not: nobody, strangers, latecomers,
//! and another account. The list is the model's, so none can be forgotten.

use crate::fidelity::required;
use crate::support::{Control, Credentials, escape, text};
use crate::world::world;
use ocs_control::wire::shapes::Shape;
use ocs_control::wire::{Model, ShapeId, ec2};
use std::time::{Duration, SystemTime};

fn code(body: &str) -> String {
    text(body, "Code").into_iter().next().unwrap_or_default()
}

#[test]
fn no_operation_answers_without_a_valid_signature() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let own = control.credentials();
    let nobody = Credentials {
        id: "AKIAAAAAAAAAAAAAAAAA".to_owned(),
        ..own.clone()
    };
    let liar = Credentials {
        secret: "wrong".to_owned(),
        ..own.clone()
    };
    let now = SystemTime::now();
    let late = now - Duration::from_secs(400);
    let early = now + Duration::from_secs(400);
    for action in ec2().operations.keys() {
        let body = format!("Action={action}&Version=2016-11-15");
        let (status, answer) = control.post_unsigned(&body);
        assert_eq!(
            (status, code(&answer).as_str()),
            (403, "MissingAuthenticationToken"),
            "{action}: {answer}"
        );
        for (who, at, expected) in [
            (&nobody, now, (401, "AuthFailure")),
            (&liar, now, (401, "AuthFailure")),
            (&own, late, (400, "RequestExpired")),
            (&own, early, (400, "RequestExpired")),
        ] {
            let (status, answer) = control.post_as(who, at, "us-east-1", "ec2", &body);
            assert_eq!(
                (status, code(&answer).as_str()),
                expected,
                "{action}: {answer}"
            );
        }
    }
}

/// Parameters that name an object of a kind, by the ids' prefixes in member names.
fn names(model: &Model, input: ShapeId) -> Vec<(String, bool)> {
    let mut names = Vec::new();
    for member in model.members(input) {
        let list = matches!(model.shape(member.shape), Shape::List { .. });
        if member.name.ends_with("Id") || member.name.ends_with("Ids") || member.name == "Resources"
        {
            names.push((member.query.clone(), list));
        }
    }
    names
}

#[test]
fn another_accounts_objects_are_not_found() {
    let world = world(10);
    let control = &world.control;
    let id = world.run("1", &[("InstanceType", "t2.nano")]).remove(0);
    world.await_state(&id, "running");
    let mut known: Vec<(&str, String)> = vec![("InstanceId", id.clone())];
    let first = |action: &str, element: &str| text(&control.ok(action, &[]), element).remove(0);
    for (member, action, element) in [
        ("VolumeId", "DescribeVolumes", "volumeId"),
        (
            "NetworkInterfaceId",
            "DescribeNetworkInterfaces",
            "networkInterfaceId",
        ),
        ("GroupId", "DescribeSecurityGroups", "groupId"),
        (
            "SecurityGroupRuleId",
            "DescribeSecurityGroupRules",
            "securityGroupRuleId",
        ),
        ("VpcId", "DescribeVpcs", "vpcId"),
        ("SubnetId", "DescribeSubnets", "subnetId"),
        ("RouteTableId", "DescribeRouteTables", "routeTableId"),
        ("NetworkAclId", "DescribeNetworkAcls", "networkAclId"),
        (
            "InternetGatewayId",
            "DescribeInternetGateways",
            "internetGatewayId",
        ),
        ("DhcpOptionsId", "DescribeDhcpOptions", "dhcpOptionsId"),
        ("AttachmentId", "DescribeNetworkInterfaces", "attachmentId"),
    ] {
        known.push((member, first(action, element)));
    }
    let stranger = control.account("private");
    let before = control.ok("DescribeInstances", &[]);
    let mut tried = 0;
    for (action, operation) in &ec2().operations {
        let Some(input) = operation.input else {
            continue;
        };
        for (parameter, list) in names(ec2(), input) {
            let kind = parameter.trim_end_matches("Ids").trim_end_matches('s');
            let Some((_, id)) = known
                .iter()
                .find(|(member, _)| *member == kind || parameter == *member)
            else {
                continue;
            };
            let name = if list {
                format!("{parameter}.1")
            } else {
                parameter.clone()
            };
            let mut params = vec![(name.clone(), id.clone())];
            let mut needed = Vec::new();
            required(ec2(), input, "", &name, &mut needed);
            for need in needed {
                if params.iter().all(|(known, _)| *known != need.0) {
                    params.push(need);
                }
            }
            let mut body = format!("Action={action}&Version=2016-11-15");
            for (name, value) in &params {
                body.push_str(&format!("&{name}={}", escape(value)));
            }
            let (status, answer) =
                control.post_as(&stranger, SystemTime::now(), "us-east-1", "ec2", &body);
            let found = code(&answer);
            assert_ne!(status, 200, "{action} {body}: {answer}");
            assert!(
                !answer.contains("OperationNotPermitted") && !found.is_empty(),
                "{action} {body}: {answer}"
            );
            tried += usize::from(found.ends_with("NotFound"));
        }
    }
    assert!(tried > 30, "{tried}");
    let after = control.ok("DescribeInstances", &[]);
    let without_id = |body: &str| body.split_once("</requestId>").unwrap().1.to_owned();
    assert_eq!(
        without_id(&after),
        without_id(&before),
        "nothing has changed"
    );
}
