//! Volume types: their bounds, and the performance that each is held to.
//!
//! Sources: EC2 API reference, `EbsBlockDevice`; Amazon EBS User Guide, "Amazon EBS
//! volume types" and the pages of gp2, gp3, io1, io2 and magnetic volumes.

use crate::wire::ApiError;
use ocs_node_api as api;

/// Operations of SSD volumes are counted in this size, those of magnetic ones in a MiB.
const SSD_IO_BYTES: u32 = 256 << 10;
const MIB: u64 = 1 << 20;
/// What a volume of gp2 saves up at most, and begins with.
const GP2_CREDITS: u64 = 5_400_000;
const GP2_BURST_IOPS: u32 = 3_000;
const GP3_IOPS: u32 = 3_000;
const GP3_MIB_PER_S: u32 = 125;

/// What a caller asks of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `VolumeType`.
    pub volume_type: String,
    /// `Iops`.
    pub iops: Option<i64>,
    /// `Throughput`, MiB/s.
    pub throughput_mib_s: Option<i64>,
}

impl Default for Asked {
    /// EC2's default, where a request names no type.
    fn default() -> Self {
        Self {
            volume_type: "gp2".to_owned(),
            iops: None,
            throughput_mib_s: None,
        }
    }
}

/// What a volume has been given: what it shows as `VolumeType`, `Iops`, `Throughput`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// `gp2`, ….
    pub volume_type: String,
    /// `Iops`, where the type has it.
    pub iops: Option<u32>,
    /// `Throughput`, where the type has it.
    pub throughput_mib_s: Option<u32>,
}

/// A type that can be had.
struct Kind {
    name: &'static str,
    size_gib: (u32, u32),
    /// Lowest and highest `Iops`, and most a GiB, where they are provisioned.
    iops: Option<(u32, u32, u32)>,
}

const fn kind(name: &'static str, size: (u32, u32), iops: Option<(u32, u32, u32)>) -> Kind {
    Kind {
        name,
        size_gib: size,
        iops,
    }
}

/// Sizes end at 16 TiB for every type: storaged's largest volume.
const KINDS: &[Kind] = &[
    kind("gp2", (1, 16_384), None),
    kind("gp3", (1, 16_384), Some((GP3_IOPS, 80_000, 500))),
    kind("io1", (4, 16_384), Some((100, 64_000, 50))),
    kind("io2", (4, 16_384), Some((100, 256_000, 1_000))),
    kind("standard", (1, 1_024), None),
];

/// What a volume of `size_gib` is given.
///
/// # Errors
/// `UnsupportedOperation` for a type that this cloud lacks; `MissingParameter`,
/// `InvalidParameterValue`, `InvalidParameterCombination` as EC2 has them.
pub fn give(asked: &Asked, size_gib: i64) -> Result<Given, ApiError> {
    let name = asked.volume_type.as_str();
    let kind = KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let why = format!("The volume type {name} is not supported by this cloud.");
        ApiError::new("UnsupportedOperation", why)
    })?;
    let (least, most) = kind.size_gib;
    if !(i64::from(least)..=i64::from(most)).contains(&size_gib) {
        let why = format!("It must be from {least} to {most} GiB for {name} volumes.");
        return Err(ApiError::value(size_gib, "VolumeSize", &why));
    }
    let iops = match (kind.iops, asked.iops) {
        (None, Some(_)) => {
            return Err(ApiError::combination(format!(
                "The parameter iops is not supported for {name} volumes."
            )));
        }
        (None, None) if name == "gp2" => Some(gp2_iops(size_gib)),
        (None, None) => None,
        (Some(_), None) if name == "gp3" => Some(GP3_IOPS),
        (Some(_), None) => return Err(ApiError::missing("iops")),
        (Some(bounds), Some(iops)) => Some(provisioned(name, bounds, iops, size_gib)?),
    };
    let throughput_mib_s = match asked.throughput_mib_s {
        None => (name == "gp3").then_some(GP3_MIB_PER_S),
        Some(_) if name != "gp3" => {
            return Err(ApiError::combination(format!(
                "The parameter throughput is not supported for {name} volumes."
            )));
        }
        Some(mib) => Some(throughput(mib, iops.unwrap_or(GP3_IOPS))?),
    };
    Ok(Given {
        volume_type: name.to_owned(),
        iops,
        throughput_mib_s,
    })
}

/// "3 IOPS per GiB", 100 at least, 16,000 at most.
fn gp2_iops(size_gib: i64) -> u32 {
    u32::try_from(size_gib)
        .unwrap_or(u32::MAX)
        .saturating_mul(3)
        .clamp(100, 16_000)
}

fn provisioned(
    name: &str,
    (least, most, per_gib): (u32, u32, u32),
    iops: i64,
    size_gib: i64,
) -> Result<u32, ApiError> {
    let value = u32::try_from(iops)
        .ok()
        .filter(|n| (least..=most).contains(n));
    let why = format!("It must be from {least} to {most} for {name} volumes.");
    let value = value.ok_or_else(|| ApiError::value(iops, "Iops", &why))?;
    // gp3's base is for every size.
    let base = if name == "gp3" { GP3_IOPS } else { 0 };
    if value > base && iops > size_gib * i64::from(per_gib) {
        let why = format!("Iops to volume size ratio is too high; maximum is {per_gib}.");
        return Err(ApiError::value(iops, "Iops", &why));
    }
    Ok(value)
}

/// "The maximum ratio of provisioned throughput to provisioned IOPS is 0.25 MiB/s per
/// IOPS".
fn throughput(mib: i64, iops: u32) -> Result<u32, ApiError> {
    let value = u32::try_from(mib)
        .ok()
        .filter(|n| (GP3_MIB_PER_S..=2_000).contains(n));
    let value = value
        .ok_or_else(|| ApiError::value(mib, "Throughput", "It must be from 125 to 2000 MiB/s."))?;
    if value * 4 > iops {
        let why = "Throughput (MiB/s) to iops ratio is too high; maximum is 0.25.";
        return Err(ApiError::value(mib, "Throughput", why));
    }
    Ok(value)
}

/// What its node holds a volume to.
pub fn limits(
    volume_type: &str,
    size_gib: u32,
    iops: Option<u32>,
    throughput_mib_s: Option<u32>,
) -> api::VolumeLimits {
    let iops = u64::from(iops.unwrap_or(0));
    let mut limits = api::VolumeLimits {
        iops,
        io_bytes: SSD_IO_BYTES,
        ..api::VolumeLimits::default()
    };
    limits.bytes_per_s = match volume_type {
        "gp2" => {
            if iops < u64::from(GP2_BURST_IOPS) {
                limits.burst_iops = u64::from(GP2_BURST_IOPS);
                limits.burst_credits = GP2_CREDITS;
            }
            if size_gib <= 170 {
                128 * MIB
            } else {
                250 * MIB
            }
        }
        "gp3" => u64::from(throughput_mib_s.unwrap_or(GP3_MIB_PER_S)) * MIB,
        // 256 KiB an operation to 500 MiB/s, then 16 KiB to 1,000 MiB/s.
        "io1" => (iops * 256 * 1024).min((500 * MIB).max(iops * 16 * 1024)),
        "io2" => (iops * 256 * 1024).min(4_000 * MIB),
        // Magnetic: "approximately 100 IOPS on average, with burst capability of up to
        // hundreds", "40–90 MiB/s".
        _ => {
            (limits.iops, limits.io_bytes) = (200, 1 << 20);
            90 * MIB
        }
    };
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str, iops: Option<i64>, mib: Option<i64>, size: i64) -> Result<Given, String> {
        let asked = Asked {
            volume_type: name.to_owned(),
            iops,
            throughput_mib_s: mib,
        };
        give(&asked, size).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn each_type_is_given_what_ec2_documents() {
        for (size, iops, mib) in [
            (1, 100, 128),
            (33, 100, 128),
            (34, 102, 128),
            (100, 300, 128),
            (171, 513, 250),
            (1_000, 3_000, 250),
            (5_334, 16_000, 250),
            (16_384, 16_000, 250),
        ] {
            let gp2 = given("gp2", None, None, size).unwrap();
            assert_eq!((gp2.iops, gp2.throughput_mib_s), (Some(iops), None));
            let held = limits("gp2", size as u32, gp2.iops, None);
            assert_eq!(held.bytes_per_s, mib * MIB, "{size}");
            let credits = if iops < 3_000 { GP2_CREDITS } else { 0 };
            assert_eq!(held.burst_credits, credits, "{size}");
        }
        let gp3 = given("gp3", None, None, 1).unwrap();
        assert_eq!((gp3.iops, gp3.throughput_mib_s), (Some(3_000), Some(125)));
        let fast = given("gp3", Some(16_000), Some(1_000), 500).unwrap();
        let held = limits("gp3", 500, fast.iops, fast.throughput_mib_s);
        assert_eq!((held.iops, held.bytes_per_s), (16_000, 1_000 * MIB));
        for (iops, mib) in [(100, 25), (2_000, 500), (32_000, 500), (64_000, 1_000)] {
            assert_eq!(
                limits("io1", 9_999, Some(iops), None).bytes_per_s,
                mib * MIB
            );
        }
        assert_eq!(
            limits("io2", 400, Some(16_000), None).bytes_per_s,
            4_000 * MIB
        );
        assert_eq!(given("standard", None, None, 1).unwrap().iops, None);
        assert_eq!(limits("standard", 1, None, None).iops, 200);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (name, iops, mib, size, what) in [
            ("gp2", Some(100), None, 1, "iops is not supported"),
            ("standard", Some(100), None, 1, "iops is not supported"),
            ("io1", None, None, 4, "iops"),
            ("io1", Some(100), None, 3, "VolumeSize"),
            ("io1", Some(99), None, 4, "Iops"),
            ("io1", Some(201), None, 4, "ratio"),
            ("io2", Some(256_001), None, 400, "Iops"),
            ("gp3", Some(2_999), None, 1, "Iops"),
            ("gp3", Some(3_001), None, 6, "ratio"),
            ("gp3", None, Some(124), 1, "Throughput"),
            ("gp3", None, Some(751), 1, "ratio"),
            (
                "io2",
                Some(100),
                Some(125),
                4,
                "throughput is not supported",
            ),
            ("standard", None, None, 1_025, "VolumeSize"),
            ("st1", None, None, 500, "UnsupportedOperation"),
        ] {
            let error = given(name, iops, mib, size).unwrap_err();
            assert!(error.contains(what), "{name} {iops:?} {mib:?}: {error}");
        }
    }
}
