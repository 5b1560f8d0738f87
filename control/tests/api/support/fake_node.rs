//! A fake node, for tests of the API alone: it does nothing, and says that it
//! has done what is desired. Real nodes are under test in `xtask`'s system tests.

use ocs_node_api::node_gateway_client::NodeGatewayClient;
use ocs_node_api::{
    Answer, ConnectEndpoint, Desired, FromNode, Hello, Instance, NatGateway, ObservedCarried,
    ObservedInstance, ObservedSnapshot, ObservedVolume, Phase, Report, ToNode, Volume,
    VolumeSnapshot, from_node, query, report, to_node,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// What the node was told, for tests to look at.
#[derive(Debug, Default)]
pub struct Seen {
    /// Instances by id, as last desired.
    pub instances: BTreeMap<String, Instance>,
    /// Volumes by id, as last desired.
    pub volumes: BTreeMap<String, Volume>,
    /// Snapshots by id, as last desired.
    pub snapshots: BTreeMap<String, VolumeSnapshot>,
    /// Groups by id.
    pub groups: BTreeMap<String, ocs_node_api::SecurityGroup>,
    /// Networks by number.
    pub networks: BTreeMap<u32, ocs_node_api::Network>,
    /// Interfaces on other nodes by network and address.
    pub remotes: BTreeMap<(u32, String), ocs_node_api::RemoteEndpoint>,
    /// NAT gateways by id, as last desired.
    pub nat_gateways: BTreeMap<String, NatGateway>,
    /// Instance-connect endpoints by id, as last desired.
    pub connect_endpoints: BTreeMap<String, ConnectEndpoint>,
    /// Instances are not reported: the test does that.
    pub silent: bool,
}

/// A handle to the fake.
#[derive(Clone)]
pub struct FakeNode {
    /// What it was told.
    pub seen: Arc<Mutex<Seen>>,
    upstream: mpsc::Sender<FromNode>,
}

const BOOT: &str = "00000000-0000-4000-8000-000000000000";

impl FakeNode {
    /// Connects as the node of a certificate in `pki` (`ca.pem`, `node.pem`, `node.key`).
    pub async fn connect(address: &str, pki: &Path, vcpus: u32, memory_mib: u64) -> Self {
        Self::connect_as("node", address, pki, vcpus, memory_mib)
            .await
            .unwrap()
    }

    /// The same with the certificate of a certain file; an error where control
    /// will not have it.
    pub async fn connect_as(
        certificate: &str,
        address: &str,
        pki: &Path,
        vcpus: u32,
        memory_mib: u64,
    ) -> Result<Self, tonic::Status> {
        let hello = Hello {
            node: "fake".to_owned(),
            vcpus,
            memory_mib,
            ..Hello::default()
        };
        Self::connect_saying(certificate, hello, address, pki).await
    }

    /// The same, saying who it is.
    pub async fn connect_saying(
        certificate: &str,
        hello: Hello,
        address: &str,
        pki: &Path,
    ) -> Result<Self, tonic::Status> {
        let (pem, key) = (format!("{certificate}.pem"), format!("{certificate}.key"));
        let read = |name: &str| std::fs::read(pki.join(name)).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")))
            .identity(Identity::from_pem(read(&pem), read(&key)))
            .domain_name("localhost");
        let channel = Endpoint::from_shared(format!("https://{address}"))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
            .unwrap();
        let (upstream, stream) = mpsc::channel(1_024);
        let hello = Hello {
            boot_id: BOOT.to_owned(),
            protocol: 1,
            ..hello
        };
        upstream
            .send(FromNode {
                message: Some(from_node::Message::Hello(hello)),
            })
            .await
            .unwrap();
        let mut client = NodeGatewayClient::new(channel).max_decoding_message_size(64 << 20);
        let mut downstream = client
            .session(ReceiverStream::new(stream))
            .await?
            .into_inner();
        let node = Self {
            seen: Arc::default(),
            upstream,
        };
        let runner = node.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = downstream.message().await {
                runner.take(message).await;
            }
        });
        Ok(node)
    }

    async fn take(&self, message: ToNode) {
        match message.message {
            Some(to_node::Message::Snapshot(all)) => {
                self.take_networks(all.networks, &[]);
                self.take_remotes(all.remote_endpoints);
                for group in all.security_groups {
                    self.seen
                        .lock()
                        .unwrap()
                        .groups
                        .insert(group.id.clone(), group);
                }
                self.carry(all.nat_gateways).await;
                self.connect_from(all.connect_endpoints).await;
                self.freeze(all.volume_snapshots).await;
                self.follow(all.volumes, all.instances).await;
            }
            Some(to_node::Message::Delta(delta)) => {
                self.take_networks(delta.networks, &delta.networks_gone);
                self.take_remotes(delta.remote_endpoints);
                for group in delta.security_groups {
                    self.seen
                        .lock()
                        .unwrap()
                        .groups
                        .insert(group.id.clone(), group);
                }
                for id in delta.security_groups_gone {
                    self.seen.lock().unwrap().groups.remove(&id);
                }
                self.carry(delta.nat_gateways).await;
                self.connect_from(delta.connect_endpoints).await;
                self.freeze(delta.volume_snapshots).await;
                self.follow(delta.volumes, delta.instances).await;
            }
            Some(to_node::Message::Query(query)) => {
                let mut answer = Answer {
                    id: query.id,
                    ..Answer::default()
                };
                match query.question {
                    Some(query::Question::ConsoleOutputOf(id)) => {
                        let text = format!("[0.000001] fake: console of {id}\n");
                        answer.console_output = text.into_bytes();
                        answer.console_at_s = 1_700_000_000;
                    }
                    Some(query::Question::OpenTunnel(to)) => {
                        answer.error = format!("{}:{} is not there", to.ip, to.port);
                    }
                    None => return,
                }
                self.send(from_node::Message::Answer(answer)).await;
            }
            None => {}
        }
    }

    fn take_networks(&self, networks: Vec<ocs_node_api::Network>, gone: &[u32]) {
        let mut seen = self.seen.lock().unwrap();
        seen.networks.retain(|vni, _| !gone.contains(vni));
        let networks = networks.into_iter().map(|network| (network.vni, network));
        seen.networks.extend(networks);
    }

    fn take_remotes(&self, endpoints: Vec<ocs_node_api::RemoteEndpoint>) {
        let mut seen = self.seen.lock().unwrap();
        for endpoint in endpoints {
            let key = (endpoint.vni, endpoint.ip.clone());
            if endpoint.host.is_empty() {
                seen.remotes.remove(&key);
            } else {
                seen.remotes.insert(key, endpoint);
            }
        }
    }

    async fn carry(&self, gateways: Vec<NatGateway>) {
        for gateway in gateways {
            let phase = match gateway.desired() {
                Desired::Absent => Phase::Gone,
                _ => Phase::Up,
            };
            let (id, generation) = (gateway.id.clone(), gateway.generation);
            self.seen
                .lock()
                .unwrap()
                .nat_gateways
                .insert(id.clone(), gateway);
            self.carries(id, generation, phase).await;
        }
    }

    async fn connect_from(&self, endpoints: Vec<ConnectEndpoint>) {
        for endpoint in endpoints {
            let phase = match endpoint.desired() {
                Desired::Absent => Phase::Gone,
                _ => Phase::Up,
            };
            let (id, generation) = (endpoint.id.clone(), endpoint.generation);
            self.seen
                .lock()
                .unwrap()
                .connect_endpoints
                .insert(id.clone(), endpoint);
            self.carries(id, generation, phase).await;
        }
    }

    async fn carries(&self, id: String, generation: u64, phase: Phase) {
        let seen = ObservedCarried {
            id,
            phase: phase.into(),
            message: String::new(),
        };
        self.report(generation, report::Object::Carried(seen)).await;
    }

    async fn freeze(&self, snapshots: Vec<VolumeSnapshot>) {
        for snapshot in snapshots {
            let phase = match snapshot.desired() {
                Desired::Absent => Phase::Gone,
                _ => Phase::Up,
            };
            let (id, generation) = (snapshot.id.clone(), snapshot.generation);
            let seen = ObservedSnapshot {
                id: id.clone(),
                phase: phase.into(),
                changed_bytes: 65_536,
                full_bytes: 131_072,
                ..ObservedSnapshot::default()
            };
            self.seen.lock().unwrap().snapshots.insert(id, snapshot);
            self.report(generation, report::Object::Snapshot(seen))
                .await;
        }
    }

    async fn follow(&self, volumes: Vec<Volume>, instances: Vec<Instance>) {
        for volume in volumes {
            let phase = match volume.desired() {
                Desired::Absent => Phase::Gone,
                _ => Phase::Up,
            };
            let (id, generation) = (volume.id.clone(), volume.generation);
            self.seen.lock().unwrap().volumes.insert(id.clone(), volume);
            let seen = ObservedVolume {
                id,
                phase: phase.into(),
                message: String::new(),
            };
            self.report(generation, report::Object::Volume(seen)).await;
        }
        for instance in instances {
            let phase = match instance.desired() {
                Desired::Running => Phase::Up,
                Desired::Stopped => Phase::Down,
                _ => Phase::Gone,
            };
            let (id, generation) = (instance.id.clone(), instance.generation);
            let silent = {
                let mut seen = self.seen.lock().unwrap();
                seen.instances.insert(id.clone(), instance);
                seen.silent
            };
            if !silent {
                self.say(&id, generation, phase, "").await;
            }
        }
    }

    /// Reports an instance.
    pub async fn say(&self, id: &str, generation: u64, phase: Phase, reason_code: &str) {
        let seen = ObservedInstance {
            id: id.to_owned(),
            phase: phase.into(),
            reason_code: reason_code.to_owned(),
            message: String::new(),
            reboots: 0,
            since_s: 0,
            disks_generation: if phase == Phase::Up { generation } else { 0 },
        };
        self.report(generation, report::Object::Instance(seen))
            .await;
    }

    async fn report(&self, generation: u64, object: report::Object) {
        let report = Report {
            boot_id: BOOT.to_owned(),
            generation,
            object: Some(object),
        };
        self.send(from_node::Message::Report(report)).await;
    }

    async fn send(&self, message: from_node::Message) {
        // Control may have gone away; a test that minds will see it.
        let _ = self
            .upstream
            .send(FromNode {
                message: Some(message),
            })
            .await;
    }
}
