//! Licences, sources and duplicates of all dependencies, by the rules in `deny.toml`.
//!
//! The file is cargo-deny's, which reads it too; what is checked here needs
//! `cargo metadata` alone, so it runs offline and at once.

use crate::{places, sh};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

#[derive(Deserialize)]
struct Skip {
    name: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

/// Checks each workspace; lists everything that breaks a rule.
pub fn check() -> Result<()> {
    let text = std::fs::read_to_string(places::root().join("deny.toml"))
        .context("cannot read deny.toml")?;
    let rules: Rules = toml::from_str(&text).context("deny.toml is not of the expected form")?;
    let mut problems = BTreeSet::new();
    let mut seen = 0;
    for folder in [".", "guest", "dataplane-ebpf", "fuzz"] {
        let packages = dependencies(&places::root().join(folder))?;
        seen += packages.len();
        problems.extend(broken_rules(&packages, &rules));
    }
    if !problems.is_empty() {
        let list: Vec<String> = problems.into_iter().collect();
        bail!("deny.toml is broken:\n    {}", list.join("\n    "));
    }
    eprintln!("    {seen} packages: all from crates.io, all under an allowed licence");
    Ok(())
}

/// What is compiled for this platform.
fn dependencies(folder: &Path) -> Result<Vec<Package>> {
    let json = sh::output(sh::cargo().current_dir(folder).args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]))?;
    let metadata: Metadata = serde_json::from_str(&json)
        .context("cargo metadata's answer is not of the expected form")?;
    let used: BTreeSet<String> = metadata
        .resolve
        .nodes
        .into_iter()
        .map(|node| node.id)
        .collect();
    Ok(metadata
        .packages
        .into_iter()
        .filter(|p| used.contains(&p.id))
        .collect())
}

fn broken_rules(packages: &[Package], rules: &Rules) -> Vec<String> {
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let Package { name, version, .. } = package;
        versions.entry(name).or_default().insert(version);
        if let Some(source) = package
            .source
            .as_deref()
            .filter(|&source| source != CRATES_IO)
        {
            problems.push(format!(
                "{name} {version} comes from {source}, not from crates.io"
            ));
        }
        let licence = package.license.as_deref().unwrap_or("");
        if !allowed(licence, &rules.licenses.allow) {
            problems.push(format!("{name} {version} is licensed as {licence:?}"));
        }
    }
    for (name, versions) in versions {
        if versions.len() > 1 && !rules.bans.skip.iter().any(|skip| skip.name == name) {
            let list: Vec<&str> = versions.into_iter().collect();
            problems.push(format!(
                "{name} is there in versions {}",
                list.join(" and ")
            ));
        }
    }
    problems
}

fn allowed(licence: &str, allow: &[String]) -> bool {
    spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX)
        .is_ok_and(|terms| terms.evaluate(|term| allow.contains(&term.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: &str, source: &str) -> Package {
        Package {
            id: format!("{name} {version}"),
            name: name.into(),
            version: version.into(),
            license: Some(license.into()),
            source: Some(source.into()),
        }
    }

    #[test]
    fn each_rule_can_be_broken_and_is_named() {
        let rules: Rules = toml::from_str(
            "[licenses]\nallow = ['MIT', 'Apache-2.0 WITH LLVM-exception']\n\
             [bans]\nskip = [{ name = 'b' }]",
        )
        .unwrap();
        let good = [
            package("a", "1.0.0", "MIT/GPL-2.0", CRATES_IO),
            package("b", "1.0.0", "Apache-2.0 WITH LLVM-exception", CRATES_IO),
            package("b", "2.0.0", "MIT", CRATES_IO),
        ];
        assert_eq!(broken_rules(&good, &rules), Vec::<String>::new());
        let bad = [
            package("c", "1.0.0", "MIT AND GPL-3.0-only", CRATES_IO),
            package("c", "2.0.0", "MIT", "git+https://example.org/c"),
        ];
        let problems = broken_rules(&bad, &rules).join("\n");
        for part in ["GPL-3.0-only", "git+https", "1.0.0 and 2.0.0"] {
            assert!(problems.contains(part), "{part} is not in {problems}");
        }
    }
}
