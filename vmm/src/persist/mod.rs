//! The state of a stopped machine as bytes: versioned, checksummed, bounded.
//!
//! ```text
//!  "OCSVMST\n" │ format: u32 │ sections: u32 │ crc32 of these
//!  section:  name length: u8, name │ version: u16 │ length: u32 │ crc32 of all of it │ bytes
//! ```
//! Integers are little-endian. Each part of the machine ([`crate::lifecycle`]) writes one
//! section under its own name and version, encoded with `postcard`, whose wire format is
//! documented and stable. A reader refuses, naming the section: what is cut short, does
//! not match its checksum, is of a newer version, is missing, or is not known.
//!
//! Bytes that pass are still not trusted: a part checks what it loads as it checks what
//! a guest writes.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

const MAGIC: &[u8; 8] = b"OCSVMST\n";
/// The version of the container; sections have versions of their own.
pub const FORMAT: u32 = 1;
/// No machine has more state: 64 vCPUs of 16 KiB and 28 devices of a few hundred bytes.
pub const MAX_BYTES: usize = 16 << 20;
/// 64 vCPUs, 32 slots, and what every machine has once.
const MAX_SECTIONS: u32 = 256;
const MAX_NAME_BYTES: usize = 32;
const HEADER_BYTES: usize = 20;

/// Why bytes are not the state of a machine that this VMM can continue.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersistError {
    /// Another kind of file.
    #[error("this is not a machine's state: it does not begin with {MAGIC:02x?}")]
    NotState,
    /// Larger than any state.
    #[error("a state of {0} bytes is larger than {MAX_BYTES}")]
    TooLarge(usize),
    /// A newer container.
    #[error("the state has format {found}, and this VMM reads {FORMAT}")]
    Format {
        /// The format found.
        found: u32,
    },
    /// Cut short.
    #[error("the state ends inside {section}")]
    Truncated {
        /// The section, by name if that was read, else by number.
        section: String,
    },
    /// Bytes changed since they were written.
    #[error("{section} of the state does not match its checksum")]
    Checksum {
        /// The section.
        section: String,
    },
    /// More sections than any machine has, or one of them twice.
    #[error("the state's table of sections is malformed: {0}")]
    Table(String),
    /// A part of the machine is not in it.
    #[error("the state has no section {0}: it is of another machine")]
    Missing(String),
    /// It holds a part that this machine does not have.
    #[error("the state holds a section {0}, which this machine does not have")]
    Unknown(String),
    /// A part refused what it was given.
    #[error("section {section} of the state {problem}")]
    Refused {
        /// The section.
        section: String,
        /// The part's words.
        problem: String,
    },
}

/// One part's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The version of `bytes`, counted by the part that wrote them.
    pub version: u16,
    /// The part's own bytes.
    pub bytes: Vec<u8>,
}

impl State {
    /// Encodes `value`, which is of version `version`.
    pub fn encode<T: Serialize>(version: u16, value: &T) -> Result<Self, String> {
        let bytes = postcard::to_stdvec(value).map_err(|e| format!("cannot be encoded: {e}"))?;
        Ok(Self { version, bytes })
    }

    /// Decodes what is of version `known`; all bytes must have been used.
    pub fn decode<T: DeserializeOwned>(&self, known: u16) -> Result<T, String> {
        if self.version != known {
            return Err(format!(
                "has version {}, and this VMM reads {known}",
                self.version
            ));
        }
        let (value, rest) = postcard::take_from_bytes(&self.bytes)
            .map_err(|e| format!("cannot be decoded: {e}"))?;
        if !rest.is_empty() {
            return Err(format!("has {} bytes too many", rest.len()));
        }
        Ok(value)
    }
}

/// Collects sections.
#[derive(Default)]
pub struct Writer {
    sections: Vec<u8>,
    count: u32,
}

impl Writer {
    /// Appends a section; names are the code's own, distinct and short.
    pub fn add(&mut self, name: &str, state: &State) {
        let header = header(name, state.version, state.bytes.len());
        let crc = checksum(&[&header, &state.bytes]);
        self.sections.extend_from_slice(&header);
        self.sections.extend_from_slice(&crc.to_le_bytes());
        self.sections.extend_from_slice(&state.bytes);
        self.count += 1;
    }

    /// The whole.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        let crc = checksum(&[&out]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.sections);
        out
    }
}

/// A state whose checksums hold, section by section.
#[derive(Debug)]
pub struct Sections(BTreeMap<String, State>);

impl Sections {
    /// Reads and checks all sections.
    pub fn parse(bytes: &[u8]) -> Result<Self, PersistError> {
        if bytes.len() > MAX_BYTES {
            return Err(PersistError::TooLarge(bytes.len()));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(PersistError::NotState);
        }
        let mut rest = Rest(bytes);
        let head = rest.take(HEADER_BYTES, || "its header".to_owned())?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[at + i]));
        // The version before the checksum: a newer format may sum otherwise.
        if word(8) != FORMAT {
            return Err(PersistError::Format { found: word(8) });
        }
        if word(16) != checksum(&[&head[..16]]) {
            let section = "the header".to_owned();
            return Err(PersistError::Checksum { section });
        }
        let count = word(12);
        if count > MAX_SECTIONS {
            return Err(PersistError::Table(format!("{count} sections")));
        }
        let mut sections = BTreeMap::new();
        for number in 0..count {
            let (name, state) = section(&mut rest, number)?;
            if sections.insert(name.clone(), state).is_some() {
                return Err(PersistError::Table(format!("two sections {name}")));
            }
        }
        if !rest.0.is_empty() {
            let extra = rest.0.len();
            return Err(PersistError::Table(format!(
                "{extra} bytes behind the last"
            )));
        }
        Ok(Self(sections))
    }

    /// Takes the section `name`.
    pub fn take(&mut self, name: &str) -> Result<State, PersistError> {
        self.0
            .remove(name)
            .ok_or_else(|| PersistError::Missing(name.to_owned()))
    }

    /// Takes and decodes the section `name`, which is of version `known`.
    pub fn decode<T: DeserializeOwned>(
        &mut self,
        name: &str,
        known: u16,
    ) -> Result<T, PersistError> {
        self.take(name)?
            .decode(known)
            .map_err(|problem| refused(name, problem))
    }

    /// All must have been taken: what nobody knows would be lost.
    pub fn finish(self) -> Result<(), PersistError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(PersistError::Unknown(name)),
        }
    }
}

/// A part's refusal, with its section's name.
pub(crate) fn refused(section: &str, problem: String) -> PersistError {
    PersistError::Refused {
        section: section.to_owned(),
        problem,
    }
}

fn header(name: &str, version: u16, len: usize) -> Vec<u8> {
    debug_assert!(name.len() <= MAX_NAME_BYTES && len <= MAX_BYTES);
    let mut out = vec![u8::try_from(name.len()).unwrap_or(u8::MAX)];
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    out
}

fn section(rest: &mut Rest<'_>, number: u32) -> Result<(String, State), PersistError> {
    let unnamed = || format!("section {number}");
    let start = rest.0;
    let len = usize::from(rest.take(1, unnamed)?[0]);
    let name = rest.take(len, unnamed)?;
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|name| name.len() <= MAX_NAME_BYTES)
        .ok_or_else(|| PersistError::Table(format!("{} has no name", unnamed())))?
        .to_owned();
    let named = || format!("section {name}");
    let fixed = rest.take(6, named)?;
    let version = u16::from_le_bytes([fixed[0], fixed[1]]);
    let bytes = u32::from_le_bytes([fixed[2], fixed[3], fixed[4], fixed[5]]);
    let head = &start[..1 + len + 6];
    let crc = rest.take(4, named)?;
    let crc = u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]);
    let bytes = rest.take(usize::try_from(bytes).unwrap_or(usize::MAX), named)?;
    if crc != checksum(&[head, bytes]) {
        return Err(PersistError::Checksum { section: named() });
    }
    let bytes = bytes.to_vec();
    Ok((name, State { version, bytes }))
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(
        &mut self,
        len: usize,
        section: impl FnOnce() -> String,
    ) -> Result<&'a [u8], PersistError> {
        if len > self.0.len() {
            let section = section();
            return Err(PersistError::Truncated { section });
        }
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(taken)
    }
}

/// CRC-32 (IEEE 802.3) of the concatenation.
pub(crate) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

#[cfg(test)]
mod tests;
