//! The control that a test plays: it says what is desired and hears what is observed.

use super::PATIENCE;
use ocs_node_api as api;
use ocs_node_api::node_gateway_server::{NodeGateway, NodeGatewayServer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

pub struct Control {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    revision: u64,
    desired: api::Snapshot,
    session: Option<mpsc::Sender<Result<api::ToNode, Status>>>,
    hellos: Vec<api::Hello>,
    reports: BTreeMap<String, api::Report>,
    answers: BTreeMap<u64, api::Answer>,
}

fn id_of(report: &api::Report) -> String {
    match report.object.as_ref().unwrap() {
        api::report::Object::Instance(i) => i.id.clone(),
        api::report::Object::Volume(v) => v.id.clone(),
        api::report::Object::Carried(carried) => carried.id.clone(),
        api::report::Object::Snapshot(snapshot) => snapshot.id.clone(),
    }
}

struct Gateway(Arc<Shared>);

#[tonic::async_trait]
impl NodeGateway for Gateway {
    type SessionStream = ReceiverStream<Result<api::ToNode, Status>>;
    type TunnelStream = ReceiverStream<Result<api::TunnelBytes, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<api::FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut heard = request.into_inner();
        let (words, stream) = mpsc::channel(64);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(Some(from)) = heard.message().await {
                let mut state = shared.state.lock().unwrap();
                match from.message.unwrap() {
                    api::from_node::Message::Hello(hello) => {
                        for report in &hello.observed {
                            state.reports.insert(id_of(report), report.clone());
                        }
                        state.hellos.push(hello);
                        let snapshot = state.desired.clone();
                        words
                            .try_send(Ok(api::ToNode {
                                message: Some(api::to_node::Message::Snapshot(snapshot)),
                            }))
                            .unwrap();
                        state.session = Some(words.clone());
                    }
                    api::from_node::Message::Report(report) => {
                        state.reports.insert(id_of(&report), report);
                    }
                    api::from_node::Message::Answer(answer) => {
                        state.answers.insert(answer.id, answer);
                    }
                }
                shared.changed.notify_all();
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn tunnel(
        &self,
        _request: Request<Streaming<api::TunnelBytes>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        Err(Status::not_found("nobody asks for tunnels here"))
    }
}

impl Control {
    pub fn start(pki: &Path) -> Self {
        let read = |name: &str| std::fs::read(pki.join(name)).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(read("control.pem"), read("control.key")))
            .client_ca_root(Certificate::from_pem(read("ca.pem")));
        let shared = Arc::new(Shared::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let gateway = NodeGatewayServer::new(Gateway(Arc::clone(&shared)));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(gateway)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            address,
            shared,
            runtime,
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Changes what is desired, and tells a node that listens.
    pub fn desire(&self, delta: api::Delta) {
        let mut state = self.shared.state.lock().unwrap();
        state.revision += 1;
        let delta = api::Delta {
            revision: state.revision,
            ..delta
        };
        let all = &mut state.desired;
        all.revision = delta.revision;
        for instance in &delta.instances {
            all.instances.retain(|i| i.id != instance.id);
            all.instances.push(instance.clone());
        }
        for volume in &delta.volumes {
            all.volumes.retain(|v| v.id != volume.id);
            all.volumes.push(volume.clone());
        }
        for group in &delta.security_groups {
            all.security_groups.retain(|g| g.id != group.id);
            all.security_groups.push(group.clone());
        }
        if let Some(session) = &state.session {
            let word = api::ToNode {
                message: Some(api::to_node::Message::Delta(delta)),
            };
            let _ = session.try_send(Ok(word));
        }
    }

    /// Waits until `of` says yes to what was reported of `id`.
    #[track_caller]
    pub fn await_report(
        &self,
        id: &str,
        what: &str,
        mut of: impl FnMut(&api::Report) -> bool,
    ) -> api::Report {
        let until = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            if let Some(report) = state.reports.get(id).filter(|r| of(r)) {
                return report.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{id} never {what}; last: {:?}",
                state.reports.get(id)
            );
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for instance `id` to be reported in `phase` at `generation`.
    #[track_caller]
    pub fn await_phase(
        &self,
        id: &str,
        generation: u64,
        phase: api::Phase,
    ) -> api::ObservedInstance {
        let report = self.await_report(id, &format!("{phase:?} at {generation}"), |report| {
            report.generation == generation
                && matches!(&report.object,
                    Some(api::report::Object::Instance(i)) if i.phase() == phase)
        });
        let Some(api::report::Object::Instance(instance)) = report.object else {
            unreachable!("just matched");
        };
        instance
    }

    /// The last greeting, once there have been `n`.
    pub fn hello(&self, n: usize) -> api::Hello {
        let until = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock().unwrap();
        while state.hellos.len() < n {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} greetings", state.hellos.len());
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
        state.hellos[n - 1].clone()
    }

    /// Asks for the console of instance `id`.
    pub fn console(&self, query: u64, id: &str) -> api::Answer {
        let mut state = self.shared.state.lock().unwrap();
        let word = api::ToNode {
            message: Some(api::to_node::Message::Query(api::Query {
                id: query,
                question: Some(api::query::Question::ConsoleOutputOf(id.to_owned())),
            })),
        };
        let session = state.session.clone().unwrap();
        session.try_send(Ok(word)).unwrap();
        let until = Instant::now() + PATIENCE;
        while !state.answers.contains_key(&query) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no answer");
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
        state.answers[&query].clone()
    }
}
