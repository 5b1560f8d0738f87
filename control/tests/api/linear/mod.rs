//! Many clients at once against a sequential model: whatever they saw has to be
//! explained by one order of their operations, each between its call and its answer.
//!
//! ```text
//!   64 clients ──operations──▶ [plant] ──▶ ocs-control (killed every 2 s, or not)
//!        └─ calls and answers, in time's order ─▶ a history a VPC ─▶ checker + model
//! ```
//!
//! The checker is todc-utils' `WGLChecker` (Wing and Gong, with Lowe's memory of
//! where it has been); one that does not end in time has failed. Two wrong systems,
//! one that loses an update and one that gives an address twice, are told from the
//! right one by the same means.

mod clients;
mod model;
mod plant;
mod wire;

use crate::support::{Control, text, until};
use crate::world::{ami, connect};
use clients::{Event, Site};
use model::{Operation, Vpc};
use plant::Plant;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use wire::Wire;

const CLIENTS: usize = 64;
const VPCS: usize = 8;
/// Operations of one VPC's history.
const OPERATIONS: usize = 320;
const OPERATIONS_LONG: usize = 2_000;
/// A checker that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a control lives where it is killed; the first one is cut short, so that
/// the quickest of machines has at least one.
const LIFE: Duration = Duration::from_secs(2);
const FIRST_LIFE: Duration = Duration::from_millis(200);

fn operations() -> usize {
    match std::env::var_os("OCS_LONG") {
        Some(_) => OPERATIONS_LONG,
        None => OPERATIONS,
    }
}

/// Whether a history has an explanation. None: not found out in time.
fn explained(mut events: Vec<Event>) -> Option<bool> {
    events.sort_by_key(|event| event.at);
    let actions = events
        .into_iter()
        .map(|Event { client, action, .. }| (client, action))
        .collect();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let history = History::<Operation>::from_actions(actions);
        let _ = tell.send(WGLChecker::<Vpc>::is_linearizable(history));
    });
    told.recv_timeout(PATIENCE).ok()
}

/// Runs the clients; one history a VPC. With `kills`, control dies every 2 s.
fn histories(plant: Plant, kills: bool) -> Vec<Vec<Event>> {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let control = Control::start(dir.path());
    let mut node = connect(&runtime, &control, 10_000);
    let wire = Arc::new(Wire::default());
    let sites: Vec<Site> = (0..VPCS)
        .map(|number| Site::make(&control, &ami(&control), number, plant, &wire))
        .collect();
    wire.serve(&control);

    let each = operations() * VPCS / CLIENTS;
    let steps = prop::collection::vec((any::<u8>(), any::<u8>()), each);
    let mut runner = TestRunner::deterministic();
    let mut plan = || steps.new_tree(&mut runner).unwrap().current();
    let plans: Vec<_> = (0..CLIENTS).map(|_| plan()).collect();
    let (control, lives) = std::thread::scope(|scope| {
        let running: Vec<_> = plans
            .iter()
            .enumerate()
            .map(|(number, plan)| {
                let site = &sites[number % VPCS];
                scope.spawn(move || site.act(number, plan))
            })
            .collect();
        let (mut control, mut lives, mut born) = (control, 1, Instant::now());
        while !running
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            std::thread::sleep(Duration::from_millis(20));
            let life = if lives == 1 { FIRST_LIFE } else { LIFE };
            if kills && born.elapsed() >= life {
                wire.cut();
                control.kill();
                control = Control::start(dir.path());
                node = connect(&runtime, &control, 10_000);
                wire.serve(&control);
                (lives, born) = (lives + 1, Instant::now());
            }
        }
        for client in running {
            client.join().unwrap();
        }
        (control, lives)
    });
    assert!(!kills || lives > 1, "control was never killed");
    println!("control had {lives} lives");
    for site in &sites {
        site.look_at_all(CLIENTS);
    }
    for site in &sites {
        clear_away(&control, site);
    }
    drop(node);
    wire.cut();
    sites.into_iter().map(Site::history).collect()
}

/// Takes down a VPC by what the API shows of it: what were leaked would stay.
fn clear_away(control: &Control, site: &Site) {
    let of_vpc = [
        ("Filter.1.Name", "vpc-id"),
        ("Filter.1.Value.1", site.vpc.as_str()),
    ];
    let instances = text(&control.ok("DescribeInstances", &of_vpc), "instanceId");
    for id in instances.iter().filter(|id| id.starts_with("i-")) {
        control.ok("TerminateInstances", &[("InstanceId.1", id)]);
    }
    until("instances' interfaces gone", || {
        let body = control.ok("DescribeNetworkInterfaces", &of_vpc);
        (!body.contains("<attachment>")).then_some(())
    });
    let body = control.ok("DescribeNetworkInterfaces", &of_vpc);
    for id in text(&body, "networkInterfaceId") {
        control.ok("DeleteNetworkInterface", &[("NetworkInterfaceId", &id)]);
    }
    let body = control.ok("DescribeSubnets", &of_vpc);
    let free = text(&body, "availableIpAddressCount");
    assert_eq!(free, ["11"], "addresses of {} leaked", site.vpc);
    let [name, value] = of_vpc;
    let named = ("Filter.2.Name", "group-name");
    let ours = [
        name,
        value,
        named,
        ("Filter.2.Value.1", "g?"),
        ("Filter.2.Value.2", "subject"),
    ];
    let body = control.ok("DescribeSecurityGroups", &ours);
    for id in text(&body, "groupId") {
        control.ok("DeleteSecurityGroup", &[("GroupId", &id)]);
    }
    control.ok("DeleteSubnet", &[("SubnetId", &site.subnet)]);
    control.ok("DeleteVpc", &[("VpcId", &site.vpc)]);
    control.refused(
        "DescribeVpcs",
        &[("VpcId.1", &site.vpc)],
        "InvalidVpcID.NotFound",
    );
}

fn told(events: &[Event]) -> String {
    let mut events: Vec<_> = events.iter().collect();
    events.sort_by_key(|event| event.at);
    let line = |event: &&Event| match &event.action {
        Action::Call(_) => None,
        Action::Response(operation) => Some(format!("{:4} {:?}\n", event.client, operation)),
    };
    events.iter().filter_map(line).collect()
}

fn all_explained(kills: bool) {
    let mut operations = 0;
    for (number, history) in histories(Plant::Nothing, kills).into_iter().enumerate() {
        operations += history.len() / 2;
        let story = told(&history);
        match explained(history) {
            Some(true) => {}
            Some(false) => panic!("VPC {number}: no order explains\n{story}"),
            None => panic!("VPC {number}: the checker ran out of time on\n{story}"),
        }
    }
    println!("{operations} operations of {CLIENTS} clients on {VPCS} VPCs explained");
}

#[test]
fn what_a_crowd_saw_has_one_order() {
    all_explained(false);
}

#[test]
fn what_a_crowd_saw_has_one_order_while_control_is_killed() {
    all_explained(true);
}

#[test]
fn a_lost_update_and_a_double_address_are_caught() {
    for plant in [Plant::LostUpdate, Plant::DoubleAddress] {
        let verdicts: Vec<_> = histories(plant, false).into_iter().map(explained).collect();
        assert!(
            verdicts.contains(&Some(false)),
            "{plant:?} went unseen: {verdicts:?}"
        );
        assert!(!verdicts.contains(&None), "{plant:?}: checker out of time");
    }
}
