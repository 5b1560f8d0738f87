//! Machines of `ocs-vmm`: a spec in a folder, a process, requests on the control socket.

use crate::process::Guarded;
use anyhow::Result;
use ocs_vmm_spec::control::Reply;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

/// A machine with one vCPU whose files in `dir` are named after it.
pub fn spec(dir: &Path, id: &str, memory_mib: u64) -> Value {
    json!({
        "version": ocs_vmm_spec::SPEC_VERSION, "id": id, "vcpus": 1, "memory_mib": memory_mib,
        "serial": {"ring": {"path": dir.join(format!("{id}.ring"))}, "capacity_bytes": 65536},
    })
}

/// Starts it.
pub fn start(vmm: &Path, dir: &Path, spec: &Value) -> Result<Guarded> {
    let id = spec["id"].as_str().unwrap_or_default();
    let file = dir.join(format!("{id}.json"));
    std::fs::write(&file, spec.to_string())?;
    Guarded::spawn(
        Command::new(vmm).arg("--spec").arg(file),
        &dir.join(format!("{id}.log")),
    )
}

/// Asks a VMM, with files that the request names by their place.
pub fn ask(control: &Path, request: &str, files: &[BorrowedFd<'_>]) -> Result<Reply> {
    let stream = UnixStream::connect(control)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(files));
    }
    let line = format!("{request}\n");
    let bytes = [IoSlice::new(line.as_bytes())];
    sendmsg(&stream, &bytes, &mut ancillary, SendFlags::empty())?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    Ok(serde_json::from_str(&reply)?)
}

/// Asks for a snapshot into two files.
pub const SNAPSHOT: &str = r#"{"cmd":"snapshot","state":{"fd":0},"memory":{"fd":1}}"#;
