//! What a request for a tunnel may say, and how many there may be.

use super::*;

#[test]
fn requests_are_read_whole_or_not_at_all() {
    let full = "instanceConnectEndpointId=eice-1&remotePort=22&privateIpAddress=10.0.0.4\
                &maxTunnelDuration=60&X-Amz-Expires=60&X-Amz-Signature=ab";
    let wanted = Asked {
        endpoint: Some("eice-1".to_owned()),
        to: Destination::Address(Ipv4Addr::new(10, 0, 0, 4)),
        port: NonZeroU16::new(22).unwrap(),
        most_s: 60,
    };
    assert_eq!(Asked::parse(full), Ok(wanted));
    let short = Asked::parse("instanceId=i-1&remotePort=65535").unwrap();
    assert_eq!((short.endpoint, short.most_s), (None, MOST_S));
    assert_eq!(short.to, Destination::Instance("i-1".to_owned()));
    for (query, named) in [
        ("privateIpAddress=10.0.0.4", "remotePort"),
        ("privateIpAddress=10.0.0.4&remotePort=0", "remotePort"),
        ("privateIpAddress=10.0.0.4&remotePort=65536", "remotePort"),
        ("privateIpAddress=10.0.0.4&remotePort=ssh", "remotePort"),
        ("remotePort=22", "privateIpAddress"),
        ("privateIpAddress=10.0.0&remotePort=22", "privateIpAddress"),
        ("privateIpAddress=fd00::1&remotePort=22", "privateIpAddress"),
        (
            "privateIpAddress=1.1.1.1&instanceId=i-1&remotePort=22",
            "instanceId",
        ),
        ("instanceId=i-1&remotePort=22&remotePort=23", "remotePort"),
        (
            "instanceId=i-1&remotePort=22&maxTunnelDuration=0",
            "maxTunnelDuration",
        ),
        (
            "instanceId=i-1&remotePort=22&maxTunnelDuration=3601",
            "maxTunnelDuration",
        ),
        (
            "instanceId=i-1&remotePort=22&X-Amz-Expires=301",
            "X-Amz-Expires",
        ),
        ("instanceId=i-1&remotePort=22&user=root", "user"),
    ] {
        let error = Asked::parse(query).unwrap_err();
        assert!(error.message.contains(named), "{query}: {error}");
    }
}

#[test]
fn only_a_websockets_handshake_is_answered() {
    let headers = |pairs: &[(&'static str, &'static str)]| {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        pairs.collect::<HeaderMap>()
    };
    // RFC 6455 §1.3's own.
    let whole = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let answer = accept_key(&Method::GET, &headers(&whole));
    assert_eq!(answer.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(accept_key(&Method::POST, &headers(&whole)), None);
    for left in 0..whole.len() {
        let mut some = whole.to_vec();
        some.remove(left);
        assert_eq!(accept_key(&Method::GET, &headers(&some)), None, "{some:?}");
    }
}

#[test]
fn an_endpoint_has_so_many_tunnels() {
    let tunnels = Tunnels::default();
    let ids: Vec<_> = (0..30).map(|_| ConnectEndpointId::random()).collect();
    let entered = |id| (0..100).take_while(|_| tunnels.enter(id)).count();
    assert_eq!(entered(ids[0]), MOST_OF_ONE);
    let all: usize = ids[1..].iter().map(|id| entered(*id)).sum();
    assert_eq!(all, MOST_OF_ALL - MOST_OF_ONE);
    (0..MOST_OF_ONE).for_each(|_| tunnels.leave(ids[0]));
    assert!(!tunnels.lock().contains_key(&ids[0]));
    assert!(tunnels.enter(ids[29]));
}
