//! The node with the real VMM, storaged and packet path, from desired to observed.

mod rig;

use ocs_node_api as api;
use rig::{Rig, eventually, group, instance, volume};

#[test]
fn an_instance_runs_survives_its_node_and_goes() {
    let mut rig = Rig::new();
    let one = instance(1, "");
    let id = one.id.clone();
    rig.control.desire(api::Delta {
        instances: vec![one.clone()],
        volumes: vec![volume(1)],
        security_groups: vec![group()],
        ..api::Delta::default()
    });
    rig.start_node();
    rig.control.await_phase(&id, 1, api::Phase::Up);
    rig.await_console(&id, "probe: boot");
    rig.await_console(&id, "disk: index=0");
    let pid = rig.pid(&id).unwrap();

    // Least privilege, as the kernel tells it.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Groups:"), "");
    assert!(!field("Uid:").contains(" 0"), "{}", field("Uid:"));
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(&format!("/{id}")), "{cgroup}");

    // An empty tree, nobody else, and every thread behind a filter.
    let in_proc = |name: &str| format!("/proc/{pid}/{name}");
    assert_eq!(std::fs::read_dir(in_proc("root/")).unwrap().count(), 0);
    let mounts = std::fs::read_to_string(in_proc("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    assert!(field("NSpid:").ends_with(" 1"), "{}", field("NSpid:"));
    for name in ["mnt", "pid", "ipc", "uts", "net"] {
        let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{name}");
    }
    for task in std::fs::read_dir(in_proc("task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    }

    use std::os::unix::fs::MetadataExt;
    let inode = |path: &std::path::Path| std::fs::metadata(path).unwrap().ino();
    let void = inode(&rig.state.join("run/netns/void"));
    assert_eq!(inode(format!("/proc/{pid}/ns/net").as_ref()), void);
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(fd.unwrap().path()).unwrap_or_default();
        let target = target.display().to_string();
        let ours = ["/node/", "node.lock", "bpf", "/pki/", "/responder/"];
        assert!(
            !ours.iter().any(|name| target.contains(name)),
            "it holds {target}"
        );
    }

    // The node is killed; the instance never notices, and is adopted, not started again.
    rig.kill_node();
    rig.start_node();
    let hello = rig.control.hello(2);
    assert!(
        hello.observed.iter().any(|r| matches!(&r.object,
            Some(api::report::Object::Instance(i)) if i.id == id && i.phase() == api::Phase::Up)),
        "{hello:?}"
    );
    assert_eq!(rig.pid(&id), Some(pid));
    assert_eq!(rig.processes_of(&id), [pid]);

    // What follows from other objects changes without a new generation: the MTU, from what
    // hosts' uplinks carry.
    let mut narrower = one.clone();
    narrower.network_interfaces[0].mtu = 1350;
    rig.control.desire(api::Delta {
        instances: vec![narrower],
        ..api::Delta::default()
    });
    let records = rig.state.join("run/responder");
    eventually("what the guest is told says so", || {
        let records = std::fs::read_dir(&records).unwrap();
        records.flatten().any(|record| {
            let text = std::fs::read_to_string(record.path()).unwrap_or_default();
            let record: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            record["interfaces"][0]["mtu"] == 1350
        })
    });

    // Control reads the console by the node.
    let answer = rig.control.console(1, &id);
    assert_eq!(answer.error, "");
    assert!(String::from_utf8_lossy(&answer.console_output).contains("probe: boot"));

    // A reboot is another VMM of the same start.
    rig.control.desire(api::Delta {
        instances: vec![api::Instance {
            generation: 2,
            reboots: 1,
            ..one.clone()
        }],
        ..api::Delta::default()
    });
    rig.control.await_report(&id, "rebooted", |r| {
        matches!(&r.object, Some(api::report::Object::Instance(i))
            if i.phase() == api::Phase::Up && i.reboots == 1)
    });
    assert_ne!(rig.pid(&id), Some(pid));

    // A stop keeps the volume; a termination keeps nothing.
    rig.control.desire(api::Delta {
        instances: vec![api::Instance {
            generation: 3,
            desired: api::Desired::Stopped.into(),
            reboots: 1,
            ..one.clone()
        }],
        ..api::Delta::default()
    });
    rig.control.await_phase(&id, 3, api::Phase::Down);
    assert!(rig.processes_of(&id).is_empty());
    assert!(rig.console(&id).contains("probe: boot"), "kept over a stop");
    rig.control.desire(api::Delta {
        instances: vec![api::Instance {
            generation: 4,
            desired: api::Desired::Absent.into(),
            ..one
        }],
        volumes: vec![api::Volume {
            generation: 2,
            desired: api::Desired::Absent.into(),
            ..volume(1)
        }],
        ..api::Delta::default()
    });
    rig.control.await_phase(&id, 4, api::Phase::Gone);
    rig.control.await_report(&volume(1).id, "gone", |r| {
        matches!(&r.object, Some(api::report::Object::Volume(v)) if v.phase() == api::Phase::Gone)
    });
    for (folder, what) in [
        ("run/instances", "a run directory"),
        ("run/console", "a console"),
        ("run/responder", "a record"),
        ("node/instances", "a page"),
    ] {
        let left: Vec<_> = std::fs::read_dir(rig.state.join(folder))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_file() || folder == "run/instances")
            .collect();
        assert!(left.is_empty(), "{what} is left: {left:?}");
    }
}

#[test]
fn a_stopped_host_keeps_its_instances_stopped() {
    let mut rig = Rig::new();
    let one = instance(2, "");
    let id = one.id.clone();
    rig.control.desire(api::Delta {
        instances: vec![one.clone()],
        volumes: vec![volume(2)],
        security_groups: vec![group()],
        ..api::Delta::default()
    });
    rig.start_node();
    rig.control.await_phase(&id, 1, api::Phase::Up);
    rig.await_console(&id, "probe: boot");
    assert!(rig.cleanup());
    assert!(rig.processes_of(&id).is_empty());
    rig.start_node();
    let told = rig.control.await_phase(&id, 1, api::Phase::Down);
    assert_eq!(told.reason_code, "Server.ScheduledStop");
    assert!(rig.processes_of(&id).is_empty());
    // Until it is started.
    rig.control.desire(api::Delta {
        instances: vec![api::Instance {
            generation: 2,
            starts: 2,
            ..one
        }],
        ..api::Delta::default()
    });
    rig.control.await_phase(&id, 2, api::Phase::Up);
    eventually("one process", || rig.processes_of(&id).len() == 1);
}
