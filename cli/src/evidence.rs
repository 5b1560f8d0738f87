//! `ocs explain`, `ocs top`, `ocs metrics`, `ocs capture`: what the packet path did and
//! would do, asked of the node through a socket that root alone can open.

use crate::state::State;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Arguments of `ocs top` and `ocs metrics`.
#[derive(Args)]
pub struct Place {
    /// The installation's state folder.
    #[arg(long, default_value = super::up::DEFAULT_STATE)]
    state: PathBuf,
}

/// Arguments of `ocs explain`.
#[derive(Args)]
pub struct Explain {
    #[command(flatten)]
    place: Place,
    /// The network interface that would send (eni-…).
    #[arg(long)]
    from: String,
    /// The address that it would send to.
    #[arg(long)]
    to: IpAddr,
    /// The address that it would send from, where it has several.
    #[arg(long)]
    source: Option<IpAddr>,
    /// tcp, udp, icmp, icmpv6, or an IP protocol's number.
    #[arg(long, default_value = "tcp", value_parser = protocol)]
    proto: u8,
    /// Destination port of TCP and UDP.
    #[arg(long, required_if_eq_any([("proto", "tcp"), ("proto", "udp")]))]
    dport: Option<u16>,
    /// Source port: names one flow of those that may be tracked.
    #[arg(long, default_value_t = 49_152)]
    sport: u16,
    /// Type of ICMP or ICMPv6; an echo request where not given.
    #[arg(long)]
    icmp_type: Option<u8>,
    /// Code of ICMP or ICMPv6.
    #[arg(long, default_value_t = 0)]
    icmp_code: u8,
}

/// Arguments of `ocs capture`.
#[derive(Args)]
pub struct Capture {
    #[command(flatten)]
    place: Place,
    /// The network interface (eni-…).
    eni: String,
    /// The pcapng file to write.
    #[arg(long)]
    write: PathBuf,
    /// Bytes of each frame to keep.
    #[arg(long, default_value_t = 1_514, value_parser = clap::value_parser!(u16).range(14..=1_520))]
    snap_bytes: u16,
    /// Seconds to watch; else until Ctrl-C.
    #[arg(long)]
    seconds: Option<u64>,
}

/// IP protocols (RFC 792, RFC 4443).
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

fn protocol(name: &str) -> Result<u8, String> {
    match name {
        "icmp" => Ok(ICMP),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(ICMPV6),
        number => number
            .parse()
            .map_err(|_| "tcp, udp, icmp, icmpv6 or a number from 0 to 255".to_owned()),
    }
}

/// Runs `ocs explain`.
pub fn explain(arguments: &Explain) -> Result<()> {
    let icmp = |echo_request| {
        let kind = arguments.icmp_type.unwrap_or(echo_request);
        u16::from_be_bytes([kind, arguments.icmp_code])
    };
    let port = match (arguments.proto, arguments.to) {
        (ICMP, IpAddr::V6(to)) => bail!("--proto icmp: to {to} it is icmpv6"),
        (ICMPV6, IpAddr::V4(to)) => bail!("--proto icmpv6: to {to} it is icmp"),
        (ICMP, _) => icmp(8),
        (ICMPV6, _) => icmp(128),
        _ => arguments.dport.unwrap_or(0),
    };
    print(
        &arguments.place,
        &json!({
            "ask": "explain",
            "from": arguments.from,
            "to": arguments.to,
            "source": arguments.source,
            "protocol": arguments.proto,
            "source_port": arguments.sport,
            "destination_port": port,
        }),
    )
}

/// Runs `ocs top`.
pub fn top(place: &Place) -> Result<()> {
    print(place, &json!({"ask": "top"}))
}

/// Runs `ocs metrics`.
pub fn metrics(place: &Place) -> Result<()> {
    print(place, &json!({"ask": "metrics"}))
}

/// Runs `ocs capture`.
pub fn capture(arguments: &Capture) -> Result<()> {
    let request = json!({
        "ask": "capture",
        "of": arguments.eni,
        "snap_bytes": arguments.snap_bytes,
    });
    let mut answer = ask(&arguments.place, &request)?;
    let path = arguments.write.display();
    // Tenants' traffic is for root's eyes.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&arguments.write)
        .with_context(|| path.to_string())?;
    let until = arguments
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    answer
        .get_ref()
        .set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut frames = 0_u64;
    let mut waiting = Vec::new();
    while until.is_none_or(|until| Instant::now() < until) {
        let mut bytes = [0; 65_536];
        match answer.read(&mut bytes) {
            Ok(0) => bail!("the node ended the capture; {frames} frames are in {path}"),
            Ok(length) => waiting.extend_from_slice(&bytes[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("reading frames"),
        }
        frames += write_blocks(&mut file, &mut waiting).with_context(|| path.to_string())?;
    }
    println!("{frames} frames in {path}");
    Ok(())
}

/// Writes whole blocks, so that the file is one whenever this ends; how many frames.
fn write_blocks(file: &mut File, waiting: &mut Vec<u8>) -> Result<u64> {
    const ENHANCED_PACKET: u32 = 6;
    let (mut whole, mut frames) = (0, 0);
    while let Some(head) = waiting[whole..].first_chunk::<8>() {
        let [a, b, c, d, e, f, g, h] = *head;
        let length = usize::try_from(u32::from_ne_bytes([e, f, g, h]))?;
        ensure!(length >= 12, "a block of {length} bytes");
        if waiting.len() - whole < length {
            break;
        }
        frames += u64::from(u32::from_ne_bytes([a, b, c, d]) == ENHANCED_PACKET);
        whole += length;
    }
    file.write_all(&waiting[..whole])?;
    waiting.drain(..whole);
    Ok(frames)
}

fn print(place: &Place, request: &Value) -> Result<()> {
    let mut answer = ask(place, request)?;
    std::io::copy(&mut answer, &mut std::io::stdout())?;
    Ok(())
}

/// Asks the node; what follows "ok".
fn ask(place: &Place, request: &Value) -> Result<BufReader<UnixStream>> {
    let path = State::at(&place.state)?.path("run/evidence.sock");
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("{}: does `ocs up` run here?", path.display()))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = BufReader::new(stream);
    let mut status = String::new();
    answer.read_line(&mut status)?;
    match status.trim_end() {
        "ok" => Ok(answer),
        "" => bail!("the node is too busy; try again"),
        refusal => bail!("{}", refusal.trim_start_matches("error: ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcapng");
        let mut file = File::create(&path).unwrap();
        let mut block = 6_u32.to_ne_bytes().to_vec();
        block.extend(16_u32.to_ne_bytes());
        block.extend([7; 4]);
        block.extend(16_u32.to_ne_bytes());
        let mut waiting = [&block[..], &block[..9]].concat();
        assert_eq!(write_blocks(&mut file, &mut waiting).unwrap(), 1);
        assert_eq!(std::fs::read(&path).unwrap(), block);
        assert_eq!(waiting, block[..9]);
        waiting.extend_from_slice(&block[9..]);
        assert_eq!(write_blocks(&mut file, &mut waiting).unwrap(), 1);
        assert!(waiting.is_empty());
    }
}
