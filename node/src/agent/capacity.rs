//! How much this host offers: what it has, times the overcommit that the operator states.

use std::fs;
use std::io;

/// Schedulable vCPUs.
pub fn vcpus(overcommit: f64) -> io::Result<u32> {
    let cpus = std::thread::available_parallelism()?.get() as u64;
    let offered = scaled(cpus, overcommit)?;
    u32::try_from(offered).map_err(io::Error::other)
}

/// Schedulable memory.
pub fn memory_mib(overcommit: f64) -> io::Result<u64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let kib = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
    scaled(kib / 1024, overcommit)
}

fn scaled(amount: u64, overcommit: f64) -> io::Result<u64> {
    if !(overcommit > 0.0 && overcommit <= 10_000.0) {
        return Err(io::Error::other(format!(
            "an overcommit of {overcommit} is not in 0..=10000"
        )));
    }
    // Exact enough: hosts have far less than 2^53 of either.
    Ok((amount as f64 * overcommit) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_the_hosts_times_the_overcommit() {
        assert_eq!(scaled(2, 1.5).unwrap(), 3);
        assert_eq!(vcpus(2.0).unwrap(), 2 * vcpus(1.0).unwrap());
        assert!(memory_mib(1.0).unwrap() > 0);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(scaled(2, bad).is_err(), "{bad}");
        }
    }
}
