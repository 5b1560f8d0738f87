//! Filters: documented names from the model, values with wildcards, matched
//! against what the caller would see.
//!
//! A filter's name leads to members of the answer: by a table where names
//! differ, else word for word (`instance-id` → `InstanceId`). A documented
//! filter on something that this cloud does not have matches nothing.

use super::params::Filter;
use crate::wire::{ApiError, Tree};

/// Most values of all filters of a request, as EC2 documents.
const MAX_VALUES: usize = 200;

/// Filter name → path in the item, for one action.
pub type Paths = &'static [(&'static str, &'static str)];

enum Target {
    Path(Vec<String>),
    Tag(String),
    TagKey,
}

/// Compiled filters.
pub struct Filters(Vec<(Target, Vec<String>)>);

impl Filters {
    /// Checks names and counts.
    ///
    /// # Errors
    /// `InvalidParameterValue` for a name that the action does not document.
    pub fn compile(action: &str, filters: &[Filter], paths: Paths) -> Result<Self, ApiError> {
        let documented = crate::wire::ec2()
            .operations
            .get(action)
            .map(|o| o.filters.as_slice());
        let documented = documented.unwrap_or_default();
        let total: usize = filters.iter().map(|filter| filter.values.len()).sum();
        if total > MAX_VALUES {
            return Err(ApiError::new(
                "FilterLimitExceeded",
                format!(
                    "The request has {total} filter values; at most {MAX_VALUES} may be given."
                ),
            ));
        }
        let mut compiled = Vec::with_capacity(filters.len());
        for (index, filter) in filters.iter().enumerate() {
            let name = filter
                .name
                .as_deref()
                .ok_or_else(|| ApiError::missing(&format!("Filter.{}.Name", index + 1)))?;
            if filter.values.is_empty() {
                return Err(ApiError::missing(&format!("Filter.{}.Value", index + 1)));
            }
            let tagged = documented
                .iter()
                .any(|name| name == "tag-key" || name == "tag");
            let target = match name.strip_prefix("tag:") {
                Some(key) if tagged => Target::Tag(key.to_owned()),
                None if name == "tag-key" && tagged => Target::TagKey,
                _ => Target::Path(path_of(name, documented, paths)?),
            };
            compiled.push((target, filter.values.clone()));
        }
        Ok(Self(compiled))
    }

    /// Whether an item passes all of them.
    pub fn pass(&self, item: &impl Tree) -> bool {
        self.0.iter().all(|(target, patterns)| match target {
            Target::Path(path) => any_at(item, path, &mut |text| matches_any(patterns, text)),
            Target::TagKey => any_tag(item, &mut |key, _| matches_any(patterns, key)),
            Target::Tag(wanted) => any_tag(item, &mut |key, value| {
                key == wanted && matches_any(patterns, value)
            }),
        })
    }
}

fn path_of(name: &str, documented: &[String], paths: Paths) -> Result<Vec<String>, ApiError> {
    if let Some((_, path)) = paths.iter().find(|(known, _)| *known == name) {
        return Ok(path.split('.').map(str::to_owned).collect());
    }
    if !documented.iter().any(|known| known == name) {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("The filter '{name}' is invalid"),
        ));
    }
    Ok(name.split('.').map(pascal).collect())
}

fn pascal(kebab: &str) -> String {
    kebab
        .split('-')
        .map(|word| {
            let mut chars = word.chars();
            chars
                .next()
                .map(|c| c.to_ascii_uppercase())
                .into_iter()
                .chain(chars)
                .collect::<String>()
        })
        .collect()
}

fn any_tag(item: &impl Tree, test: &mut dyn FnMut(&str, &str) -> bool) -> bool {
    let list = item.member("Tags").or_else(|| item.member("TagSet"));
    let tags = list.and_then(Tree::elements).unwrap_or_default();
    tags.iter().any(|tag| {
        let text = |name| tag.member(name)?.text();
        matches!((text("Key"), text("Value")), (Some(key), Some(value)) if test(&key, &value))
    })
}

fn any_at(value: &impl Tree, path: &[String], test: &mut dyn FnMut(&str) -> bool) -> bool {
    if let Some(elements) = value.elements() {
        return elements.iter().any(|element| any_at(element, path, test));
    }
    match path.split_first() {
        Some((first, rest)) => value
            .member(first)
            .is_some_and(|value| any_at(value, rest, test)),
        None => value.text().is_some_and(|text| test(&text)),
    }
}

fn matches_any(patterns: &[String], text: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| wildcard(pattern.as_bytes(), text.as_bytes()))
}

/// `*`: any text, `?`: any character, `\`: the next character as it is. Greedy
/// with one point to fall back to, so never more than pattern × text steps.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(b'?') => {
                // One character, however many bytes.
                t += 1;
                while text.get(t).is_some_and(|b| b & 0xc0 == 0x80) {
                    t += 1;
                }
                p += 1;
                continue;
            }
            Some(b'\\') if pattern.get(p + 1) == Some(&text[t]) => {
                (p, t) = (p + 2, t + 1);
                continue;
            }
            Some(byte) if *byte == text[t] && *byte != b'\\' => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            _ => {}
        }
        match back {
            Some((after, from)) => {
                back = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            None => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wild(pattern: &str, text: &str) -> bool {
        wildcard(pattern.as_bytes(), text.as_bytes())
    }

    #[test]
    fn wildcards_are_ec2s() {
        assert!(wild("web*", "web-1"));
        assert!(wild("*b?1", "web-1"));
        assert!(wild("?", "é"));
        assert!(wild("", ""));
        assert!(!wild("Web*", "web-1"), "values are case-sensitive");
        assert!(!wild("web", "web-1"));
        assert!(wild("a\\*b", "a*b"));
        assert!(!wild("a\\*b", "axb"));
        assert!(!wild(&"*a".repeat(1_000), &"a".repeat(999)));
    }

    #[test]
    fn unknown_names_are_refused_and_documented_ones_taken() {
        let filter = |name: &str| Filter {
            name: Some(name.to_owned()),
            values: vec!["x".to_owned()],
        };
        let compile = |name| Filters::compile("DescribeInstances", &[filter(name)], &[]);
        assert_eq!(
            compile("colour").err().unwrap().code,
            "InvalidParameterValue"
        );
        assert_eq!(
            compile("Instance-Id").err().unwrap().code,
            "InvalidParameterValue"
        );
        for name in ["instance-id", "tag:Name", "tag-key", "hypervisor"] {
            assert!(compile(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn items_match_through_lists_and_tags() {
        let item = serde_json::json!({
            "InstanceId": "i-1", "Tags": [{"Key": "Name", "Value": "web"}],
            "NetworkInterfaces": [{"SubnetId": "subnet-a"}, {"SubnetId": "subnet-b"}],
        });
        let pass = |name: &str, value: &str| {
            let filter = Filter {
                name: Some(name.to_owned()),
                values: vec![value.to_owned()],
            };
            let paths: Paths = &[("network-interface.subnet-id", "NetworkInterfaces.SubnetId")];
            Filters::compile("DescribeInstances", &[filter], paths)
                .unwrap()
                .pass(&item)
        };
        assert!(pass("instance-id", "i-?"));
        assert!(pass("network-interface.subnet-id", "subnet-b"));
        assert!(!pass("network-interface.subnet-id", "subnet-c"));
        assert!(pass("tag:Name", "w*"));
        assert!(!pass("tag:name", "w*"));
        assert!(pass("tag-key", "Name"));
        assert!(!pass("kernel-id", "*"));
    }
}
