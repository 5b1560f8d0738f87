//! `cargo xtask test`: every layer of tests, one table of what was executed.
//!
//! ```text
//!  unit    library and program tests, documentation examples
//!  kernel  integration tests: BPF, KVM, vhost-user, namespaces in this kernel
//!  system  `ocs up` over its API, through boto3, with real probe guests
//!  demo    the demo's claims, and that each sabotage is noticed
//!  gates   formatting, lints, documentation, licences; beside the two before
//!  fuzz    hostile-input tests again, with more cases; libFuzzer's targets
//!  lab     stock Linux in the emulated host
//! ```
//! A layer that fails does not hide the next one.

mod cargo;
mod demo;
mod lab;
mod long;
mod system;

use crate::build;
use crate::setup::{self, Need};
use crate::{fuzz, gates, sh};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::time::{Duration, Instant};

/// What to test, and how hard.
#[derive(Args)]
pub struct Options {
    /// One layer instead of all
    #[arg(long)]
    only: Option<Layer>,
    /// The counts that issues name, instead of small ones; writes target/long.json
    #[arg(long)]
    long: bool,
}

/// A kind of test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layer {
    /// Formatting, lints, documentation, licences
    Gates,
    /// Library and program tests, documentation examples
    Unit,
    /// Integration tests against this kernel
    Kernel,
    /// Hostile-input tests with more cases, libFuzzer's targets
    Fuzz,
    /// The whole system over its API
    System,
    /// The demo's claims, and each sabotage
    Demo,
    /// Stock Linux in the emulated host
    Lab,
}

/// What a layer executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Names of those that failed.
    pub failed: Vec<String>,
    /// Those not run, each with the capability that the host lacks.
    pub skipped: Vec<String>,
}

impl Counts {
    /// One test and its outcome.
    fn record(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

/// What one layer did, and how long it took.
struct Outcome {
    layer: Layer,
    counts: Counts,
    took: Duration,
}

/// What they need of the machine.
const NEEDS: &[Need] = &[
    Need::CoreSources,
    Need::BpfLinker,
    Need::NetworkTools,
    Need::Dissector,
    Need::Fuzzer,
    Need::Lab,
    Need::BlockPeers,
    Need::Clients,
];

/// Runs the layers; an error if any test failed.
pub fn run(options: &Options) -> Result<()> {
    setup::packages(NEEDS)?;
    std::thread::scope(|scope| {
        // These are downloaded while the compiler works.
        let clients = scope.spawn(|| setup::ensure(&[Need::Clients]));
        if options.only == Some(Layer::Gates) {
            build::embedded()?;
        } else {
            build::for_tests()?;
        }
        build::joined(clients)
    })?;
    let outcomes = match options.only {
        Some(layer) => vec![run_layer(layer, options.long)],
        None => run_all(options.long),
    };
    if options.long {
        long::write(&outcomes)?;
    }
    report(&outcomes)
}

/// The layers one after another, but for the compiler's work: it is done in the time that the
/// system's tests leave.
fn run_all(long: bool) -> Vec<Outcome> {
    let run = |layer| run_layer(layer, long);
    let mut outcomes = vec![run(Layer::Unit), run(Layer::Kernel)];
    std::thread::scope(|scope| {
        let gates = scope.spawn(|| {
            sh::when_idle();
            let gates = run(Layer::Gates);
            // The fuzz layer does it again, and says what is wrong.
            let _ = fuzz::build();
            gates
        });
        outcomes.extend([run(Layer::System), run(Layer::Demo)]);
        match gates.join() {
            Ok(gates) => outcomes.insert(0, gates),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    outcomes.extend([run(Layer::Fuzz), run(Layer::Lab)]);
    outcomes
}

fn run_layer(layer: Layer, long: bool) -> Outcome {
    sh::say(&format!("layer {}", name(layer)));
    let start = Instant::now();
    let counts = match layer {
        Layer::Gates => run_gates(),
        Layer::Unit => cargo::unit(long),
        Layer::Kernel => cargo::kernel(long),
        Layer::Fuzz => cargo::fuzz(long),
        Layer::System => system::run(long),
        Layer::Demo => demo::run(),
        Layer::Lab => lab::run(long),
    }
    .unwrap_or_else(|error| {
        let mut counts = Counts::default();
        counts.record(&format!("layer {}", name(layer)), Err(error));
        counts
    });
    Outcome {
        layer,
        counts,
        took: start.elapsed(),
    }
}

fn run_gates() -> Result<Counts> {
    let mut counts = Counts::default();
    for (name, gate) in gates::GATES {
        counts.record(name, sh::step(name, gate));
    }
    Ok(counts)
}

fn name(layer: Layer) -> String {
    layer
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The table; its last line is the sum.
fn report(outcomes: &[Outcome]) -> Result<()> {
    println!("\nlayer       passed  failed skipped  seconds");
    for Outcome {
        layer,
        counts,
        took,
    } in outcomes
    {
        println!(
            "{:<10} {:>7} {:>7} {:>7} {:>8.1}",
            name(*layer),
            counts.passed,
            counts.failed.len(),
            counts.skipped.len(),
            took.as_secs_f64()
        );
    }
    for counts in outcomes.iter().map(|outcome| &outcome.counts) {
        for skipped in &counts.skipped {
            println!("skipped: {skipped}");
        }
        for failed in &counts.failed {
            println!("FAILED: {failed}");
        }
    }
    let passed: u64 = outcomes.iter().map(|outcome| outcome.counts.passed).sum();
    let failed: usize = outcomes
        .iter()
        .map(|outcome| outcome.counts.failed.len())
        .sum();
    println!("\n{passed} passed, {failed} failed");
    if failed > 0 || passed == 0 {
        bail!("the tests did not pass");
    }
    Ok(())
}
