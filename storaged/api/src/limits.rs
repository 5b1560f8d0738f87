//! How fast a volume, or a group of volumes, may be.

use serde::{Deserialize, Serialize};

/// Bytes that count as one operation unless a limit says otherwise: what EC2's SSD
/// volumes merge neighbours to and split larger requests in.
pub const IO_BYTES: u32 = 256 << 10;

/// Limits; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Operations a second, counted as EC2 counts them: each begun [`Self::io_bytes`]
    /// of a request, with contiguous requests of one direction merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<Rate>,
    /// Bytes a second, reads and writes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Rate>,
    /// Bytes of one operation; [`IO_BYTES`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_bytes: Option<u32>,
}

/// A rate, and what may be saved up to exceed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Sustained, in units a second: 1 to [`Rate::MAX_PER_S`].
    pub per_s: u64,
    /// While credits last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Burst>,
}

/// Burst credits, as EC2's gp2 volumes have them: they begin full, are spent by use
/// and earned at the sustained rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// Highest rate, in units a second: at least the sustained one.
    pub per_s: u64,
    /// Most credits, in units: 1 to [`Rate::MAX_CREDITS`].
    pub credits: u64,
}

/// Burst credits left, in units; absent where a limit has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Credits {
    /// Of [`Limits::iops`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Of [`Limits::bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Rate {
    /// Highest rate: a TiB a second.
    pub const MAX_PER_S: u64 = 1 << 40;
    /// Most credits: 64 TiB.
    pub const MAX_CREDITS: u64 = 64 << 40;

    /// A rate without bursts.
    #[must_use]
    pub fn steady(per_s: u64) -> Self {
        Self { per_s, burst: None }
    }

    fn check(&self, what: &str) -> Result<(), String> {
        let rate = |field: &str, per_s: u64, min: u64| {
            if (min..=Self::MAX_PER_S).contains(&per_s) {
                Ok(())
            } else {
                let max = Self::MAX_PER_S;
                Err(format!("{what}.{field}: {per_s} is not in {min}..={max}"))
            }
        };
        rate("per_s", self.per_s, 1)?;
        let Some(burst) = self.burst else {
            return Ok(());
        };
        rate("burst.per_s", burst.per_s, self.per_s)?;
        if (1..=Self::MAX_CREDITS).contains(&burst.credits) {
            Ok(())
        } else {
            Err(format!(
                "{what}.burst.credits: {} is not in 1..={}",
                burst.credits,
                Self::MAX_CREDITS
            ))
        }
    }
}

impl Limits {
    /// Are all values in bounds?
    ///
    /// # Errors
    /// One sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        self.iops.map_or(Ok(()), |rate| rate.check("iops"))?;
        self.bytes.map_or(Ok(()), |rate| rate.check("bytes"))?;
        match self.io_bytes {
            Some(bytes) if !(512..=1 << 30).contains(&bytes) => {
                Err(format!("io_bytes: {bytes} is not in 512..=1073741824"))
            }
            _ => Ok(()),
        }
    }
}

/// What a volume may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeLimits {
    /// Its own limits.
    pub limits: Limits,
    /// A group whose limits it shares with others ([`crate::Request::SetGroup`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its share of the device beside other volumes with work, 1 to 10,000;
    /// 100 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

impl VolumeLimits {
    /// Are all values in bounds?
    ///
    /// # Errors
    /// One sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        self.limits.check().map_err(|why| format!("limits.{why}"))?;
        match self.weight {
            Some(weight) if !(1..=10_000).contains(&weight) => {
                Err(format!("weight: {weight} is not in 1..=10000"))
            }
            _ => Ok(()),
        }
    }

    /// Is there nothing to keep?
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let with = |per_s, burst| Limits {
            bytes: Some(Rate { per_s, burst }),
            ..Limits::default()
        };
        with(1, None).check().unwrap();
        assert!(
            with(0, None)
                .check()
                .unwrap_err()
                .starts_with("bytes.per_s: 0")
        );
        assert!(with(1 << 41, None).check().is_err());
        let slow = with(
            10,
            Some(Burst {
                per_s: 9,
                credits: 1,
            }),
        );
        assert!(
            slow.check()
                .unwrap_err()
                .starts_with("bytes.burst.per_s: 9")
        );
        let empty = with(
            10,
            Some(Burst {
                per_s: 10,
                credits: 0,
            }),
        );
        assert!(empty.check().unwrap_err().contains("credits: 0"));
        let weight = VolumeLimits {
            weight: Some(0),
            ..VolumeLimits::default()
        };
        assert!(weight.check().unwrap_err().starts_with("weight: 0"));
    }
}
