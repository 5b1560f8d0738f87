//! What guests do to one another.

use super::guest::{Guest, Load};
use super::host::{Host, bytes, iops};
use super::{SIZE, random_reads};
use crate::alternate::alternate;
use crate::report::{Better, Row};
use anyhow::Result;
use ocs_storaged_api::Limits;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// What the attacker is held to where it is held: gp3's baseline.
const ATTACKER_BYTES: u64 = 125 << 20;
/// The victim: gp3's most, more than one request at a time comes to.
const VICTIM_IOPS: u64 = 16_000;

/// A victim of one 4 KiB read at a time beside an attacker of 128 of 1 MiB,
/// whose storaged has its volumes in a folder and so many shards.
pub fn victim(
    storaged: &Path,
    name: &str,
    (place, shards): (&Path, usize),
    quick: bool,
) -> Result<Vec<Row>> {
    let (runs, time) = if quick {
        (3, Duration::from_millis(600))
    } else {
        (5, Duration::from_millis(1200))
    };
    let host = Host::start(storaged, place, shards)?;
    let mut small = host.volume("victim", SIZE, Limits::default())?;
    let mut large = host.volume("attacker", SIZE, Limits::default())?;
    small.fill(SIZE)?;
    large.fill(SIZE)?;
    let mut rows = Vec::new();
    for limited in [true, false] {
        if limited {
            host.limit("victim", iops(VICTIM_IOPS))?;
            host.limit("attacker", bytes(ATTACKER_BYTES))?;
        } else {
            host.limit("victim", Limits::default())?;
            host.limit("attacker", Limits::default())?;
        }
        let small = std::cell::RefCell::new(&mut small);
        let large = std::cell::RefCell::new(&mut large);
        let mut beside = || beside(&mut small.borrow_mut(), &mut large.borrow_mut(), time);
        let mut alone = || measured(&mut small.borrow_mut(), &random_reads(1, 4096), time);
        let mut attacker = || measured(&mut large.borrow_mut(), &attack(), time);
        let figures = alternate(runs, &mut [&mut beside, &mut alone, &mut attacker])?;
        let [beside, alone, attacker] = &figures[..] else {
            unreachable!("three sides");
        };
        if limited {
            rows.push(
                Row::new(
                    format!("{name}_victim_limited_p99_us"),
                    "us",
                    Better::Lower,
                    &beside[1],
                )
                .against("the same guest alone", &alone[1]),
            );
            continue;
        }
        let half = |figures: &[f64]| figures.iter().map(|v| v / 2.0).collect::<Vec<_>>();
        for (who, ours, alone) in [
            ("victim", &beside[0], alone),
            ("attacker", &beside[2], attacker),
        ] {
            rows.push(
                Row::new(
                    format!("{name}_{who}_share_iops"),
                    "1/s",
                    Better::Higher,
                    ours,
                )
                .against("half of what it gets alone", &half(&alone[0])),
            );
        }
    }
    Ok(rows)
}

fn attack() -> Load {
    random_reads(128, 1 << 20)
}

/// Requests a second, and their p99 in µs.
fn measured(guest: &mut Guest, load: &Load, time: Duration) -> Result<Vec<f64>> {
    let outcome = guest.read(load, time)?;
    let done = outcome.between(Duration::ZERO, time) as f64;
    Ok(vec![done / time.as_secs_f64(), outcome.p99_us()])
}

/// The victim's figures beside the attacker's, whose requests a second come third.
fn beside(small: &mut Guest, large: &mut Guest, time: Duration) -> Result<Vec<f64>> {
    let ahead = Duration::from_millis(100);
    thread::scope(|scope| {
        let attack = scope.spawn(|| measured(large, &attack(), time + ahead * 2));
        thread::sleep(ahead);
        let mut figures = measured(small, &random_reads(1, 4096), time)?;
        figures.push(attack.join().expect("the attacker's thread")?[0]);
        Ok(figures)
    })
}

/// Two hundred volumes, each held to 500 operations a second and asking for more: by
/// how much the worst of them misses that, in percent.
pub fn crowd(storaged: &Path, quick: bool) -> Result<Row> {
    const CROWD: usize = 200;
    const IOPS: u64 = 500;
    let time = Duration::from_secs(if quick { 5 } else { 10 });
    let host = Host::start(storaged, Path::new("/dev/shm"), 2)?;
    let load = Load {
        size_bytes: 64 << 20,
        ..random_reads(32, 4096)
    };
    let mut guests = Vec::new();
    for n in 0..CROWD {
        guests.push(host.volume(&format!("crowd-{n}"), load.size_bytes, iops(IOPS))?);
    }
    let mut done = vec![0; CROWD];
    let mut began = Vec::new();
    for guest in &mut guests {
        began.push(Instant::now());
        guest.begin(&load);
    }
    let mut open = CROWD;
    while open > 0 {
        open = 0;
        for ((guest, done), began) in guests.iter_mut().zip(&mut done).zip(&began) {
            if began.elapsed() < time {
                open += 1;
                *done += guest.go_on(&load)?;
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    let due = IOPS as f64 * time.as_secs_f64();
    let off = |done: &usize| ((*done as f64 - due) / due * 100.0).abs();
    let off: Vec<f64> = done.iter().map(off).collect();
    let worst = off.iter().copied().fold(0.0, f64::max);
    Ok(Row::new("crowd_of_200_worst_off_pct", "%", Better::Lower, &[worst]).limited_by(2.0))
}
