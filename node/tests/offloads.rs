//! A guest whose driver declines offloads is forwarded by XDP, one whose driver accepts them by the
//! twin for unfinished frames; each run of an instance may choose anew.

mod rig;

use ocs_node_api as api;
use rig::{Rig, eventually, group, id, instance, volume};
use std::path::PathBuf;
use std::process::Command;

/// How the kernel forwards an interface's frames: by XDP, by TCX.
fn mode(rig: &Rig, n: u64) -> Option<(bool, bool)> {
    let tap = *rig.owner(&id("i", n))?.taps.get(&id("eni", n))?;
    let taps = format!("--net={}", rig.state.join("run/netns/taps").display());
    let shown = Command::new("nsenter")
        .args([&taps, "ip", "-j", "-d", "link", "show"])
        .output()
        .unwrap();
    let links: serde_json::Value = serde_json::from_slice(&shown.stdout).ok()?;
    let link = links
        .as_array()?
        .iter()
        .find(|link| link["ifindex"] == tap)?;
    Some((link["xdp"].is_object(), twin(rig, tap)?.exists()))
}

/// Where the link of a tap's twin is pinned, and with it in force.
fn twin(rig: &Rig, tap: u32) -> Option<PathBuf> {
    let mut layouts = std::fs::read_dir(rig.state.join("run/bpf")).ok()?.flatten();
    Some(layouts.next()?.path().join(format!("links/buffer-{tap}")))
}

fn fetches(rig: &Rig, n: u64, from: usize) {
    let client = id("i", n);
    let fetched = |line: &str| line.contains("http-get: ") && line.contains("status=200");
    rig.await_line(&client, from, "body", fetched);
}

#[test]
fn what_a_guest_declines_decides_by_which_program_it_is_forwarded() {
    const XDP: Option<(bool, bool)> = Some((true, false));
    const TCX: Option<(bool, bool)> = Some((false, true));
    let mut rig = Rig::new();
    let mut accepts = instance(0, "listen http 80 1MiB");
    accepts.image.as_mut().unwrap().cmdline = "offloads".into();
    let mut declines = instance(1, "http-get http://172.31.0.10:80/body");
    let desire = |rig: &Rig, instances: &[&api::Instance]| {
        rig.control.desire(api::Delta {
            instances: instances.iter().copied().cloned().collect(),
            volumes: (0..2).map(volume).collect(),
            security_groups: vec![group()],
            ..api::Delta::default()
        });
    };
    desire(&rig, &[&accepts, &declines]);
    rig.start_node();
    rig.start_responder();
    eventually("one goes by XDP", || mode(&rig, 1) == XDP);
    fetches(&rig, 1, 0);
    assert_eq!(mode(&rig, 0), TCX, "the other still goes by the twin");
    assert_eq!(mode(&rig, 1), XDP);

    // A node that restarts finds it so, and hears what happens from then on.
    rig.kill_node();
    rig.start_node();
    assert_eq!((mode(&rig, 0), mode(&rig, 1)), (TCX, XDP));

    // Each reboots, and chooses otherwise.
    let said = rig.console(&declines.id).len();
    accepts.image.as_mut().unwrap().cmdline.clear();
    declines.image.as_mut().unwrap().cmdline = "offloads".into();
    for instance in [&mut accepts, &mut declines] {
        instance.generation = 2;
        instance.reboots = 1;
    }
    desire(&rig, &[&accepts, &declines]);
    for instance in [&accepts, &declines] {
        rig.control.await_report(&instance.id, "rebooted", |r| {
            matches!(&r.object, Some(api::report::Object::Instance(i))
                if i.phase() == api::Phase::Up && i.reboots == 1)
        });
    }
    eventually("the other goes by XDP", || mode(&rig, 0) == XDP);
    fetches(&rig, 1, said);
    assert_eq!((mode(&rig, 0), mode(&rig, 1)), (XDP, TCX));
}
