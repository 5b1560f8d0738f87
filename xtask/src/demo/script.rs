//! The demo's claims, in order.

use super::aws::Aws;
use super::guest::Progress;
use super::installation::Installation;
use super::sabotage::{self, Sabotage, Scribbler};
use super::story::{self, A_PORT, B_PORT, Guest, ingress, wait_state};
use super::table::Table;
use super::{bpf, leftovers};
use crate::{places, sh};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The parts that are killed, in this order.
const PARTS: [&str; 4] = ["control", "node", "responder", "storaged"];
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);

/// How much of the script to run under sabotage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// What leads up to the claim that must turn false.
    Matching,
}

/// A group of claims.
enum Act {
    Guests,
    Policy,
    Kills(&'static [&'static str]),
    End,
}

/// The acts, cut down to those that one sabotage needs.
fn acts(only_for: Option<Sabotage>) -> Vec<Act> {
    match only_for {
        None => vec![Act::Guests, Act::Policy, Act::Kills(&PARTS), Act::End],
        Some(Sabotage::Imds | Sabotage::Block) => vec![Act::Guests],
        Some(Sabotage::Policy) => vec![Act::Policy],
        Some(Sabotage::Adopt) => vec![Act::Policy, Act::Kills(&["node"])],
        Some(Sabotage::Cleanup) => vec![Act::End],
    }
}

/// Two running instances, and what there was before them.
struct Scene {
    aws: Aws,
    a: Guest,
    b: Guest,
    maps_before: BTreeMap<String, usize>,
    files_before: Vec<String>,
    vmms: Vec<String>,
    _scribbler: Option<Scribbler>,
}

/// Checks every claim. A claim that needs one that failed to come about is false too.
pub fn run(binaries: &Path, sabotage: Option<Sabotage>, extent: Extent) -> Table {
    sh::say("demo: the system, the aws CLI, two instances");
    let mut table = Table::default();
    let mut up = match Installation::start(binaries) {
        Ok(up) => up,
        Err(error) => {
            table.check("the system starts", || Err(error));
            return table;
        }
    };
    let mut scene = None;
    table.check(
        "the aws CLI creates groups and runs B, then A, to `running`",
        || {
            let (made, evidence) = begin(&mut up, sabotage)?;
            scene = Some(made);
            Ok(evidence)
        },
    );
    if let Some(scene) = &mut scene {
        for act in acts(sabotage.filter(|_| extent == Extent::Matching)) {
            match act {
                Act::Guests => guests(&mut table, scene),
                Act::Policy => policy(&mut table, scene),
                Act::Kills(parts) => kills(&mut table, scene, &up, parts, sabotage),
                Act::End => end(&mut table, scene, &up, sabotage),
            }
        }
    }
    stop(&mut table, &mut up);
    if !table.all_hold() {
        up.keep_logs(&places::target().join("demo-logs"));
    }
    table
}

fn begin(up: &mut Installation, sabotage: Option<Sabotage>) -> Result<(Scene, String)> {
    let aws = up.serving()?;
    aws.call(&["sts", "get-caller-identity"])?;
    let maps_before = bpf::map_entries(&up.state().join("run/bpf"))?;
    let files_before = durable_files(up)?;
    let plan = story::plan(&aws)?;
    if sabotage == Some(Sabotage::Policy) {
        let group = plan.b_group();
        aws.call(&[
            "ec2",
            "authorize-security-group-ingress",
            "--group-id",
            group,
            "--protocol",
            "tcp",
            "--port",
            B_PORT,
            "--cidr",
            "0.0.0.0/0",
        ])?;
    }
    let b = plan.run_b(&aws)?;
    if sabotage == Some(Sabotage::Imds) {
        up.signal("responder", libc::SIGSTOP)?;
    }
    let a = plan.run_a(&aws)?;
    if sabotage == Some(Sabotage::Imds) {
        let falsified = sabotage::falsify_metadata(up, &a.id);
        up.signal("responder", libc::SIGCONT)?;
        falsified?;
    }
    let scribbler =
        (sabotage == Some(Sabotage::Block)).then(|| Scribbler::start(&up.state(), &a.id));
    let answer = wait_state(&aws, &[&b.id, &a.id], "running", Duration::from_secs(60))?;
    let evidence = story::states(&answer)
        .into_iter()
        .map(|(id, state)| format!("describe-instances: {id} {state}"))
        .collect::<Vec<_>>()
        .join("\n");
    let vmms = leftovers::processes(&[&a.id, &b.id])?;
    let scene = Scene {
        aws,
        a,
        b,
        maps_before,
        files_before,
        vmms,
        _scribbler: scribbler,
    };
    Ok((scene, evidence))
}

fn guests(table: &mut Table, Scene { aws, a, b, .. }: &mut Scene) {
    for guest in [&mut *b, &mut *a] {
        let claim = format!(
            "{} saw its own instance id, private address and user data by IMDSv2",
            guest.name
        );
        table.check(&claim, || guest.saw_itself(aws));
    }
    table.check("metadata requests without a token are refused", || {
        Ok(format!(
            "{}\n{}",
            b.refused_without_token()?,
            a.refused_without_token()?
        ))
    });
    table.check("64 MiB of instance store are written and read back", || {
        a.verified(aws)
    });
}

fn policy(table: &mut Table, Scene { aws, a, b, .. }: &mut Scene) {
    table.check("TCP from A to B is refused by default", || a.refused(aws));
    table.check(
        "it passes within 1 s of authorize-security-group-ingress by group",
        || {
            ingress(aws, "authorize", &a.group, A_PORT, &b.group)?;
            let answer = ingress(aws, "authorize", &b.group, B_PORT, &a.group)?;
            let since = Instant::now();
            let seen = a.passes_within(aws, since, Duration::from_secs(1))?;
            Ok(format!("{}\n{seen}", answer["SecurityGroupRules"][0]))
        },
    );
    table.check(
        "after revoke new connections are refused, the established stream lives",
        || {
            for guest in [&mut *a, &mut *b] {
                let stream = guest.stream.clone();
                guest
                    .console
                    .wait(aws, Duration::from_secs(10), "its stream", |console| {
                        console
                            .lines_of(&stream)
                            .find(|line| line.text.contains(" alive "))
                            .cloned()
                    })?;
            }
            ingress(aws, "revoke", &b.group, B_PORT, &a.group)?;
            a.refused_again(aws)
        },
    );
}

fn kills(
    table: &mut Table,
    scene: &mut Scene,
    up: &Installation,
    parts: &[&str],
    sabotage: Option<Sabotage>,
) {
    for &part in parts {
        let claim = format!("{part} is killed: streams and disks of A and B go on");
        table.check(&claim, || {
            let before = progress(scene)?;
            if part == "node" && sabotage == Some(Sabotage::Adopt) {
                sabotage::lose_owner(up, &scene.a.id)?;
            }
            let old = up.signal(part, libc::SIGKILL)?;
            let new = up.replaced(part, old, RECOVERY_LIMIT)?;
            let [a, b] = went_on(scene, &before)?;
            Ok(format!(
                "{part}: {old} killed, {new} in its place\n{a}\n{b}"
            ))
        });
    }
    table.check(
        "everything is adopted: same VMMs, and a rule still takes effect",
        || {
            let Scene {
                aws, a, b, vmms, ..
            } = scene;
            let now = leftovers::processes(&[&a.id, &b.id])?;
            ensure!(
                now == *vmms && now.len() == 2,
                "other VMMs than before:\n{}\nnow:\n{}",
                vmms.join("\n"),
                now.join("\n")
            );
            wait_state(aws, &[&a.id, &b.id], "running", RECOVERY_LIMIT)?;
            let from = a.console.guest_now();
            ingress(aws, "authorize", &b.group, B_PORT, &a.group)?;
            let line = a
                .console
                .wait(aws, Duration::from_secs(15), "a connection", |console| {
                    let mut lines = console.lines_of("connect: ");
                    lines
                        .find(|line| line.at > from && line.text.contains(" ok "))
                        .cloned()
                })?;
            Ok(format!("{}\nA: {line}", now.join("\n")))
        },
    );
}

fn progress(scene: &mut Scene) -> Result<[Progress; 2]> {
    Ok([scene.a.progress(&scene.aws)?, scene.b.progress(&scene.aws)?])
}

fn went_on(scene: &mut Scene, [a, b]: &[Progress; 2]) -> Result<[String; 2]> {
    Ok([
        scene.a.went_on(&scene.aws, a, RECOVERY_LIMIT)?,
        scene.b.went_on(&scene.aws, b, RECOVERY_LIMIT)?,
    ])
}

fn end(table: &mut Table, scene: &mut Scene, up: &Installation, sabotage: Option<Sabotage>) {
    table.check(
        "terminated: no process, tap, cgroup, map entry, volume, key or file is left",
        || {
            let Scene { aws, a, b, .. } = &*scene;
            if sabotage == Some(Sabotage::Cleanup) {
                up.signal("node", libc::SIGSTOP)?;
            }
            let ids = [a.id.as_str(), b.id.as_str()];
            aws.call(&[
                "ec2",
                "terminate-instances",
                "--instance-ids",
                ids[0],
                ids[1],
            ])?;
            let gone =
                wait_state(aws, &ids, "terminated", Duration::from_secs(20)).and_then(|_| {
                    // A group that another's rule refers to cannot be deleted.
                    ingress(aws, "revoke", &a.group, A_PORT, &b.group)?;
                    ingress(aws, "revoke", &b.group, B_PORT, &a.group)?;
                    for guest in [a, b] {
                        aws.call(&["ec2", "delete-security-group", "--group-id", &guest.group])?;
                    }
                    leftovers::until_clean(Duration::from_secs(10), || {
                        nothing_of_the_instances(scene, up)
                    })
                });
            if sabotage == Some(Sabotage::Cleanup) {
                up.signal("node", libc::SIGCONT)?;
            }
            gone
        },
    );
}

fn nothing_of_the_instances(scene: &Scene, up: &Installation) -> Result<String> {
    let state = up.state();
    let ids = [scene.a.id.as_str(), scene.b.id.as_str()];
    leftovers::none("processes", &leftovers::processes(&ids)?)?;
    leftovers::none("cgroups", &leftovers::cgroups(&ids)?)?;
    let links = leftovers::links(&state)?;
    let taps: Vec<String> = links
        .iter()
        .filter(|link| link.starts_with("tap"))
        .cloned()
        .collect();
    leftovers::none("taps", &taps)?;
    leftovers::none("volumes and their keys", &leftovers::volumes(&state)?)?;
    let maps = bpf::map_entries(&state.join("run/bpf"))?;
    ensure!(
        maps == scene.maps_before,
        "map entries are not as before: {:?}, were {:?}",
        maps,
        scene.maps_before
    );
    let files = durable_files(up)?;
    let new: Vec<String> = files
        .into_iter()
        .filter(|file| !scene.files_before.contains(file))
        .collect();
    leftovers::none("files", &new)?;
    Ok(format!(
        "links in the taps' namespace:\n{}\nmap entries: {maps:?}\nprocesses, cgroups, volumes, new files: none",
        links.join("\n")
    ))
}

/// What an instance could leave on disk. Console rings are kept until EC2 forgets a
/// terminated instance, so that GetConsoleOutput still answers; logs and storaged's
/// table of volumes are the parts' own.
fn durable_files(up: &Installation) -> Result<Vec<String>> {
    let own = [
        "run/console",
        "log/",
        "storaged/volumes.json",
        "storaged/credits.json",
    ];
    let files = leftovers::files(&up.state())?;
    Ok(files
        .into_iter()
        .filter(|file| !own.iter().any(|start| file.starts_with(start)))
        .collect())
}

fn stop(table: &mut Table, up: &mut Installation) {
    table.check(
        "ctrl-C: no process, mount, namespace, cgroup or runtime file is left",
        || {
            up.stop()?;
            let state = up.state();
            let mark = state.display().to_string();
            leftovers::none("processes", &leftovers::processes(&[&mark])?)?;
            leftovers::none("mounts", &leftovers::mounts(&state)?)?;
            let run: Vec<String> = leftovers::files(&state.join("run"))?.into_iter().collect();
            leftovers::none("runtime files", &run)?;
            let kept = fs::read_dir(&state)
                .context("the state folder is gone")?
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                .collect::<Vec<_>>();
            Ok(format!("in the state folder, kept: {}", kept.join(", ")))
        },
    );
}
