//! Instance types, with the figures that EC2 publishes (DescribeInstanceTypes).

use super::Ctx;
use super::list::Query;
use super::params::Filter;
use crate::config::zone_id;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

/// The type of an instance whose caller names none.
pub const DEFAULT: &str = "m1.small";

/// An instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    /// `t2.micro`, …
    pub name: &'static str,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Instance-store disks: how many, of how many (decimal) gigabytes each.
    pub disks: (u32, u64),
    /// Most network interfaces, and private addresses of each.
    pub network: (u32, u32),
    /// How fast its network is.
    pub bandwidth: Bandwidth,
}

/// How fast an instance's network is, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// EC2's words for it.
    pub words: &'static str,
    /// What it may always have.
    baseline_mbps: u32,
    /// What it may have while it has credits.
    peak_mbps: u32,
    /// Whether EC2 publishes the figures.
    published: bool,
}

/// How long full credits last at the peak; EC2: "typically from 5 to 60 minutes".
const BURST_S: u64 = 300;
/// EC2 publishes no packet rates: so many as the peak carries in packets of this size.
const PACKET_BYTES: u64 = 512;

impl Bandwidth {
    /// Where EC2 publishes figures (EC2 instance types, "Network specifications").
    const fn up_to(words: &'static str, baseline_mbps: u32, peak_gbps: u32) -> Self {
        Self {
            words,
            baseline_mbps,
            peak_mbps: peak_gbps * 1_000,
            published: true,
        }
    }

    /// Where EC2 publishes a word only, the figures are ours.
    const fn word(words: &'static str, baseline_mbps: u32, peak_mbps: u32) -> Self {
        Self {
            words,
            baseline_mbps,
            peak_mbps,
            published: false,
        }
    }

    /// Bits a second, always.
    pub fn baseline_bps(self) -> u64 {
        u64::from(self.baseline_mbps) * 1_000_000
    }

    /// Bits a second, with credits.
    pub fn peak_bps(self) -> u64 {
        u64::from(self.peak_mbps) * 1_000_000
    }

    /// Bytes that can be saved; 0 where the peak is the baseline.
    pub fn credit_bytes(self) -> u64 {
        (self.peak_bps() - self.baseline_bps()) / 8 * BURST_S
    }

    /// Packets a second.
    pub fn packets_per_s(self) -> u64 {
        self.peak_bps() / 8 / PACKET_BYTES
    }

    fn present(self, interfaces: u32) -> Value {
        let mut card = json!({
            "NetworkCardIndex": 0,
            "NetworkPerformance": self.words,
            "MaximumNetworkInterfaces": interfaces,
        });
        if self.published {
            card["BaselineBandwidthInGbps"] = json!(f64::from(self.baseline_mbps) / 1_000.0);
            card["PeakBandwidthInGbps"] = json!(f64::from(self.peak_mbps) / 1_000.0);
        }
        card
    }
}

const VERY_LOW: Bandwidth = Bandwidth::word("Very Low", 100, 100);
const LOW: Bandwidth = Bandwidth::word("Low", 300, 300);
const LOW_TO_MODERATE: Bandwidth = Bandwidth::word("Low to Moderate", 250, 1_000);
const MODERATE: Bandwidth = Bandwidth::word("Moderate", 500, 1_000);
const HIGH: Bandwidth = Bandwidth::word("High", 1_000, 1_000);
const fn up_to_5(baseline_mbps: u32) -> Bandwidth {
    Bandwidth::up_to("Up to 5 Gigabit", baseline_mbps, 5)
}
const fn up_to_10(baseline_mbps: u32) -> Bandwidth {
    Bandwidth::up_to("Up to 10 Gigabit", baseline_mbps, 10)
}

const fn of(
    name: &'static str,
    vcpus: u32,
    memory_mib: u64,
    disks: (u32, u64),
    network: (u32, u32),
    bandwidth: Bandwidth,
) -> InstanceType {
    InstanceType {
        name,
        vcpus,
        memory_mib,
        disks,
        network,
        bandwidth,
    }
}

const NONE: (u32, u64) = (0, 0);

/// All types, in order of name.
pub const TYPES: &[InstanceType] = &[
    of("c4.2xlarge", 8, 15_360, NONE, (4, 15), HIGH),
    of("c4.large", 2, 3_840, NONE, (3, 10), MODERATE),
    of("c4.xlarge", 4, 7_680, NONE, (4, 15), HIGH),
    of("c5.2xlarge", 8, 16_384, NONE, (4, 15), up_to_10(2_500)),
    of("c5.large", 2, 4_096, NONE, (3, 10), up_to_10(750)),
    of("c5.xlarge", 4, 8_192, NONE, (4, 15), up_to_10(1_250)),
    of("i3.large", 2, 15_616, (1, 475), (3, 10), up_to_10(750)),
    of("i3.xlarge", 4, 31_232, (1, 950), (4, 15), up_to_10(1_250)),
    of("m1.large", 2, 7_680, (2, 420), (3, 10), MODERATE),
    of("m1.medium", 1, 3_788, (1, 410), (2, 6), MODERATE),
    of("m1.small", 1, 1_740, (1, 160), (2, 4), LOW),
    of("m1.xlarge", 4, 15_360, (4, 420), (4, 15), HIGH),
    of("m5.2xlarge", 8, 32_768, NONE, (4, 15), up_to_10(2_500)),
    of("m5.large", 2, 8_192, NONE, (3, 10), up_to_10(750)),
    of("m5.xlarge", 4, 16_384, NONE, (4, 15), up_to_10(1_250)),
    of("r5.large", 2, 16_384, NONE, (3, 10), up_to_10(750)),
    of("r5.xlarge", 4, 32_768, NONE, (4, 15), up_to_10(1_250)),
    of("t1.micro", 1, 627, NONE, (2, 2), VERY_LOW),
    of("t2.2xlarge", 8, 32_768, NONE, (3, 15), MODERATE),
    of("t2.large", 2, 8_192, NONE, (3, 12), LOW_TO_MODERATE),
    of("t2.medium", 2, 4_096, NONE, (3, 6), LOW_TO_MODERATE),
    of("t2.micro", 1, 1_024, NONE, (2, 2), LOW_TO_MODERATE),
    of("t2.nano", 1, 512, NONE, (2, 2), LOW_TO_MODERATE),
    of("t2.small", 1, 2_048, NONE, (3, 4), LOW_TO_MODERATE),
    of("t2.xlarge", 4, 16_384, NONE, (3, 15), MODERATE),
    of("t3.2xlarge", 8, 32_768, NONE, (4, 15), up_to_5(2_048)),
    of("t3.large", 2, 8_192, NONE, (3, 12), up_to_5(512)),
    of("t3.medium", 2, 4_096, NONE, (3, 6), up_to_5(256)),
    of("t3.micro", 2, 1_024, NONE, (2, 2), up_to_5(64)),
    of("t3.nano", 2, 512, NONE, (2, 2), up_to_5(32)),
    of("t3.small", 2, 2_048, NONE, (3, 4), up_to_5(128)),
    of("t3.xlarge", 4, 16_384, NONE, (4, 15), up_to_5(1_024)),
    of("t3a.medium", 2, 4_096, NONE, (3, 6), up_to_5(256)),
    of("t3a.micro", 2, 1_024, NONE, (2, 2), up_to_5(64)),
    of("t3a.nano", 2, 512, NONE, (2, 2), up_to_5(32)),
    of("t3a.small", 2, 2_048, NONE, (2, 4), up_to_5(128)),
];

/// The type of a name.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn find(name: &str) -> Result<InstanceType, ApiError> {
    TYPES
        .iter()
        .find(|kind| kind.name == name)
        .copied()
        .ok_or_else(|| {
            ApiError::new(
                "InvalidParameterValue",
                format!("Invalid value '{name}' for InstanceType."),
            )
        })
}

impl InstanceType {
    /// Bytes of one instance-store disk.
    pub fn disk_bytes(&self) -> u64 {
        self.disks.1 * 1_000_000_000
    }

    /// It has CPU credits in EC2.
    pub fn burstable(&self) -> bool {
        self.name.starts_with('t') && self.name != "t1.micro"
    }

    /// Thousandths of CPU credits that it earns in an hour (EC2 user guide, "CPU credits and
    /// baseline utilization"); nothing where it is not burstable.
    pub fn credits_per_hour_milli(&self) -> Option<u64> {
        let (family, size) = self.name.split_once('.').filter(|_| self.burstable())?;
        Some(match (family, size) {
            ("t2", "nano") => 3_000,
            ("t2", "micro") | (_, "nano") => 6_000,
            ("t2", "small") | (_, "micro") => 12_000,
            (_, "small" | "medium") => 24_000,
            (_, "large") => 36_000,
            ("t2", "xlarge") => 54_000,
            ("t2", _) => 81_600,
            (_, "xlarge") => 96_000,
            _ => 192_000,
        })
    }

    /// `CpuCredits` of an instance whose caller names none.
    pub fn default_credits(&self) -> &'static str {
        if self.name.starts_with("t2.") {
            "standard"
        } else {
            "unlimited"
        }
    }

    fn present(&self) -> Value {
        let family = self.name.split('.').next().unwrap_or_default();
        let old = matches!(family, "t1" | "m1");
        let nitro = matches!(family, "t3" | "t3a" | "c5" | "m5" | "r5");
        let threads = if nitro || self.vcpus > 1 { 2 } else { 1 };
        let (interfaces, addresses) = self.network;
        let mut item = json!({
            "InstanceType": self.name,
            "CurrentGeneration": !old,
            "FreeTierEligible": matches!(self.name, "t2.micro" | "t3.micro"),
            "SupportedUsageClasses": ["on-demand"],
            "SupportedRootDeviceTypes":
                if self.disks.0 > 0 && old { json!(["ebs", "instance-store"]) } else { json!(["ebs"]) },
            "SupportedVirtualizationTypes": ["hvm"],
            "BareMetal": false,
            "Hypervisor": if nitro { "nitro" } else { "xen" },
            "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]},
            "VCpuInfo": {
                "DefaultVCpus": self.vcpus,
                "DefaultCores": (self.vcpus / threads).max(1),
                "DefaultThreadsPerCore": threads,
            },
            "MemoryInfo": {"SizeInMiB": self.memory_mib},
            "InstanceStorageSupported": self.disks.0 > 0,
            "EbsInfo": {
                "EbsOptimizedSupport": "unsupported",
                "EncryptionSupport": "unsupported",
                "NvmeSupport": "unsupported",
            },
            "NetworkInfo": {
                "NetworkPerformance": self.bandwidth.words,
                "MaximumNetworkCards": 1,
                "DefaultNetworkCardIndex": 0,
                "NetworkCards": [self.bandwidth.present(interfaces)],
                "MaximumNetworkInterfaces": interfaces,
                "Ipv4AddressesPerInterface": addresses,
                "Ipv6AddressesPerInterface": addresses,
                "Ipv6Supported": true,
                "EnaSupport": "unsupported",
                "EfaSupported": false,
            },
            "PlacementGroupInfo": {"SupportedStrategies": ["cluster", "partition", "spread"]},
            "HibernationSupported": false,
            "BurstablePerformanceSupported": self.burstable(),
            "DedicatedHostsSupported": false,
            "AutoRecoverySupported": false,
            "SupportedBootModes": ["legacy-bios"],
        });
        if self.disks.0 > 0 {
            item["InstanceStorageInfo"] = json!({
                "TotalSizeInGB": u64::from(self.disks.0) * self.disks.1,
                "Disks": [{"SizeInGB": self.disks.1, "Count": self.disks.0, "Type": "hdd"}],
                "NvmeSupport": "unsupported",
                "EncryptionSupport": "required",
            });
        }
        item
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    instance_types: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeInstanceTypes.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let names: Vec<&str> = params
        .instance_types
        .iter()
        .map(String::as_str)
        .filter(|name| find(name).is_err())
        .collect();
    if !names.is_empty() {
        return Err(ApiError::new(
            "InvalidInstanceType",
            format!(
                "The following supplied instance types do not exist: [{}]",
                names.join(", ")
            ),
        ));
    }
    let query = Query {
        action,
        member: "InstanceTypes",
        by_id: !params.instance_types.is_empty(),
        filters: &params.filters,
        paths: &[
            ("bare-metal", "BareMetal"),
            ("memory-info.size-in-mib", "MemoryInfo.SizeInMiB"),
            (
                "network-info.network-performance",
                "NetworkInfo.NetworkPerformance",
            ),
            (
                "processor-info.supported-architecture",
                "ProcessorInfo.SupportedArchitectures",
            ),
            ("supported-boot-mode", "SupportedBootModes"),
            ("supported-root-device-type", "SupportedRootDeviceTypes"),
            ("supported-usage-class", "SupportedUsageClasses"),
            (
                "supported-virtualization-type",
                "SupportedVirtualizationTypes",
            ),
            (
                "instance-storage-info.disk.count",
                "InstanceStorageInfo.Disks.Count",
            ),
            (
                "instance-storage-info.disk.size-in-gb",
                "InstanceStorageInfo.Disks.SizeInGB",
            ),
            (
                "instance-storage-info.disk.type",
                "InstanceStorageInfo.Disks.Type",
            ),
            (
                "instance-storage-info.total-size-in-gb",
                "InstanceStorageInfo.TotalSizeInGB",
            ),
            ("vcpu-info.default-cores", "VCpuInfo.DefaultCores"),
            (
                "vcpu-info.default-threads-per-core",
                "VCpuInfo.DefaultThreadsPerCore",
            ),
            ("vcpu-info.default-vcpus", "VCpuInfo.DefaultVCpus"),
        ],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    let wanted = |name: &&str| {
        params.instance_types.is_empty() || params.instance_types.iter().any(|t| t == name)
    };
    let items = TYPES
        .iter()
        .filter(|kind| wanted(&kind.name))
        .map(|kind| (kind.name.to_owned(), kind.present()));
    let answer = query.answer(items)?;
    ctx.read(|_| Ok(answer)).await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Offerings {
    location_type: Option<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeInstanceTypeOfferings: every type in every zone.
///
/// # Errors
/// EC2's codes.
pub async fn offerings(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Offerings = ctx.params(action, request)?;
    let zones = ctx.core.config.zones_of(ctx.region());
    let (kind, locations): (&str, Vec<String>) = match params.location_type.as_deref() {
        None | Some("region") => ("region", vec![ctx.region().to_owned()]),
        Some("availability-zone") => ("availability-zone", zones),
        Some("availability-zone-id") => (
            "availability-zone-id",
            zones.iter().map(|zone| zone_id(zone)).collect(),
        ),
        Some(_) => ("outpost", Vec::new()),
    };
    let query = Query {
        action,
        member: "InstanceTypeOfferings",
        by_id: false,
        filters: &params.filters,
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    let items = TYPES.iter().flat_map(|of| {
        locations.iter().map(move |location| {
            let item = json!({"InstanceType": of.name, "LocationType": kind, "Location": location});
            (format!("{}/{location}", of.name), item)
        })
    });
    let answer = query.answer(items)?;
    ctx.read(|_| Ok(answer)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_the_default() {
        assert!(TYPES.windows(2).all(|pair| pair[0].name < pair[1].name));
        for kind in TYPES {
            let rate = kind.bandwidth;
            assert!(0 < rate.baseline_bps() && rate.baseline_bps() <= rate.peak_bps());
        }
        assert_eq!(find(DEFAULT).map(|kind| kind.memory_mib), Ok(1_740));
    }
}
