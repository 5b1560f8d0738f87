//! Claims about one guest, judged by its console alone.

use super::aws::Aws;
use super::story::{B_PORT, Guest};
use anyhow::{Context, Result, bail, ensure};
use std::time::{Duration, Instant};

/// What a guest's long-running work looked like at one moment.
pub struct Progress {
    records: u64,
    rounds: u64,
    at: Duration,
}

impl Guest {
    /// It saw its own id, address and user data, by a token alone.
    pub fn saw_itself(&mut self, aws: &Aws) -> Result<String> {
        let (id, address) = (self.id.clone(), self.address.clone());
        let orders = u64::try_from(self.user_data.lines().count())?;
        self.console
            .wait(aws, Duration::from_secs(40), "ready", |console| {
                console.lines_of("ready").next().cloned()
            })?;
        let dhcp = self.console.newest("dhcp: ")?;
        let imds = self.console.newest("imds: ")?;
        let data = self.console.newest("user-data: ")?;
        let seen = format!("{dhcp}\n{imds}\n{data}");
        let leased = dhcp.word("address").and_then(|text| text.split('/').next());
        ensure!(leased == Some(&address), "DHCP gave not {address}:\n{seen}");
        ensure!(
            imds.word("instance-id") == Some(&id),
            "metadata said not {id}:\n{seen}"
        );
        ensure!(
            imds.word("local-ipv4") == Some(&address),
            "metadata said not {address}:\n{seen}"
        );
        ensure!(
            data.number("bytes") == Some(u64::try_from(self.user_data.len())?)
                && data.number("orders") == Some(orders),
            "these are not the {} bytes and {orders} orders of its user data:\n{seen}",
            self.user_data.len()
        );
        Ok(seen)
    }

    /// A request without a token was refused.
    pub fn refused_without_token(&self) -> Result<String> {
        let imds = self.console.newest("imds: ")?;
        ensure!(
            imds.word("v1_status") == Some("401"),
            "IMDSv1 was not refused:\n{imds}"
        );
        Ok(imds.to_string())
    }

    /// Every connection to B so far failed, and some were tried.
    pub fn refused(&mut self, aws: &Aws) -> Result<String> {
        let line = self.console.wait(
            aws,
            Duration::from_secs(15),
            "ten failed connections",
            |console| {
                let newest = console.lines_of("connect: ").next_back()?;
                let done = newest.number("failed_total") >= Some(10)
                    || newest.number("ok_total") > Some(0);
                done.then(|| newest.clone())
            },
        )?;
        ensure!(
            line.number("ok_total") == Some(0),
            "A reached B with no rule that lets it:\n{line}"
        );
        Ok(line.to_string())
    }

    /// The first connection after `since` that reached B, and how long after at most.
    pub fn passes_within(&mut self, aws: &Aws, since: Instant, limit: Duration) -> Result<String> {
        let line = self
            .console
            .wait(aws, Duration::from_secs(10), "a connection", |console| {
                console
                    .lines_of("connect: ")
                    .find(|line| line.text.contains(" ok "))
                    .cloned()
            })?;
        // Later reads sharpen what the guest's clock is on ours.
        for _ in 0..6 {
            self.console.read(aws)?;
        }
        let at = self
            .console
            .no_later_than(&line)
            .context("nothing was read")?;
        let delay = at.saturating_duration_since(since);
        ensure!(delay <= limit, "only {delay:?} after the call:\n{line}");
        Ok(format!(
            "at most {} ms after the call returned\n{line}",
            delay.as_millis()
        ))
    }

    /// New connections fail again while the stream goes on.
    pub fn refused_again(&mut self, aws: &Aws) -> Result<String> {
        let from = self.console.guest_now() + Duration::from_millis(1500);
        let stream = self.stream.clone();
        let seen = self
            .console
            .wait(aws, Duration::from_secs(15), "refused again", |console| {
                let connect = console
                    .lines_of("connect: ")
                    .next_back()
                    .filter(|line| line.at > from)?;
                let alive = console
                    .lines_of(&stream)
                    .next_back()
                    .filter(|line| line.at > from)?;
                let earlier = console.lines_of("connect: ").rfind(|line| line.at < from)?;
                let grew = |name| connect.number(name) > earlier.number(name);
                (grew("failed_total") || alive.text.contains("broken"))
                    .then(|| (earlier.clone(), connect.clone(), alive.clone()))
            })?;
        let (earlier, connect, alive) = seen;
        let text = format!("{earlier}\n{connect}\n{alive}");
        let late = from + Duration::from_secs(1);
        let reached = self
            .console
            .lines_of("connect: ")
            .find(|line| line.at > late && line.text.contains(" ok "));
        if let Some(line) = reached {
            bail!("A still reaches B:{B_PORT} after the rule is gone:\n{line}");
        }
        ensure!(
            alive.text.contains(" alive "),
            "the established stream broke:\n{text}"
        );
        Ok(text)
    }

    /// The 64 MiB that it wrote are the 64 MiB that it read.
    pub fn verified(&mut self, aws: &Aws) -> Result<String> {
        let line = self.console.wait(
            aws,
            Duration::from_secs(60),
            "the disk's verification",
            |console| console.lines_of("disk: 1 verify ").next().cloned(),
        )?;
        let filled = self.console.newest("disk: 1 fill ")?;
        let whole = line.number("bytes") == Some(64 << 20) && line.text.contains(" ok ");
        ensure!(whole, "the disk did not verify:\n{filled}\n{line}");
        Ok(format!("{filled}\n{line}"))
    }

    /// Its stream and disk now; an error if either ever failed.
    pub fn progress(&mut self, aws: &Aws) -> Result<Progress> {
        self.console.read(aws)?;
        self.judge()
    }

    /// Its stream and disk went on well past `before`: the guest's clock, the stream's
    /// records and the disk's rounds all grew.
    pub fn went_on(&mut self, aws: &Aws, before: &Progress, limit: Duration) -> Result<String> {
        let until = Instant::now() + limit;
        loop {
            let read = self.console.read(aws);
            let now = self.judge()?;
            let further = now.records > before.records + 10
                && now.rounds > before.rounds
                && now.at > before.at + Duration::from_secs(2);
            if further {
                let stream = self.console.newest(&self.stream)?;
                let disk = self.console.newest(self.disk_loop)?;
                return Ok(format!("{}: {stream}\n{}: {disk}", self.name, self.name));
            }
            if Instant::now() > until {
                read?;
                bail!(
                    "{} stands still: {} records and {} rounds at {:?}, {} and {} at {:?}",
                    self.name,
                    before.records,
                    before.rounds,
                    before.at,
                    now.records,
                    now.rounds,
                    now.at
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn judge(&self) -> Result<Progress> {
        let stream = self.console.newest(&self.stream)?;
        ensure!(
            !self
                .console
                .lines_of(&self.stream)
                .any(|line| line.text.contains(" broken ")),
            "{}'s stream broke: {stream}",
            self.name
        );
        let disk = self.console.newest(self.disk_loop)?;
        ensure!(
            disk.number("errors") == Some(0),
            "{}'s disk failed: {disk}",
            self.name
        );
        Ok(Progress {
            records: stream.number("records").unwrap_or(0),
            rounds: disk.number("rounds").unwrap_or(0),
            at: stream.at.min(disk.at),
        })
    }
}
