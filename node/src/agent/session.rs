//! The session with control: one stream each way over mTLS, made again whenever it ends.

use super::connect::Endpoints;
use super::engine::Word;
use super::layout::{Layout, is_plain_id};
use super::outbox::Outbox;
use ocs_node_api as api;
use ocs_node_api::node_gateway_client::NodeGatewayClient;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// Version of the protocol, in `Hello`.
const PROTOCOL: u32 = 1;
/// Messages on their way to control.
const QUEUE: usize = 64;
/// Largest message: a snapshot of a full host, with user data.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// A session that lasted this long was a good one.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// What a session takes.
#[derive(Clone)]
pub struct Session {
    /// Such as `https://127.0.0.1:7443`.
    pub control: String,
    /// The authority that control's certificate must come from.
    pub ca: PathBuf,
    /// Our certificate; its common name is ours.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Our name.
    pub node: String,
    /// This boot of the host.
    pub boot_id: String,
    /// Schedulable.
    pub vcpus: u32,
    /// Schedulable.
    pub memory_mib: u64,
    /// How we are reached.
    pub reach: Reach,
    /// Where consoles lie.
    pub layout: Layout,
    /// Where connections begin that control asks for.
    pub endpoints: Arc<Endpoints>,
}

/// How a host is reached, and reaches others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach {
    /// Our address on the underlay, where there is one.
    pub underlay: Option<Ipv4Addr>,
    /// The longest IP packet that our guests may send.
    pub guest_mtu: u32,
    /// Public addresses are answered for.
    pub outside: bool,
}

/// What a removed host hears: instances end, volumes are left as they are. It counts as said,
/// for revision 0 is silence, in which nothing ends.
pub(super) fn nothing_desired() -> api::Snapshot {
    api::Snapshot {
        revision: 1,
        ..api::Snapshot::default()
    }
}

impl Session {
    /// Keeps a session for as long as the engine listens.
    pub async fn keep(self, outbox: Arc<Outbox>, words: mpsc::Sender<Word>) {
        let mut wait = RETRY_FIRST;
        let mut removed = false;
        while !words.is_closed() {
            let began = Instant::now();
            if let Err(error) = self.once(&outbox, &words).await {
                let status = error.downcast_ref::<tonic::Status>();
                let now = status.is_some_and(|status| status.code() == api::REMOVED);
                if now && !std::mem::replace(&mut removed, now) {
                    let _ = words.send(Word::Snapshot(nothing_desired())).await;
                }
                tracing::warn!(
                    control = self.control,
                    error = format!("{error:#}"),
                    "no session"
                );
            }
            if began.elapsed() > GOOD_SESSION {
                wait = RETRY_FIRST;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_LONGEST);
        }
    }

    /// A connection to control.
    async fn dial(&self) -> anyhow::Result<NodeGatewayClient<Channel>> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(&self.ca)?))
            .identity(Identity::from_pem(
                std::fs::read(&self.certificate)?,
                std::fs::read(&self.key)?,
            ));
        let channel = Endpoint::from_shared(self.control.clone())?
            .tls_config(tls)?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .connect()
            .await?;
        Ok(NodeGatewayClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    async fn once(&self, outbox: &Arc<Outbox>, words: &mpsc::Sender<Word>) -> anyhow::Result<()> {
        let mut client = self.dial().await?;
        let (up, queue) = mpsc::channel(QUEUE);
        up.send(message(api::from_node::Message::Hello(self.hello(outbox))))
            .await?;
        let mut down = client
            .session(ReceiverStream::new(queue))
            .await?
            .into_inner();
        tracing::info!(control = self.control, "session");

        let (news, reports) = (Arc::clone(outbox), up.clone());
        let teller = tokio::spawn(async move {
            loop {
                for report in news.news().await {
                    let report = message(api::from_node::Message::Report(report));
                    if reports.send(report).await.is_err() {
                        return;
                    }
                }
            }
        });
        let heard = async {
            while let Some(word) = down.message().await? {
                match word.message {
                    Some(api::to_node::Message::Snapshot(all)) => {
                        words.send(Word::Snapshot(all)).await?;
                    }
                    Some(api::to_node::Message::Delta(delta)) => {
                        words.send(Word::Delta(delta)).await?;
                    }
                    Some(api::to_node::Message::Query(api::Query {
                        id,
                        question: Some(api::query::Question::OpenTunnel(wanted)),
                    })) => {
                        let (session, up) = (self.clone(), up.clone());
                        tokio::spawn(async move { session.tunnel(id, wanted, up).await });
                    }
                    Some(api::to_node::Message::Query(query)) => {
                        let answer = message(api::from_node::Message::Answer(self.answer(query)));
                        up.send(answer).await?;
                    }
                    None => tracing::warn!("control said something of a later version"),
                }
            }
            anyhow::Ok(())
        }
        .await;
        teller.abort();
        heard
    }

    /// Opens a connection and carries it, or answers why not. By a way of its own: a slow
    /// client holds up nobody but itself.
    async fn tunnel(self, id: u64, wanted: api::OpenTunnel, up: mpsc::Sender<api::FromNode>) {
        let carried = async {
            let endpoints = Arc::clone(&self.endpoints);
            let connection = endpoints.connect(&wanted).await?;
            let control = self.dial().await.map_err(|error| error.to_string())?;
            let ended = connection.carry(id, control).await;
            tracing::debug!(endpoint = wanted.endpoint, ?ended, "a tunnel has ended");
            Ok(())
        };
        if let Err(error) = carried.await {
            let answer = api::Answer {
                id,
                error,
                ..api::Answer::default()
            };
            let _ = up
                .send(message(api::from_node::Message::Answer(answer)))
                .await;
        }
    }

    fn hello(&self, outbox: &Outbox) -> api::Hello {
        api::Hello {
            node: self.node.clone(),
            boot_id: self.boot_id.clone(),
            protocol: PROTOCOL,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            observed: outbox.everything(),
            underlay_address: self
                .reach
                .underlay
                .map(|address| address.to_string())
                .unwrap_or_default(),
            guest_mtu: self.reach.guest_mtu,
            outside: self.reach.outside,
        }
    }

    fn answer(&self, query: api::Query) -> api::Answer {
        let mut answer = api::Answer {
            id: query.id,
            ..api::Answer::default()
        };
        match query.question {
            Some(api::query::Question::ConsoleOutputOf(id)) => match console(&self.layout, &id) {
                Ok((output, at_s)) => {
                    answer.console_output = output;
                    answer.console_at_s = at_s;
                }
                Err(error) => answer.error = format!("the console of {id:?}: {error}"),
            },
            _ => answer.error = "this node does not know that question".to_owned(),
        }
        answer
    }
}

fn message(message: api::from_node::Message) -> api::FromNode {
    api::FromNode {
        message: Some(message),
    }
}

/// The console output of instance `id` and when it was last written; one that
/// never ran has none.
fn console(layout: &Layout, id: &str) -> io::Result<(Vec<u8>, i64)> {
    if !is_plain_id(id) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let file = match File::open(layout.console(id)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        other => other?,
    };
    let metadata = file.metadata()?;
    if metadata.len() == 0 {
        // Opened for a VMM that has not begun to write.
        return Ok((Vec::new(), 0));
    }
    let (output, _) = ocs_vmm_spec::console::read(&file)?;
    let at = metadata.modified()?.duration_since(UNIX_EPOCH);
    let at_s = at.ok().and_then(|at| i64::try_from(at.as_secs()).ok());
    Ok((output, at_s.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_read_and_a_strange_id_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::create_dir_all(layout.consoles()).unwrap();
        assert_eq!(console(&layout, "i-1").unwrap(), (Vec::new(), 0));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(layout.console("i-1"))
            .unwrap();
        assert_eq!(console(&layout, "i-1").unwrap(), (Vec::new(), 0));
        ocs_vmm_spec::console::RingWriter::open(file, 4096)
            .unwrap()
            .write(b"hello")
            .unwrap();
        let (output, at_s) = console(&layout, "i-1").unwrap();
        assert_eq!(output, b"hello");
        assert!(at_s > 0);
        assert!(console(&layout, "../../etc/passwd").is_err());
    }
}
