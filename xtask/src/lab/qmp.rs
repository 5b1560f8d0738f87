//! QEMU's monitor: one JSON object a line each way (QEMU, `docs/interop/qmp-spec`).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A monitor that has been greeted.
pub struct Monitor {
    lines: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects as soon as QEMU listens.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = wait_for(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut monitor = Self {
            lines: BufReader::new(stream),
        };
        monitor.read()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs one command to its answer; events in between are dropped.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.lines.get_mut(), "{line}")
            .with_context(|| format!("QEMU took no {command}"))?;
        loop {
            let answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Waits until the migration under way has ended well.
    pub fn migrated(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(120);
        while Instant::now() < until {
            let info = self.execute("query-migrate", &json!({}))?;
            match info["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU's migration failed: {info}"),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        bail!("QEMU's migration did not end within 120 s")
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self
            .lines
            .read_line(&mut line)
            .context("QEMU's monitor does not answer")?;
        if count == 0 {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU answered no JSON: {line}"))
    }
}

/// Connects to a socket that a process just started is about to bind.
pub fn wait_for(socket: &Path) -> Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > until => {
                return Err(error)
                    .with_context(|| format!("QEMU does not listen on {}", socket.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
