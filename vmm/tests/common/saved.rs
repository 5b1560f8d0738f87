//! Machines that are saved, and those that go on from them.

use super::{Bench, Control, Vmm};
use ocs_vmm_spec::control::Reply;
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// Saves the machine into `NAME.state` and `NAME.memory` beside its spec.
pub fn snapshot(control: &mut Control, dir: &Path, name: &str, more: &str) -> (u64, u64) {
    let make = |kind: &str| File::create(dir.join(format!("{name}.{kind}"))).unwrap();
    let (state, memory) = (make("state"), make("memory"));
    let line = format!(r#"{{"cmd":"snapshot","state":{{"fd":0}},"memory":{{"fd":1}}{more}}}"#);
    match control.pass(&line, &[state.as_fd(), memory.as_fd()]) {
        Reply::Snapshot {
            written_bytes,
            paused_us,
            ..
        } => (written_bytes, paused_us),
        other => panic!("{other:?}"),
    }
}

/// A spec that goes on from snapshots beside `bench`'s, in a folder of its own.
pub fn clone_of(bench: &Bench, state: &str, memory: &[&str]) -> Bench {
    let mut clone = Bench::new(b"");
    let at = |name: &str, kind: &str| json!({"path": bench.path(&format!("{name}.{kind}"))});
    let memory: Vec<Value> = memory.iter().map(|name| at(name, "memory")).collect();
    for (key, value) in bench.spec.as_object().unwrap() {
        if !["boot", "incoming", "serial", "control", "exit_record"].contains(&key.as_str()) {
            clone.spec[key] = value.clone();
        }
    }
    clone.spec.as_object_mut().unwrap().remove("boot");
    clone.spec["restore"] = json!({"state": at(state, "state"), "memory": memory});
    clone
}

/// A spec that takes over the machine of `bench` from the other end of `socket`, likewise.
pub fn receiver_of(bench: &Bench, socket: &UnixStream) -> Bench {
    let mut to = clone_of(bench, "", &[]);
    to.spec.as_object_mut().unwrap().remove("restore");
    to.spec["incoming"] = json!({"fd": socket.as_raw_fd()});
    to
}

/// Starts with descriptors of this process that the spec names.
pub fn start_inheriting(bench: &Bench, fds: Vec<RawFd>) -> Vmm {
    let mut command = bench.command();
    // SAFETY: only clears a flag of descriptors that stay open in this process.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                libc::fcntl(*fd, libc::F_SETFD, 0);
            }
            Ok(())
        });
    }
    bench.adopt(command.spawn().unwrap())
}

/// The number behind the last `name=` on the console.
pub fn last_number(console: &str, name: &str) -> Option<u64> {
    let at = console.rfind(&format!("{name}="))? + name.len() + 1;
    let digits: String = console[at..]
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}
