//! Console lines: `[seconds.micros] topic text`.
//!
//! A line costs an exit to the VMM per byte, so lines are short and their rate is
//! bounded: a burst of 96, then 10 a second. What is over waits in a queue of 64
//! lines, what is over that is dropped and counted.

use crate::global::Global;
use crate::{clock, executor, ring0};
use alloc::collections::VecDeque;
use core::fmt::{self, Write};
use ocs_probe_logic::pace::Pace;

const LINE_BYTES: usize = 240;
const BURST_LINES: u64 = 96;
const US_PER_LINE: u64 = 100_000;
const QUEUE_LINES: usize = 64;

/// One line in a fixed buffer; what does not fit is cut.
struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE_BYTES - 1 - self.len;
        let taken = text.len().min(room);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

impl Line {
    fn new(topic: fmt::Arguments<'_>) -> Self {
        let mut line = Self {
            bytes: [0; LINE_BYTES],
            len: 0,
        };
        let now_us = clock::now_us();
        // `write_str` above never fails; a failing `Display` would only cut the line.
        let _ = write!(line, "[{}.{:06}] ", now_us / 1_000_000, now_us % 1_000_000);
        let _ = line.write_fmt(topic);
        line.bytes[line.len] = b'\n';
        line.len += 1;
        line
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

struct Console {
    pace: Pace,
    queue: VecDeque<Line>,
    dropped: u64,
}

static CONSOLE: Global<Console> = Global::new(Console {
    pace: Pace::new(BURST_LINES, US_PER_LINE),
    queue: VecDeque::new(),
    dropped: 0,
});

impl Console {
    fn push(&mut self, line: Line) {
        if self.queue.is_empty() && self.pace.take(clock::now_us()) {
            ring0::write(line.bytes());
        } else if self.queue.len() < QUEUE_LINES {
            self.queue.push_back(line);
        } else {
            self.dropped += 1;
        }
    }
}

/// Writes queued lines whose time has come.
pub fn poll() {
    CONSOLE.with(|console| {
        while !console.queue.is_empty() {
            if !console.pace.take(clock::now_us()) {
                executor::wake_at(console.pace.next_at_us());
                return;
            }
            if let Some(line) = console.queue.pop_front() {
                ring0::write(line.bytes());
            }
        }
        let dropped = core::mem::take(&mut console.dropped);
        if dropped > 0 {
            console.push(Line::new(format_args!("console: dropped={dropped}")));
        }
    });
}

/// Writes all that is queued, before the machine goes.
pub fn flush() {
    CONSOLE.with(|console| {
        for line in console.queue.drain(..) {
            ring0::write(line.bytes());
        }
    });
}

/// What [`say!`] calls.
pub fn print(text: fmt::Arguments<'_>) {
    CONSOLE.with(|console| console.push(Line::new(text)));
}

/// Writes past queue and limits: for the last words of a panic.
pub fn print_now(text: fmt::Arguments<'_>) {
    ring0::write(Line::new(text).bytes());
}

/// Writes one console line.
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}
pub(crate) use say;
