//! Why a VMM cannot start or go on.

use std::io;

/// The result of everything that can end the VMM.
pub type Result<T> = std::result::Result<T, Error>;

/// One sentence for the operator, naming the field or value at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec itself.
    #[error(transparent)]
    Spec(#[from] ocs_vmm_spec::SpecError),
    /// A file, socket or device named by the spec.
    #[error("{field}: cannot open {what}: {source}")]
    Open {
        /// The spec's field.
        field: String,
        /// Path or descriptor.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A KVM call.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        source: kvm_ioctls::Error,
    },
    /// Guest memory could not be made.
    #[error("memory_mib: cannot provide {mib} MiB: {why}")]
    Memory {
        /// The size asked for.
        mib: u64,
        /// The reason.
        why: String,
    },
    /// Kernel, initrd or command line.
    #[error("{field}: {problem}")]
    Boot {
        /// The spec's field.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A device's host side.
    #[error("{device}: {problem}")]
    Device {
        /// The device's id in the spec.
        device: String,
        /// What is wrong.
        problem: String,
    },
    /// The jail.
    #[error(
        "cannot leave the host's file system: {source} (start as root, or with user namespaces \
         allowed; or without this wall: \"jail\": \"without_namespaces\")"
    )]
    Jail {
        /// The system's reason.
        source: io::Error,
    },
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::SnapshotError),
    /// The spec asks for a CPU that this host cannot show.
    #[error("cpu: this host lacks {0}")]
    Cpu(String),
    /// The host's own facilities: threads, events, signals.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Names what was asked of KVM, for `map_err`.
pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

/// Names what was asked of the host, for `map_err`.
pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |source| Error::Host {
        what,
        source: source.into(),
    }
}
