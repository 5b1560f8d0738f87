use super::*;
use crate::part::Running;
use crate::state::Uids;
use std::fs;
use std::path::Path;

const UIDS: Uids = Uids { base: 71_000 };

/// A state whose storaged is this shell script.
fn bed(script: &str) -> (tempfile::TempDir, State, Start) {
    let folder = tempfile::tempdir().unwrap();
    let state = State::at(&folder.path().join("state")).unwrap();
    fs::create_dir(state.root()).unwrap();
    state.make_folders(UIDS).unwrap();
    let part = Part::Storaged;
    super::super::make_part_file(&state.lock(part), UIDS.of(part)).unwrap();
    fs::set_permissions(folder.path(), mode(0o755)).unwrap();
    let program = folder.path().join(part.program());
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    let start = Start {
        part,
        program,
        arguments: vec!["-c".into(), script.into(), state.root().into()],
        identity: Some(UIDS.of(part)),
    };
    (folder, state, start)
}

fn mode(bits: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(bits)
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn pid(state: &State) -> Option<u32> {
    Running::find(state, Part::Storaged).map(|running| running.pid)
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_killed_part_comes_back_and_a_stopped_one_does_not() {
    let (_folder, state, start) = bed("while :; do sleep 0.1; done");
    let mut supervisor = Supervisor::new(&state);
    supervisor.start(start);
    let first = until("the part runs", || pid(&state)).await;
    kill_process(Pid::from_raw(first as i32).unwrap(), Signal::KILL).unwrap();
    let second = until("it runs again", || pid(&state).filter(|pid| *pid != first)).await;
    assert!(supervisor.failing().is_none());
    supervisor.stop_all().await.unwrap();
    assert!(!alive(second));
    assert_eq!(pid(&state), None);
}

#[tokio::test]
async fn a_part_has_its_own_identity_session_and_log() {
    let (_folder, state, start) = bed("echo out; echo err >&2; while :; do sleep 0.1; done");
    let mut supervisor = Supervisor::new(&state);
    // As a careless caller leaves one: without close-on-exec.
    let left_open = rustix::io::dup(fs::File::open("/dev/null").unwrap()).unwrap();
    supervisor.start(start);
    let pid = until("the part runs", || pid(&state)).await;
    let log = state.log(Part::Storaged);
    until("both streams are logged", || {
        (fs::read_to_string(&log).ok()? == "out\nerr\n").then_some(())
    })
    .await;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        "Uid:\t71003\t71003\t71003\t71003",
        "Gid:\t71003\t71003\t71003\t71003",
        "Groups:\t ",
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Umask:\t0022",
    ] {
        assert!(
            status.lines().any(|l| l == line),
            "no {line:?} in\n{status}"
        );
    }
    let left_open = std::os::fd::AsRawFd::as_raw_fd(&left_open);
    assert!(!Path::new(&format!("/proc/{pid}/fd/{left_open}")).exists());
    let session = rustix::process::getsid(Pid::from_raw(pid as i32)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), pid as i32);
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"));
    supervisor.stop_all().await.unwrap();
}

#[tokio::test]
async fn a_part_that_keeps_ending_is_named() {
    let (_folder, state, start) = bed("exit 3");
    let mut supervisor = Supervisor::new(&state);
    supervisor.start(start);
    let part = until("it is noticed", || supervisor.failing()).await;
    assert_eq!(part, Part::Storaged);
    supervisor.stop_all().await.unwrap();
}

#[tokio::test]
async fn a_replaced_command_line_holds_from_the_next_start() {
    let (_folder, state, start) = bed("echo one; while :; do sleep 0.1; done");
    let mut next = start.clone();
    next.arguments[1] = "echo two; while :; do sleep 0.1; done".into();
    let mut supervisor = Supervisor::new(&state);
    supervisor.start(start);
    let first = until("the part runs", || pid(&state)).await;
    supervisor.replace(next);
    let log = state.log(Part::Storaged);
    until("one", || {
        (fs::read_to_string(&log).ok()? == "one\n").then_some(())
    })
    .await;
    assert!(alive(first));
    kill_process(Pid::from_raw(first as i32).unwrap(), Signal::KILL).unwrap();
    until("two", || {
        (fs::read_to_string(&log).ok()? == "one\ntwo\n").then_some(())
    })
    .await;
    supervisor.stop_all().await.unwrap();
}
