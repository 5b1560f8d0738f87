//! Request rates: token buckets per account and region.
//!
//! | profile | bucket | capacity | refill a second |
//! |---|---|---:|---:|
//! | `private` | all requests | the operator's rate | the same |
//! | `ec2` | each describing action | 100 | 20 |
//! | | the same, neither filtered nor paged | 50 | 10 |
//! | | each other action | 50 | 5 |
//! | | instances run; started | 1,000 | 2 |
//! | | instances stopped; terminated | 1,000 | 20 |
//!
//! Source: EC2 developer guide, "Request throttling for the Amazon EC2 API".

use crate::rows::Limits;
use crate::wire::{ApiError, Value};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Buckets that are remembered; full ones are forgotten beyond that.
const MAX_BUCKETS: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Size {
    capacity: f64,
    refill_per_s: f64,
}

const fn size(capacity: f64, refill_per_s: f64) -> Size {
    Size {
        capacity,
        refill_per_s,
    }
}

struct Bucket {
    tokens: f64,
    at: Instant,
    size: Size,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.size.refill_per_s).min(self.size.capacity);
        self.at = now;
    }
}

type Key = (String, String, String);

/// All buckets.
pub struct Throttle {
    /// Requests a second of a `private` account in a region; 0: no limit.
    rate: u32,
    buckets: Mutex<HashMap<Key, Bucket>>,
}

/// A describing action that asks for everything at once.
fn is_unbounded(request: &Value) -> bool {
    let lists = |name: &str| name.ends_with("Ids") || name.ends_with("Names");
    let members = request.as_object();
    !members.into_iter().flatten().any(|(name, _)| {
        matches!(
            name.as_str(),
            "Filters" | "Filter" | "MaxResults" | "NextToken"
        ) || lists(name)
    })
}

/// The bucket of a request's action.
fn of_action(action: &str, request: &Value) -> Size {
    let reads = action.starts_with("Describe") || action.starts_with("Get");
    match (
        reads,
        action.starts_with("Describe") && is_unbounded(request),
    ) {
        (true, true) => size(50.0, 10.0),
        (true, false) => size(100.0, 20.0),
        (false, _) => size(50.0, 5.0),
    }
}

/// The bucket of the instances that a request is about, and how many they are.
fn of_resources(action: &str, request: &Value) -> Option<(Size, f64)> {
    let named = || {
        let ids = request.get("InstanceIds").and_then(Value::as_array);
        ids.map_or(1, Vec::len)
    };
    let asked = || {
        let count = request.get("MaxCount").and_then(Value::as_u64);
        usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX)
    };
    let (size, count) = match action {
        "RunInstances" => (size(1_000.0, 2.0), asked()),
        "StartInstances" => (size(1_000.0, 2.0), named()),
        "StopInstances" | "TerminateInstances" => (size(1_000.0, 20.0), named()),
        _ => return None,
    };
    // More than a full bucket holds is served by a full one.
    let count = u32::try_from(count).map_or(size.capacity, f64::from);
    Some((size, count.min(size.capacity)))
}

impl Throttle {
    /// Buckets for `private` accounts at a rate.
    pub fn new(rate: u32) -> Self {
        Self {
            rate,
            buckets: Mutex::default(),
        }
    }

    /// Takes a request's tokens.
    ///
    /// # Errors
    /// `RequestLimitExceeded`.
    pub fn admit(
        &self,
        limits: Limits,
        account: &str,
        region: &str,
        action: &str,
        request: &Value,
    ) -> Result<(), ApiError> {
        let mut wanted = Vec::with_capacity(2);
        match limits {
            Limits::Private if self.rate == 0 => return Ok(()),
            Limits::Private => {
                let rate = f64::from(self.rate);
                wanted.push((String::new(), size(rate, rate), 1.0));
            }
            Limits::Ec2 => {
                wanted.push((action.to_owned(), of_action(action, request), 1.0));
                if let Some((size, count)) = of_resources(action, request) {
                    wanted.push((format!("{action} instances"), size, count));
                }
            }
        }
        self.take(account, region, wanted, Instant::now())
            .then_some(())
            .ok_or_else(|| ApiError::new("RequestLimitExceeded", "Request limit exceeded."))
    }

    fn take(
        &self,
        account: &str,
        region: &str,
        wanted: Vec<(String, Size, f64)>,
        now: Instant,
    ) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > MAX_BUCKETS {
            buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.tokens < bucket.size.capacity
            });
        }
        let mut enough = true;
        let key = |name: &str| (account.to_owned(), region.to_owned(), name.to_owned());
        for (name, size, count) in &wanted {
            let bucket = buckets.entry(key(name)).or_insert(Bucket {
                tokens: size.capacity,
                at: now,
                size: *size,
            });
            // The size follows the request: an unbounded one has a smaller bucket.
            bucket.size = *size;
            bucket.refill(now);
            enough &= bucket.tokens >= *count;
        }
        if enough {
            for (name, _, count) in &wanted {
                if let Some(bucket) = buckets.get_mut(&key(name)) {
                    bucket.tokens -= count;
                }
            }
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    /// How many of the same request pass at once.
    fn burst(throttle: &Throttle, limits: Limits, action: &str, request: &Value) -> usize {
        (0..5_000)
            .take_while(|_| throttle.admit(limits, "1", "r", action, request).is_ok())
            .count()
    }

    #[test]
    fn bursts_are_as_large_as_buckets() {
        let throttle = Throttle::new(300);
        let all = json!({});
        let close = |found: usize, wanted: usize| {
            assert!(
                (wanted..wanted + 25).contains(&found),
                "{found}, not {wanted}"
            );
        };
        close(burst(&throttle, Limits::Private, "DescribeVpcs", &all), 300);
        let paged = json!({"MaxResults": 5});
        close(
            burst(&throttle, Limits::Ec2, "DescribeSubnets", &paged),
            100,
        );
        close(burst(&throttle, Limits::Ec2, "DescribeVpcs", &all), 50);
        close(burst(&throttle, Limits::Ec2, "CreateVpc", &all), 50);
        let many = json!({"MaxCount": 300});
        close(burst(&throttle, Limits::Ec2, "RunInstances", &many), 3);
        let error = throttle
            .admit(Limits::Ec2, "1", "r", "RunInstances", &many)
            .unwrap_err();
        assert_eq!(
            (error.code.as_ref(), error.status),
            ("RequestLimitExceeded", 503)
        );
        let small = json!({"MaxCount": 1});
        assert!(
            throttle
                .admit(Limits::Ec2, "1", "r", "RunInstances", &small)
                .is_ok()
        );
        assert!(
            throttle
                .admit(Limits::Ec2, "2", "r", "RunInstances", &many)
                .is_ok()
        );
        assert!(
            throttle
                .admit(Limits::Ec2, "1", "s", "RunInstances", &many)
                .is_ok()
        );
        assert_eq!(burst(&Throttle::new(0), Limits::Private, "X", &all), 5_000);
    }

    #[test]
    fn buckets_fill_again_at_their_rate() {
        let throttle = Throttle::new(0);
        let now = Instant::now();
        let one = || vec![("a".to_owned(), size(10.0, 2.0), 1.0)];
        let passed = |at| {
            (0..100)
                .take_while(|_| throttle.take("1", "r", one(), at))
                .count()
        };
        assert_eq!(passed(now), 10);
        assert_eq!(passed(now + Duration::from_secs(3)), 6);
        assert_eq!(passed(now + Duration::from_secs(100)), 10);
    }
}
