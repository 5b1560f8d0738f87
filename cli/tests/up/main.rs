//! `ocs up` itself, with stand-ins for its parts (see [`fake`]): what it starts,
//! what it survives, what it leaves. The real parts meet in the system tests.

mod bed;
mod fake;

use bed::Bed;
use libtest_mimic::{Arguments, Trial};
use std::os::unix::fs::PermissionsExt;

fn main() {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    if let Some(part) = program
        .rsplit('/')
        .next()
        .and_then(|name| name.strip_prefix("ocs-"))
    {
        return fake::run(part, &words.collect::<Vec<_>>());
    }
    let tests: [(&str, fn()); 7] = [
        (
            "it_serves_until_it_is_asked_to_stop_and_leaves_nothing",
            stops,
        ),
        ("it_needs_nobody_to_read_what_it_says", is_unheard),
        ("a_second_ocs_up_is_refused_and_told_who_serves", refuses),
        (
            "parts_outlive_a_killed_ocs_up_and_are_replaced_by_the_next",
            outlives,
        ),
        ("a_killed_control_comes_back_at_its_address", comes_back),
        ("what_is_missing_or_taken_is_named", names),
        ("a_system_that_cannot_start_says_why_and_cleans_up", fails),
    ];
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let trials = tests.map(trial).into();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn stops() {
    let bed = Bed::new();
    let mut up = bed.up();
    let env = bed.env();
    for name in [
        "OCS_ENDPOINT",
        "OCS_GRPC_ENDPOINT",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_DEFAULT_REGION",
        "OCS_ACCOUNT_ID",
        "OCS_ZONE",
        "OCS_PROBE_AMI",
        "OCS_PROBE_AMI_INSTANCE_STORE",
    ] {
        assert!(
            env.get(name).is_some_and(|value| !value.is_empty()),
            "{name}: {env:?}"
        );
    }
    let mode = bed.env_path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for part in ["control", "storaged", "responder", "node"] {
        assert!(bed.pid(part).is_some(), "{part} does not run");
    }
    let status = bed.ocs(&["status"]);
    assert!(status.status.success(), "{status:?}");
    up.terminate();
    assert!(up.wait().success(), "{}", up.said());
    assert!(bed.state().join("cleaned").exists());
    assert!(!bed.state().join("run").exists());
    assert!(bed.state().join("control").exists());
    assert!(!bed.env_path().exists());
    assert_eq!(bed.processes(), Vec::<u32>::new());
    assert!(!bed.ocs(&["status"]).status.success());
}

fn is_unheard() {
    let bed = Bed::new();
    let mut up = bed.up_unheard();
    bed.env();
    up.terminate();
    assert!(up.wait().success());
    assert!(bed.state().join("cleaned").exists());
    assert!(!bed.state().join("run").exists());
    assert_eq!(bed.processes(), Vec::<u32>::new());
}

fn refuses() {
    let bed = Bed::new();
    let up = bed.up();
    bed.env();
    let second = bed.ocs(&["up", "--listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(said.contains(&format!("(pid {})", up.id())), "{said}");
    assert!(bed.pid("node").is_some());
}

fn outlives() {
    let bed = Bed::new();
    let parts = ["control", "storaged", "responder", "node"];
    let mut up = bed.up();
    bed.env();
    // storaged hands over to the next one, and where it does not is stopped.
    for (stubborn, word) in [(false, "has handed over"), (true, "does not hand over")] {
        if stubborn {
            std::fs::write(bed.state().join("storaged/stubborn"), "").unwrap();
        }
        up.kill();
        let before = parts.map(|part| bed.pid(part).expect(part));
        std::fs::remove_file(bed.env_path()).unwrap();
        up = bed.up();
        bed.env();
        bed.until("all run", || {
            parts.iter().all(|part| bed.pid(part).is_some())
        });
        let after = parts.map(|part| bed.pid(part).expect(part));
        for (old, new) in before.iter().zip(after) {
            assert_ne!(*old, new);
            assert!(!bed.processes().contains(old), "{old} still runs");
        }
        assert!(up.said().contains(word), "{}", up.said());
    }
    assert!(!bed.state().join("cleaned").exists());
}

fn comes_back() {
    let bed = Bed::new();
    let _up = bed.up();
    let endpoint = bed.env()["OCS_ENDPOINT"].clone();
    let address = endpoint.strip_prefix("http://").unwrap().to_owned();
    let first = bed.pid("control").unwrap();
    bed.kill(first);
    bed.until("control is back", || {
        bed.pid("control").is_some_and(|pid| pid != first)
            && std::net::TcpStream::connect(&address).is_ok()
    });
}

fn names() {
    let bed = Bed::new();
    std::fs::remove_file(bed.program("ocs-vmm")).unwrap();
    let missing = bed.ocs(&["up"]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("ocs-vmm is missing"), "{said}");
    let unprivileged = bed.ocs_as_nobody(&["up"]);
    let said = String::from_utf8_lossy(&unprivileged.stderr).into_owned();
    assert!(said.contains("sudo ocs up"), "{said}");
    assert!(!bed.state().exists());
    std::fs::write(bed.program("ocs-vmm"), "").unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let in_use = bed.ocs(&["up", "--listen", &taken]);
    let said = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(
        said.contains(&format!("--listen {taken}: Address already in use")),
        "{said}"
    );
}

fn fails() {
    let bed = Bed::new();
    // A part that cannot live: its program is none.
    std::fs::write(bed.program("ocs-storaged"), "").unwrap();
    let failed = bed.ocs(&["up", "--listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success());
    assert!(said.contains("ocs-storaged keeps ending"), "{said}");
    assert!(!bed.state().join("run").exists());
    assert_eq!(bed.processes(), Vec::<u32>::new());
}
