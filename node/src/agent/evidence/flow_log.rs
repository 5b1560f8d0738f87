//! VPC flow logs: a file an ENI, in AWS's default format (Amazon VPC User Guide, "Flow log
//! records", version 2).
//!
//! ```text
//! 2 account eni source destination sport dport protocol packets bytes start end ACCEPT|REJECT OK
//! ```

use crate::agent::policy::Switchboard;
use ocs_dataplane::fabric::{Fabric, FlowLog};
use ocs_dataplane::model::PortId;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a record covers at most: EC2's shorter aggregation interval.
const INTERVAL: Duration = Duration::from_secs(60);
/// A file this long becomes the one before, which goes.
const FILE_BYTES: u64 = 8 << 20;

/// Keeps a log of every ENI.
pub struct FlowLogs {
    fabric: Arc<Fabric>,
    folder: PathBuf,
}

impl FlowLogs {
    /// Logs into a folder that root alone can read.
    pub fn new(fabric: Arc<Fabric>, folder: PathBuf) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        Ok(Self { fabric, folder })
    }

    /// Runs until the process ends.
    pub fn run(&self, accounts: impl Fn() -> Accounts) {
        let mut since = SystemTime::now();
        loop {
            let until = SystemTime::now();
            self.write_all(&accounts(), since, until);
            since = until;
            std::thread::sleep(INTERVAL);
        }
    }

    /// Writes what each ENI's log was told, and starts logs of new ones.
    fn write_all(&self, accounts: &Accounts, since: SystemTime, until: SystemTime) {
        for port in self.fabric.ports() {
            let account = accounts.get(&port.0).map_or("-", String::as_str);
            if let Err(error) = self.write(&port, account, since, until) {
                tracing::warn!(eni = port.0, %error, "flow log");
            }
        }
    }

    fn write(
        &self,
        port: &PortId,
        account: &str,
        since: SystemTime,
        until: SystemTime,
    ) -> anyhow::Result<()> {
        match self.fabric.take_flow_log(port)? {
            Some(log) => {
                let path = self.folder.join(format!("{}.log", port.0));
                append(
                    &path,
                    records(account, &port.0, &log, since, until).as_bytes(),
                )?;
            }
            None => self.fabric.set_logged(port, true)?,
        }
        Ok(())
    }
}

/// Whose an ENI is.
pub type Accounts = std::collections::BTreeMap<String, String>;

impl Switchboard {
    /// Whose each ENI is.
    pub fn accounts(&self) -> Accounts {
        self.plugged()
            .into_iter()
            .flat_map(|plugged| {
                let account = plugged.account;
                plugged
                    .enis
                    .into_iter()
                    .map(move |eni| (eni.id, account.clone()))
            })
            .collect()
    }
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn records(
    account: &str,
    eni: &str,
    log: &FlowLog,
    since: SystemTime,
    until: SystemTime,
) -> String {
    let mut text = String::new();
    for flow in &log.records {
        let _ = writeln!(
            text,
            "2 {account} {eni} {} {} {} {} {} {} {} {} {} {} OK",
            flow.source,
            flow.destination,
            flow.source_port,
            flow.destination_port,
            flow.protocol,
            flow.packets,
            flow.bytes,
            unix_s(flow.first),
            unix_s(flow.last),
            if flow.accepted { "ACCEPT" } else { "REJECT" },
        );
    }
    let (start, end) = (unix_s(since), unix_s(until));
    let status = match (log.skipped_packets, log.records.is_empty()) {
        (0, false) => return text,
        (0, true) => "NODATA",
        _ => "SKIPDATA",
    };
    let _ = writeln!(
        text,
        "2 {account} {eni} - - - - - - - {start} {end} - {status}"
    );
    text
}

/// Appends whole records; a file that is full becomes the one before.
fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() > FILE_BYTES) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?
        .write_all(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocs_dataplane::fabric::FlowRecord;

    #[test]
    fn records_are_as_aws_documents_them() {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let ssh = FlowRecord {
            source: "172.31.16.139".parse().unwrap(),
            destination: "172.31.16.21".parse().unwrap(),
            source_port: 20_641,
            destination_port: 22,
            protocol: 6,
            accepted: true,
            packets: 20,
            bytes: 4_249,
            first: at(1_418_530_010),
            last: at(1_418_530_070),
        };
        let rdp = FlowRecord {
            destination_port: 3_389,
            accepted: false,
            ..ssh.clone()
        };
        let mut log = FlowLog {
            records: vec![ssh, rdp],
            skipped_packets: 0,
        };
        let eni = "eni-1235b8ca123456789";
        let text = |log: &FlowLog| records("123456789010", eni, log, at(1), at(61));
        assert_eq!(
            text(&log),
            "2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 \
             1418530010 1418530070 ACCEPT OK\n\
             2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 3389 6 20 4249 \
             1418530010 1418530070 REJECT OK\n"
        );
        log.skipped_packets = 1;
        assert!(
            text(&log)
                .ends_with("2 123456789010 eni-1235b8ca123456789 - - - - - - - 1 61 - SKIPDATA\n")
        );
        assert_eq!(
            text(&FlowLog::default()),
            "2 123456789010 eni-1235b8ca123456789 - - - - - - - 1 61 - NODATA\n"
        );
    }

    #[test]
    fn a_full_file_becomes_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eni-1.log");
        fs::write(&path, vec![b'x'; usize::try_from(FILE_BYTES).unwrap() + 1]).unwrap();
        append(&path, b"new\n").unwrap();
        append(&path, b"er\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\ner\n");
        assert!(
            fs::metadata(folder.path().join("eni-1.log.1"))
                .unwrap()
                .len()
                > FILE_BYTES
        );
    }
}
