use super::*;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::ToString;
use proptest::prelude::*;

fn one(text: &str) -> Result<Order, OrderError> {
    let mut lines = parse_all(text.as_bytes(), b'\n');
    assert_eq!(lines.len(), 1, "{text:?}");
    lines.remove(0).order
}

#[test]
fn every_order_of_the_table() {
    let peer: SocketAddr = "172.31.0.5:9000".parse().unwrap();
    let cases = [
        ("listen tcp 9000", Order::ListenTcp(9000)),
        ("listen udp 53", Order::ListenUdp(53)),
        (
            "listen http 80",
            Order::ListenHttp {
                port: 80,
                body_bytes: 1 << 20,
            },
        ),
        (
            "listen http 80 4KiB",
            Order::ListenHttp {
                port: 80,
                body_bytes: 4096,
            },
        ),
        (
            "connect 172.31.0.5:9000 every 100ms",
            Order::Connect {
                to: peer,
                every_ms: 100,
            },
        ),
        (
            "resolve a.internal every 1s at 10.0.0.2",
            Order::Resolve {
                question: Question::parse("a.internal").unwrap(),
                every_ms: 1000,
                at: Some(IpAddr::from([10, 0, 0, 2])),
            },
        ),
        ("addresses", Order::Addresses),
        ("stream 172.31.0.5:9000", Order::Stream(peer)),
        (
            "ping 172.31.0.5 every 1s",
            Order::Ping {
                to: peer.ip(),
                every_ms: 1000,
            },
        ),
        (
            "udp 172.31.0.5:9000 every 100ms",
            Order::Udp {
                to: peer,
                every_ms: 100,
            },
        ),
        (
            "http-get http://172.31.0.5:9000/x",
            Order::HttpGet(Url {
                server: peer,
                path: "/x".to_owned(),
            }),
        ),
        (
            "disk 1 fill 64MiB 7",
            Order::Disk {
                index: 1,
                work: DiskWork::Fill {
                    size_bytes: 64 << 20,
                    seed: 7,
                },
            },
        ),
        (
            "disk 0 verify 512",
            Order::Disk {
                index: 0,
                work: DiskWork::Verify {
                    size_bytes: 512,
                    seed: DEFAULT_SEED,
                },
            },
        ),
        (
            "disk 1 await",
            Order::Disk {
                index: 1,
                work: DiskWork::Await,
            },
        ),
        (
            "disk 0 grown 65MiB",
            Order::Disk {
                index: 0,
                work: DiskWork::Grown {
                    size_bytes: 65 << 20,
                },
            },
        ),
        (
            "disk 0 loop 1MiB",
            Order::Disk {
                index: 0,
                work: DiskWork::Loop {
                    size_bytes: 1 << 20,
                },
            },
        ),
        (
            "bench disk 1 write 4KiB depth 32 for 5s",
            Order::Disk {
                index: 1,
                work: DiskWork::Bench(DiskBench {
                    write: true,
                    block_bytes: 4096,
                    depth: 32,
                    for_ms: 5000,
                }),
            },
        ),
        (
            "bench tcp 172.31.0.5:9000 for 100ms",
            Order::BenchTcp {
                to: peer,
                for_ms: 100,
            },
        ),
        (
            "bench udp 172.31.0.5:9000 1472 for 100ms",
            Order::BenchUdp {
                to: peer,
                datagram_bytes: 1472,
                for_ms: 100,
            },
        ),
        ("  idle\t# really", Order::Idle),
        ("exit\r", Order::Exit),
        ("reset", Order::Reset),
    ];
    for (text, order) in cases {
        assert_eq!(one(text), Ok(order), "{text:?}");
    }
}

#[test]
fn each_bad_word_is_named() {
    let cases = [
        ("dance", "unknown"),
        ("bench", "missing-bench"),
        ("bench cpu", "bad-bench"),
        ("bench udp 1.2.3.4:5 1473 for 1s", "bad-datagram"),
        ("bench udp 1.2.3.4:5 for 1s", "bad-datagram"),
        ("bench disk 0 erase 4KiB depth 1 for 1s", "bad-work"),
        ("bench disk 0 read 128KiB depth 1 for 1s", "bad-block"),
        ("bench disk 0 read 4KiB deep 1 for 1s", "bad-depth"),
        ("bench disk 0 read 4KiB depth 33 for 1s", "bad-depth"),
        ("bench disk 0 read 4KiB depth 1", "missing-for"),
        ("bench tcp 1.2.3.4:5 for 1ms", "bad-duration"),
        ("listen", "missing-protocol"),
        ("listen sctp 1", "bad-protocol"),
        ("listen tcp", "missing-port"),
        ("listen tcp 0", "bad-port"),
        ("listen tcp 65536", "bad-port"),
        ("listen tcp 80 80", "trailing-words"),
        ("listen http 80 65MiB", "bad-size"),
        ("connect host:80 every 1s", "bad-peer"),
        ("connect 1.2.3.4:80", "missing-every"),
        ("connect 1.2.3.4:80 each 1s", "bad-every"),
        ("connect 1.2.3.4:80 every", "missing-interval"),
        ("connect 1.2.3.4:80 every 1ms", "bad-interval"),
        ("ping 1.2.3.4:5 every 1s", "bad-peer"),
        ("http-get ftp://1.2.3.4/", "bad-url"),
        ("disk x fill 1MiB", "bad-disk"),
        ("disk 0 erase 1MiB", "bad-work"),
        ("disk 0 fill 1000", "bad-size"),
        ("disk 0 fill 0", "bad-size"),
        ("disk 0 fill 1MiB seven", "bad-seed"),
        ("disk 0 loop 1MiB 7", "trailing-words"),
        ("disk 0 await 1MiB", "trailing-words"),
        ("idle \u{e9}", "not-text"),
    ];
    for (text, error) in cases {
        assert_eq!(one(text).unwrap_err().to_string(), error, "{text:?}");
    }
    assert_eq!(one(&"x".repeat(300)), Err(OrderError::TooLong));
}

#[test]
fn comments_blanks_and_separators() {
    let lines = parse_all(b"# nothing\n\n  \nidle\n#x\nexit", b'\n');
    assert_eq!(lines.len(), 2);
    let lines = parse_all(b"listen tcp 7; idle;", b';');
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].text, "listen tcp 7");
}

#[test]
fn too_many_lines_end_in_one_error() {
    let data = "idle\n".repeat(100);
    let lines = parse_all(data.as_bytes(), b'\n');
    assert_eq!(lines.len(), MAX_ORDERS + 1);
    assert!(lines[..MAX_ORDERS].iter().all(|l| l.order.is_ok()));
    assert_eq!(lines[MAX_ORDERS].order, Err(OrderError::TooMany));
}

proptest! {
    #[test]
    fn fuzz_any_bytes_are_bounded_printable_lines(
        data in proptest::collection::vec(any::<u8>(), 0..4096)
    ) {
        let lines = parse_all(&data, b'\n');
        prop_assert!(lines.len() <= MAX_ORDERS + 1);
        for line in lines {
            prop_assert!(line.text.len() <= 80);
            prop_assert!(line.text.bytes().all(|b| (0x20..0x7f).contains(&b)));
        }
    }

    #[test]
    fn fuzz_near_orders_never_panic(
        first in "listen|connect|stream|ping|udp|http-get|disk",
        rest in "( (tcp|http|udp|fill|every|[0-9]{1,20}(KiB|GiB|ms|s)?|[0-9.:/a-z]{0,20})){0,5}",
    ) {
        let _ = parse_all(format!("{first}{rest}").as_bytes(), b'\n');
    }
}
