//! The real node killed at arbitrary instants, and what its instances see of it.

mod rig;

use ocs_node_api as api;
use rig::{Rig, eventually, group, instance, volume};
use std::time::Duration;

const INSTANCES: u64 = 6;

/// Different instants in each run of the suite, the same for one process id.
struct Instants(u64);

impl Instants {
    fn next(&mut self, below_ms: u64) -> Duration {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Duration::from_micros((self.0 >> 33) % (below_ms * 1000))
    }
}

fn rounds() -> u32 {
    if std::env::var_os("OCS_LONG").is_some() {
        100
    } else {
        8
    }
}

#[test]
fn kills_at_any_instant_lose_nothing_double_nothing_and_leave_nothing() {
    let mut rig = Rig::new();
    let mut instants = Instants(u64::from(std::process::id()));
    let all: Vec<_> = (1..=INSTANCES).map(|n| instance(n, "")).collect();
    rig.control.desire(api::Delta {
        volumes: (1..=INSTANCES).map(volume).collect(),
        security_groups: vec![group()],
        instances: all.clone(),
        ..api::Delta::default()
    });
    let mut generation = 1;
    for round in 0..rounds() {
        rig.start_node();
        std::thread::sleep(instants.next(400));
        rig.kill_node();
        for one in &all {
            let running = rig.processes_of(&one.id);
            assert!(running.len() <= 1, "{} has {running:?}", one.id);
        }
        // Every other round all are to stop, then all are to start once more.
        generation += 1;
        let (desired, starts) = match round % 2 {
            0 => (api::Desired::Stopped, 1),
            _ => (api::Desired::Running, 2 + u64::from(round) / 2),
        };
        rig.control.desire(api::Delta {
            instances: all
                .iter()
                .map(|one| api::Instance {
                    generation,
                    desired: desired.into(),
                    starts,
                    ..one.clone()
                })
                .collect(),
            ..api::Delta::default()
        });
    }
    // The last word was to run.
    rig.start_node();
    for one in &all {
        rig.control.await_phase(&one.id, generation, api::Phase::Up);
        assert_eq!(rig.processes_of(&one.id).len(), 1);
        rig.await_console(&one.id, "probe: boot");
    }
    generation += 1;
    rig.control.desire(api::Delta {
        instances: all
            .iter()
            .map(|one| api::Instance {
                generation,
                desired: api::Desired::Absent.into(),
                ..one.clone()
            })
            .collect(),
        volumes: (1..=INSTANCES)
            .map(|n| api::Volume {
                generation: 2,
                desired: api::Desired::Absent.into(),
                ..volume(n)
            })
            .collect(),
        ..api::Delta::default()
    });
    std::thread::sleep(instants.next(100));
    rig.kill_node();
    rig.start_node();
    for one in &all {
        rig.control
            .await_phase(&one.id, generation, api::Phase::Gone);
        assert!(rig.processes_of(&one.id).is_empty());
    }
    for folder in ["run/instances", "run/console", "node/instances"] {
        let left: Vec<_> = std::fs::read_dir(rig.state.join(folder)).unwrap().collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    eventually("no volume is left", || {
        let table = std::fs::read_to_string(rig.state.join("storaged/volumes.json")).unwrap();
        !table.contains("vol-")
    });
}

#[test]
fn a_rule_takes_effect_and_is_withdrawn_while_flows_live_through_kills() {
    let mut rig = Rig::new();
    rig.start_node();
    rig.start_responder();
    let listener = instance(21, "listen tcp 80\nlisten tcp 81");
    let to = |port| format!("{}:{port}", listener.network_interfaces[0].private_ip);
    let orders = format!(
        "connect {} every 100ms\nstream {}\ndisk 0 loop 1MiB",
        to(80),
        to(81)
    );
    let dialler = instance(22, &orders);
    let mut closed = group();
    closed.rules.truncate(1);
    rig.control.desire(api::Delta {
        volumes: vec![volume(21), volume(22)],
        security_groups: vec![closed.clone()],
        instances: vec![listener.clone(), dialler.clone()],
        ..api::Delta::default()
    });
    rig.await_console(&listener.id, "ready");
    let refused = |line: &str| line.contains("connect:") && line.contains("timeout");
    let passed = |line: &str| line.contains("connect:") && line.contains(" ok us=");
    let says = |rig: &Rig, what: &str, of: &dyn Fn(&str) -> bool| {
        let from = rig.console(&dialler.id).len();
        rig.await_line(&dialler.id, from, what, of)
    };
    says(&rig, "refusal before the rule", &refused);

    rig.control.desire(api::Delta {
        security_groups: vec![group()],
        ..api::Delta::default()
    });
    says(&rig, "connection after the rule", &passed);
    says(&rig, "stream", &|line| {
        line.contains("stream:") && line.contains("alive")
    });

    rig.control.desire(api::Delta {
        security_groups: vec![closed],
        ..api::Delta::default()
    });
    says(&rig, "refusal after the rule's end", &refused);
    rig.kill_node();
    rig.kill_storaged();
    rig.start_storaged();
    rig.start_node();
    says(&rig, "refusal after the kills", &refused);
    says(&rig, "living stream", &|line| {
        line.contains("stream:") && line.contains("alive")
    });
    says(&rig, "working disk", &|line| line.contains("errors=0"));
    assert!(!rig.console(&dialler.id).contains("broken"));
}
