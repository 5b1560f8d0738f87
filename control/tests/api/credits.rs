//! CPU credits: what the node is told, and who may change it.

use crate::support::{text, until};
use crate::world::{World, world};
use ocs_node_api::CpuCredits;

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

fn told(world: &World, id: &str) -> Option<CpuCredits> {
    world.node.seen.lock().unwrap().instances[id].cpu_credits
}

fn launched(world: &World, more: &[(&str, &str)]) -> String {
    let id = world.run("1", more).remove(0);
    world.await_state(&id, "running");
    id
}

#[test]
fn a_burstable_instance_has_the_credits_that_ec2_documents() {
    let world = world(40);
    let kind = |name| [("InstanceType", name)];
    let of = |name, more: &[(&str, &str)]| {
        let params = [&kind(name), more].concat();
        told(&world, &launched(&world, &params))
    };
    let nano = CpuCredits {
        earned_per_hour_milli: 6_000,
        at_start_milli: 0,
        most_milli: 144_000,
        survive_stop: true,
        unlimited: true,
    };
    assert_eq!(of("t3.nano", &[]), Some(nano));
    let micro = CpuCredits {
        at_start_milli: 30_000,
        survive_stop: false,
        unlimited: false,
        ..nano
    };
    assert_eq!(of("t2.micro", &[]), Some(micro));
    let unlimited = [("CreditSpecification.CpuCredits", "unlimited")];
    let large = CpuCredits {
        earned_per_hour_milli: 36_000,
        at_start_milli: 0,
        most_milli: 864_000,
        unlimited: true,
        ..micro
    };
    assert_eq!(of("t2.large", &unlimited), Some(large));
    assert_eq!(of("m1.small", &[]), None);
}

#[test]
fn the_specification_of_an_instance_changes_while_it_runs() {
    let world = world(20);
    let control = &world.control;
    let (nano, small) = (
        launched(&world, &[("InstanceType", "t3.nano")]),
        launched(&world, &[("InstanceType", "m1.small")]),
    );
    let specification = |n: usize, id: &str, credits: &str| {
        let name = |member| format!("InstanceCreditSpecification.{n}.{member}");
        [
            (name("InstanceId"), id.to_owned()),
            (name("CpuCredits"), credits.to_owned()),
        ]
    };
    let modify = |all: Vec<[(String, String); 2]>| {
        let all: Vec<(&str, &str)> = all
            .iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        control.ok("ModifyInstanceCreditSpecification", &all)
    };
    let body = modify(vec![
        specification(1, &nano, "standard"),
        specification(2, &small, "standard"),
        specification(3, "i-0123456789abcdef0", "standard"),
        specification(4, &nano, "endless"),
    ]);
    let (done, failed) = body.split_once("<unsuccessful").unwrap();
    assert_eq!(text(done, "instanceId"), std::slice::from_ref(&nano));
    assert_eq!(
        text(failed, "code"),
        [
            "InstanceCreditSpecification.NotSupported",
            "InvalidInstanceID.NotFound",
            "InvalidParameterValue",
        ]
    );
    until("the node is told", || {
        told(&world, &nano).filter(|credits| !credits.unlimited)
    });
    let id = [("InstanceId.1", nano.as_str())];
    let shown = control.ok("DescribeInstanceCreditSpecifications", &id);
    assert_eq!(first(&shown, "cpuCredits"), "standard");
    modify(vec![specification(1, &nano, "unlimited")]);
    until("the node is told", || {
        told(&world, &nano).filter(|credits| credits.unlimited)
    });
    control.refused("ModifyInstanceCreditSpecification", &[], "MissingParameter");
}

#[test]
fn the_default_of_a_family_is_that_of_later_launches() {
    let world = world(20);
    let control = &world.control;
    let family = ("InstanceFamily", "t3");
    let default = || {
        first(
            &control.ok("GetDefaultCreditSpecification", &[family]),
            "cpuCredits",
        )
    };
    assert_eq!(default(), "unlimited");
    let before = launched(&world, &[("InstanceType", "t3.nano")]);
    let standard = [family, ("CpuCredits", "standard")];
    control.ok("ModifyDefaultCreditSpecification", &standard);
    assert_eq!(default(), "standard");
    let after = launched(&world, &[("InstanceType", "t3.nano")]);
    assert!(told(&world, &before).unwrap().unlimited);
    assert!(!told(&world, &after).unwrap().unlimited);
    control.refused(
        "ModifyDefaultCreditSpecification",
        &[family, ("CpuCredits", "endless")],
        "InvalidParameterValue",
    );
    // A family of EC2's that this cloud has no types of.
    control.refused(
        "GetDefaultCreditSpecification",
        &[("InstanceFamily", "t4g")],
        "InvalidParameterValue",
    );
}
