//! What launches name: key pairs, launch templates, placement groups.

use super::{KeyPairId, LaunchTemplateId, PlacementGroupId, Tags};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// A key pair; only its public half is ever kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Its id.
    pub id: KeyPairId,
    /// `KeyName`, unique in its account and region.
    pub name: String,
    /// `rsa` or `ed25519`.
    pub kind: String,
    /// As EC2 computes it: see `ec2::keys`.
    pub fingerprint: String,
    /// In OpenSSH's form.
    pub public_key: String,
    /// Unix seconds.
    pub created_at_s: i64,
    /// Its tags.
    pub tags: Tags,
}

/// A launch template; its versions are rows of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplate {
    /// Its id.
    pub id: LaunchTemplateId,
    /// `LaunchTemplateName`, unique in its account and region.
    pub name: String,
    /// Unix seconds.
    pub created_at_s: i64,
    /// The version that `$Default` stands for.
    pub default_version: u64,
    /// The version that `$Latest` stands for; numbers are never used again.
    pub latest_version: u64,
    /// Its tags.
    pub tags: Tags,
}

/// A version's name: its template and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TemplateVersionId(pub LaunchTemplateId, pub u64);

impl fmt::Display for TemplateVersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:08}", self.0, self.1)
    }
}

impl FromStr for TemplateVersionId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a launch template's version");
        let (template, number) = text.split_once('.').ok_or_else(bad)?;
        let template = template.parse().map_err(|_| bad())?;
        Ok(Self(template, number.parse().map_err(|_| bad())?))
    }
}

impl Serialize for TemplateVersionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TemplateVersionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A version of a launch template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVersion {
    /// Its template and number.
    pub id: TemplateVersionId,
    /// `VersionDescription`.
    pub description: Option<String>,
    /// Unix seconds.
    pub created_at_s: i64,
    /// `RequestLaunchTemplateData`, by the model's names.
    pub data: serde_json::Value,
}

/// How a placement group spreads its instances over hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// All on one host.
    Cluster,
    /// Each on a host of its own.
    Spread,
    /// No host serves two partitions.
    Partition,
}

impl Strategy {
    /// EC2's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Spread => "spread",
            Self::Partition => "partition",
        }
    }
}

/// A placement group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementGroup {
    /// Its id.
    pub id: PlacementGroupId,
    /// `GroupName`, unique in its account and region.
    pub name: String,
    /// Its strategy.
    pub strategy: Strategy,
    /// How many partitions, 0 but for [`Strategy::Partition`].
    pub partitions: u32,
    /// Its tags.
    pub tags: Tags,
}
