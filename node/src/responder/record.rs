//! What one ENI may be told: a JSON file that the node writes and the responder reads.
//!
//! `DIR/run/responder/SERVICE-ADDRESS.json`, replaced whole by rename, mode 0640.
//! The responder has no other knowledge: a request whose peer has no record is
//! not answered.

use ipnet::{Ipv4Net, Ipv6Net};
use ocs_node_api as api;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// The version of [`Record`] that this crate reads and writes.
pub const RECORD_VERSION: u32 = 1;
/// A longer file is refused: 16 KiB of user data, 50 tags and room.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// One ENI and its instance, as the metadata service and DHCP tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The instance.
    pub instance: Instance,
    /// Every ENI of the instance, by device index.
    pub interfaces: Vec<Interface>,
    /// Which of `interfaces` this record's service address stands for.
    pub interface: usize,
}

/// The instance, in [`api::Metadata`]'s words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-…`
    pub id: String,
    /// Owner's twelve digits.
    pub account_id: String,
    /// `ami-…`
    pub ami_id: String,
    /// Such as `t3.micro`.
    pub instance_type: String,
    /// Such as `us-east-1`.
    pub region: String,
    /// Such as `us-east-1a`.
    pub availability_zone: String,
    /// Such as `use1-az1`.
    pub availability_zone_id: String,
    /// `r-…`
    pub reservation_id: String,
    /// Place in its reservation, from 0.
    pub ami_launch_index: u32,
    /// Private DNS name.
    pub hostname: String,
    /// If there is one.
    pub public_ip: Option<Ipv4Addr>,
    /// Public DNS name, or empty.
    #[serde(default)]
    pub public_hostname: String,
    /// Decoded.
    #[serde(with = "base64_text")]
    pub user_data: Vec<u8>,
    /// Names, not ids.
    pub security_group_names: Vec<String>,
    /// `vpc-…`
    pub vpc_id: String,
    /// `subnet-…`
    pub subnet_id: String,
    /// Empty: no key pair.
    pub key_name: String,
    /// OpenSSH form.
    pub public_key: String,
    /// Off: every request is refused with 403.
    pub http_endpoint_enabled: bool,
    /// On: a request without a token is refused with 401.
    pub http_tokens_required: bool,
    /// Whether it answers at its IPv6 address, too.
    #[serde(default)]
    pub http_protocol_ipv6: bool,
    /// IP TTL of the answer to a token's PUT.
    pub http_put_response_hop_limit: u8,
    /// Whether `tags/instance/` is there.
    pub instance_metadata_tags: bool,
    /// The instance's tags.
    pub tags: BTreeMap<String, String>,
    /// `pendingTime`, Unix seconds.
    pub launch_time_s: i64,
    /// Virtual name to device, such as `ami` → `sda1`.
    pub block_device_mapping: BTreeMap<String, String>,
    /// Its placement group, or empty.
    #[serde(default)]
    pub placement_group_name: String,
    /// Its partition there, 0 for none.
    #[serde(default)]
    pub partition_number: u32,
}

/// One ENI, in [`api::NetworkInterface`]'s words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// `eni-…`
    pub id: String,
    /// `02:00:00:00:00:01` form.
    pub mac: String,
    /// Its primary address.
    pub private_ip: Ipv4Addr,
    /// Its other addresses.
    #[serde(default)]
    pub secondary: Vec<Ipv4Addr>,
    /// The subnet; its first address is the router.
    pub subnet_cidr: Ipv4Net,
    /// The VPC's primary block; its base + 2 is the resolver.
    pub vpc_cidr: Ipv4Net,
    /// `sg-…`
    pub security_groups: Vec<String>,
    /// What it is in IPv6.
    #[serde(default)]
    pub ipv6: Ipv6,
    /// DHCP option 26.
    pub mtu: u16,
    /// DHCP option 15, or empty.
    pub domain_name: String,
    /// Further DHCP options of its VPC.
    #[serde(default)]
    pub options: Options,
    /// What the metadata service alone tells of it.
    #[serde(default)]
    pub facts: Facts,
}

/// What an ENI is in IPv6; without addresses, nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6 {
    /// Its addresses.
    pub addresses: Vec<Ipv6Addr>,
    /// Its subnet's block.
    pub subnet: Option<Ipv6Net>,
    /// All blocks of its VPC.
    pub vpc_cidrs: Vec<String>,
}

/// What the metadata service tells of an ENI and DHCP does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `subnet-…`
    pub subnet_id: String,
    /// Its place in the instance.
    pub device_number: u32,
    /// Names of its groups.
    pub security_group_names: Vec<String>,
    /// All blocks of its VPC.
    pub vpc_cidrs: Vec<String>,
    /// Private DNS name.
    pub hostname: String,
    /// Each public address, and the private one that it stands for.
    #[serde(default)]
    pub publics: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Public DNS name, or empty.
    pub public_hostname: String,
}

/// DHCP options that a VPC's owner chose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Resolvers in place of the VPC's own.
    pub domain_name_servers: Vec<Ipv4Addr>,
    /// No resolver at all.
    pub no_resolver: bool,
    /// The VPC's resolver refuses.
    #[serde(default)]
    pub no_dns: bool,
    /// Option 42.
    pub ntp_servers: Vec<Ipv4Addr>,
    /// Option 44.
    pub netbios_name_servers: Vec<Ipv4Addr>,
    /// Option 46; 0: none.
    pub netbios_node_type: u8,
}

/// Why a record cannot be made, written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A desired object holds a value that cannot be told.
    #[error("{field} of {id}: {value:?} is not valid")]
    Field {
        /// The instance or ENI.
        id: String,
        /// The field's name in `node.proto`.
        field: &'static str,
        /// What it held.
        value: String,
    },
    /// The file is not a record.
    #[error("{path} is not a record: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file is of another version, too long, or names an interface it does not hold.
    #[error("{path} is not a record of version {RECORD_VERSION}")]
    Shape {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Record {
    /// The record of the instance's ENI number `interface`, from desired state.
    pub fn from_desired(desired: &api::Instance, interface: usize) -> Result<Self, RecordError> {
        let bad = |field, value: &str| RecordError::Field {
            id: desired.id.clone(),
            field,
            value: value.to_owned(),
        };
        let metadata = desired
            .metadata
            .clone()
            .ok_or_else(|| bad("metadata", ""))?;
        let interfaces = desired
            .network_interfaces
            .iter()
            .map(Interface::from_desired)
            .collect::<Result<Vec<_>, _>>()?;
        if interface >= interfaces.len() {
            return Err(bad("network_interfaces", &interface.to_string()));
        }
        let public_ip = match metadata.public_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| bad("public_ip", text))?),
        };
        let hops = metadata.http_put_response_hop_limit;
        let instance = Instance {
            id: desired.id.clone(),
            account_id: metadata.account_id,
            ami_id: metadata.ami_id,
            instance_type: metadata.instance_type,
            region: metadata.region,
            availability_zone: metadata.availability_zone,
            availability_zone_id: metadata.availability_zone_id,
            reservation_id: metadata.reservation_id,
            ami_launch_index: metadata.ami_launch_index,
            hostname: metadata.hostname,
            public_ip,
            public_hostname: metadata.public_hostname,
            user_data: metadata.user_data,
            security_group_names: metadata.security_group_names,
            vpc_id: metadata.vpc_id,
            subnet_id: metadata.subnet_id,
            key_name: metadata.key_name,
            public_key: metadata.public_key,
            http_endpoint_enabled: metadata.http_endpoint_enabled,
            http_tokens_required: metadata.http_tokens_required,
            http_protocol_ipv6: metadata.http_protocol_ipv6,
            http_put_response_hop_limit: u8::try_from(hops)
                .ok()
                .filter(|hops| *hops > 0)
                .ok_or_else(|| bad("http_put_response_hop_limit", &hops.to_string()))?,
            instance_metadata_tags: metadata.instance_metadata_tags,
            tags: metadata.tags.into_iter().collect(),
            launch_time_s: metadata.launch_time_s,
            block_device_mapping: metadata.block_device_mapping.into_iter().collect(),
            placement_group_name: metadata.placement_group_name,
            partition_number: metadata.partition_number,
        };
        Ok(Self {
            version: RECORD_VERSION,
            instance,
            interfaces,
            interface,
        })
    }

    /// The ENI that this record's service address stands for.
    ///
    /// `None` is impossible for a record that [`Record::read`] or
    /// [`Record::from_desired`] returned.
    #[must_use]
    pub fn own_interface(&self) -> Option<&Interface> {
        self.interfaces.get(self.interface)
    }

    /// Where the record of `service_address` lies in `folder`.
    #[must_use]
    pub fn path(folder: &Path, service_address: Ipv4Addr) -> PathBuf {
        folder.join(format!("{service_address}.json"))
    }

    /// Replaces the record of `service_address` in `folder`, readable by `gid`.
    pub fn write(
        &self,
        folder: &Path,
        service_address: Ipv4Addr,
        gid: u32,
    ) -> Result<(), RecordError> {
        let path = Self::path(folder, service_address);
        let part = folder.join(format!(".{service_address}.part"));
        let write = || {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o640)
                .open(&part)?;
            fchown(&file, None, Some(gid))?;
            file.write_all(&serde_json::to_vec(self)?)?;
            drop(file);
            std::fs::rename(&part, &path)
        };
        write().map_err(|source| RecordError::Io {
            path: path.clone(),
            source,
        })
    }

    /// Removes the record of `service_address`; none there is fine.
    pub fn remove(folder: &Path, service_address: Ipv4Addr) -> Result<(), RecordError> {
        let path = Self::path(folder, service_address);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(RecordError::Io { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The record of `service_address`, or `None` where there is none.
    pub fn read(folder: &Path, service_address: Ipv4Addr) -> Result<Option<Self>, RecordError> {
        let path = Self::path(folder, service_address);
        let mut bytes = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { path, source }),
            Ok(length) if length as u64 > MAX_FILE_BYTES => {
                return Err(RecordError::Shape { path });
            }
            Ok(_) => {}
        }
        match serde_json::from_slice::<Self>(&bytes) {
            Err(source) => Err(RecordError::Json { path, source }),
            Ok(record) if record.version == RECORD_VERSION && record.own_interface().is_some() => {
                Ok(Some(record))
            }
            Ok(_) => Err(RecordError::Shape { path }),
        }
    }
}

impl Interface {
    fn from_desired(desired: &api::NetworkInterface) -> Result<Self, RecordError> {
        let bad = |field, value: &str| RecordError::Field {
            id: desired.id.clone(),
            field,
            value: value.to_owned(),
        };
        ocs_vmm_spec::parse_mac(&desired.mac).ok_or_else(|| bad("mac", &desired.mac))?;
        Ok(Self {
            id: desired.id.clone(),
            mac: desired.mac.to_lowercase(),
            private_ip: desired
                .private_ip
                .parse()
                .map_err(|_| bad("private_ip", &desired.private_ip))?,
            secondary: {
                let parse =
                    |text: &String| text.parse().map_err(|_| bad("secondary_private_ips", text));
                let texts = desired.secondary_private_ips.iter();
                texts.map(parse).collect::<Result<_, _>>()?
            },
            subnet_cidr: desired
                .subnet_cidr
                .parse()
                .map_err(|_| bad("subnet_cidr", &desired.subnet_cidr))?,
            vpc_cidr: desired
                .vpc_cidr
                .parse()
                .map_err(|_| bad("vpc_cidr", &desired.vpc_cidr))?,
            security_groups: desired.security_groups.clone(),
            ipv6: Ipv6::from_desired(desired)?,
            mtu: u16::try_from(desired.mtu)
                .ok()
                .filter(|mtu| *mtu >= 576)
                .ok_or_else(|| bad("mtu", &desired.mtu.to_string()))?,
            domain_name: desired.domain_name.clone(),
            options: Options::from_desired(desired)?,
            facts: Facts::from_desired(desired)?,
        })
    }
}

impl Ipv6 {
    fn from_desired(desired: &api::NetworkInterface) -> Result<Self, RecordError> {
        let bad = |field, value: &str| RecordError::Field {
            id: desired.id.clone(),
            field,
            value: value.to_owned(),
        };
        let parse = |text: &String| text.parse().map_err(|_| bad("ipv6_addresses", text));
        Ok(Self {
            addresses: desired
                .ipv6_addresses
                .iter()
                .map(parse)
                .collect::<Result<_, _>>()?,
            subnet: match desired.subnet_ipv6_cidr.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| bad("subnet_ipv6_cidr", text))?),
            },
            vpc_cidrs: desired.vpc_ipv6_cidrs.clone(),
        })
    }
}

impl Facts {
    fn from_desired(desired: &api::NetworkInterface) -> Result<Self, RecordError> {
        let address = |text: &String| {
            text.parse::<Ipv4Addr>().map_err(|_| RecordError::Field {
                id: desired.id.clone(),
                field: "public_addresses",
                value: text.clone(),
            })
        };
        let pairs = desired.public_addresses.iter();
        let publics = pairs
            .map(|pair| Ok((address(&pair.public_ip)?, address(&pair.private_ip)?)))
            .collect::<Result<_, RecordError>>()?;
        Ok(Self {
            subnet_id: desired.subnet_id.clone(),
            device_number: desired.device_index,
            security_group_names: desired.security_group_names.clone(),
            vpc_cidrs: desired.vpc_cidrs.clone(),
            hostname: desired.hostname.clone(),
            publics,
            public_hostname: desired.public_hostname.clone(),
        })
    }
}

impl Options {
    fn from_desired(desired: &api::NetworkInterface) -> Result<Self, RecordError> {
        let bad = |field, value: &str| RecordError::Field {
            id: desired.id.clone(),
            field,
            value: value.to_owned(),
        };
        let addresses = |field, texts: &[String]| {
            let parse = |text: &String| text.parse().map_err(|_| bad(field, text));
            texts.iter().map(parse).collect::<Result<Vec<_>, _>>()
        };
        let kind = desired.netbios_node_type;
        Ok(Self {
            domain_name_servers: addresses("domain_name_servers", &desired.domain_name_servers)?,
            no_resolver: desired.no_resolver,
            no_dns: desired.no_dns,
            ntp_servers: addresses("ntp_servers", &desired.ntp_servers)?,
            netbios_name_servers: addresses("netbios_name_servers", &desired.netbios_name_servers)?,
            netbios_node_type: u8::try_from(kind)
                .map_err(|_| bad("netbios_node_type", &kind.to_string()))?,
        })
    }
}

/// Bytes as base64 text in JSON.
mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}
