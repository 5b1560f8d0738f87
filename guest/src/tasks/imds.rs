//! The instance's own metadata, by IMDSv2 (EC2 User Guide, "Use IMDS"): a token by PUT,
//! then reads with it; and one read without, to show whether version 1 is refused.

use crate::clock;
use crate::console::say;
use crate::executor;
use crate::net::Net;
use crate::net::http::{HttpError, Request};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use ocs_probe_logic::order::{Line, parse_all};

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
const PATIENCE_US: u64 = 3_000_000;
const RETRY_US: u64 = 5_000_000;
/// EC2's limit for user data, before base64.
const MAX_USER_DATA_BYTES: usize = 16 << 10;
const MAX_VALUE_BYTES: usize = 256;

/// What one attempt ended in.
enum ImdsError {
    Http(&'static str, HttpError),
    Status(&'static str, u16),
}

impl fmt::Display for ImdsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(what, error) => write!(f, "{error} path={what}"),
            Self::Status(what, status) => write!(f, "status-{status} path={what}"),
        }
    }
}

/// The orders in user data. Tries until the service answers.
pub async fn orders(net: &Rc<Net>) -> Vec<Line> {
    loop {
        match attempt(net).await {
            Ok(lines) => return lines,
            Err(error) => say!("imds: error={error}"),
        }
        executor::sleep_until(clock::now_us() + RETRY_US).await;
    }
}

async fn attempt(net: &Rc<Net>) -> Result<Vec<Line>, ImdsError> {
    let token = token(net).await?;
    let headers = format!("X-aws-ec2-metadata-token: {token}\r\n");
    let instance_id = value(net, "/latest/meta-data/instance-id", &headers).await?;
    let local_ipv4 = value(net, "/latest/meta-data/local-ipv4", &headers).await?;
    let (v1_status, _) = get(net, "/latest/meta-data/instance-id", "").await?;
    let (status, data) = get(net, "/latest/user-data", &headers).await?;
    let data = match status {
        200 => data,
        404 => Vec::new(),
        _ => return Err(ImdsError::Status("/latest/user-data", status)),
    };
    say!("imds: instance-id={instance_id} local-ipv4={local_ipv4} v1_status={v1_status}");
    let lines = parse_all(&data, b'\n');
    say!("user-data: bytes={} orders={}", data.len(), lines.len());
    Ok(lines)
}

/// All private addresses of the interface, one a line; nothing where the service does not
/// answer.
pub async fn private_addresses(net: &Rc<Net>) -> Option<String> {
    let token = token(net).await.ok()?;
    let headers = format!("X-aws-ec2-metadata-token: {token}\r\n");
    let path = format!(
        "/latest/meta-data/network/interfaces/macs/{}/local-ipv4s",
        net.mac()
    );
    let request = Request {
        server: SERVER,
        method: "GET",
        path: &path,
        headers: &headers,
        patience_us: PATIENCE_US,
    };
    match request.fetch(net, MAX_USER_DATA_BYTES).await {
        Ok((200, body)) => String::from_utf8(body).ok(),
        _ => None,
    }
}

async fn token(net: &Rc<Net>) -> Result<String, ImdsError> {
    const PATH: &str = "/latest/api/token";
    let request = Request {
        server: SERVER,
        method: "PUT",
        path: PATH,
        headers: "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n",
        patience_us: PATIENCE_US,
    };
    match request.fetch(net, MAX_VALUE_BYTES).await {
        Ok((200, body)) => Ok(printable(&body)),
        Ok((status, _)) => Err(ImdsError::Status(PATH, status)),
        Err(error) => Err(ImdsError::Http(PATH, error)),
    }
}

async fn get(
    net: &Rc<Net>,
    path: &'static str,
    headers: &str,
) -> Result<(u16, Vec<u8>), ImdsError> {
    let request = Request {
        server: SERVER,
        method: "GET",
        path,
        headers,
        patience_us: PATIENCE_US,
    };
    request
        .fetch(net, MAX_USER_DATA_BYTES)
        .await
        .map_err(|error| ImdsError::Http(path, error))
}

async fn value(net: &Rc<Net>, path: &'static str, headers: &str) -> Result<String, ImdsError> {
    match get(net, path, headers).await? {
        (200, body) => Ok(printable(&body[..body.len().min(MAX_VALUE_BYTES)])),
        (status, _) => Err(ImdsError::Status(path, status)),
    }
}

fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .filter(|b| b.is_ascii_graphic())
        .map(|b| char::from(*b))
        .collect()
}
