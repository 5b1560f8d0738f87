//! The order language of user data: one order a line, `#` starts a comment.
//!
//! The table of orders with their results is in `guest/README.md`.

use crate::dns::Question;
use crate::size::{parse_bytes, parse_millis};
use crate::url::Url;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::str::{FromStr, SplitAsciiWhitespace};

/// More lines than this are refused: tasks, sockets and memory are bounded by it.
pub const MAX_ORDERS: usize = 32;
/// A longer line is refused.
pub const MAX_LINE_BYTES: usize = 256;
/// The largest HTTP body that the probe serves: its sha256 is computed at the start.
pub const MAX_HTTP_BODY_BYTES: u64 = 64 << 20;
/// What `listen http PORT` serves without a size.
pub const DEFAULT_HTTP_BODY_BYTES: u64 = 1 << 20;
/// The most requests that `bench disk` has in flight.
pub const MAX_BENCH_DEPTH: u8 = 32;
/// The largest datagram of `bench udp`: one whole frame at the usual MTU.
pub const MAX_BENCH_DATAGRAM_BYTES: u16 = 1472;
/// The largest request of `bench disk`.
pub const MAX_BENCH_BLOCK_BYTES: u64 = 64 << 10;
/// What `disk … fill` and `verify` use without a seed.
pub const DEFAULT_SEED: u64 = 1;

/// One thing to do. All orders run at the same time, those of one disk in sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Echo server.
    ListenTcp(u16),
    /// Echo server for datagrams.
    ListenUdp(u16),
    /// Serves any GET with a deterministic body.
    ListenHttp {
        /// TCP port.
        port: u16,
        /// Size of the body.
        body_bytes: u64,
    },
    /// A new TCP connection each time.
    Connect {
        /// The peer.
        to: SocketAddr,
        /// Interval between starts.
        every_ms: u32,
    },
    /// One long TCP connection to an echo server.
    Stream(SocketAddr),
    /// ICMP echo.
    Ping {
        /// The peer.
        to: IpAddr,
        /// Interval between requests.
        every_ms: u32,
    },
    /// A datagram that is echoed.
    Udp {
        /// The peer.
        to: SocketAddr,
        /// Interval between datagrams.
        every_ms: u32,
    },
    /// Asks a DNS server each time.
    Resolve {
        /// What for.
        question: Question,
        /// Interval between questions.
        every_ms: u32,
        /// Whom; nobody: the resolver of the lease.
        at: Option<IpAddr>,
    },
    /// Takes every private address that the metadata service names.
    Addresses,
    /// Gets its router and addresses of IPv6, and keeps them.
    Ipv6,
    /// Fetches once, retrying until there is an answer.
    HttpGet(Url),
    /// Work on a disk.
    Disk {
        /// 0 is the first virtio-blk device.
        index: u8,
        /// What to do with it.
        work: DiskWork,
    },
    /// Echoes as many bytes over one TCP connection as it carries.
    BenchTcp {
        /// An echo server.
        to: SocketAddr,
        /// How long.
        for_ms: u32,
    },
    /// Sends as many datagrams to one address as the network takes.
    BenchUdp {
        /// Whether anybody hears them there does not matter.
        to: SocketAddr,
        /// Payload of each.
        datagram_bytes: u16,
        /// How long.
        for_ms: u32,
    },
    /// Nothing.
    Idle,
    /// Power off when all earlier orders that end have ended.
    Exit,
    /// Reset, likewise.
    Reset,
}

/// What an order does with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskWork {
    /// Wait until the disk is there.
    Await,
    /// Wait until it is so large.
    Grown {
        /// At least.
        size_bytes: u64,
    },
    /// Write the pattern of `seed`, then flush.
    Fill {
        /// From the disk's start.
        size_bytes: u64,
        /// Names the pattern.
        seed: u64,
    },
    /// Read and compare with the pattern of `seed`.
    Verify {
        /// From the disk's start.
        size_bytes: u64,
        /// Names the pattern.
        seed: u64,
    },
    /// Fill with a new seed, verify, for ever.
    Loop {
        /// From the disk's start.
        size_bytes: u64,
    },
    /// As many requests at random places as the disk takes.
    Bench(DiskBench),
}

/// The load of `bench disk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskBench {
    /// Writes, else reads.
    pub write: bool,
    /// Of each request.
    pub block_bytes: u64,
    /// Requests in flight.
    pub depth: u8,
    /// How long.
    pub for_ms: u32,
}

/// Why a line is no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderError {
    /// Not UTF-8 or not printable.
    NotText,
    /// Longer than [`MAX_LINE_BYTES`].
    TooLong,
    /// Beyond [`MAX_ORDERS`].
    TooMany,
    /// The first word is not known.
    UnknownOrder,
    /// A word is missing; says which.
    Missing(&'static str),
    /// A word is not valid; says which.
    Bad(&'static str),
    /// More words than the order takes.
    Trailing,
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotText => f.write_str("not-text"),
            Self::TooLong => f.write_str("too-long"),
            Self::TooMany => f.write_str("too-many"),
            Self::UnknownOrder => f.write_str("unknown"),
            Self::Missing(word) => write!(f, "missing-{word}"),
            Self::Bad(word) => write!(f, "bad-{word}"),
            Self::Trailing => f.write_str("trailing-words"),
        }
    }
}

/// A line of user data that is neither blank nor a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The line as the console shows it: printable, cut at 80 characters.
    pub text: String,
    /// What it orders.
    pub order: Result<Order, OrderError>,
}

/// Reads user data. Lines beyond [`MAX_ORDERS`] become one [`OrderError::TooMany`].
#[must_use]
pub fn parse_all(data: &[u8], separator: u8) -> Vec<Line> {
    let mut lines = Vec::new();
    for raw in data.split(|b| *b == separator) {
        let end = raw.iter().position(|b| *b == b'#').unwrap_or(raw.len());
        let raw = raw[..end].trim_ascii();
        if raw.is_empty() {
            continue;
        }
        let full = lines.len() >= MAX_ORDERS;
        lines.push(Line {
            text: printable(raw),
            order: if full {
                Err(OrderError::TooMany)
            } else {
                parse_line(raw)
            },
        });
        if full {
            break;
        }
    }
    lines
}

fn printable(raw: &[u8]) -> String {
    raw.iter()
        .take(80)
        .map(|b| {
            if (0x20..0x7f).contains(b) {
                char::from(*b)
            } else {
                '?'
            }
        })
        .collect()
}

fn parse_line(raw: &[u8]) -> Result<Order, OrderError> {
    if raw.len() > MAX_LINE_BYTES {
        return Err(OrderError::TooLong);
    }
    let text = core::str::from_utf8(raw)
        .ok()
        .filter(|t| t.bytes().all(|b| b == b'\t' || (0x20..0x7f).contains(&b)))
        .ok_or(OrderError::NotText)?;
    let mut words = Words(text.split_ascii_whitespace());
    let order = match words.need("order")? {
        "listen" => parse_listen(&mut words)?,
        "connect" => Order::Connect {
            to: words.parse("peer")?,
            every_ms: words.every()?,
        },
        "stream" => Order::Stream(words.parse("peer")?),
        "ping" => Order::Ping {
            to: words.parse("peer")?,
            every_ms: words.every()?,
        },
        "udp" => Order::Udp {
            to: words.parse("peer")?,
            every_ms: words.every()?,
        },
        "resolve" => parse_resolve(&mut words)?,
        "addresses" => Order::Addresses,
        "ipv6" => Order::Ipv6,
        "http-get" => Order::HttpGet(Url::parse(words.need("url")?).ok_or(OrderError::Bad("url"))?),
        "disk" => Order::Disk {
            index: words.parse("disk")?,
            work: parse_disk(&mut words)?,
        },
        "bench" => parse_bench(&mut words)?,
        "idle" => Order::Idle,
        "exit" => Order::Exit,
        "reset" => Order::Reset,
        _ => return Err(OrderError::UnknownOrder),
    };
    match words.0.next() {
        Some(_) => Err(OrderError::Trailing),
        None => Ok(order),
    }
}

/// `resolve NAME|IP every T [at IP]`.
fn parse_resolve(words: &mut Words<'_>) -> Result<Order, OrderError> {
    let question = Question::parse(words.need("name")?).ok_or(OrderError::Bad("name"))?;
    let every_ms = words.every()?;
    let at = match words.0.next() {
        None => None,
        Some("at") => Some(words.parse("server")?),
        Some(_) => return Err(OrderError::Bad("at")),
    };
    Ok(Order::Resolve {
        question,
        every_ms,
        at,
    })
}

fn parse_listen(words: &mut Words<'_>) -> Result<Order, OrderError> {
    let kind = words.need("protocol")?;
    if !matches!(kind, "tcp" | "udp" | "http") {
        return Err(OrderError::Bad("protocol"));
    }
    let port = words.parse::<u16>("port")?;
    if port == 0 {
        return Err(OrderError::Bad("port"));
    }
    Ok(match kind {
        "tcp" => Order::ListenTcp(port),
        "udp" => Order::ListenUdp(port),
        _ => Order::ListenHttp {
            port,
            body_bytes: match words.0.next() {
                None => DEFAULT_HTTP_BODY_BYTES,
                Some(text) => parse_bytes(text)
                    .filter(|n| *n <= MAX_HTTP_BODY_BYTES)
                    .ok_or(OrderError::Bad("size"))?,
            },
        },
    })
}

fn parse_disk(words: &mut Words<'_>) -> Result<DiskWork, OrderError> {
    let kind = words.need("work")?;
    if kind == "await" {
        return Ok(DiskWork::Await);
    }
    if !matches!(kind, "fill" | "verify" | "loop" | "grown") {
        return Err(OrderError::Bad("work"));
    }
    let size_bytes = parse_bytes(words.need("size")?)
        .filter(|n| *n > 0 && n.is_multiple_of(512))
        .ok_or(OrderError::Bad("size"))?;
    match kind {
        "loop" => return Ok(DiskWork::Loop { size_bytes }),
        "grown" => return Ok(DiskWork::Grown { size_bytes }),
        _ => {}
    }
    let seed = match words.0.next() {
        None => DEFAULT_SEED,
        Some(text) => text.parse().map_err(|_| OrderError::Bad("seed"))?,
    };
    Ok(if kind == "fill" {
        DiskWork::Fill { size_bytes, seed }
    } else {
        DiskWork::Verify { size_bytes, seed }
    })
}

/// `bench disk N read|write BLOCK depth D for T`, `bench tcp IP:PORT for T`,
/// `bench udp IP:PORT BYTES for T`.
fn parse_bench(words: &mut Words<'_>) -> Result<Order, OrderError> {
    match words.need("bench")? {
        "tcp" => Ok(Order::BenchTcp {
            to: words.parse("peer")?,
            for_ms: words.duration()?,
        }),
        "udp" => {
            let to = words.parse("peer")?;
            let datagram_bytes = words.parse("datagram")?;
            if datagram_bytes > MAX_BENCH_DATAGRAM_BYTES {
                return Err(OrderError::Bad("datagram"));
            }
            Ok(Order::BenchUdp {
                to,
                datagram_bytes,
                for_ms: words.duration()?,
            })
        }
        "disk" => {
            let index = words.parse("disk")?;
            let write = match words.need("work")? {
                "read" => false,
                "write" => true,
                _ => return Err(OrderError::Bad("work")),
            };
            let block_bytes = parse_bytes(words.need("block")?)
                .filter(|n| *n > 0 && *n <= MAX_BENCH_BLOCK_BYTES && n.is_multiple_of(512))
                .ok_or(OrderError::Bad("block"))?;
            words.literal("depth")?;
            let depth = words.parse("depth")?;
            if depth == 0 || depth > MAX_BENCH_DEPTH {
                return Err(OrderError::Bad("depth"));
            }
            let for_ms = words.duration()?;
            Ok(Order::Disk {
                index,
                work: DiskWork::Bench(DiskBench {
                    write,
                    block_bytes,
                    depth,
                    for_ms,
                }),
            })
        }
        _ => Err(OrderError::Bad("bench")),
    }
}

struct Words<'a>(SplitAsciiWhitespace<'a>);

impl<'a> Words<'a> {
    fn need(&mut self, what: &'static str) -> Result<&'a str, OrderError> {
        self.0.next().ok_or(OrderError::Missing(what))
    }

    fn parse<T: FromStr>(&mut self, what: &'static str) -> Result<T, OrderError> {
        self.need(what)?.parse().map_err(|_| OrderError::Bad(what))
    }

    /// `every 100ms`: 10 ms to 1 hour.
    fn every(&mut self) -> Result<u32, OrderError> {
        self.literal("every")?;
        self.millis("interval", 10)
    }

    /// `for 5s`: 100 ms to 1 hour.
    fn duration(&mut self) -> Result<u32, OrderError> {
        self.literal("for")?;
        self.millis("duration", 100)
    }

    fn millis(&mut self, what: &'static str, least: u32) -> Result<u32, OrderError> {
        parse_millis(self.need(what)?)
            .filter(|ms| (least..=3_600_000).contains(ms))
            .ok_or(OrderError::Bad(what))
    }

    fn literal(&mut self, word: &'static str) -> Result<(), OrderError> {
        if self.need(word)? == word {
            Ok(())
        } else {
            Err(OrderError::Bad(word))
        }
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
