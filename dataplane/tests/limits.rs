//! Limits of bandwidth and packet rate: against a naive account, with the clock in the
//! test's hand, among threads, and in the kernel with live frames.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ocs_dataplane::model::{MeterId, Policy, PortId, Rate};
use ocs_dataplane::shared::layout::{Direction, Reason};
use ocs_dataplane::shared::limit::{Allowance, Limit, Meter};
use proptest::prelude::*;
use support::frames::udp;
use support::policy::{all_out, end, policy, port};
use support::{Guest, Lab};

const HZ: u32 = 250;
/// What jiffies are when a machine starts.
const BOOT: u64 = 0xffff_ffff - 300 * HZ as u64;
const FRAME_LONGEST: u64 = 65_549;

/// A bucket of tokens, filled each jiffy. Tokens are bytes × HZ, so that nothing is
/// rounded.
struct Naive {
    tokens: i128,
    rate: i128,
    depth: i128,
}

impl Naive {
    fn new(rate: u64, depth: u64) -> Self {
        let depth = i128::from(depth) * i128::from(HZ);
        Self {
            tokens: depth,
            rate: i128::from(rate),
            depth,
        }
    }

    fn wait(&mut self, jiffies: u64) {
        self.tokens = self
            .depth
            .min(self.tokens + self.rate * i128::from(jiffies));
    }

    fn admit(&mut self, bytes: u64) -> bool {
        let admitted = self.tokens >= 0;
        if admitted {
            self.tokens -= i128::from(bytes) * i128::from(HZ);
        }
        admitted
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_a_meter_says_what_a_naive_account_says(
        rate in 1_000..12_500_000_000u64,
        depth in 0..1u64 << 40,
        load in proptest::collection::vec((0..200u64, 1..40u32, 60..FRAME_LONGEST), 1..100),
    ) {
        let limit = Limit {
            peak: Allowance::new(rate, depth, HZ),
            ..Limit::default()
        };
        let meter = Meter::default();
        let mut naive = Naive::new(rate, depth);
        let (mut now, mut ours, mut theirs, mut packets) = (BOOT, 0, 0, 0);
        for (wait, burst, bytes) in load {
            now += wait;
            naive.wait(wait);
            for _ in 0..burst {
                packets += 1;
                ours += if meter.admit(&limit, now, bytes, 1).is_ok() { bytes } else { 0 };
                theirs += if naive.admit(bytes) { bytes } else { 0 };
            }
            // Half a unit of time is lost or won with each packet.
            let rounding = packets * rate / u64::from(HZ) / (1 << 26) + 1;
            prop_assert!(
                ours.abs_diff(theirs) <= FRAME_LONGEST + rounding,
                "{} against {} after {} packets", ours, theirs, packets
            );
        }
    }
}

/// What passes in ten seconds of frames offered at `offered` bytes a second.
fn passes_in_10_s(limit: &Limit, meter: &Meter, start: u64, offered: u64, bytes: u64) -> u64 {
    let (mut passed, mut sent) = (0, 0);
    for jiffy in 0..10 * u64::from(HZ) {
        while sent < offered * (jiffy + 1) / u64::from(HZ) {
            sent += bytes;
            if meter.admit(limit, start + jiffy, bytes, 1).is_ok() {
                passed += bytes;
            }
        }
    }
    passed
}

#[test]
fn under_overload_the_limit_passes_within_two_percent() {
    for megabits in [1, 10, 100, 1_000, 5_000] {
        for frame in [64, 1_514, 9_014, 65_549] {
            let rate = megabits * 1_000_000 / 8;
            let limit = compiled(Rate {
                baseline_bps: megabits * 1_000_000,
                peak_bps: megabits * 1_000_000,
                ..Rate::default()
            });
            if frame > rate / 10 || rate * 15 / frame > 3_000_000 {
                continue;
            }
            let passed = passes_in_10_s(&limit, &Meter::default(), BOOT, rate * 3 / 2, frame);
            let percent = passed as f64 / (10.0 * rate as f64) * 100.0;
            assert!(
                (98.0..=102.0).contains(&percent),
                "{megabits} Mbit/s in frames of {frame} bytes: {percent:.2} %"
            );
        }
    }
}

/// A receiver's limit as the compiler makes it.
fn compiled(rate: Rate) -> Limit {
    let (id, mut one) = port(7, 5, [10, 0, 0, 10], &[], [169, 254, 1, 1]);
    one.rate = rate;
    let mut policy = Policy::default();
    policy.ports.insert(id, one);
    let memory = support::memory::Memory::with_hz(&policy, HZ);
    let limits = memory.entries().limits.values().next().expect("a limit");
    limits.directions[Direction::Ingress as usize]
}

#[test]
fn credits_let_it_burst_then_the_baseline_holds_and_idling_saves_again() {
    let second = u64::from(HZ);
    let limit = compiled(Rate {
        baseline_bps: 8_000_000,
        peak_bps: 80_000_000,
        credit_bytes: 45_000_000,
        ..Rate::default()
    });
    let meter = Meter::default();
    let offered = 15_000_000;
    let passed = |start| passes_in_10_s(&limit, &meter, start, offered, 1_514) as f64 / 1e7;
    let credits = |now| {
        meter
            .credit_bytes(&limit, now)
            .expect("a limit")
            .div_ceil(100_000)
    };
    assert_eq!(credits(BOOT), 450);
    // Five seconds at 10 MB/s spend 45 MB beyond the baseline's five, then it's 1 MB/s.
    let burst = passed(BOOT);
    assert!((5.4..5.6).contains(&burst), "{burst} MB/s");
    assert!(credits(BOOT + 10 * second) <= 1);
    let baseline = passed(BOOT + 10 * second);
    assert!((0.98..1.02).contains(&baseline), "{baseline} MB/s");
    // Silence for 20 s saves 20 MB: two seconds and a bit at 10 MB/s.
    let again = passed(BOOT + 40 * second);
    assert!((2.9..3.1).contains(&again), "{again} MB/s");
    // Nobody saves more than there is room for.
    let year = 365 * 86_400 * second;
    assert_eq!(credits(BOOT + year), 450);
    let full = passed(BOOT + year);
    assert!((5.4..5.6).contains(&full), "{full} MB/s");
}

#[test]
fn packets_count_whatever_their_size_and_zero_is_unlimited() {
    let limit = compiled(Rate {
        packets_per_s: 1_000,
        ..Rate::default()
    });
    let meter = Meter::default();
    let mut refused = 0;
    for packet in 0..20_000u64 {
        let now = BOOT + packet * u64::from(HZ) / 2_000;
        refused += u64::from(meter.admit(&limit, now, 60, 1) == Err(Reason::OverPackets));
    }
    assert!((9_800..10_200).contains(&refused), "{refused}");
    let unlimited = Limit::default();
    for _ in 0..100_000 {
        assert_eq!(meter.admit(&unlimited, BOOT, FRAME_LONGEST, 45), Ok(()));
    }
}

#[test]
fn cpus_that_pay_at_the_same_time_are_all_charged() {
    const THREADS: u64 = 4;
    const BYTES: u64 = 1_514;
    let (rate, depth) = (12_500_000, 65_536);
    let limit = Limit {
        peak: Allowance::new(rate, depth, HZ),
        ..Limit::default()
    };
    let (meter, clock, passed) = (Meter::default(), AtomicU64::new(BOOT), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while clock.load(Ordering::Relaxed) < BOOT + 250 {
                    let now = clock.load(Ordering::Relaxed);
                    if meter.admit(&limit, now, BYTES, 1).is_ok() {
                        passed.fetch_add(BYTES, Ordering::Relaxed);
                    }
                }
            });
        }
        for _ in 0..250 {
            std::thread::sleep(Duration::from_micros(200));
            clock.fetch_add(1, Ordering::Relaxed);
        }
    });
    let passed = passed.into_inner();
    assert!(passed <= rate + depth + THREADS * BYTES, "{passed} bytes");
}

const FRAME: usize = 1_000;
/// Frames offered between two looks at who receives, whose queue holds a thousand.
const BURST: u64 = 256;

/// How frames are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// By the kernel, at the port's program.
    LiveFrames,
    /// By the guest, at its end of the tap; the other guest takes them.
    Port,
}

/// Bytes a second, as shares of a rate.
#[derive(Clone, Copy, Debug)]
struct Shares {
    offered: f64,
    passed: f64,
}

/// A sender without limit and a receiver with one.
struct Limited {
    lab: Lab,
    a: Guest,
    b: Guest,
    wanted: Policy,
    receiver: PortId,
    frame: Vec<u8>,
}

impl Limited {
    fn new(rate: Rate) -> Self {
        Self::with_frames(rate, FRAME)
    }

    fn with_frames(rate: Rate, bytes: usize) -> Self {
        let lab = Lab::new();
        let (a, b) = (Guest::new(&lab, "tap-a"), Guest::new(&lab, "tap-b"));
        let port_a = port(a.ifindex, 7, [10, 0, 0, 10], &["a"], [169, 254, 1, 1]);
        let mut port_b = port(b.ifindex, 7, [10, 0, 0, 11], &["a"], [169, 254, 1, 2]);
        port_b.1.rate = rate;
        let data = vec![0; bytes - 42];
        let frame = udp(end(&port_a.1, 1), end(&port_b.1, 2), &data);
        let receiver = port_b.0.clone();
        let open = ocs_dataplane::model::Rule {
            direction: ocs_dataplane::model::Direction::Ingress,
            ..all_out()
        };
        let wanted = policy([port_a, port_b], [("a", vec![all_out(), open])]);
        lab.apply(&wanted).expect("a policy");
        Self {
            lab,
            a,
            b,
            wanted,
            receiver,
            frame,
        }
    }

    fn count(&self, reason: Reason) -> u64 {
        let counters = self.lab.counters(&self.receiver).expect("counters");
        counters.get(Direction::Ingress, reason)
    }

    fn send(&self, frames: u64) {
        let frames = u32::try_from(frames).expect("few frames");
        self.lab
            .run_port(self.a.ifindex, &self.frame, frames, Some(64))
            .expect("live frames");
    }

    /// Offers 1.7 times the rate for some time.
    fn overload(&mut self, rate: f64, length: Duration, by: By) -> Shares {
        let bytes = self.frame.len() as f64;
        let (began, before) = (Instant::now(), self.count(Reason::Forwarded));
        let (mut sent, mut heard) = (0, 0);
        while began.elapsed() < length {
            let due = (1.7 * rate * began.elapsed().as_secs_f64() / bytes) as u64;
            match by {
                By::LiveFrames if due > sent => self.send(due - sent),
                By::LiveFrames => {}
                By::Port => {
                    for at in sent..due {
                        self.a.send(&self.frame);
                        if at % BURST == 0 {
                            heard += self.b.drain();
                        }
                    }
                    heard += self.b.drain();
                }
            }
            sent = sent.max(due);
            std::thread::sleep(Duration::from_millis(1));
        }
        let passed = match by {
            By::LiveFrames => self.count(Reason::Forwarded) - before,
            By::Port => heard,
        };
        let share = |frames: u64| frames as f64 * bytes / began.elapsed().as_secs_f64() / rate;
        Shares {
            offered: share(sent),
            passed: share(passed),
        }
    }
}

/// Offers too much until the limit is met, which it never is by more than a fiftieth. A
/// machine that stops the sender for longer than may be saved makes an attempt worthless.
fn passes_at_the_limit(megabits: u64, by: By, length: Duration) {
    let bps = megabits * 1_000_000;
    let bytes = if megabits < 1_000 { FRAME } else { 1_514 };
    let limit = Rate {
        baseline_bps: bps,
        peak_bps: bps,
        ..Rate::default()
    };
    let mut limited = Limited::with_frames(limit, bytes);
    let rate = bps as f64 / 8.0;
    // What was saved goes first.
    limited.send(bps / 8 / 10 / bytes as u64 + 64);
    limited.b.drain();
    let mut attempts = Vec::new();
    while attempts.len() < 5 {
        let shares = limited.overload(rate, length, by);
        attempts.push(shares);
        if shares.passed >= 0.98 && shares.offered >= 1.5 {
            break;
        }
    }
    println!("{megabits} Mbit/s, {by:?}: {attempts:.4?}");
    assert!(limited.count(Reason::OverBandwidth) > 0);
    let last = attempts.pop().expect("an attempt");
    assert!(
        last.passed >= 0.98 && last.offered >= 1.5,
        "{megabits} Mbit/s: {last:?} after {attempts:?}"
    );
    attempts.push(last);
    assert!(
        attempts.iter().all(|shares| shares.passed <= 1.02),
        "{megabits} Mbit/s: {attempts:?}"
    );
}

#[test]
fn what_is_offered_too_much_of_passes_at_the_limit() {
    let long = std::env::var_os("OCS_LONG").is_some();
    let (by_frames, by_port): (&[u64], &[u64]) = if long {
        (&[1, 100, 1_000, 5_000], &[1, 10, 100, 1_000])
    } else {
        (&[10, 500], &[50])
    };
    let length = Duration::from_secs(if long { 10 } else { 2 });
    for megabits in by_frames {
        passes_at_the_limit(*megabits, By::LiveFrames, length);
    }
    for megabits in by_port {
        passes_at_the_limit(*megabits, By::Port, length);
    }
}

#[test]
fn what_is_spent_outlives_the_loader_and_a_change_of_the_limit() {
    let slow = Rate {
        baseline_bps: 1_000,
        peak_bps: 1_000,
        ..Rate::default()
    };
    let mut limited = Limited::new(slow);
    limited.send(100);
    let passed = limited.count(Reason::Forwarded);
    assert!((1..=18).contains(&passed), "{passed}");
    assert_eq!(limited.count(Reason::OverBandwidth), 100 - passed);

    limited.lab.restart();
    let again = limited.lab.apply(&limited.wanted).expect("the same policy");
    assert_eq!(again.map_writes, 0);
    // A second is worth one frame, and what may be saved, sixteen.
    limited.send(100);
    let few = limited.count(Reason::Forwarded);
    assert!(few < passed + 10, "{few} of which {passed} before");

    let receiver = limited.receiver.clone();
    let other = limited.wanted.ports.get_mut(&receiver).expect("a port");
    other.rate.packets_per_s = 1;
    limited.lab.apply(&limited.wanted).expect("another limit");
    limited.send(100);
    let passed = limited.count(Reason::Forwarded);
    assert!(passed < few + 10, "{passed} of which {few} before");

    let other = limited.wanted.ports.get_mut(&receiver).expect("a port");
    other.rate = Rate::default();
    limited.lab.apply(&limited.wanted).expect("no limit");
    limited.send(10);
    assert_eq!(limited.count(Reason::Forwarded), passed + 10);
}

/// An instance gets another interface, which comes first by its name; then the one on whose
/// meters both spent is gone.
#[test]
fn what_is_spent_outlives_an_interface() {
    let slow = Rate {
        baseline_bps: 1_000,
        peak_bps: 1_000,
        ..Rate::default()
    };
    let mut limited = Limited::new(slow);
    let instance = Some(MeterId("instance".into()));
    let (old, receiver) = (limited.receiver.clone(), PortId("!".into()));
    let first = limited.wanted.ports.get_mut(&old).expect("a port");
    first.meter = instance.clone();
    limited.lab.apply(&limited.wanted).expect("a meter");
    limited.send(100);
    let passed = limited.count(Reason::Forwarded);
    assert!((1..=18).contains(&passed), "{passed}");

    let c = Guest::new(&limited.lab, "tap-c");
    let (_, mut second) = port(c.ifindex, 7, [10, 0, 0, 12], &["a"], [169, 254, 1, 3]);
    (second.rate, second.meter) = (slow, instance);
    limited.frame = {
        let mut ports = limited.wanted.ports.values();
        let sender = ports.find(|port| port.ifindex == limited.a.ifindex);
        let sender = end(sender.expect("a port"), 1);
        udp(sender, end(&second, 2), &[0; FRAME - 42])
    };
    limited.wanted.ports.insert(receiver.clone(), second);
    limited.receiver = receiver;
    for keeps_old in [true, false] {
        if !keeps_old {
            limited.wanted.ports.remove(&old);
        }
        let before = if keeps_old {
            0
        } else {
            limited.count(Reason::Forwarded)
        };
        limited.lab.apply(&limited.wanted).expect("interfaces");
        limited.send(100);
        // A second is worth one frame, and what may be saved, sixteen.
        let more = limited.count(Reason::Forwarded) - before;
        assert!(more < 10, "{more}, the old one there: {keeps_old}");
        limited.lab.restart();
        let again = limited.lab.apply(&limited.wanted).expect("the same policy");
        assert_eq!(again.map_writes, 0);
    }
}

#[test]
fn a_sender_is_stopped_a_twentieth_above_its_rate() {
    let bps = 80_000_000;
    let mut limited = Limited::new(Rate::default());
    let mut wanted = limited.wanted.clone();
    let sender = wanted.ports.keys().next().expect("a port").clone();
    wanted.ports.get_mut(&sender).expect("a port").rate = Rate {
        baseline_bps: bps,
        peak_bps: bps,
        ..Rate::default()
    };
    limited.lab.apply(&wanted).expect("a policy");
    let rate = bps as f64 / 8.0;
    limited.send(2_000);
    let share = limited
        .overload(rate, Duration::from_secs(1), By::LiveFrames)
        .passed;
    assert!((0.95..=1.08).contains(&share), "{share}");
    let counters = limited.lab.counters(&sender).expect("counters");
    assert!(counters.get(Direction::Egress, Reason::OverBandwidth) > 0);
}

/// What two interfaces of an instance may send that begin one after the other: the frames of a
/// hundred that each is refused.
fn refused_in_turn(meter: Option<&str>) -> [u64; 2] {
    let limited = Limited::new(Rate::default());
    let mut wanted = limited.wanted.clone();
    for port in wanted.ports.values_mut() {
        port.rate.peak_bps = 1_000;
        port.meter = meter.map(|name| MeterId(name.into()));
    }
    limited.lab.apply(&wanted).expect("a policy");
    let by_interface = |ifindex| {
        let mut ports = wanted.ports.iter();
        ports
            .find(|(_, port)| port.ifindex == ifindex)
            .expect("a port")
    };
    let (a, b) = (limited.a.ifindex, limited.b.ifindex);
    [(a, b), (b, a)].map(|(from, to)| {
        let (id, sender) = by_interface(from);
        let (_, receiver) = by_interface(to);
        let frame = udp(end(sender, 1), end(receiver, 2), &[0; FRAME - 42]);
        limited
            .lab
            .run_port(from, &frame, 100, Some(64))
            .expect("live frames");
        let counters = limited.lab.counters(id).expect("counters");
        counters.get(Direction::Egress, Reason::OverBandwidth)
    })
}

#[test]
fn interfaces_of_one_meter_have_their_rate_together() {
    let [first, second] = refused_in_turn(None);
    assert!((80..100).contains(&first) && (80..100).contains(&second));
    let [first, second] = refused_in_turn(Some("instance"));
    assert!((80..100).contains(&first), "{first}");
    assert!(second >= 99, "{second}");
}
