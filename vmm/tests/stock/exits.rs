//! What a stock kernel's quiet start costs in exits, from its first instruction to its first
//! program: ours, with virtio over PCI and over MMIO, then QEMU's microvm, which has MMIO and no
//! PCI; same kernel, initial RAM disk, memory and command line.
//!
//! ```text
//!  kvm_exit by reason (hist trigger) ─▶ io, msr, cpuid, npf, hlt, interrupt
//!  kvm_mmio by kind ─────────────────▶ mmio; what is left of npf are page faults
//! ```
//! Counts of tracepoints, because `KVM_GET_STATS_FD` tells neither MSRs nor CPUID apart; its sum
//! must agree. Of the MSR exits, those of the timer follow the time that a start takes.

use super::common::wait_for;
use super::{CMDLINE, said, stock};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const TRACING: &str = "/sys/kernel/tracing";
const MODE: &str = "boot=test";
const MEMORY_MIB: u64 = 256;
const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// SVM's exit codes (AMD APM vol. 2, appendix C).
const REASONS: [(u64, &str); 7] = [
    (0x60, "irq"),
    (0x64, "irq_window"),
    (0x72, "cpuid"),
    (0x78, "halt"),
    (0x7b, "io"),
    (0x7c, "msr"),
    (0x400, "npf"),
];
const TIMER_MSR: u64 = 0x6e0;

type Counts = BTreeMap<&'static str, u64>;

/// Compares with a microvm that has an RTC, as ours has, and if `all` with QEMU's default, which
/// has none and makes the kernel look for one.
pub fn against_microvm(guests: &Path, all: bool) {
    let _ = Command::new("mount")
        .args(["-t", "tracefs", "none", TRACING])
        .status();
    // What `ocs up` does; Debian's kernel says never.
    fs::write(SETTING, "advise").unwrap();
    let (pci, mmio) = (ours(guests, "pci"), ours(guests, "mmio"));
    let fair = qemu(guests, "microvm,rtc=on");
    show("microvm,rtc=on", &fair);
    let mut rows = Vec::new();
    // What does not follow the clock: of what is left, how much of the peer's.
    for (name, suffix, ours, most) in [("pci", "", &pci, 0.75), ("mmio", "_mmio", &mmio, 0.45)] {
        show(name, ours);
        let ratio = caused(ours) as f64 / caused(&fair) as f64;
        println!("    {name}: io + mmio + msr: {ratio:.2} of microvm,rtc=on");
        assert!(caused(ours) <= 3000, "{ours:?}");
        let still = |counts: &Counts| caused(counts) - counts["timer"];
        let still = still(ours) as f64 / still(&fair) as f64;
        println!("    {name}: of it but the timer: {still:.2}");
        assert!(still <= most, "{ours:?} {fair:?}");
        let faults = ours["page_fault"] as f64 / fair["page_fault"] as f64;
        println!("    {name}: page faults: {faults:.2}");
        assert!(faults <= 1.1, "{ours:?} {fair:?}");
        rows.extend(table(suffix, ours, &fair));
    }
    let file = guests.join("exits.json");
    fs::write(file, serde_json::to_vec_pretty(&rows).unwrap()).unwrap();
    if all {
        let peer = qemu(guests, "microvm");
        show("microvm", &peer);
        let ratio = caused(&pci) as f64 / caused(&peer) as f64;
        println!("    pci: io + mmio + msr: {ratio:.2} of microvm");
        assert!(ratio <= 0.6, "{pci:?} {peer:?}");
    }
}

/// The figures as a bench's rows, which `cargo xtask lab vmm` keeps.
fn table(suffix: &str, ours: &Counts, peer: &Counts) -> Vec<serde_json::Value> {
    let row = |name: &str, ours: u64, peer: u64| {
        json!({
            "metric": format!("exits_{name}{suffix}"), "unit": "exits", "better": "lower", "runs": 1,
            "ours": ours, "peer": peer, "peer_name": "qemu-system-x86_64 -M microvm,rtc=on",
            "ratio": ours as f64 / peer.max(1) as f64, "spread": [ours, ours], "limit": null,
        })
    };
    let mut rows = vec![row("vmm_caused", caused(ours), caused(peer))];
    rows.extend(
        ours.iter()
            .map(|(kind, count)| row(kind, *count, peer[kind])),
    );
    rows
}

/// Exits that a VMM's choices cause.
fn caused(counts: &Counts) -> u64 {
    counts["io"] + counts["mmio"] + counts["msr"]
}

fn show(name: &str, counts: &Counts) {
    let counts: Vec<String> = counts
        .iter()
        .map(|(kind, n)| format!("{kind}={n}"))
        .collect();
    println!("    {name}: {}", counts.join(" "));
}

fn ours(guests: &Path, transport: &str) -> Counts {
    let mut bench = stock(guests, "6.12", MODE);
    bench.spec["transport"] = json!(transport);
    bench.spec["memory_mib"] = json!(MEMORY_MIB);
    let trace = Trace::start();
    let mut vmm = bench.start();
    said(&mut vmm, "stock: userland");
    let counts = trace.read();
    let exits = vmm.control().counter("kvm.exits");
    // Read a moment later, and with what the guest does when it has nothing to do.
    let traced = counts["exits"];
    assert!(
        (traced..traced + 500).contains(&exits),
        "{exits} {counts:?}"
    );
    counts
}

fn qemu(guests: &Path, machine: &str) -> Counts {
    let serial = std::env::temp_dir().join("microvm.serial");
    let _ = fs::remove_file(&serial);
    let at = |name: &str| -> PathBuf { guests.join(format!("{name}-6.12")) };
    let trace = Trace::start();
    let _qemu = Qemu(
        Command::new("qemu-system-x86_64")
            .args(["-M", machine, "-accel", "kvm", "-cpu", "host", "-smp", "1"])
            .args([
                "-m",
                &MEMORY_MIB.to_string(),
                "-nodefaults",
                "-no-user-config",
            ])
            .args([
                "-display",
                "none",
                "-no-reboot",
                "-append",
                &format!("{CMDLINE} {MODE}"),
            ])
            .args(["-serial", &format!("file:{}", serial.display())])
            .arg("-kernel")
            .arg(at("vmlinux"))
            .arg("-initrd")
            .arg(at("initrd"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_for("microvm's userland", || {
        let said = fs::read_to_string(&serial).unwrap_or_default();
        said.contains("stock: userland").then_some(())
    });
    let counts = trace.read();
    fs::remove_file(&serial).unwrap();
    counts
}

/// Ended with the value.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Counting tracepoints; there is one machine at a time.
struct Trace;

/// Tracepoint and key.
const COUNTERS: [(&str, &str); 3] = [
    ("kvm_exit", "exit_reason"),
    ("kvm_mmio", "type"),
    ("kvm_msr", "ecx"),
];

impl Trace {
    fn start() -> Self {
        for (event, key) in COUNTERS {
            fs::write(trigger(event), format!("hist:keys={key}:size=2048")).unwrap();
        }
        Self
    }

    fn read(&self) -> Counts {
        let [exits, mmio, msr] = COUNTERS.map(|(event, key)| histogram(event, key));
        let of = |counts: &BTreeMap<u64, u64>, key: u64| counts.get(&key).copied().unwrap_or(0);
        let mut counts: Counts = REASONS
            .iter()
            .map(|(code, name)| (*name, of(&exits, *code)))
            .collect();
        // Types 1 and 2 are reads and writes; 0 says that a read goes out.
        counts.insert("mmio", of(&mmio, 1) + of(&mmio, 2));
        let npf = counts.remove("npf").unwrap_or(0);
        counts.insert("page_fault", npf.saturating_sub(counts["mmio"]));
        counts.insert("timer", of(&msr, TIMER_MSR));
        counts.insert("exits", exits.values().sum());
        counts
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        for (event, key) in COUNTERS {
            let _ = fs::write(trigger(event), format!("!hist:keys={key}"));
        }
    }
}

fn trigger(event: &str) -> PathBuf {
    Path::new(TRACING)
        .join("events/kvm")
        .join(event)
        .join("trigger")
}

/// Hits by key, of lines such as `{ exit_reason:        120 } hitcount:         42`.
fn histogram(event: &str, key: &str) -> BTreeMap<u64, u64> {
    let file = trigger(event).with_file_name("hist");
    let text = fs::read_to_string(file).unwrap();
    let prefix = format!("{{ {key}:");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    lines
        .filter_map(|line| {
            let (value, hits) = line.split_once("} hitcount:")?;
            Some((value.trim().parse().ok()?, hits.trim().parse().ok()?))
        })
        .collect()
}
