//! Restores and clones: a machine of 512 MiB, all of it touched, that prints once it runs again.
//!
//! A run begins at `fork` and ends when the clone's first byte is in its console ring. The floor
//! is a bare program that maps the same memory file and makes the fewest KVM calls to the same
//! byte. The snapshot is taken once.

use crate::boot::has_output;
use crate::process::{Guarded, own_dir};
use crate::vmm;
use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::{Kvm, VcpuExit};
use ocs_vmm_spec::control::Reply;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

#[path = "../../vmm/tests/common/payload.rs"]
#[allow(dead_code, reason = "the VMM's tests use the rest of it")]
mod payload;

const MEMORY_MIB: u64 = 512;
const TIME_OUT: Duration = Duration::from_secs(60);
const SERIAL_PORT: u16 = 0x3f8;
/// Where a memory file's guest memory begins.
const MEMORY_START: u64 = 4096;
/// The guest's code begins here; what runs after a restore is at its end.
const CODE: u64 = 0x10_0000;

/// A snapshot to restore from, in a folder of its own.
pub struct Snapshot<'a> {
    program: &'a Path,
    dir: PathBuf,
}

/// Touches memory from 16 MiB on, page by page, and says so; then waits for the generation event
/// that a restored machine finds, and prints.
fn guest() -> (Vec<u8>, u64) {
    let end = ((MEMORY_MIB - 16) << 20) as u32;
    // mov edi, 16 MiB; again: inc dword [edi]; add edi, 4096; cmp edi, end; jb again
    let mut code = vec![
        0xbf, 0, 0, 0, 1, 0xff, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0, 0x81, 0xff,
    ];
    code.extend_from_slice(&end.to_le_bytes());
    code.extend_from_slice(&[0x72, 0xf0]);
    code.extend_from_slice(&payload::print("t"));
    code.extend_from_slice(&payload::wait_port(0x603));
    let awake = CODE + code.len() as u64;
    code.extend_from_slice(&payload::print("r"));
    code.extend_from_slice(&payload::halt());
    (payload::elf(&code), awake)
}

impl<'a> Snapshot<'a> {
    /// Boots the guest and saves it into `dir`.
    pub fn take(program: &'a Path, dir: &Path) -> Result<Self> {
        let dir = dir.join("snapshot");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("kernel"), guest().0)?;
        let at = |name: &str| json!({"path": dir.join(name)});
        let mut spec = vmm::spec(&dir, "origin", MEMORY_MIB);
        spec["boot"] = json!({"kernel": at("kernel")});
        spec["control"] = at("control");
        let mut child = vmm::start(program, &dir, &spec)?;
        let mut ring = None;
        child
            .wait_until(TIME_OUT, false, || {
                has_output(&mut ring, &dir.join("origin.ring"))
            })
            .context("the machine to be saved")?;
        let files = [
            File::create(dir.join("state"))?,
            File::create(dir.join("memory"))?,
        ];
        let files = [files[0].as_fd(), files[1].as_fd()];
        match vmm::ask(&dir.join("control"), vmm::SNAPSHOT, &files)? {
            Reply::Snapshot { written_bytes, .. } => {
                let least = (MEMORY_MIB - 64) << 20;
                ensure!(written_bytes > least, "only {written_bytes} bytes written");
            }
            other => bail!("no snapshot: {other:?}"),
        }
        Ok(Self { program, dir })
    }

    /// One restore: time to the first byte, in µs.
    pub fn restore(&self) -> Result<Vec<f64>> {
        let begun = Instant::now();
        let (mut child, ring) = self.clone_as("one")?;
        let mut file = None;
        child
            .wait_until(TIME_OUT, true, || has_output(&mut file, &ring))
            .context("a restored machine")?;
        Ok(vec![begun.elapsed().as_secs_f64() * 1e6])
    }

    /// The floor of that.
    pub fn floor(&self) -> Result<Vec<f64>> {
        let program = own_dir()?.join("ocs-benches");
        let begun = Instant::now();
        let status = Command::new(program)
            .arg("restore-floor")
            .arg(self.dir.join("memory"))
            .status()?;
        let elapsed = begun.elapsed();
        ensure!(status.success(), "the floor failed: {status}");
        Ok(vec![elapsed.as_secs_f64() * 1e6])
    }

    /// Runs `count` clones at once: time until the last prints, in ms, and what each holds
    /// privately beyond guest memory, in KiB.
    pub fn clones(&self, count: usize) -> Result<(f64, Vec<f64>)> {
        let begun = Instant::now();
        let mut clones = Vec::new();
        for index in 0..count {
            clones.push((self.clone_as(&format!("clone{index}"))?, None));
        }
        for ((child, ring), file) in &mut clones {
            child
                .wait_until(TIME_OUT, false, || has_output(file, ring))
                .context("a clone")?;
        }
        let elapsed_ms = begun.elapsed().as_secs_f64() * 1e3;
        let memory = self.dir.join("memory");
        let memory = memory.to_string_lossy();
        let held: Result<Vec<f64>> = clones
            .iter()
            .map(|((child, _), _)| child.private_kib(&memory))
            .collect();
        Ok((elapsed_ms, held?))
    }

    fn clone_as(&self, name: &str) -> Result<(Guarded, PathBuf)> {
        let at = |name: &str| json!({"path": self.dir.join(name)});
        let mut spec = vmm::spec(&self.dir, name, MEMORY_MIB);
        spec["restore"] = json!({"state": at("state"), "memory": [at("memory")]});
        let ring = self.dir.join(format!("{name}.ring"));
        let _ = std::fs::remove_file(&ring);
        Ok((vmm::start(self.program, &self.dir, &spec)?, ring))
    }
}

/// Maps `memory` and runs the guest from where it would be after a restore, to its first byte.
pub fn floor(memory: &Path) -> Result<()> {
    let bytes = usize::try_from(MEMORY_MIB << 20)?;
    let file = File::open(memory).with_context(|| memory.display().to_string())?;
    let mapping = MmapRegionBuilder::<()>::new(bytes)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::new(file, MEMORY_START))
        .build()?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).context("no region")?;
    let memory = GuestMemoryMmap::from_regions(vec![region])?;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.create_irq_chip()?;
    crate::floor::map(&vm, &memory, bytes as u64)?;
    let mut vcpu = vm.create_vcpu(0)?;
    crate::floor::enter(&kvm, &vcpu, guest().1, 0)?;
    match vcpu.run()? {
        VcpuExit::IoOut(SERIAL_PORT, _) => Ok(()),
        exit => bail!("the guest ended before its first output: {exit:?}"),
    }
}
