//! The machine on a real file system with real processes, cut off at every effect.

use super::*;
use crate::agent::owner::RunDir;
use crate::agent::plan::Goal;
use ocs_vmm_spec::control::DeviceKind;
use ocs_vmm_spec::exit::ExitReason;
use std::collections::BTreeSet;

mod world;

use world::*;

const ID: &str = "i-1";
const STORE: &str = "i-1-ephemeral0";

fn desired() -> api::Instance {
    api::Instance {
        id: ID.into(),
        generation: 1,
        vcpus: 1,
        memory_mib: 64,
        image: Some(api::Image {
            kernel: "kernel".into(),
            ..api::Image::default()
        }),
        attachments: vec![api::Attachment {
            volume_id: "vol-1".into(),
            ..api::Attachment::default()
        }],
        instance_stores: vec![api::InstanceStore {
            size_bytes: 4096,
            ..api::InstanceStore::default()
        }],
        network_interfaces: vec![api::NetworkInterface {
            id: "eni-1".into(),
            vni: 1,
            mac: "02:00:00:00:00:01".into(),
            private_ip: "10.0.0.4".into(),
            subnet_cidr: "10.0.0.0/24".into(),
            vpc_cidr: "10.0.0.0/16".into(),
            mtu: 1500,
            ..api::NetworkInterface::default()
        }],
        metadata: Some(api::Metadata {
            http_put_response_hop_limit: 1,
            ..api::Metadata::default()
        }),
        network_rate: Some(api::NetworkRate {
            baseline_bps: 8_000,
            peak_bps: 80_000,
            credit_bytes: 1 << 45,
            packets_per_s: 0,
        }),
        starts: 1,
        ..api::Instance::default()
    }
}

/// The life of an instance, with the node killed at its `fuse`th effect. True: it was.
fn life(fuse: u32) -> bool {
    let mut host = Host::new(fuse);
    let world = Arc::clone(&host.world);
    let volume = |name: &str| world.inner.lock().unwrap().volumes.get(name).copied();
    let attached = || world.inner.lock().unwrap().attached.clone();
    let ports = || world.inner.lock().unwrap().policy.ports.len();
    let nics = || {
        let inner = world.inner.lock().unwrap();
        let nics = inner.devices.iter();
        let nics = nics.filter(|(_, device)| device.kind == DeviceKind::Net);
        nics.map(|(id, _)| id.clone()).collect::<Vec<_>>()
    };
    let up = |host: &mut Host, desired: &api::Instance| {
        let seen = host.converge(desired, Goal::Run, false);
        let run = seen.run.unwrap();
        assert!(run.up && run.vmm == Vmm::Alive, "{run:?}");
        assert_eq!((run.starts, run.reboots), (desired.starts, desired.reboots));
        assert_eq!(world.alive(), 1);
        let cards: Vec<String> = desired
            .network_interfaces
            .iter()
            .map(|eni| eni.id.clone())
            .collect();
        assert_eq!(ports(), cards.len());
        let taps = RunDir::of(&host.layout, ID).owner().unwrap().taps;
        let finished = world.inner.lock().unwrap().finished.clone();
        assert!(
            taps.values().all(|tap| finished.contains(tap)),
            "{taps:?} {finished:?}"
        );
        assert_eq!(nics(), cards);
        assert_eq!(
            attached(),
            BTreeSet::from(["vol-1".to_owned(), STORE.to_owned()])
        );
        let told = std::fs::read_dir(host.layout.responder()).unwrap().count();
        assert_eq!(told, cards.len());
    };
    let mut wanted = desired();
    up(&mut host, &wanted);
    let store = volume(STORE);

    // A second interface comes, and goes.
    wanted.generation = 2;
    wanted.network_interfaces.push(api::NetworkInterface {
        id: "eni-2".into(),
        mac: "02:00:00:00:00:02".into(),
        private_ip: "10.0.0.5".into(),
        ..wanted.network_interfaces[0].clone()
    });
    up(&mut host, &wanted);
    wanted.generation = 3;
    wanted.network_interfaces.pop();
    up(&mut host, &wanted);

    wanted.generation = 4;
    wanted.reboots = 1;
    assert_eq!(world.inner.lock().unwrap().credits, None, "all of them");
    up(&mut host, &wanted);
    assert_eq!(volume(STORE), store, "a reboot keeps the instance store");
    let credits = world.inner.lock().unwrap().credits.unwrap();
    let come = credits.saturating_sub(LEFT_CREDITS);
    assert!(credits >= LEFT_CREDITS && come < 1 << 30, "{credits}");

    // The guest powers itself off: DOWN, once and for this start.
    let run = RunDir::of(&host.layout, ID);
    exit(
        &mut world.inner.lock().unwrap(),
        &run,
        ExitReason::GuestShutdown,
    );
    for _ in 0..2 {
        let seen = host.converge(&wanted, Goal::Run, false);
        assert_eq!(seen.run, None);
        let end = seen.page.unwrap().ended.unwrap();
        assert_eq!(end.reason_code, "Client.InstanceInitiatedShutdown");
        assert_eq!((world.alive(), ports()), (0, 0));
        assert_eq!(volume(STORE), None, "a stop erases the instance store");
        assert!(attached().is_empty());
    }

    wanted.generation = 5;
    wanted.starts = 2;
    up(&mut host, &wanted);
    assert_ne!(volume(STORE), store);

    // The guest resets itself: the same start goes on.
    let store = volume(STORE);
    exit(
        &mut world.inner.lock().unwrap(),
        &run,
        ExitReason::GuestReset,
    );
    up(&mut host, &wanted);
    assert_eq!(volume(STORE), store);

    wanted.generation = 6;
    host.converge(&wanted, Goal::Run, true);
    let seen = host.converge(&wanted, Goal::Run, false);
    assert_eq!(
        seen.page.unwrap().ended.unwrap().reason_code,
        "Server.ScheduledStop"
    );
    assert_eq!(world.alive(), 0);

    wanted.starts = 3;
    up(&mut host, &wanted);
    host.converge(&wanted, Goal::Absent, false);
    assert_eq!((world.alive(), ports()), (0, 0));
    assert_eq!(volume(STORE), None);
    for folder in [
        host.layout.instances(),
        host.layout.consoles(),
        host.layout.responder(),
        host.layout.ledger(),
    ] {
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    host.crashes > 0
}

#[test]
fn a_node_killed_at_any_effect_leaves_nothing_lost_doubled_or_behind() {
    let mut effects = 0;
    while life(effects) {
        effects += 1;
    }
    assert!(effects > 100, "only {effects} effects were cut off");
}

#[test]
fn after_a_boot_of_the_host_what_ran_runs_again() {
    let mut host = Host::new(u32::MAX);
    let wanted = desired();
    host.converge(&wanted, Goal::Run, false);
    let run = RunDir::of(&host.layout, ID);
    let before = run.owner().unwrap();
    // The power failed: no last words, and another process has its number.
    run.set_owner(&crate::agent::owner::Owner {
        boot_id: "the boot before".into(),
        process: Process::open_pid(1).unwrap().map(|p| p.id()),
        ..before.clone()
    })
    .unwrap();
    for vmm in &mut host.world.inner.lock().unwrap().vmms {
        vmm.kill().unwrap();
        vmm.wait().unwrap();
    }
    let seen = host.converge(&wanted, Goal::Run, false);
    assert_eq!(seen.run.unwrap().vmm, Vmm::Alive);
    assert_ne!(run.owner().unwrap().nonce, before.nonce);
    assert_eq!(host.world.alive(), 1);
}

#[test]
fn a_vmm_whose_owner_file_is_lost_is_replaced_not_doubled() {
    for lose in [
        (|owner| std::fs::remove_file(owner).unwrap()) as fn(&std::path::Path),
        |owner| std::fs::write(owner, "{").unwrap(),
    ] {
        let mut host = Host::new(u32::MAX);
        let wanted = desired();
        host.converge(&wanted, Goal::Run, false);
        let run = RunDir::of(&host.layout, ID);
        let before = run.owner().unwrap();
        lose(&run.path().join("owner.json"));
        let seen = host.converge(&wanted, Goal::Run, false);
        assert_eq!(seen.run.unwrap().vmm, Vmm::Alive);
        assert_ne!(run.owner().unwrap().nonce, before.nonce);
        assert_eq!(host.world.alive(), 1);
    }
}

#[test]
fn an_instance_that_cannot_be_launched_says_why() {
    let host = Host::new(u32::MAX);
    let node = host.node();
    for (spoil, named) in [
        (
            (|d| d.image.as_mut().unwrap().kernel = "none".into()) as fn(&mut api::Instance),
            "none",
        ),
        (|d| d.image.as_mut().unwrap().kernel = "../x".into(), "../x"),
        (|d| d.memory_mib = 1, "memory_mib"),
        (|d| d.metadata = None, "metadata"),
        (|d| d.network_interfaces[0].mtu = 100_000, "100000"),
    ] {
        let mut desired = desired();
        spoil(&mut desired);
        let mut body = Body::default();
        let error = node
            .execute(ID, &Step::Launch, Some(&desired), &mut body)
            .unwrap_err();
        assert!(matches!(error, EffectError::Permanent(_)), "{error:?}");
        assert!(error.to_string().contains(named), "{error}");
        let mut body = node.survey(ID, &body).unwrap();
        node.execute(ID, &Step::Clear, None, &mut body).unwrap();
        assert!(!RunDir::of(&host.layout, ID).exists());
        assert_eq!(host.world.alive(), 0);
    }
    // What storaged may hold is told by name.
    let stores = &node.ledger.get(ID).unwrap().stores;
    assert_eq!(*stores, BTreeSet::from([STORE.to_owned()]));
}
