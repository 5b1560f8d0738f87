//! Many callers at once: nothing is given out twice, nothing is lost.

use crate::support::{text, until};
use crate::world::{World, ami, world};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use std::collections::HashSet;

/// Schedulable CPUs of the fake node; each instance takes one.
const VCPUS: u32 = 40;
const CALLERS: usize = 8;

fn describe(world: &World) -> (Vec<String>, Vec<String>) {
    let body = world.control.ok("DescribeNetworkInterfaces", &[]);
    let interfaces = body.split("<networkInterfaceId>").count() - 1;
    let addresses: Vec<String> = body
        .split("<privateIpAddressesSet>")
        .skip(1)
        .map(|rest| text(rest, "privateIpAddress").remove(0))
        .collect();
    assert_eq!(interfaces, addresses.len());
    (addresses, world.free_addresses())
}

fn live(world: &World) -> Vec<String> {
    let states = ["pending", "running", "stopping", "stopped"];
    let names: Vec<String> = (1..=4).map(|n| format!("Filter.1.Value.{n}")).collect();
    let mut params = vec![("Filter.1.Name", "instance-state-name")];
    params.extend(names.iter().map(String::as_str).zip(states));
    let body = world.control.ok("DescribeInstances", &params);
    body.split("<instanceId>")
        .skip(1)
        .map(|rest| rest.split('<').next().unwrap().to_owned())
        .collect::<HashSet<_>>()
        .into_iter()
        .collect()
}

#[test]
fn a_crowd_of_callers_leaves_the_books_balanced() {
    let world = world(VCPUS);
    let image = ami(&world.control);
    let steps = prop::collection::vec((0_u8..5, any::<prop::sample::Index>()), 25);
    let mut runner = TestRunner::deterministic();
    let plans: Vec<_> = (0..CALLERS)
        .map(|_| steps.new_tree(&mut runner).unwrap().current())
        .collect();
    std::thread::scope(|scope| {
        for plan in plans {
            let (world, image) = (&world, &image);
            scope.spawn(move || {
                for (step, which) in plan {
                    let ids = live(world);
                    let this = (!ids.is_empty()).then(|| ids[which.index(ids.len())].clone());
                    let action = match (step, &this) {
                        (1, Some(_)) => "StopInstances",
                        (2, Some(_)) => "StartInstances",
                        (3, Some(_)) => "TerminateInstances",
                        _ => "RunInstances",
                    };
                    let params = match (&this, action) {
                        (Some(id), "StopInstances" | "StartInstances" | "TerminateInstances") => {
                            vec![("InstanceId.1", id.as_str())]
                        }
                        _ => vec![
                            ("ImageId", image.as_str()),
                            ("InstanceType", "t2.nano"),
                            ("MinCount", "1"),
                            ("MaxCount", "3"),
                        ],
                    };
                    let (status, body) = world.control.call(action, &params);
                    let code = text(&body, "Code").into_iter().next().unwrap_or_default();
                    let fair = ["IncorrectInstanceState", "InsufficientInstanceCapacity"];
                    assert!(
                        status == 200 || fair.contains(&code.as_str()),
                        "{action}: {body}"
                    );
                }
            });
        }
    });
    let (addresses, free) = describe(&world);
    let distinct: HashSet<_> = addresses.iter().collect();
    assert_eq!(
        distinct.len(),
        addresses.len(),
        "an address was given out twice"
    );
    let ids = live(&world);
    for id in &ids {
        world
            .control
            .ok("TerminateInstances", &[("InstanceId.1", id)]);
    }
    until("all gone", || live(&world).is_empty().then_some(()));
    let books = until("all given back", || {
        let (addresses, free) = describe(&world);
        addresses.is_empty().then_some(free)
    });
    assert_eq!(
        books,
        ["4091", "4091", "4091"],
        "addresses leaked; before: {free:?}"
    );
    // The capacity is all there again, and no more than that.
    let all = VCPUS.to_string();
    let params = |count| {
        [
            ("ImageId", image.as_str()),
            ("InstanceType", "t2.nano"),
            ("MinCount", count),
            ("MaxCount", count),
        ]
    };
    world.control.ok("RunInstances", &params(all.as_str()));
    world
        .control
        .refused("RunInstances", &params("1"), "InsufficientInstanceCapacity");
}

/// A token's repeats while its instance is being terminated: the answer is of the moment
/// at which the token was looked up, not of a later one.
#[test]
fn a_repeated_launch_shows_an_instance_that_lives() {
    const ROUNDS: usize = 40;
    let world = world(VCPUS);
    let image = ami(&world.control);
    for round in 0..ROUNDS {
        let token = round.to_string();
        let params = [
            ("ImageId", image.as_str()),
            ("InstanceType", "t2.nano"),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("ClientToken", token.as_str()),
        ];
        let first = world.control.ok("RunInstances", &params);
        let id = text(&first, "instanceId").remove(0);
        world.await_state(&id, "running");
        std::thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    loop {
                        let (status, body) = world.control.call("RunInstances", &params);
                        if status != 200 {
                            let code = text(&body, "Code");
                            assert_eq!(code, ["IdempotentInstanceTerminated"], "{body}");
                            break;
                        }
                        assert!(body.contains("<name>running</name>"), "{body}");
                        assert!(body.contains("<networkInterfaceId>"), "{body}");
                    }
                });
            }
            world
                .control
                .ok("TerminateInstances", &[("InstanceId.1", &id)]);
        });
    }
}
