//! Clients: random operations as EC2 calls, what they were told, and when.

use super::model::{Ask, HOSTS, Operation, Told};
use super::plant::{Plant, Trouble};
use super::wire::Wire;
use crate::support::{Control, text};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use todc_utils::linearizability::history::Action;

/// Ports, names, keys and tokens are few, so that clients meet.
const PORTS: u8 = 6;
const NAMES: u8 = 3;
const KEYS: u8 = 2;
const TOKENS: u8 = 16;

/// A call or an answer, at its place in time.
#[derive(Debug)]
pub struct Event {
    /// Counts calls and answers of all clients.
    pub at: usize,
    /// Whose.
    pub client: usize,
    /// What.
    pub action: Action<Operation>,
}

/// One VPC and its clients' common knowledge.
pub struct Site {
    /// The VPC.
    pub vpc: String,
    /// Its one subnet, a /28.
    pub subnet: String,
    group: String,
    /// The subnet's first three numbers.
    network: String,
    image: String,
    wire: Arc<Wire>,
    plant: Plant,
    trouble: Trouble,
    tokens: AtomicUsize,
    interfaces: Mutex<BTreeMap<String, u8>>,
    instances: Mutex<Vec<String>>,
    groups: Mutex<BTreeMap<u8, String>>,
    events: Mutex<Vec<Event>>,
}

impl Site {
    /// Makes the VPC, while nobody else is there.
    pub fn make(
        control: &Control,
        image: &str,
        number: usize,
        plant: Plant,
        wire: &Arc<Wire>,
    ) -> Self {
        let one = |action: &str, params: &[(&str, &str)], element: &str| {
            text(&control.ok(action, params), element).remove(0)
        };
        let block = |bits: u8| format!("10.{number}.0.0/{bits}");
        let vpc = one("CreateVpc", &[("CidrBlock", &block(16))], "vpcId");
        let params = [("VpcId", vpc.as_str()), ("CidrBlock", &block(28))];
        let subnet = one("CreateSubnet", &params, "subnetId");
        let params = [
            ("VpcId", vpc.as_str()),
            ("GroupName", "subject"),
            ("GroupDescription", "whose rules change"),
        ];
        let group = one("CreateSecurityGroup", &params, "groupId");
        Self {
            vpc,
            subnet,
            group,
            network: format!("10.{number}.0."),
            image: image.to_owned(),
            wire: Arc::clone(wire),
            plant,
            trouble: Trouble::default(),
            tokens: AtomicUsize::new(0),
            interfaces: Mutex::default(),
            instances: Mutex::default(),
            groups: Mutex::default(),
            events: Mutex::default(),
        }
    }

    /// Acts as a client, step by step of its plan.
    pub fn act(&self, client: usize, plan: &[(u8, u8)]) {
        for (kind, pick) in plan {
            self.operate(client, self.choose(*kind, *pick));
        }
    }

    /// Reads all there is, as the last client.
    pub fn look_at_all(&self, client: usize) {
        for ask in [
            Ask::Ports,
            Ask::Interfaces,
            Ask::Groups,
            Ask::Tags,
            Ask::Instances,
        ] {
            self.operate(client, ask);
        }
    }

    /// What was seen here.
    pub fn history(self) -> Vec<Event> {
        self.events.into_inner().unwrap()
    }

    /// An address that an interface other than this one has.
    pub fn an_address_in_use(&self, but: &str) -> Option<u8> {
        let interfaces = self.interfaces.lock().unwrap();
        let other = interfaces.iter().find(|(id, _)| *id != but);
        other.map(|(_, address)| *address)
    }

    fn choose(&self, kind: u8, pick: u8) -> Ask {
        fn one_of<T: Clone>(all: &[T], pick: u8) -> Option<T> {
            all.get(usize::from(pick) % all.len().max(1)).cloned()
        }
        let names = |map: &Mutex<BTreeMap<String, u8>>| -> Vec<String> {
            map.lock().unwrap().keys().cloned().collect()
        };
        let known = match kind % 20 {
            9 | 10 => one_of(&names(&self.interfaces), pick).map(Ask::DropInterface),
            13 => {
                let groups = self.groups.lock().unwrap();
                let ids: Vec<_> = groups.values().cloned().collect();
                one_of(&ids, pick).map(Ask::DropGroup)
            }
            18 => one_of(&self.instances.lock().unwrap(), pick).map(Ask::Terminate),
            _ => None,
        };
        known.unwrap_or(match kind % 20 {
            0..=2 => Ask::Allow(pick % PORTS),
            3 | 4 => Ask::Forbid(pick % PORTS),
            5 => Ask::Ports,
            8 => Ask::AddInterface(Some(
                HOSTS.start() + pick % u8::try_from(HOSTS.len()).unwrap(),
            )),
            11 => Ask::Interfaces,
            12 | 13 => Ask::MakeGroup(pick % NAMES),
            14 => Ask::Groups,
            15 => Ask::Tag(pick % KEYS, pick / KEYS),
            16 if pick.is_multiple_of(2) => Ask::Untag(pick / 2 % KEYS),
            16 => Ask::Tags,
            17 | 18 => Ask::Run(pick % TOKENS),
            19 => Ask::Instances,
            _ => Ask::AddInterface(None),
        })
    }

    fn operate(&self, client: usize, ask: Ask) {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed).to_string();
        let called = self.wire.now();
        let told = self.told(&ask, &token);
        let told = self.trouble.instead(self.plant, self, &ask, told);
        let answered = self.wire.now();
        self.learn(&ask, &told);
        let (call, response) = ((ask.clone(), None), (ask, Some(told)));
        let mut events = self.events.lock().unwrap();
        events.push(Event {
            at: called,
            client,
            action: Action::Call(call),
        });
        events.push(Event {
            at: answered,
            client,
            action: Action::Response(response),
        });
    }

    /// What other clients may make use of.
    fn learn(&self, ask: &Ask, told: &Told) {
        match (ask, told) {
            (_, Told::Interface(id, address)) => {
                self.interfaces.lock().unwrap().insert(id.clone(), *address);
            }
            (Ask::DropInterface(id), Told::Done) => {
                self.interfaces.lock().unwrap().remove(id);
            }
            (Ask::MakeGroup(name), Told::Group(id)) => {
                self.groups.lock().unwrap().insert(*name, id.clone());
            }
            (_, Told::Groups(seen)) => self.groups.lock().unwrap().extend(seen.clone()),
            (_, Told::Instance(id, ..)) => {
                let mut instances = self.instances.lock().unwrap();
                if !instances.contains(id) {
                    instances.push(id.clone());
                }
            }
            _ => {}
        }
    }

    /// Asks; what has a client token, and what is only read, until it is answered.
    pub fn told(&self, ask: &Ask, token: &str) -> Told {
        let (action, params) = self.call(ask, token);
        loop {
            match self.wire.call(action, &params) {
                Some((200, body)) => return read(ask, &body),
                Some((_, body)) => return Told::Refused(text(&body, "Code").remove(0)),
                None if ask.is_repeatable() => {}
                None => return Told::Nothing,
            }
        }
    }

    /// The action of an operation and its parameters.
    fn call(&self, ask: &Ask, token: &str) -> (&'static str, Vec<(&'static str, String)>) {
        let vpc = || self.vpc.clone();
        let in_vpc = || {
            vec![
                ("Filter.1.Name", "vpc-id".to_owned()),
                ("Filter.1.Value.1", vpc()),
            ]
        };
        let rule = |port: u8| {
            vec![
                ("GroupId", self.group.clone()),
                ("IpPermissions.1.IpProtocol", "tcp".to_owned()),
                ("IpPermissions.1.FromPort", port.to_string()),
                ("IpPermissions.1.ToPort", port.to_string()),
                ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0".to_owned()),
            ]
        };
        let tag = |key: u8| vec![("ResourceId.1", vpc()), ("Tag.1.Key", format!("k{key}"))];
        match ask {
            Ask::Allow(port) => ("AuthorizeSecurityGroupIngress", rule(*port)),
            Ask::Forbid(port) => ("RevokeSecurityGroupIngress", rule(*port)),
            Ask::Ports => (
                "DescribeSecurityGroups",
                vec![("GroupId.1", self.group.clone())],
            ),
            Ask::AddInterface(wanted) => {
                let mut params = vec![
                    ("SubnetId", self.subnet.clone()),
                    ("ClientToken", format!("{}-{token}", self.vpc)),
                ];
                if let Some(host) = wanted {
                    params.push(("PrivateIpAddress", format!("{}{host}", self.network)));
                }
                ("CreateNetworkInterface", params)
            }
            Ask::DropInterface(id) => (
                "DeleteNetworkInterface",
                vec![("NetworkInterfaceId", id.clone())],
            ),
            Ask::Interfaces => ("DescribeNetworkInterfaces", in_vpc()),
            Ask::MakeGroup(name) => (
                "CreateSecurityGroup",
                vec![
                    ("VpcId", vpc()),
                    ("GroupName", format!("g{name}")),
                    ("GroupDescription", "one of few".to_owned()),
                ],
            ),
            Ask::DropGroup(id) => ("DeleteSecurityGroup", vec![("GroupId", id.clone())]),
            Ask::Groups => {
                let mut params = in_vpc();
                params.push(("Filter.2.Name", "group-name".to_owned()));
                params.push(("Filter.2.Value.1", "g?".to_owned()));
                ("DescribeSecurityGroups", params)
            }
            Ask::Tag(key, value) => {
                let mut params = tag(*key);
                params.push(("Tag.1.Value", value.to_string()));
                ("CreateTags", params)
            }
            Ask::Untag(key) => ("DeleteTags", tag(*key)),
            Ask::Tags => (
                "DescribeTags",
                vec![
                    ("Filter.1.Name", "resource-id".to_owned()),
                    ("Filter.1.Value.1", vpc()),
                ],
            ),
            Ask::Run(token) => (
                "RunInstances",
                vec![
                    ("ImageId", self.image.clone()),
                    ("InstanceType", "t2.nano".to_owned()),
                    ("MinCount", "1".to_owned()),
                    ("MaxCount", "1".to_owned()),
                    ("SubnetId", self.subnet.clone()),
                    ("ClientToken", format!("{}-{token}", self.vpc)),
                ],
            ),
            Ask::Terminate(id) => ("TerminateInstances", vec![("InstanceId.1", id.clone())]),
            // An ended instance is in no VPC any more.
            Ask::Instances => (
                "DescribeInstances",
                vec![
                    ("Filter.1.Name", "client-token".to_owned()),
                    ("Filter.1.Value.1", format!("{}-*", self.vpc)),
                ],
            ),
        }
    }
}

/// The last number of an address.
fn host(address: &str) -> u8 {
    address.rsplit('.').next().unwrap().parse().unwrap()
}

/// The rest of a body after each `<element>`.
fn each<'a>(body: &'a str, element: &str) -> Vec<&'a str> {
    body.split(&format!("<{element}>")).skip(1).collect()
}

/// The answer of a call that succeeded.
fn read(ask: &Ask, body: &str) -> Told {
    let first = |element: &str| text(body, element).remove(0);
    let id = |rest: &str| rest.split('<').next().unwrap().to_owned();
    match ask {
        Ask::Ports => Told::Ports(
            text(body, "fromPort")
                .iter()
                .map(|port| port.parse().unwrap())
                .collect(),
        ),
        Ask::AddInterface(_) => Told::Interface(
            first("networkInterfaceId"),
            host(&first("privateIpAddress")),
        ),
        Ask::Interfaces => Told::Interfaces(
            each(body, "networkInterfaceId")
                .into_iter()
                .map(|rest| (id(rest), host(&text(rest, "privateIpAddress")[0])))
                .collect(),
        ),
        Ask::MakeGroup(_) => Told::Group(first("groupId")),
        Ask::Groups => Told::Groups(
            text(body, "groupName")
                .iter()
                .map(|name| name[1..].parse().unwrap())
                .zip(text(body, "groupId"))
                .collect(),
        ),
        Ask::Tags => Told::Tags(
            text(body, "key")
                .iter()
                .map(|key| key[1..].parse().unwrap())
                .zip(
                    text(body, "value")
                        .iter()
                        .map(|value| value.parse().unwrap()),
                )
                .collect(),
        ),
        Ask::Run(_) => Told::Instance(
            first("instanceId"),
            first("networkInterfaceId"),
            host(&first("privateIpAddress")),
        ),
        Ask::Instances => Told::Instances(
            each(body, "instanceId")
                .into_iter()
                .filter(|rest| rest.contains("<instanceState>"))
                .map(|rest| {
                    let state = text(each(rest, "instanceState")[0], "name").remove(0);
                    (id(rest), ["pending", "running"].contains(&state.as_str()))
                })
                .collect(),
        ),
        _ => Told::Done,
    }
}
