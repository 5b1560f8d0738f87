//! What a guest printed, read through GetConsoleOutput alone.
//!
//! Lines are `[SECONDS.MICROS] topic: text`, by the guest's clock since its boot. Each
//! read bounds when that boot was on our clock: a line cannot be younger than the read
//! that showed it. The least of these bounds, taken over all reads, dates any line from
//! above, so a delay stated here is never shorter than it was.

use super::aws::{Aws, text};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Since the guest's boot.
    pub at: Duration,
    /// Behind the time.
    pub text: String,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (time, text) = line.trim_end().strip_prefix('[')?.split_once("] ")?;
        Some(Self {
            at: Duration::try_from_secs_f64(time.trim().parse().ok()?).ok()?,
            text: text.to_owned(),
        })
    }

    /// The number behind `NAME=`.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.word(name)?.parse().ok()
    }

    /// The word behind `NAME=`.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.text
            .split(' ')
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{:.6}] {}", self.at.as_secs_f64(), self.text)
    }
}

/// One instance's console.
pub struct Console {
    /// The instance.
    pub id: String,
    /// As last read.
    pub lines: Vec<Line>,
    boot_no_later_than: Option<Instant>,
}

impl Console {
    /// Nothing read yet.
    pub fn of(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            lines: Vec::new(),
            boot_no_later_than: None,
        }
    }

    /// Reads it again.
    pub fn read(&mut self, aws: &Aws) -> Result<()> {
        let answer = aws.call(&[
            "ec2",
            "get-console-output",
            "--instance-id",
            &self.id,
            "--latest",
        ])?;
        let now = Instant::now();
        self.lines = match answer.get("Output") {
            Some(_) => text(&answer, "/Output")?
                .lines()
                .filter_map(Line::parse)
                .collect(),
            None => Vec::new(),
        };
        let boot = self.lines.last().and_then(|line| now.checked_sub(line.at));
        self.boot_no_later_than = [self.boot_no_later_than, boot].into_iter().flatten().min();
        Ok(())
    }

    /// When, on our clock, the line was printed at the latest.
    pub fn no_later_than(&self, line: &Line) -> Option<Instant> {
        Some(self.boot_no_later_than? + line.at)
    }

    /// The guest's clock now, at the least.
    pub fn guest_now(&self) -> Duration {
        self.boot_no_later_than
            .map_or(Duration::ZERO, |boot| boot.elapsed())
    }

    /// Lines that begin with `start`, oldest first.
    pub fn lines_of<'a>(&'a self, start: &str) -> impl DoubleEndedIterator<Item = &'a Line> {
        self.lines
            .iter()
            .filter(move |line| line.text.starts_with(start))
    }

    /// The newest such line.
    pub fn newest(&self, start: &str) -> Result<&Line> {
        self.lines_of(start).next_back().with_context(|| {
            format!(
                "the console of {} has no line `{start}…`{}",
                self.id,
                self.tail()
            )
        })
    }

    /// Reads until `seen` yields something.
    pub fn wait<T>(
        &mut self,
        aws: &Aws,
        limit: Duration,
        what: &str,
        seen: impl Fn(&Self) -> Option<T>,
    ) -> Result<T> {
        let until = Instant::now() + limit;
        loop {
            let read = self.read(aws);
            if let Some(value) = seen(self) {
                return Ok(value);
            }
            if Instant::now() > until {
                read?;
                bail!(
                    "{what}: not on the console of {} within {limit:?}{}",
                    self.id,
                    self.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn tail(&self) -> String {
        let from = self.lines.len().saturating_sub(6);
        self.lines[from..]
            .iter()
            .map(|line| format!("\n{line}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = Line::parse("[12.000345] connect: 10.0.0.5:80 ok us=140 ok_total=3\r").unwrap();
        assert_eq!(line.at, Duration::from_micros(12_000_345));
        assert_eq!(line.number("ok_total"), Some(3));
        assert_eq!(line.word("us"), Some("140"));
        assert_eq!(line.word("total"), None);
        assert_eq!(
            line.to_string(),
            "[12.000345] connect: 10.0.0.5:80 ok us=140 ok_total=3"
        );
        for bad in ["", "[x] y", "Linux version 6.12", "[-1] y", "[1e99] y"] {
            assert_eq!(Line::parse(bad), None, "{bad}");
        }
    }
}
