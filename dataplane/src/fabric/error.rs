//! What can go wrong with the packet path.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::compiler::CompileError;

/// Why the packet path is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// This program was built before the BPF object was.
    #[error("built without the BPF programs; use `cargo xtask build`")]
    NoPrograms,
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something could not be done to a file.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Netlink refused.
    #[error("{what}: {source}")]
    Netlink {
        /// What was attempted.
        what: String,
        /// Netlink's answer.
        source: rtnetlink::Error,
    },
    /// The BPF object could not be loaded.
    #[error("loading the BPF object")]
    Load(#[source] Box<aya::EbpfError>),
    /// The object lacks a program or map, or has it in another form.
    #[error("the BPF object has no {kind} {name} of the expected form")]
    Object {
        /// Program or map.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A program was refused.
    #[error("BPF program {name}")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// A link or its pin was refused.
    #[error("BPF link {name}: {reason}")]
    Link {
        /// Its pin's name.
        name: String,
        /// Why.
        reason: String,
    },
    /// A map was refused an operation.
    #[error("BPF map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// A map has no room for a change.
    #[error("BPF map {map} is full")]
    Full {
        /// Its name.
        map: &'static str,
    },
    /// A policy cannot be carried out.
    #[error("policy refused: {0}")]
    Policy(#[from] CompileError),
    /// No policy names that port.
    #[error("no port {port}")]
    UnknownPort {
        /// What was asked for.
        port: String,
    },
    /// A packet has two addresses of one IP.
    #[error("{source_address} sends no packet to {destination}: one is IPv4, the other IPv6")]
    TwoIps {
        /// Whence it would come.
        source_address: IpAddr,
        /// Where it would go.
        destination: IpAddr,
    },
    /// Programs of another layout are in force until a policy is applied.
    #[error("a predecessor's programs are in force until a policy is applied")]
    Succeeds,
    /// A tap's name is empty, too long or has bytes that names cannot have.
    #[error("tap name {name:?} is not an interface name of 1 to 15 bytes")]
    TapName {
        /// What was given.
        name: String,
    },
    /// The timer frequency measured is none that Linux has.
    #[error("measured {measured} jiffies a second, which is no frequency that Linux has")]
    Clock {
        /// What was measured.
        measured: u64,
    },
}

/// Adds what was attempted to a system call's error.
pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> FabricError {
    let what = what.into();
    move |source| FabricError::System { what, source }
}

/// Adds what was attempted on which file.
pub(crate) fn file(
    what: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(io::Error) -> FabricError {
    let path = path.to_owned();
    move |source| FabricError::File { what, path, source }
}

/// Adds the map's name.
pub(crate) fn map(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> FabricError {
    move |source| FabricError::Map { map, source }
}
