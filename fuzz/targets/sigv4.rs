//! A request's line, headers and body, as the signature check reads them.
//!
//! Nobody has the secret, so nothing may pass.

#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use ocs_control::fronts::sigv4::{Request, verify};

const NOW_S: i64 = 1_800_000_000;

fuzz_target!(|input: (&str, &str, &str, &str, &[u8])| {
    let (method, path, query, lines, body) = input;
    let mut headers = HeaderMap::new();
    for line in lines.lines().take(32) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value.trim()),
        ) {
            headers.append(name, value);
        }
    }
    let request = Request {
        method,
        path,
        query,
        headers: &headers,
        authority: None,
        body,
    };
    let lookup = |key: &str| Some((key.to_owned(), "the-secret-that-nobody-has".to_owned()));
    assert!(
        verify(&request, NOW_S, lookup).is_err(),
        "a forged signature"
    );
});
