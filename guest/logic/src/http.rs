//! Heads of HTTP/1 messages, read from buffers of a fixed size.

/// Where a message's head ends, or `None` if its end has not come yet.
#[must_use]
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// What a response's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status code, 100–999.
    pub status: u16,
    /// `Content-Length`, if given.
    pub content_length: Option<u64>,
    /// `Transfer-Encoding` other than `identity`: not served by the probe.
    pub encoded: bool,
}

/// Reads a complete response head (up to and with the blank line).
#[must_use]
pub fn parse_response(head: &[u8]) -> Option<ResponseHead> {
    let head = core::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let status = words
        .next()
        .filter(|w| w.len() == 3 && w.bytes().all(|b| b.is_ascii_digit()))?;
    let mut parsed = ResponseHead {
        status: status.parse().ok().filter(|s| *s >= 100)?,
        content_length: None,
        encoded: false,
    };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            parsed.content_length = Some(value.parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            parsed.encoded = !value.eq_ignore_ascii_case("identity");
        }
    }
    Some(parsed)
}

/// What a request asks of the probe's own server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Head and body.
    Get,
    /// Head alone.
    Head,
}

/// Reads a complete request head; `None` for anything but GET and HEAD.
#[must_use]
pub fn parse_request(head: &[u8]) -> Option<Method> {
    if head.starts_with(b"GET /") {
        Some(Method::Get)
    } else if head.starts_with(b"HEAD /") {
        Some(Method::Head)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_usual_response() {
        let bytes =
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\ncontent-length: 12\r\n\r\nhello";
        let len = head_len(bytes).unwrap();
        assert_eq!(&bytes[len..], b"hello");
        assert_eq!(
            parse_response(&bytes[..len]),
            Some(ResponseHead {
                status: 200,
                content_length: Some(12),
                encoded: false
            })
        );
        assert!(
            parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .unwrap()
                .encoded
        );
        assert_eq!(head_len(b"HTTP/1.1 200 OK\r\n"), None);
    }

    #[test]
    fn refused() {
        for bad in [
            &b"HTTP/2 200\r\n\r\n"[..],
            b"HTTP/1.1 2x0 OK\r\n\r\n",
            b"HTTP/1.1 020 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"\xff\xff",
            b"",
        ] {
            assert_eq!(parse_response(bad), None);
        }
        assert_eq!(parse_request(b"POST / HTTP/1.1\r\n\r\n"), None);
    }

    proptest! {
        #[test]
        fn fuzz_heads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = head_len(&bytes);
            let _ = parse_response(&bytes);
            let _ = parse_request(&bytes);
        }
    }
}
