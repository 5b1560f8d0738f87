//! Burst credits outlive detaching, storaged's orderly end, its upgrade and its death.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::{Burst, Limits, Rate, Request, VolumeKind, VolumeLimits, VolumeName};
use std::os::unix::net::UnixListener;

const CREDITS: u64 = 1_000_000;
const BURST_PER_S: u64 = 5_000;
/// What a crash may lose: a minute at the highest rate.
const RESERVE: u64 = 60 * BURST_PER_S;
/// Credits earned meanwhile: one a second.
const EARNED: u64 = 120;

fn credits(host: &Host) -> u64 {
    host.list()[0].credits.iops.unwrap()
}

/// Spends so many credits.
fn spend(guest: &mut Guest, count: usize) {
    for n in 0..count {
        // Never neighbours, which count as one.
        assert_eq!(guest.run(T_IN, (n as u64 * 1999) % 4096 * 8, 4096), 0);
    }
}

fn rig() -> (Host, Guest, UnixListener) {
    let host = Host::new();
    host.put("vol-1", 32 << 20, VolumeKind::Persistent, None)
        .unwrap();
    let burst = Burst {
        per_s: BURST_PER_S,
        credits: CREDITS,
    };
    host.ask(&Request::SetLimits {
        volume: VolumeName("vol-1".into()),
        limits: VolumeLimits {
            limits: Limits {
                iops: Some(Rate {
                    per_s: 1,
                    burst: Some(burst),
                }),
                ..Limits::default()
            },
            ..VolumeLimits::default()
        },
    })
    .unwrap();
    assert_eq!(credits(&host), CREDITS);
    let (guest, listener) = host.guest("vol-1");
    (host, guest, listener)
}

#[test]
fn what_is_spent_stays_spent_and_what_is_left_stays() {
    let (mut host, mut guest, listener) = rig();
    spend(&mut guest, 500);
    let left = credits(&host);
    assert!(
        (CREDITS - 500..CREDITS - 500 + EARNED).contains(&left),
        "{left}"
    );
    // Detached and attached again.
    host.detach("vol-1");
    host.attach("vol-1", "vol-1.sock").unwrap();
    guest.attach(accept(&listener));
    let again = credits(&host);
    assert!((left..left + EARNED).contains(&again), "{again} of {left}");
    // An orderly end.
    host.restart();
    let again = credits(&host);
    assert!((left..left + EARNED).contains(&again), "{again} of {left}");
    guest.attach(accept(&listener));
    // An upgrade, which keeps the connection.
    spend(&mut guest, 200);
    let left = credits(&host);
    let mut old = host.upgrade();
    wait("the old one's end", || old.0.try_wait().unwrap());
    let again = credits(&host);
    assert!((left..left + EARNED).contains(&again), "{again} of {left}");
    spend(&mut guest, 1);
}

#[test]
fn a_crash_gives_nothing_and_takes_a_minute_s_worth_at_most() {
    let (mut host, mut guest, listener) = rig();
    let mut left = CREDITS;
    for _ in 0..3 {
        spend(&mut guest, 300);
        left = credits(&host).min(left);
        host.crash();
        let after = credits(&host);
        assert!(after <= left, "{after} after a crash, {left} before");
        assert!(after + RESERVE + EARNED >= left, "{after} of {left}");
        left = after;
        guest.attach(accept(&listener));
    }
    // A file that says nothing gives nothing.
    host.daemon.kill();
    std::fs::write(host.dir.path().join("state/credits.json"), "{").unwrap();
    host.crash();
    assert!(credits(&host) <= EARNED);
}
