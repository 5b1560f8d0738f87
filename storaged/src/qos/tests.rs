//! Limits as a guest meets them, on a clock of the test's own.

use super::*;
use ocs_storaged_api::Burst;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn limits(iops: Option<Rate>, bytes: Option<Rate>) -> VolumeLimits {
    VolumeLimits {
        limits: Limits {
            iops,
            bytes,
            io_bytes: None,
        },
        ..VolumeLimits::default()
    }
}

/// Requests begun from `from` to `to` by a guest with endless random ones of `len`.
fn greedy(qos: &Qos, len: u64, from: u64, to: u64) -> u64 {
    let (mut now, mut done, mut at) = (from, 0, 0u64);
    while now < to {
        match qos.ready_at(now) {
            None => {
                at = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
                qos.charge(Direction::Read, at >> 12 << 12, len, now);
                done += 1;
            }
            // As the shard does: not more often than it is worth to wake.
            Some(ready) => now = ready.max(now + 200_000),
        }
    }
    done
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The accepted precision: 1 % or one request in ten seconds, whatever the size.
    #[test]
    fn limits_are_met_within_a_percent_or_a_request(
        iops in prop::sample::select(vec![10u64, 33, 100, 500, 3000, 16_000, 99_999, 100_000]),
        mib in prop::sample::select(vec![1u64, 7, 125, 1024]),
        len in prop::sample::select(vec![512u64, 4096, 65_536, 1 << 20, 8 << 20]),
    ) {
        let both = limits(Some(Rate::steady(iops)), Some(Rate::steady(mib << 20)));
        let qos = Qos::new(&both, None, 0);
        let done = greedy(&qos, len, 0, 10 * S) as f64;
        let operations = len.div_ceil(u64::from(IO_BYTES)) as f64;
        let ideal = (iops as f64 * 10.0 / operations).min((mib << 20) as f64 * 10.0 / len as f64);
        let slack = (ideal * 0.01).max(1.0);
        prop_assert!((done - ideal).abs() <= slack, "{done} of {ideal} at {iops} and {mib} MiB, {len}");
    }

    /// Any number of changes: never more than the rates in force allow, and no stall.
    #[test]
    fn changes_hold_at_once(rates in prop::collection::vec(10u64..100_000, 2..20)) {
        let qos = Qos::new(&limits(Some(Rate::steady(rates[0])), None), None, 0);
        for (n, rate) in rates.iter().enumerate() {
            let from = n as u64 * S / 2;
            qos.change(&limits(Some(Rate::steady(*rate)), None), None, from);
            let done = greedy(&qos, 4096, from, from + S / 2);
            let ideal = rate / 2;
            let most = ideal + depth(NonZeroU64::new(*rate).unwrap()) + 1;
            let least = ideal.saturating_sub(1 + rate / 5000);
            prop_assert!(done <= most && done >= least, "{done} of {ideal} in {rates:?}");
        }
    }
}

/// gp2 of 100 GiB: 300 a second, 3,000 while 5.4 M credits last, which takes 2,000 s.
#[test]
fn gp2_credits_last_as_long_as_documented() {
    let gp2 = Rate {
        per_s: 300,
        burst: Some(Burst {
            per_s: 3000,
            credits: 5_400_000,
        }),
    };
    let qos = Qos::new(&limits(Some(gp2), None), None, 0);
    // "Burst duration = credit balance / (burst IOPS - baseline IOPS)": 2,000 s.
    let burst = greedy(&qos, 4096, 0, 2000 * S);
    assert!((5_999_000..=6_001_000).contains(&burst), "{burst}");
    let after = greedy(&qos, 4096, 2001 * S, 2101 * S);
    assert!((29_900..=30_900).contains(&after), "{after}");
    // An hour of rest earns 1,080,000 credits: 400 s of bursting.
    let rested = greedy(&qos, 4096, 5701 * S, 6101 * S);
    assert!((1_195_000..=1_205_000).contains(&rested), "{rested}");
    // Changing the volume keeps its credits.
    let larger = Rate { per_s: 600, ..gp2 };
    qos.change(&limits(Some(larger), None), None, 6101 * S);
    let spent = greedy(&qos, 4096, 6102 * S, 6112 * S);
    assert!(spent < 7000, "{spent} by credits that were spent");
}

#[test]
fn a_group_is_shared_and_its_members_keep_their_own() {
    let group = Arc::new(Group::new(
        &limits(Some(Rate::steady(1000)), None).limits,
        0,
    ));
    let small = limits(Some(Rate::steady(100)), None);
    let a = Qos::new(&small, Some(Arc::clone(&group)), 0);
    let b = Qos::new(&VolumeLimits::default(), Some(Arc::clone(&group)), 0);
    let (mut now, mut done) = (0, [0u64; 2]);
    while now < 10 * S {
        let mut next = u64::MAX;
        for (qos, done) in [&a, &b].into_iter().zip(&mut done) {
            match qos.ready_at(now) {
                None => {
                    qos.charge(Direction::Write, *done << 30, 4096, now);
                    *done += 1;
                    next = now;
                }
                Some(at) => next = next.min(at),
            }
        }
        now = next;
    }
    assert!((990..=1010).contains(&done[0]), "{done:?}");
    assert!((9900..=10_100).contains(&(done[0] + done[1])), "{done:?}");
    group.change(&Limits::default(), 10 * S);
    assert_eq!(b.ready_at(10 * S), None);
    assert!(!Qos::default().is_limited());
}

/// What members of a group at 1,000 a second get in 10 s: each begins a request whenever
/// it may, `rest_ns` after its last, and comes `late_ns` after the time that it was told.
fn of_a_group(members: [(u64, u64); 2]) -> [u64; 2] {
    let limits = limits(Some(Rate::steady(1000)), None).limits;
    let group = Arc::new(Group::new(&limits, 0));
    let volume = || Qos::new(&VolumeLimits::default(), Some(Arc::clone(&group)), 0);
    let volumes = [volume(), volume()];
    let (mut comes, mut done) = ([0, 1], [0u64; 2]);
    loop {
        let who = usize::from(comes[1] < comes[0]);
        let now = comes[who];
        if now >= 10 * S {
            return done;
        }
        let (rest_ns, late_ns) = members[who];
        comes[who] = match volumes[who].ready_at(now) {
            None => {
                volumes[who].charge(Direction::Read, done[who] << 30, 4096, now);
                done[who] += 1;
                now + rest_ns
            }
            Some(at) => at.max(now + 1) + late_ns,
        };
    }
}

#[test]
fn who_sleeps_gets_as_much_of_a_group_as_who_polls() {
    for late_ns in [0, 100_000, 1_000_000, 4_000_000] {
        let [polls, sleeps] = of_a_group([(0, 1000), (0, late_ns)]);
        assert!(polls + sleeps >= 9900, "{polls} + {sleeps} at {late_ns}");
        assert!(polls + sleeps <= 10_100, "{polls} + {sleeps} at {late_ns}");
        assert!(sleeps * 10 >= polls * 9, "{polls}, {sleeps} at {late_ns}");
    }
}

#[test]
fn who_asks_for_little_of_a_group_leaves_the_rest() {
    let [heavy, light] = of_a_group([(0, 1000), (S / 20, 1_000_000)]);
    assert!((185..=200).contains(&light), "{light} of 200");
    assert!((9700..=9900).contains(&heavy), "{heavy}");
    // Who has gone gets nothing, and costs nothing.
    let [all, one] = of_a_group([(0, 1000), (20 * S, 0)]);
    assert_eq!(one, 1);
    assert!(all >= 9900, "{all}");
}
