//! What the tests themselves say of an action: which error codes they provoke, and which
//! system tests call it while a guest looks on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const BAD_REQUESTS: &str = include_str!("bad_requests.txt");
const SYSTEM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/system");

/// Error codes by action, of the table of bad requests and of what tests see refused.
pub fn codes() -> BTreeMap<String, BTreeSet<String>> {
    let mut codes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let lines = BAD_REQUESTS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let mut words = line.split_whitespace();
        if let (Some(code), Some(action)) = (words.next(), words.next()) {
            codes
                .entry(action.to_owned())
                .or_default()
                .insert(code.to_owned());
        }
    }
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api");
    for (_, text) in files(Path::new(sources), "rs") {
        // `refused("ACTION", …, "CODE")`: the first and the last text of the call.
        for call in text.split(".refused(").skip(1) {
            let call = call.split(");").next().unwrap_or_default();
            let texts: Vec<&str> = call.split('"').skip(1).step_by(2).collect();
            if let (Some(action), Some(code)) = (texts.first(), texts.last()) {
                codes
                    .entry((*action).to_owned())
                    .or_default()
                    .insert((*code).to_owned());
            }
        }
    }
    codes
}

/// System tests by the boto3 method that they call, as `MODULE.TEST`; of helpers that every
/// test uses, `MODULE`.
pub fn observers() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, text) in files(Path::new(SYSTEM), "py") {
        let mut parts = text.split("    def test_");
        let mut note = |text: &str, who: &str| {
            let words =
                text.split(|c: char| !(c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()));
            for word in words
                .filter(|word| word.contains('_'))
                .collect::<BTreeSet<_>>()
            {
                found
                    .entry(word.to_owned())
                    .or_default()
                    .push(who.to_owned());
            }
        };
        note(parts.next().unwrap_or_default(), &name);
        for part in parts {
            let test = part.split('(').next().unwrap_or_default();
            note(part, &format!("{name}.{test}"));
        }
    }
    found
}

/// An action as boto3 calls it.
pub fn method(action: &str) -> String {
    let mut name = String::new();
    let mut before = 'A';
    for c in action.chars() {
        if c.is_ascii_uppercase() && !before.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
        before = c;
    }
    name
}

/// Names without ending, and texts, in order.
fn files(folder: &Path, ending: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<(String, String)> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}
