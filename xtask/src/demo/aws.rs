//! The real aws CLI, pointed at our endpoint.

use crate::places;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// What `ocs up --write-env` wrote, and the CLI that uses it.
#[derive(Clone)]
pub struct Aws {
    env: BTreeMap<String, String>,
}

impl Aws {
    /// Reads the env file's shell lines.
    pub fn new(env_file: &str) -> Self {
        let env = env_file
            .lines()
            .map(|line| line.strip_prefix("export ").unwrap_or(line))
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
            .collect();
        Self { env }
    }

    /// One of the file's values.
    pub fn value(&self, name: &str) -> Result<&str> {
        self.env
            .get(name)
            .map(String::as_str)
            .with_context(|| format!("`ocs up` wrote no {name}"))
    }

    /// Points the CLI elsewhere.
    pub fn set(&mut self, name: &str, value: String) {
        self.env.insert(name.to_owned(), value);
    }

    /// `aws ARGS --output json`: its answer, or what it said on standard error.
    pub fn call(&self, args: &[&str]) -> Result<Value> {
        let out = Command::new(places::venv().join("bin/aws"))
            .args(args)
            .args([
                "--endpoint-url",
                self.value("OCS_ENDPOINT")?,
                "--output",
                "json",
            ])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", "/nonexistent")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_MAX_ATTEMPTS", "2")
            .envs(self.env.iter().filter(|(name, _)| name.starts_with("AWS_")))
            .stdin(Stdio::null())
            .output()
            .context("cannot start the aws CLI")?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("aws {}: {}", args.join(" "), said.trim());
        }
        if out.stdout.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&out.stdout)
            .with_context(|| format!("aws {} answered no JSON", args.join(" ")))
    }
}

/// The string at `pointer`, or an error that shows what was there instead.
pub fn text<'a>(answer: &'a Value, pointer: &str) -> Result<&'a str> {
    answer
        .pointer(pointer)
        .and_then(Value::as_str)
        .with_context(|| format!("no {pointer} in {answer}"))
}
