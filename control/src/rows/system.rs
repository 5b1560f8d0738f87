//! Accounts, nodes, counters, tokens and settings.

use super::InstanceId;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Twelve digits.
    pub id: String,
    /// What bounds it.
    #[serde(default)]
    pub limits: Limits,
}

/// A profile of quotas and request rates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limits {
    /// As much as there is; one rate for all requests.
    #[default]
    Private,
    /// AWS's published defaults.
    Ec2,
}

/// An access key; its secret is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// `AKIA…`.
    pub id: String,
    /// Whose.
    pub account: String,
    /// The secret, sealed, base64.
    pub sealed: String,
}

/// A node's capacity: one value, compared and swapped by every placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name, as in its certificate.
    pub name: String,
    /// Schedulable CPUs, overcommit included.
    pub vcpus: u32,
    /// Schedulable memory, overcommit included.
    pub memory_mib: u64,
    /// CPUs given out.
    pub used_vcpus: u32,
    /// Memory given out.
    pub used_memory_mib: u64,
    /// Where other nodes reach it.
    #[serde(default)]
    pub underlay: Option<Ipv4Addr>,
    /// The longest IP packet that its guests may send; 0: not known.
    #[serde(default)]
    pub guest_mtu: u32,
    /// Public addresses are answered for there.
    #[serde(default)]
    pub outside: bool,
}

impl Node {
    /// How many instances of this size fit.
    pub fn fits(&self, vcpus: u32, memory_mib: u64) -> u64 {
        let by_cpu = u64::from(self.vcpus.saturating_sub(self.used_vcpus) / vcpus.max(1));
        by_cpu.min(self.memory_mib.saturating_sub(self.used_memory_mib) / memory_mib.max(1))
    }

    /// Gives out the capacity of one instance.
    pub fn take(&mut self, vcpus: u32, memory_mib: u64) {
        self.used_vcpus = self.used_vcpus.saturating_add(vcpus);
        self.used_memory_mib = self.used_memory_mib.saturating_add(memory_mib);
    }

    /// Takes the capacity of one instance back.
    pub fn give_back(&mut self, vcpus: u32, memory_mib: u64) {
        self.used_vcpus = self.used_vcpus.saturating_sub(vcpus);
        self.used_memory_mib = self.used_memory_mib.saturating_sub(memory_mib);
    }
}

/// A node that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNode {
    /// Its name.
    pub name: String,
    /// Its certificates that begin no later are void; Unix seconds.
    pub void_until_s: i64,
    /// What it held is lost, and nothing says so any more.
    pub done: bool,
}

/// A number that only grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// The last number given out.
    pub last: u32,
}

/// A client token that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// `ACTION.TOKEN`, the token in hex.
    pub key: String,
    /// Hash of the other parameters.
    pub digest: String,
    /// What the call's transaction gave.
    #[serde(default)]
    pub answer: serde_json::Value,
    /// Instances that the call made.
    #[serde(default)]
    pub instances: Vec<InstanceId>,
    /// Unix seconds.
    pub at_s: i64,
}

/// An account's settings in a region. Its being there says that the default VPC
/// has been made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `settings`: there is one.
    pub name: String,
    /// `HttpTokens` of new instances: required, optional, or no preference.
    pub tokens_required: Option<bool>,
    /// `HttpPutResponseHopLimit` of new instances.
    pub hop_limit: Option<u32>,
    /// `HttpEndpoint` of new instances.
    pub endpoint: Option<bool>,
    /// `InstanceMetadataTags` of new instances.
    pub instance_tags: Option<bool>,
    /// `CpuCredits` of new instances, by family.
    #[serde(default)]
    pub cpu_credits: std::collections::BTreeMap<String, String>,
    /// `block-new-sharing` or `block-all-sharing` of snapshots.
    #[serde(default)]
    pub snapshots_public: Option<String>,
    /// No image may be made public.
    #[serde(default)]
    pub block_public_images: bool,
    /// New volumes and copies of snapshots are encrypted.
    #[serde(default)]
    pub encrypt_by_default: bool,
}

impl Settings {
    /// The name of the one.
    pub const NAME: &'static str = "settings";
}
