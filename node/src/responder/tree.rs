//! The metadata tree: EC2's instance metadata categories as paths and values.
//!
//! A leaf is a path with a value; a folder is what leaves have in common, and its
//! listing is made from them, folders with a slash behind. Source: EC2 User
//! Guide, "Instance metadata categories" and "Instance identity documents".

use super::identity::Signer;
use super::record::{Interface, Record};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Versions of the tree that EC2 has published and clients ask for by date; each
/// holds the same.
pub const VERSIONS: [&str; 28] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "latest",
];

/// What EC2 has there: nothing, but well-formed.
const VHOSTMD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A value.
    Leaf(Vec<u8>),
    /// The names of what is below, one a line.
    Listing(String),
}

/// The tree below a version.
pub struct Tree<'a> {
    leaves: BTreeMap<String, Vec<u8>>,
    key_name: String,
    signer: Option<&'a Signer>,
}

/// The folder of the identity document.
const IDENTITY: &str = "dynamic/instance-identity";

impl<'a> Tree<'a> {
    /// All that `record` tells, with an identity document that `signer` signs.
    #[must_use]
    pub fn new(record: &Record, signer: Option<&'a Signer>) -> Self {
        let mut tree = Self {
            leaves: BTreeMap::new(),
            key_name: record.instance.key_name.clone(),
            signer,
        };
        tree.instance(record);
        for interface in &record.interfaces {
            tree.interface(record, interface);
        }
        tree.put(format!("{IDENTITY}/document"), identity(record));
        if signer.is_some() {
            // Made when they are asked for.
            tree.put(format!("{IDENTITY}/pkcs7"), "");
            tree.put(format!("{IDENTITY}/signature"), "");
        }
        if !record.instance.user_data.is_empty() {
            let user_data = record.instance.user_data.clone();
            tree.leaves.insert("user-data".into(), user_data);
        }
        tree
    }

    /// What lies at `path`, given without slashes at its ends.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Node> {
        if let Some(value) = self.leaves.get(path) {
            let signed = path.strip_prefix(IDENTITY).zip(self.signer);
            let document = || self.leaves.get(&format!("{IDENTITY}/document"));
            return match signed {
                Some(("/pkcs7", signer)) => signer.pkcs7(document()?).map(Node::Leaf),
                Some(("/signature", signer)) => signer.signature(document()?).map(Node::Leaf),
                _ => Some(Node::Leaf(value.clone())),
            };
        }
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let names: BTreeSet<String> = self
            .leaves
            .range(prefix.clone()..)
            .map_while(|(leaf, _)| leaf.strip_prefix(&prefix))
            .map(|rest| self.name(&prefix, rest))
            .collect();
        let names = Vec::from_iter(names);
        (!names.is_empty()).then(|| Node::Listing(names.join("\n")))
    }

    /// How a listing of `prefix` shows the leaf `rest`. Keys are the one exception
    /// to names: `0=NAME` (a client reads the name there and goes on to `0/`).
    fn name(&self, prefix: &str, rest: &str) -> String {
        if prefix == "meta-data/public-keys/"
            && let Some((index, _)) = rest.split_once('/')
        {
            return format!("{index}={}", self.key_name);
        }
        match rest.split_once('/') {
            Some((folder, _)) => format!("{folder}/"),
            None => rest.to_owned(),
        }
    }

    fn put(&mut self, path: impl Into<String>, value: impl Into<String>) {
        self.leaves.insert(path.into(), value.into().into_bytes());
    }

    fn instance(&mut self, record: &Record) {
        let it = &record.instance;
        let mut put = |name: &str, value: &str| self.put(format!("meta-data/{name}"), value);
        put("ami-id", &it.ami_id);
        put("ami-launch-index", &it.ami_launch_index.to_string());
        put("ami-manifest-path", "(unknown)");
        put("events/maintenance/history", "[]");
        put("events/maintenance/scheduled", "[]");
        put("hostname", &it.hostname);
        put("instance-action", "none");
        put("instance-id", &it.id);
        put("instance-life-cycle", "on-demand");
        put("instance-type", &it.instance_type);
        put("local-hostname", &it.hostname);
        put("metrics/vhostmd", VHOSTMD);
        put("profile", "default-hvm");
        put("placement/availability-zone", &it.availability_zone);
        put("placement/availability-zone-id", &it.availability_zone_id);
        put("placement/region", &it.region);
        if !it.placement_group_name.is_empty() {
            put("placement/group-name", &it.placement_group_name);
        }
        if it.partition_number > 0 {
            let number = it.partition_number.to_string();
            put("placement/partition-number", &number);
        }
        put("reservation-id", &it.reservation_id);
        put("security-groups", &it.security_group_names.join("\n"));
        put("services/domain", "amazonaws.com");
        put("services/partition", "aws");
        if let Some(first) = record.interfaces.first() {
            put("local-ipv4", &first.private_ip.to_string());
            put("mac", &first.mac);
            if let Some(address) = first.ipv6.addresses.first() {
                put("ipv6", &address.to_string());
            }
        }
        if let Some(ip) = it.public_ip {
            put("public-ipv4", &ip.to_string());
        }
        if !it.public_hostname.is_empty() {
            put("public-hostname", &it.public_hostname);
        }
        for (name, device) in &it.block_device_mapping {
            put(&format!("block-device-mapping/{name}"), device);
        }
        if !it.public_key.is_empty() {
            put("public-keys/0/openssh-key", &it.public_key);
        }
        if it.instance_metadata_tags {
            for (key, value) in &it.tags {
                self.put(format!("meta-data/tags/instance/{key}"), value);
            }
        }
    }

    fn interface(&mut self, record: &Record, interface: &Interface) {
        let (it, facts) = (&record.instance, &interface.facts);
        let folder = format!("meta-data/network/interfaces/macs/{}", interface.mac);
        let mut put = |name: &str, value: &str| self.put(format!("{folder}/{name}"), value);
        let private: Vec<String> = std::iter::once(&interface.private_ip)
            .chain(&interface.secondary)
            .map(ToString::to_string)
            .collect();
        put("device-number", &facts.device_number.to_string());
        put("interface-id", &interface.id);
        put("local-ipv4s", &private.join("\n"));
        put("mac", &interface.mac);
        put("owner-id", &it.account_id);
        put("security-group-ids", &interface.security_groups.join("\n"));
        put("subnet-ipv4-cidr-block", &interface.subnet_cidr.to_string());
        put("vpc-id", &it.vpc_id);
        put("vpc-ipv4-cidr-block", &interface.vpc_cidr.to_string());
        put("vpc-ipv4-cidr-blocks", &facts.vpc_cidrs.join("\n"));
        put("local-hostname", &facts.hostname);
        let ipv6 = &interface.ipv6;
        let addresses = ipv6.addresses.iter().map(ToString::to_string);
        let addresses: Vec<String> = addresses.collect();
        if !addresses.is_empty() {
            put("ipv6s", &addresses.join("\n"));
        }
        if let Some(block) = ipv6.subnet {
            put("subnet-ipv6-cidr-blocks", &block.to_string());
        }
        if !ipv6.vpc_cidrs.is_empty() {
            put("vpc-ipv6-cidr-blocks", &ipv6.vpc_cidrs.join("\n"));
        }
        put("security-groups", &facts.security_group_names.join("\n"));
        put("subnet-id", &facts.subnet_id);
        let publics: Vec<String> = facts.publics.iter().map(|(ip, _)| ip.to_string()).collect();
        if !publics.is_empty() {
            put("public-ipv4s", &publics.join("\n"));
        }
        for (public, private) in &facts.publics {
            put(&format!("ipv4-associations/{public}"), &private.to_string());
        }
        if !facts.public_hostname.is_empty() {
            put("public-hostname", &facts.public_hostname);
        }
    }
}

/// The instance identity document.
fn identity(record: &Record) -> String {
    let it = &record.instance;
    let pending = OffsetDateTime::from_unix_timestamp(it.launch_time_s)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok());
    let private_ip = record.interfaces.first().map(|i| i.private_ip);
    let document = json!({
        "accountId": it.account_id,
        "architecture": "x86_64",
        "availabilityZone": it.availability_zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": it.ami_id,
        "instanceId": it.id,
        "instanceType": it.instance_type,
        "kernelId": null,
        "pendingTime": pending,
        "privateIp": private_ip,
        "ramdiskId": null,
        "region": it.region,
        "version": "2017-09-30",
    });
    format!("{document:#}")
}

#[cfg(test)]
mod tests;
