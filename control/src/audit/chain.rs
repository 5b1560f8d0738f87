//! The chain of an audit log's lines: sealed, found again, verified.

use super::FILE;
use crate::fronts::sigv4::sha256_hex;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// What stands between an entry and its hash.
const SEAM: &str = ",\"hash\":\"";
/// Longest line: the longest parameters and room.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// A line of an entry's JSON object, and the hash that seals it.
pub(super) fn seal(entry: &str) -> (String, String) {
    let body = entry.strip_suffix('}').unwrap_or(entry);
    let hash = sha256_hex(body.as_bytes());
    (format!("{body}{SEAM}{hash}\"}}\n"), hash)
}

#[derive(Deserialize)]
struct Link {
    sequence: u64,
    previous: String,
}

/// A line's sequence number, the hash before it, and its own, if it is whole.
fn open(line: &str) -> Option<(u64, String, String)> {
    let (body, hash) = line.strip_suffix("\"}")?.rsplit_once(SEAM)?;
    let link: Link = serde_json::from_str(&format!("{body}}}")).ok()?;
    (sha256_hex(body.as_bytes()) == hash).then(|| (link.sequence, link.previous, hash.to_owned()))
}

/// Where a file ends.
pub(super) struct End {
    /// Bytes of whole lines.
    pub bytes: u64,
    /// Number of the next entry and hash of the last.
    pub last: Option<(u64, String)>,
}

/// Finds the last whole line of a file.
pub(super) fn end(mut file: &File) -> Result<End> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(2 * MAX_LINE_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let Some(newline) = bytes.iter().rposition(|b| *b == b'\n') else {
        ensure!(from == 0, "its end is no line");
        return Ok(End {
            bytes: 0,
            last: None,
        });
    };
    let start = bytes[..newline].iter().rposition(|b| *b == b'\n');
    let line = &bytes[start.map_or(0, |start| start + 1)..newline];
    let line = std::str::from_utf8(line).context("its last line is not text")?;
    let (sequence, _, hash) = open(line).context("its last line is broken")?;
    Ok(End {
        bytes: from + u64::try_from(newline)? + 1,
        last: Some((sequence + 1, hash)),
    })
}

/// Numbers of the files that were set aside, in order.
pub(super) fn numbers(folder: &Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(FILE));
        let number = number.and_then(|rest| rest.strip_prefix('.')?.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The end of the newest file that was set aside.
pub(super) fn last_set_aside(folder: &Path) -> Result<Option<(u64, String)>> {
    match numbers(folder)?.last() {
        None => Ok(None),
        Some(number) => Ok(end(&File::open(folder.join(format!("{FILE}.{number}")))?)?.last),
    }
}

/// What a log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries.
    pub entries: u64,
    /// Number of the first one that is kept.
    pub first: u64,
    /// Hash of the last one: whoever noted it elsewhere knows whether the end is missing.
    pub last_hash: String,
}

/// Follows the chain through all files of a folder.
///
/// # Errors
/// Names the first line that does not fit.
pub fn verify(folder: &Path) -> Result<Summary> {
    let mut files: Vec<String> = numbers(folder)?
        .iter()
        .map(|number| format!("{FILE}.{number}"))
        .collect();
    files.push(FILE.to_owned());
    let mut summary = Summary::default();
    let mut expected: Option<(u64, String)> = None;
    for name in files {
        let path = folder.join(&name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        for (number, line) in (1..).zip(BufReader::new(file).lines()) {
            let line = line?;
            let (sequence, previous, hash) =
                open(&line).with_context(|| format!("line {number} of {name} is not whole"))?;
            if let Some((next, before)) = &expected {
                ensure!(
                    sequence == *next && previous == *before,
                    "line {number} of {name} does not follow entry {}",
                    next - 1
                );
            } else {
                summary.first = sequence;
            }
            summary.entries += 1;
            expected = Some((sequence + 1, hash));
        }
    }
    summary.last_hash = expected.map(|(_, hash)| hash).unwrap_or_default();
    Ok(summary)
}
