//! The desired slice: what control said last, kept so that it holds without control.

use super::durable::{self, Lasts};
use super::layout::is_plain_id;
use ocs_node_api as api;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// Everything desired of this node, by id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slice {
    /// The revision it is as of; 0: control has never spoken.
    pub revision: u64,
    /// Instances.
    pub instances: BTreeMap<String, api::Instance>,
    /// Volumes.
    pub volumes: BTreeMap<String, api::Volume>,
    /// Snapshots.
    pub snapshots: BTreeMap<String, api::VolumeSnapshot>,
    /// Security groups.
    pub security_groups: BTreeMap<String, api::SecurityGroup>,
    /// VPCs by VNI.
    pub networks: BTreeMap<u32, api::Network>,
    /// Endpoints on other nodes, by VNI and address.
    pub remote_endpoints: BTreeMap<String, api::RemoteEndpoint>,
    /// NAT gateways.
    pub nat_gateways: BTreeMap<String, api::NatGateway>,
    /// Instance-connect endpoints.
    pub connect_endpoints: BTreeMap<String, api::ConnectEndpoint>,
}

/// Ids whose desired state a message changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Instances.
    pub instances: BTreeSet<String>,
    /// Volumes.
    pub volumes: BTreeSet<String>,
    /// Snapshots.
    pub snapshots: BTreeSet<String>,
    /// Anything that the packet path is told besides the ENIs of instances.
    pub network: bool,
}

impl Changed {
    /// Both.
    pub fn merge(&mut self, other: Self) {
        self.instances.extend(other.instances);
        self.volumes.extend(other.volumes);
        self.snapshots.extend(other.snapshots);
        self.network |= other.network;
    }
}

impl Slice {
    /// The slice at `path`; none there is an empty one.
    pub fn load(path: &Path) -> io::Result<Self> {
        Ok(durable::read(path)?.unwrap_or_default())
    }

    /// Makes it last, before the call returns.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        durable::replace(path, self, Lasts::Always)
    }

    /// Control says that this is all.
    pub fn replace(&mut self, snapshot: api::Snapshot) -> Changed {
        let mut changed = Changed {
            instances: self.instances.keys().cloned().collect(),
            volumes: self.volumes.keys().cloned().collect(),
            snapshots: self.snapshots.keys().cloned().collect(),
            network: true,
        };
        *self = Self::default();
        changed.merge(self.merge(api::Delta {
            revision: snapshot.revision,
            instances: snapshot.instances,
            volumes: snapshot.volumes,
            volume_snapshots: snapshot.volume_snapshots,
            security_groups: snapshot.security_groups,
            remote_endpoints: snapshot.remote_endpoints,
            networks: snapshot.networks,
            nat_gateways: snapshot.nat_gateways,
            connect_endpoints: snapshot.connect_endpoints,
            ..api::Delta::default()
        }));
        changed
    }

    /// Control says that this has changed.
    pub fn merge(&mut self, delta: api::Delta) -> Changed {
        let mut changed = Changed::default();
        self.revision = delta.revision;
        for instance in delta.instances {
            if plain(&instance.id) {
                changed.instances.insert(instance.id.clone());
                self.instances.insert(instance.id.clone(), instance);
            }
        }
        for volume in delta.volumes {
            if plain(&volume.id) {
                changed.volumes.insert(volume.id.clone());
                self.volumes.insert(volume.id.clone(), volume);
            }
        }
        for snapshot in delta.volume_snapshots {
            if plain(&snapshot.id) && plain(&snapshot.volume_id) {
                changed.snapshots.insert(snapshot.id.clone());
                self.snapshots.insert(snapshot.id.clone(), snapshot);
            }
        }
        for group in delta.security_groups {
            changed.network = true;
            self.security_groups.insert(group.id.clone(), group);
        }
        for id in delta.security_groups_gone {
            changed.network |= self.security_groups.remove(&id).is_some();
        }
        for network in delta.networks {
            changed.network = true;
            self.networks.insert(network.vni, network);
        }
        for vni in delta.networks_gone {
            changed.network |= self.networks.remove(&vni).is_some();
        }
        for endpoint in delta.remote_endpoints {
            changed.network = true;
            let key = format!("{}/{}", endpoint.vni, endpoint.ip);
            if endpoint.host.is_empty() {
                self.remote_endpoints.remove(&key);
            } else {
                self.remote_endpoints.insert(key, endpoint);
            }
        }
        for gateway in delta.nat_gateways {
            changed.network = true;
            self.nat_gateways.insert(gateway.id.clone(), gateway);
        }
        for endpoint in delta.connect_endpoints {
            changed.network = true;
            self.connect_endpoints.insert(endpoint.id.clone(), endpoint);
        }
        changed
    }
}

/// Ids become file names.
fn plain(id: &str) -> bool {
    let plain = is_plain_id(id);
    if !plain {
        tracing::error!(id, "control named an object that cannot be a file; ignored");
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, generation: u64) -> api::Instance {
        api::Instance {
            id: id.to_owned(),
            generation,
            ..api::Instance::default()
        }
    }

    #[test]
    fn a_slice_survives_its_file_and_names_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slice.json");
        let mut slice = Slice::load(&path).unwrap();
        let changed = slice.replace(api::Snapshot {
            revision: 4,
            instances: vec![instance("i-1", 1), instance("../x", 1)],
            security_groups: vec![api::SecurityGroup {
                id: "sg-1".into(),
                rules: vec![api::Rule {
                    peer: Some(api::rule::Peer::Cidr("10.0.0.0/8".into())),
                    ..api::Rule::default()
                }],
                ..api::SecurityGroup::default()
            }],
            ..api::Snapshot::default()
        });
        assert_eq!(changed.instances, BTreeSet::from(["i-1".to_owned()]));
        slice.save(&path).unwrap();
        assert_eq!(Slice::load(&path).unwrap(), slice);

        let changed = slice.merge(api::Delta {
            revision: 5,
            instances: vec![instance("i-2", 1)],
            security_groups_gone: vec!["sg-9".into()],
            ..api::Delta::default()
        });
        assert_eq!(changed.instances, BTreeSet::from(["i-2".to_owned()]));
        assert!(!changed.network);

        // What a snapshot leaves out has changed too: nobody claims it.
        let changed = slice.replace(api::Snapshot {
            revision: 6,
            instances: vec![instance("i-2", 2)],
            ..api::Snapshot::default()
        });
        assert_eq!(
            changed.instances,
            BTreeSet::from(["i-1".to_owned(), "i-2".to_owned()])
        );
        assert_eq!(slice.instances.len(), 1);

        // A removed host that dies before it has ended all knows of it when it is back.
        slice.replace(super::super::session::nothing_desired());
        slice.save(&path).unwrap();
        let back = Slice::load(&path).unwrap();
        assert!(back.instances.is_empty() && back.revision > 0);
    }
}
