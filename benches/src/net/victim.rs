//! A guest beside one that floods: the time its frames take to a third guest and back.
//!
//! Guests' ends are threads with a CPU each, ahead of all else on the machine, as the question is
//! what the packet path does, not who gets a CPU. The flood goes to a guest that does not read,
//! or to the victim itself, whose rules refuse it.

use super::ours::{End, HEADER_BYTES, PORT, Path};
use super::udp_frame;
use crate::alternate::alternate;
use crate::report::{Better, Row};
use anyhow::{Context, Result, bail, ensure};
use ocs_dataplane::fabric::Fabric;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// No rule lets it in.
const REFUSED: u16 = 7;
/// The flood runs so long before it counts.
const AHEAD: Duration = Duration::from_millis(20);
/// A flood is no fewer frames a second, of one CPU.
const FLOOD_PER_S: f64 = 100_000.0;
const QUIET: &str = "the same while nobody floods";

/// Measures it by either program of a tap.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let mut rows = of("victim_xdp", quick, Fabric::create_tap, Path::new(20)?)?;
    let path = Path::with_offloads(20)?;
    rows.extend(of("victim_tcx", quick, Fabric::create_offload_tap, path)?);
    Ok(rows)
}

fn of(
    name: &str,
    quick: bool,
    create_tap: impl Fn(
        &Fabric,
        &str,
    ) -> Result<ocs_dataplane::fabric::Tap, ocs_dataplane::fabric::FabricError>,
    mut path: Path,
) -> Result<Vec<Row>> {
    let (runs, trips) = if quick { (7, 10_000) } else { (15, 30_000) };
    let [mut victim, mut other] = path.ends()?;
    let [attacker, silent] = path.neighbours(create_tap)?;
    let through = frame(&attacker, &silent, PORT);
    let at_victim = frame(&attacker, &victim, REFUSED);
    let ends = std::cell::RefCell::new((&mut victim, &mut other));
    let trip = |flood: Option<&[u8]>| {
        let (victim, other) = &mut *ends.borrow_mut();
        beside(&attacker, flood, || p99_us(victim, other, trips))
    };
    let figures = alternate(
        runs,
        &mut [
            &mut || Ok(vec![trip(Some(&through))?]),
            &mut || Ok(vec![trip(None)?]),
            &mut || Ok(vec![trip(Some(&at_victim))?]),
            &mut || Ok(vec![trip(None)?]),
        ],
    )?;
    let row = |what: &str, side: usize| {
        let metric = format!("{name}_{what}_p99_us");
        Row::new(metric, "us", Better::Lower, &figures[side][0])
            .against(QUIET, &figures[side + 1][0])
    };
    Ok(vec![row("beside_flood", 0), row("refusing_flood", 2)])
}

/// A frame behind its header.
fn frame(from: &End, to: &End, port: u16) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    let (source, destination) = (from.address.octets(), to.address.octets());
    let frame = udp_frame((&from.mac, source, port), (&to.mac, destination, port));
    bytes.extend_from_slice(&frame);
    bytes
}

/// Does `work` on one CPU while another CPU sends frames of a flood.
fn beside(attacker: &End, flood: Option<&[u8]>, work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flooding = flood.map(|frame| {
            scope.spawn(|| {
                let _ahead = Ahead::on(0)?;
                while !done.load(Ordering::Relaxed) {
                    (&attacker.file).write_all(frame)?;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
        });
        let result = (|| {
            let _ahead = Ahead::on(1)?;
            if flood.is_some() {
                std::thread::sleep(AHEAD);
            }
            let (before, start) = (sent.load(Ordering::Relaxed), Instant::now());
            let result = work()?;
            let frames = sent.load(Ordering::Relaxed) - before;
            let per_s = frames as f64 / start.elapsed().as_secs_f64();
            ensure!(
                flood.is_none() || per_s >= FLOOD_PER_S,
                "no flood: {per_s} frames a second"
            );
            Ok(result)
        })();
        done.store(true, Ordering::Relaxed);
        if let Some(flooding) = flooding {
            let ended = flooding.join();
            ended.unwrap_or_else(|_| bail!("the flood's thread panicked"))?;
        }
        result
    })
}

/// The 99th percentile of so many round trips, in µs.
fn p99_us(victim: &mut End, other: &mut End, trips: usize) -> Result<f64> {
    let (there, back) = (frame(victim, other, PORT), frame(other, victim, PORT));
    let mut times = Vec::with_capacity(trips);
    for _ in 0..trips {
        let start = Instant::now();
        victim.file.write_all(&there)?;
        arrives(other)?;
        other.file.write_all(&back)?;
        arrives(victim)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let p99 = times.get(trips * 99 / 100).context("no round trip")?;
    Ok(p99.as_secs_f64() * 1e6)
}

/// Reads the next frame.
fn arrives(end: &mut End) -> Result<()> {
    let (mut buffer, start) = ([0; 2_048], Instant::now());
    loop {
        match end.file.read(&mut buffer) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(start.elapsed() < Duration::from_secs(5), "a frame is lost");
    }
}

/// This thread is on one CPU, and goes ahead of all that do not say so; until dropped.
struct Ahead(libc::cpu_set_t);

impl Ahead {
    fn on(cpu: usize) -> Result<Self> {
        // SAFETY: a set of CPUs is an array of integers: zeros are valid.
        let (mut before, mut one) =
            unsafe { std::mem::zeroed::<(libc::cpu_set_t, libc::cpu_set_t)>() };
        let size = size_of::<libc::cpu_set_t>();
        // SAFETY: the sets live until each call returns, and are as long as said.
        let set = unsafe {
            libc::CPU_SET(cpu, &mut one);
            libc::sched_getaffinity(0, size, &mut before) | libc::sched_setaffinity(0, size, &one)
        };
        ensure!(set == 0, "this thread cannot be held to CPU {cpu}");
        schedule(libc::SCHED_FIFO, 1)?;
        Ok(Self(before))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Err(error) = schedule(libc::SCHED_OTHER, 0) {
            eprintln!("{error}");
        }
        // SAFETY: the set lives until the call returns, and is as long as said.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) };
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> Result<()> {
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameter lives until the call returns.
    let set = unsafe { libc::sched_setscheduler(0, policy, &parameter) };
    ensure!(
        set == 0,
        "cannot schedule: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
