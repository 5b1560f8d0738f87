//! `stream`: one long connection with numbered records, whose echo is compared.

use crate::console::say;
use crate::net::Net;
use crate::net::tcp::{Gone, Stream};
use crate::{clock, executor};
use alloc::rc::Rc;
use core::net::SocketAddr;
use core::task::Poll;
use ocs_probe_logic::pattern;

const RECORD_BYTES: usize = 64;
const RECORD_US: u64 = 100_000;
const RETRY_US: u64 = 500_000;
const CONNECT_US: u64 = 500_000;
const BUFFER_BYTES: usize = 4096;
/// Silence that counts as loss.
const TIMEOUT_S: u64 = 30;

/// Connects until it succeeds once, then streams until the connection is lost.
pub async fn run(net: Rc<Net>, to: SocketAddr, report_us: u64) {
    let stream = loop {
        let start_us = clock::now_us();
        net.solicit(to.ip());
        let connecting = Stream::connect(&net, to, BUFFER_BYTES);
        if let Some(Ok(stream)) = executor::until(start_us + CONNECT_US, connecting).await {
            break stream;
        }
        executor::sleep_until(start_us + RETRY_US).await;
    };
    say!("stream: {to} up");
    stream.set_limits(TIMEOUT_S, TIMEOUT_S / 3);
    let mut records = Records::new(report_us);
    let reason = records.exchange(&stream, to).await;
    say!(
        "stream: {to} broken after={} records reason={reason}",
        records.echoed
    );
}

/// Both directions of one connection.
struct Records {
    sent: u64,
    echoed: u64,
    send_at_us: u64,
    /// Of the record being sent or received: bytes done.
    sent_bytes: usize,
    echoed_bytes: usize,
    /// When the last record came back, and the longest pause since the last report.
    last_echo_us: u64,
    gap_us: u64,
    report_us: u64,
    report_at_us: u64,
}

fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    pattern::fill(&mut bytes, number, 0);
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes
}

impl Records {
    fn new(report_us: u64) -> Self {
        let now_us = clock::now_us();
        Self {
            sent: 0,
            echoed: 0,
            send_at_us: now_us,
            sent_bytes: 0,
            echoed_bytes: 0,
            last_echo_us: now_us,
            gap_us: 0,
            report_us,
            report_at_us: now_us + report_us,
        }
    }

    /// Runs until the connection is lost; says why.
    async fn exchange(&mut self, stream: &Stream, to: SocketAddr) -> &'static str {
        core::future::poll_fn(|_| {
            let now_us = clock::now_us();
            if let Err(reason) = self.receive(stream, now_us) {
                return Poll::Ready(reason);
            }
            if self.send(stream, now_us).is_err() {
                return Poll::Ready("reset");
            }
            let pause_us = now_us - self.last_echo_us;
            if pause_us > TIMEOUT_S * 1_000_000 {
                return Poll::Ready("timeout");
            }
            if now_us >= self.report_at_us {
                self.report_at_us = now_us + self.report_us;
                let gap_ms = self.gap_us.max(pause_us) / 1000;
                say!(
                    "stream: {to} alive records={} gap_ms_max={gap_ms}",
                    self.echoed
                );
                self.gap_us = 0;
            }
            executor::wake_at(self.send_at_us.max(now_us + 1000).min(self.report_at_us));
            Poll::Pending
        })
        .await
    }

    /// Starts a record when its time has come, and goes on with a started one.
    fn send(&mut self, stream: &Stream, now_us: u64) -> Result<(), Gone> {
        while self.sent_bytes > 0 || now_us >= self.send_at_us {
            if self.sent_bytes == 0 {
                self.send_at_us = now_us.max(self.send_at_us + RECORD_US);
            }
            let bytes = record(self.sent);
            let sent = stream.try_send(&bytes[self.sent_bytes..])?;
            self.sent_bytes += sent;
            if self.sent_bytes < RECORD_BYTES {
                return Ok(());
            }
            self.sent_bytes = 0;
            self.sent += 1;
        }
        Ok(())
    }

    fn receive(&mut self, stream: &Stream, now_us: u64) -> Result<(), &'static str> {
        let mut buffer = [0; RECORD_BYTES];
        loop {
            let room = RECORD_BYTES - self.echoed_bytes;
            let len = match stream.try_recv(&mut buffer[..room]) {
                Ok(None) => return Ok(()),
                Ok(Some(0)) => return Err("closed"),
                Ok(Some(len)) => len,
                Err(Gone) => return Err("reset"),
            };
            let end = self.echoed_bytes + len;
            if buffer[..len] != record(self.echoed)[self.echoed_bytes..end] {
                return Err("mismatch");
            }
            self.echoed_bytes = end % RECORD_BYTES;
            if end == RECORD_BYTES {
                self.echoed += 1;
                self.gap_us = self.gap_us.max(now_us - self.last_echo_us);
                self.last_echo_us = now_us;
            }
        }
    }
}
