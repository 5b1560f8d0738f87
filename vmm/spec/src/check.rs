//! What a spec must be beyond its shape: every bound that the fields' documentation states.

use crate::{
    BALLOON, Balloon, Boot, CONSOLE, MAX_MEMORY_FILES, RNG, SPEC_VERSION, Source, Spec, Transport,
    VSOCK,
};
use std::collections::{BTreeMap, BTreeSet};

/// Why a spec is refused; the message names the field.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not JSON of this shape.
    #[error("the spec is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A field holds a value that the VMM does not serve.
    #[error("{field}: {problem}")]
    Field {
        /// The field's path, such as `net[0].mac`.
        field: String,
        /// What is wrong with it, with the value.
        problem: String,
    },
}

impl Spec {
    /// Parses and checks a spec.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_slice(json)?;
        spec.check()?;
        Ok(spec)
    }

    fn check_boot(&self, boot: &Boot) -> Result<(), SpecError> {
        let before = self.transport.words().len();
        must(
            before + boot.cmdline.len() <= 2047,
            "boot.cmdline",
            "is longer than 2047 bytes, with what the transport puts before it",
        )?;
        if let Some(smbios) = &boot.smbios {
            smbios.check("boot.smbios")?;
        }
        let Some(disk) = &boot.disk else {
            return must(
                boot.kernel.is_some(),
                "boot.kernel",
                "is missing, and so is boot.disk",
            );
        };
        must(
            boot.kernel.is_none() && boot.initrd.is_none(),
            "boot.disk",
            "cannot be with boot.kernel or boot.initrd",
        )?;
        must(
            self.block.iter().any(|block| block.id == *disk),
            "boot.disk",
            format!("{disk:?} is no disk of this machine"),
        )
    }

    /// Checks every bound that the field docs state.
    pub fn check(&self) -> Result<(), SpecError> {
        must(
            self.version == SPEC_VERSION,
            "version",
            format!(
                "this VMM reads version {SPEC_VERSION}, not {}",
                self.version
            ),
        )?;
        must(
            !self.id.is_empty() && self.id.len() <= 64,
            "id",
            "must have 1 to 64 bytes",
        )?;
        must(
            (1..=64).contains(&self.vcpus),
            "vcpus",
            format!("{} is not in 1..=64", self.vcpus),
        )?;
        must(
            (16..=16 << 20).contains(&self.memory_mib),
            "memory_mib",
            format!("{} is not in 16..=16777216", self.memory_mib),
        )?;
        must(
            self.transport == Transport::Pci || self.net.len() + self.block.len() <= 8,
            "transport",
            "mmio has places for 8 devices",
        )?;
        match (&self.boot, &self.restore) {
            (_, _) if self.incoming.is_some() => must(
                self.boot.is_none() && self.restore.is_none(),
                "incoming",
                "cannot be with boot or restore",
            )?,
            (None, None) => must(false, "boot", "is missing, and so are restore and incoming")?,
            (Some(_), Some(_)) => must(false, "restore", "cannot be with boot")?,
            (Some(boot), None) => self.check_boot(boot)?,
            (None, Some(restore)) => must(
                (1..=MAX_MEMORY_FILES).contains(&restore.memory.len()),
                "restore.memory",
                format!(
                    "{} files, not 1 to {MAX_MEMORY_FILES}",
                    restore.memory.len()
                ),
            )?,
        }
        must(
            self.balloon.is_none() || self.restore.is_none(),
            "balloon",
            "cannot be restored: it gives back blocks of the memory's file, which is the snapshot",
        )?;
        must(
            (4096..=1 << 20).contains(&self.serial.capacity_bytes),
            "serial.capacity_bytes",
            format!("{} is not in 4096..=1048576", self.serial.capacity_bytes),
        )?;
        must(
            self.net.len() + self.block.len() <= 26,
            "block",
            "more than 26 disks and interfaces in all",
        )?;
        self.transmit.check("transmit")?;
        let mut ids = BTreeSet::new();
        for (i, net) in self.net.iter().enumerate() {
            net.check(&format!("net[{i}]"))?;
            unique(&mut ids, &format!("net[{i}].id"), &net.id)?;
        }
        for (i, block) in self.block.iter().enumerate() {
            block.check(&format!("block[{i}]"))?;
            unique(&mut ids, &format!("block[{i}].id"), &block.id)?;
        }
        for (id, present) in [
            (RNG, self.rng.is_some()),
            (CONSOLE, self.console.is_some()),
            (BALLOON, self.balloon.is_some()),
            (VSOCK, self.vsock.is_some()),
        ] {
            if present {
                unique(&mut ids, id, id)?;
            }
        }
        if let Some(rng) = &self.rng {
            must(
                (1024..=64 << 20).contains(&rng.bytes_per_s),
                "rng.bytes_per_s",
                format!("{} is not in 1024..=67108864", rng.bytes_per_s),
            )?;
        }
        if let Some(balloon) = &self.balloon {
            Balloon::check_target(balloon.target_mib, self.memory_mib)?;
        }
        if let Some(vsock) = &self.vsock {
            must(
                (3..u32::MAX).contains(&vsock.guest_cid),
                "vsock.guest_cid",
                format!("{} is not in 3..=4294967294", vsock.guest_cid),
            )?;
        }
        let mut seen = BTreeMap::new();
        for (field, source) in self.sources() {
            if let Source::Fd(fd) = source
                && let Some(other) = seen.insert(fd, field.clone())
            {
                return must(
                    false,
                    field,
                    format!("descriptor {fd} is already {other}'s"),
                );
            }
        }
        Ok(())
    }

    /// Every [`Source`] with its field's path.
    pub fn sources(&self) -> Vec<(String, &Source)> {
        let mut all = vec![("serial.ring".to_owned(), &self.serial.ring)];
        if let Some(boot) = &self.boot {
            all.extend(boot.kernel.iter().map(|s| ("boot.kernel".to_owned(), s)));
            all.extend(boot.initrd.iter().map(|s| ("boot.initrd".to_owned(), s)));
        }
        if let Some(restore) = &self.restore {
            all.push(("restore.state".to_owned(), &restore.state));
            for (i, file) in restore.memory.iter().enumerate() {
                all.push((format!("restore.memory[{i}]"), file));
            }
        }
        let optional = [
            ("incoming", &self.incoming),
            ("control", &self.control),
            ("exit_record", &self.exit_record),
            ("kvm", &self.kvm),
        ];
        let console = self.console.as_ref().and_then(|c| c.input.as_ref());
        all.extend(console.map(|source| ("console.input".to_owned(), source)));
        let vsock = self.vsock.as_ref().map(|vsock| &vsock.listener);
        all.extend(vsock.map(|source| ("vsock.listener".to_owned(), source)));
        for (field, source) in optional {
            all.extend(source.iter().map(|source| (field.to_owned(), source)));
        }
        for (i, net) in self.net.iter().enumerate() {
            all.push((format!("net[{i}].tap"), &net.tap));
        }
        for (i, block) in self.block.iter().enumerate() {
            all.push((format!("block[{i}].listener"), &block.listener));
        }
        all
    }
}

pub(crate) fn must(
    ok: bool,
    field: impl Into<String>,
    problem: impl Into<String>,
) -> Result<(), SpecError> {
    if ok {
        return Ok(());
    }
    Err(SpecError::Field {
        field: field.into(),
        problem: problem.into(),
    })
}

fn unique<'a>(ids: &mut BTreeSet<&'a str>, field: &str, id: &'a str) -> Result<(), SpecError> {
    let new = ids.insert(id);
    must(new, field, format!("{id:?} is another device's"))
}
