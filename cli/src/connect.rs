//! `ocs connect`: standard input and output to a port of an instance and back, through its
//! VPC's instance-connect endpoint; a tenant's command, from wherever the API is reached.
//!
//! ```text
//!   ssh -o ProxyCommand='ocs connect %h %p' root@i-…
//! ```
//! Endpoint and credentials are those of `ocs up --write-env`'s file. The end of the input is
//! told to the instance; the end of what it says is ours.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures_util::{Sink, SinkExt as _, StreamExt as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::{digest, hmac};
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Arguments of `ocs connect`.
#[derive(Args)]
pub struct Arguments {
    /// The instance, i-…
    instance: String,
    /// Its TCP port.
    #[arg(default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The instance-connect endpoint, eice-…; else that of the instance's VPC.
    #[arg(long)]
    endpoint_id: Option<String>,
    /// Seconds after which the connection ends.
    #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u16).range(1..=3_600))]
    max_duration: u16,
    /// The API, http://… or https://…
    #[arg(long, env = "OCS_ENDPOINT")]
    endpoint_url: String,
    /// Its certificate's authority (PEM).
    #[arg(long, env = "OCS_CA_BUNDLE")]
    ca_bundle: Option<std::path::PathBuf>,
    /// The caller's access key.
    #[arg(long, env = "AWS_ACCESS_KEY_ID", hide_env_values = true)]
    access_key_id: String,
    /// Its region.
    #[arg(long, env = "AWS_DEFAULT_REGION")]
    region: String,
}

/// Bytes of input that are sent at once, and pieces that may wait.
const PIECE_BYTES: usize = 32 << 10;
const QUEUE: usize = 2;
/// How long the request may be under way.
const EXPIRES_S: &str = "60";
/// What RFC 3986 leaves unreserved.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Runs `ocs connect`.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(tunnel(arguments));
    // A thread may be reading a terminal.
    runtime.shutdown_background();
    ended
}

async fn tunnel(arguments: &Arguments) -> Result<()> {
    // Not an argument: those are seen by everybody.
    let secret = std::env::var("AWS_SECRET_ACCESS_KEY").context("AWS_SECRET_ACCESS_KEY")?;
    let url = arguments.endpoint_url.trim_end_matches('/');
    let (host, secure) = match url.split_once("://") {
        Some(("http", host)) => (host, false),
        Some(("https", host)) => (host, true),
        _ => bail!("OCS_ENDPOINT {url:?} is neither http://… nor https://…"),
    };
    let query = presigned(arguments, &secret, host, OffsetDateTime::now_utc())?;
    let default_port = if secure { 443 } else { 80 };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse()?),
        _ => (host, default_port),
    };
    let name = name.trim_matches(['[', ']']);
    let stream = TcpStream::connect((name, port))
        .await
        .with_context(|| format!("cannot reach {host}"))?;
    stream.set_nodelay(true)?;
    let request = format!("ws://{host}/openTunnel?{query}");
    if secure {
        let name = ServerName::try_from(name.to_owned())?;
        let connector = TlsConnector::from(Arc::new(trust(arguments)?));
        let stream = connector.connect(name, stream).await;
        return carry(
            &request,
            stream.with_context(|| format!("TLS with {host}"))?,
        )
        .await;
    }
    carry(&request, stream).await
}

/// TLS that believes the installation's own authority alone.
fn trust(arguments: &Arguments) -> Result<ClientConfig> {
    let path = arguments.ca_bundle.as_ref().context("OCS_CA_BUNDLE")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

async fn carry(request: &str, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let opened = tokio_tungstenite::client_async(request, stream).await;
    let (socket, _) = opened.map_err(refused)?;
    let (to, mut from) = socket.split();
    let upward = send(input()?, to);
    let downward = async {
        let mut out = std::io::stdout();
        while let Some(message) = from.next().await {
            match message {
                Ok(Message::Binary(bytes)) => {
                    out.write_all(&bytes)?;
                    out.flush()?;
                }
                Ok(Message::Close(_)) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error).context("the tunnel broke"),
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = downward => ended,
        ended = upward => ended,
    }
}

/// What the service says of a tunnel that it does not open.
fn refused(error: Error) -> anyhow::Error {
    let Error::Http(response) = error else {
        return anyhow::Error::new(error).context("the tunnel is not opened");
    };
    let body = response.body().as_deref().unwrap_or_default();
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(told) => anyhow::anyhow!(
            "{}: {}",
            told["ErrorCode"].as_str().unwrap_or_default(),
            told["Message"].as_str().unwrap_or_default()
        ),
        Err(_) => anyhow::anyhow!("the tunnel is not opened: HTTP {}", response.status()),
    }
}

/// Pieces of standard input, read by a thread: a terminal cannot be waited for otherwise.
fn input() -> Result<mpsc::Receiver<Vec<u8>>> {
    let (pieces, queue) = mpsc::channel(QUEUE);
    let read = move || {
        let mut bytes = vec![0; PIECE_BYTES];
        let mut from = std::io::stdin().lock();
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            if pieces.blocking_send(bytes[..length].to_vec()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().spawn(read)?;
    Ok(queue)
}

/// Sends input, and its end, which an empty message tells; then waits for ever.
async fn send(
    mut input: mpsc::Receiver<Vec<u8>>,
    mut to: impl Sink<Message, Error = Error> + Unpin,
) -> Result<()> {
    while let Some(bytes) = input.recv().await {
        if to.send(Message::Binary(bytes.into())).await.is_err() {
            return std::future::pending().await;
        }
    }
    let _ = to.send(Message::Binary(Vec::new().into())).await;
    std::future::pending().await
}

/// The query string of a tunnel's request, signed (AWS Signature Version 4, in the query).
fn presigned(
    arguments: &Arguments,
    secret: &str,
    host: &str,
    now: OffsetDateTime,
) -> Result<String> {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = now.format(&format)?;
    let scope = [
        &at[..8],
        &arguments.region,
        "ec2-instance-connect",
        "aws4_request",
    ];
    let (port, most) = (
        arguments.port.to_string(),
        arguments.max_duration.to_string(),
    );
    let credential = format!("{}/{}", arguments.access_key_id, scope.join("/"));
    let mut pairs = vec![
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", &at),
        ("X-Amz-Expires", EXPIRES_S),
        ("X-Amz-SignedHeaders", "host"),
        ("instanceId", &arguments.instance),
        ("maxTunnelDuration", &most),
        ("remotePort", &port),
    ];
    if let Some(id) = &arguments.endpoint_id {
        pairs.push(("instanceConnectEndpointId", id));
    }
    pairs.sort_unstable();
    let pairs = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ESCAPED)));
    let query = pairs.collect::<Vec<_>>().join("&");
    let hash = |text: &str| hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    let canonical = format!(
        "GET\n/openTunnel\n{query}\nhost:{host}\n\nhost\n{}",
        hash("")
    );
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{at}\n{}\n{}",
        scope.join("/"),
        hash(&canonical)
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope.into_iter().chain([to_sign.as_str()]) {
        let by = hmac::Key::new(hmac::HMAC_SHA256, &key);
        key = hmac::sign(&by, part.as_bytes()).as_ref().to_vec();
    }
    Ok(format!("{query}&X-Amz-Signature={}", hex(&key)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
