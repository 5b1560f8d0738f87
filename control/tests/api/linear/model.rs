//! What a VPC is, one operation after another.
//!
//! Where an answer was lost with the control that would have given it, the
//! operation may have happened or not: the model's state is the *set* of VPCs that
//! all answers so far allow. An answer that none of them allows has no explanation.

use std::collections::{BTreeMap, BTreeSet};
use todc_utils::specifications::Specification;

/// Host numbers that a /28 subnet gives out: all but EC2's five.
pub const HOSTS: std::ops::RangeInclusive<u8> = 4..=14;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// AuthorizeSecurityGroupIngress of a port.
    Allow(u8),
    /// RevokeSecurityGroupIngress of a port.
    Forbid(u8),
    /// The group's ports.
    Ports,
    /// CreateNetworkInterface, at an address or at any.
    AddInterface(Option<u8>),
    /// DeleteNetworkInterface.
    DropInterface(String),
    /// The VPC's interfaces.
    Interfaces,
    /// CreateSecurityGroup of a name.
    MakeGroup(u8),
    /// DeleteSecurityGroup.
    DropGroup(String),
    /// The groups of those names.
    Groups,
    /// CreateTags on the VPC: key, value.
    Tag(u8, u8),
    /// DeleteTags of a key, whatever its value.
    Untag(u8),
    /// The VPC's tags.
    Tags,
    /// RunInstances with a client token.
    Run(u8),
    /// TerminateInstances.
    Terminate(String),
    /// The VPC's instances.
    Instances,
}

impl Ask {
    /// Whether asking again does no harm: it reads, ends what has ended, or has a
    /// client token.
    pub fn is_repeatable(&self) -> bool {
        matches!(
            self,
            Self::AddInterface(_)
                | Self::Run(_)
                | Self::Terminate(_)
                | Self::Ports
                | Self::Interfaces
                | Self::Groups
                | Self::Tags
                | Self::Instances
        )
    }
}

/// What it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It is done.
    Done,
    /// Refused with a code.
    Refused(String),
    /// Open ports.
    Ports(BTreeSet<u8>),
    /// An interface at an address.
    Interface(String, u8),
    /// Interfaces and their addresses.
    Interfaces(BTreeMap<String, u8>),
    /// A group.
    Group(String),
    /// Groups by name.
    Groups(BTreeMap<u8, String>),
    /// Tags.
    Tags(BTreeMap<u8, u8>),
    /// An instance, its interface and that one's address.
    Instance(String, String, u8),
    /// Instances; whether each lives.
    Instances(BTreeMap<String, bool>),
    /// Nothing: control was killed meanwhile.
    Nothing,
}

/// An operation; with its answer where that is known.
pub type Operation = (Ask, Option<Told>);

/// One VPC that the answers so far allow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vpc {
    ports: BTreeSet<u8>,
    interfaces: BTreeMap<String, u8>,
    /// Interfaces of ended instances: they go when the node says so, unasked.
    leaving: BTreeMap<String, u8>,
    /// Groups by name. None: made by a call whose answer was lost.
    groups: BTreeMap<u8, Option<String>>,
    tags: BTreeMap<u8, u8>,
    tokens: BTreeMap<u8, String>,
    instances: BTreeMap<String, Instance>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Instance {
    lives: bool,
    interface: String,
    address: u8,
}

impl Vpc {
    fn holds(&self, address: u8) -> bool {
        self.interfaces.values().any(|held| *held == address)
    }

    /// Takes an address; false where somebody has it.
    fn take(&mut self, interface: &str, address: u8) -> bool {
        self.leaving.retain(|_, held| *held != address);
        HOSTS.contains(&address)
            && !self.holds(address)
            && self
                .interfaces
                .insert(interface.to_owned(), address)
                .is_none()
    }

    /// Whether the subnet may have looked full: what is leaving may still be there.
    fn may_be_full(&self) -> bool {
        HOSTS
            .into_iter()
            .all(|address| self.holds(address) || self.may_be_held(address))
    }

    fn may_be_held(&self, address: u8) -> bool {
        self.leaving.values().any(|held| *held == address)
    }

    /// The VPC after an operation that was answered so; none: it could not be.
    fn after(&self, ask: &Ask, told: &Told) -> Option<Self> {
        let mut next = self.clone();
        let refused = |code: &str| matches!(told, Told::Refused(told) if told == code);
        let done = *told == Told::Done;
        let fits = match ask {
            Ask::Allow(port) if next.ports.insert(*port) => done,
            Ask::Allow(_) => refused("InvalidPermission.Duplicate"),
            Ask::Forbid(port) if next.ports.remove(port) => done,
            Ask::Forbid(_) => refused("InvalidPermission.NotFound"),
            Ask::Ports => *told == Told::Ports(self.ports.clone()),
            Ask::AddInterface(wanted) => match (wanted, told) {
                (None, Told::Interface(id, address)) => next.take(id, *address),
                (Some(wanted), Told::Interface(id, address)) => {
                    wanted == address && next.take(id, *address)
                }
                (None, _) => refused("InsufficientFreeAddressesInSubnet") && self.may_be_full(),
                (Some(wanted), _) => {
                    refused("InvalidIPAddress.InUse")
                        && (self.holds(*wanted) || self.may_be_held(*wanted))
                }
            },
            Ask::DropInterface(id) if next.interfaces.remove(id).is_some() => done,
            Ask::DropInterface(_) => refused("InvalidNetworkInterfaceID.NotFound"),
            Ask::Interfaces => match told {
                Told::Interfaces(seen) => {
                    let known = |(id, address): (&String, &u8)| {
                        [&self.interfaces, &self.leaving]
                            .iter()
                            .any(|kept| kept.get(id) == Some(address))
                    };
                    seen.iter().all(known) && self.interfaces.keys().all(|id| seen.contains_key(id))
                }
                _ => false,
            },
            Ask::MakeGroup(name) => match told {
                Told::Group(id) => next.groups.insert(*name, Some(id.clone())).is_none(),
                _ => refused("InvalidGroup.Duplicate") && self.groups.contains_key(name),
            },
            Ask::DropGroup(id) => {
                next.groups.retain(|_, kept| kept.as_ref() != Some(id));
                match next.groups.len() < self.groups.len() {
                    true => done,
                    false => refused("InvalidGroup.NotFound"),
                }
            }
            Ask::Groups => match told {
                Told::Groups(seen) => {
                    next.groups = seen
                        .iter()
                        .map(|(name, id)| (*name, Some(id.clone())))
                        .collect();
                    let same = |(name, kept): (&u8, &Option<String>)| {
                        kept.is_none() || seen.get(name) == kept.as_ref()
                    };
                    self.groups.keys().eq(seen.keys()) && self.groups.iter().all(same)
                }
                _ => false,
            },
            Ask::Tag(key, value) => {
                next.tags.insert(*key, *value);
                done
            }
            Ask::Untag(key) => {
                next.tags.remove(key);
                done
            }
            Ask::Tags => *told == Told::Tags(self.tags.clone()),
            Ask::Run(token) => match self.tokens.get(token) {
                Some(id) if !self.instances[id].lives => refused("IdempotentInstanceTerminated"),
                Some(id) => {
                    let was = &self.instances[id];
                    *told == Told::Instance(id.clone(), was.interface.clone(), was.address)
                }
                None => match told {
                    Told::Instance(id, interface, address) => {
                        let instance = Instance {
                            lives: true,
                            interface: interface.clone(),
                            address: *address,
                        };
                        next.tokens.insert(*token, id.clone());
                        next.take(interface, *address)
                            && next.instances.insert(id.clone(), instance).is_none()
                    }
                    _ => refused("InsufficientFreeAddressesInSubnet") && self.may_be_full(),
                },
            },
            Ask::Terminate(id) => {
                next.end(id);
                done && self.instances.contains_key(id)
            }
            Ask::Instances => match told {
                Told::Instances(seen) => seen.iter().map(|(id, lives)| (id, *lives)).eq(self
                    .instances
                    .iter()
                    .map(|(id, instance)| (id, instance.lives))),
                _ => false,
            },
        };
        fits.then_some(next)
    }

    fn end(&mut self, id: &str) {
        if let Some(instance) = self.instances.get_mut(id)
            && std::mem::replace(&mut instance.lives, false)
            && let Some(address) = self.interfaces.remove(&instance.interface)
        {
            self.leaving.insert(instance.interface.clone(), address);
        }
    }

    /// What may be after an operation whose answer was lost.
    fn perhaps(&self, ask: &Ask) -> [Self; 2] {
        let mut next = self.clone();
        match ask {
            Ask::Allow(port) => _ = next.ports.insert(*port),
            Ask::Forbid(port) => _ = next.ports.remove(port),
            Ask::DropInterface(id) => _ = next.interfaces.remove(id),
            Ask::MakeGroup(name) => _ = next.groups.entry(*name).or_insert(None),
            Ask::DropGroup(id) => next.groups.retain(|_, kept| kept.as_ref() != Some(id)),
            Ask::Tag(key, value) => _ = next.tags.insert(*key, *value),
            Ask::Untag(key) => _ = next.tags.remove(key),
            _ => unreachable!("{ask:?} is repeated until it is answered"),
        }
        [self.clone(), next]
    }
}

impl Specification for Vpc {
    type State = BTreeSet<Self>;
    type Operation = Operation;

    fn init() -> Self::State {
        BTreeSet::from([Self::default()])
    }

    fn apply(operation: &Operation, state: &Self::State) -> (bool, Self::State) {
        let next: BTreeSet<Self> = match operation {
            (ask, Some(Told::Nothing)) => state.iter().flat_map(|vpc| vpc.perhaps(ask)).collect(),
            (ask, Some(told)) => state
                .iter()
                .filter_map(|vpc| vpc.after(ask, told))
                .collect(),
            (_, None) => BTreeSet::new(),
        };
        (!next.is_empty(), next)
    }
}
