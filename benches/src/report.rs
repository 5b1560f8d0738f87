//! The bench contract: one [`Row`] a metric, as a table and as JSON.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;

/// One metric. `ratio` is ours ÷ peer; `limit` is what physics or arithmetic allows.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name, unit last.
    pub metric: String,
    /// Its unit.
    pub unit: Cow<'static, str>,
    /// Our median.
    pub ours: f64,
    /// The peer's median.
    pub peer: Option<f64>,
    /// Who the peer is.
    pub peer_name: Option<String>,
    /// ours ÷ peer.
    pub ratio: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// Counted runs of each side.
    pub runs: usize,
    /// Least and greatest of our runs.
    pub spread: [f64; 2],
    /// The limit, where one is named.
    pub limit: Option<f64>,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

impl Row {
    /// A row of `ours` alone.
    pub fn new(
        metric: impl Into<String>,
        unit: &'static str,
        better: Better,
        ours: &[f64],
    ) -> Self {
        let least = ours.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ours.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self {
            metric: metric.into(),
            unit: unit.into(),
            ours: median(ours),
            peer: None,
            peer_name: None,
            ratio: None,
            better,
            runs: ours.len(),
            spread: [least, most],
            limit: None,
        }
    }

    /// Adds the peer's runs.
    pub fn against(mut self, name: impl Into<String>, peer: &[f64]) -> Self {
        let peer = median(peer);
        self.peer = Some(peer);
        self.peer_name = Some(name.into());
        self.ratio = Some(self.ours / peer);
        self
    }

    /// Adds the limit.
    pub fn limited_by(mut self, limit: f64) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// The middle value; the mean of the two middle ones where there are two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Prints the table and writes `OUT/AREA.json`; `among` the metrics that are there, or
/// in their place.
pub fn publish(area: &str, mut rows: Vec<Row>, out: &Path, among: bool) -> Result<()> {
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
    println!(
        "{:<34} {:>8} {:>12} {:>12} {:>7} {:>12} {:>25}  peer",
        "metric", "unit", "ours", "peer", "ratio", "limit", "spread"
    );
    for row in &rows {
        println!(
            "{:<34} {:>8} {:>12.2} {:>12} {:>7} {:>12} {:>12.2}…{:<12.2}  {}",
            row.metric,
            row.unit,
            row.ours,
            figure(row.peer),
            figure(row.ratio),
            figure(row.limit),
            row.spread[0],
            row.spread[1],
            row.peer_name.as_deref().unwrap_or("-"),
        );
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let path = out.join(format!("{area}.json"));
    if among && let Ok(text) = std::fs::read(&path) {
        let before: Vec<Row> = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no report", path.display()))?;
        rows = merged(before, rows);
    }
    std::fs::write(&path, serde_json::to_vec_pretty(&rows)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// Rows with newer ones in the place of those of their names.
fn merged(before: Vec<Row>, newer: Vec<Row>) -> Vec<Row> {
    let old = |row: &Row| !newer.iter().any(|new| new.metric == row.metric);
    let kept: Vec<Row> = before.into_iter().filter(old).collect();
    kept.into_iter().chain(newer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_rows_take_the_place_of_those_of_their_names() {
        let row = |name: &str, value| Row::new(name, "us", Better::Lower, &[value]);
        let rows = merged(vec![row("a", 1.0), row("b", 2.0)], vec![row("a", 3.0)]);
        let rows: Vec<_> = rows.iter().map(|r| (r.metric.as_str(), r.ours)).collect();
        assert_eq!(rows, [("b", 2.0), ("a", 3.0)]);
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_row_divides_ours_by_the_peer() {
        let row = Row::new("m", "us", Better::Lower, &[10.0, 20.0, 30.0]).against("p", &[40.0]);
        assert_eq!(row.ratio, Some(0.5));
        assert_eq!(row.spread, [10.0, 30.0]);
    }
}
