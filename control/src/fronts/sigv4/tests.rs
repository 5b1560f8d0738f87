//! AWS's vectors, and what must not verify.

use super::*;

// From AWS's own test suite for Signature Version 4 ("get-vanilla" and
// "post-x-www-form-urlencoded"), whose credentials are published.
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const NOW_S: i64 = 1_440_938_160;

fn headers(signed: &str, signature: &str, extra: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("host", "example.amazonaws.com".parse().unwrap());
    headers.insert("x-amz-date", "20150830T123600Z".parse().unwrap());
    for (name, value) in extra {
        headers.insert(*name, value.parse().unwrap());
    }
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
         SignedHeaders={signed}, Signature={signature}"
    );
    headers.insert("authorization", authorization.parse().unwrap());
    headers
}

fn check(method: &str, headers: &HeaderMap, body: &[u8], now_s: i64) -> Result<Identity, ApiError> {
    let request = Request {
        method,
        path: "/",
        query: "",
        headers,
        authority: None,
        body,
    };
    verify(&request, now_s, |key| {
        (key == "AKIDEXAMPLE").then(|| ("1".to_owned(), SECRET.to_owned()))
    })
}

const VANILLA: &str = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";

#[test]
fn awss_vectors_verify() {
    let vanilla = headers("host;x-amz-date", VANILLA, &[]);
    assert_eq!(
        check("GET", &vanilla, b"", NOW_S).unwrap().region,
        "us-east-1"
    );
    let form = headers(
        "content-type;host;x-amz-date",
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        &[("content-type", "application/x-www-form-urlencoded")],
    );
    check("POST", &form, b"Param1=value1", NOW_S).unwrap();
}

#[test]
fn what_is_signed_cannot_change() {
    let good = headers("host;x-amz-date", VANILLA, &[]);
    let code = |result: Result<Identity, ApiError>| result.unwrap_err().code;
    assert_eq!(code(check("POST", &good, b"", NOW_S)), "AuthFailure");
    assert_eq!(code(check("GET", &good, b"x", NOW_S)), "AuthFailure");
    assert_eq!(
        code(check("GET", &good, b"", NOW_S + 301)),
        "RequestExpired"
    );
    assert_eq!(
        code(check("GET", &good, b"", NOW_S - 301)),
        "RequestExpired"
    );
    check("GET", &good, b"", NOW_S + 299).unwrap();
    let mut other = good.clone();
    other.insert("host", "elsewhere.example".parse().unwrap());
    assert_eq!(code(check("GET", &other, b"", NOW_S)), "AuthFailure");
    let mut unsigned = good.clone();
    unsigned.insert("x-amz-target", "a".parse().unwrap());
    assert_eq!(
        code(check("GET", &unsigned, b"", NOW_S)),
        "IncompleteSignature"
    );
    let no_host = headers("x-amz-date", VANILLA, &[]);
    assert_eq!(
        code(check("GET", &no_host, b"", NOW_S)),
        "IncompleteSignature"
    );
    assert_eq!(
        code(check("GET", &HeaderMap::new(), b"", NOW_S)),
        "MissingAuthenticationToken"
    );
}

#[test]
fn queries_have_one_form() {
    assert_eq!(
        query("b=2&a=%7e%2f+x&X-Amz-Signature=1&c"),
        "a=~%2F%2Bx&b=2&c="
    );
}

proptest::proptest! {
    #[test]
    fn fuzz_garbage_is_refused(text in "\\PC{0,80}", path in "\\PC{0,20}") {
        let mut headers = HeaderMap::new();
        if let Ok(value) = http::HeaderValue::from_str(&format!("AWS4-HMAC-SHA256 {text}")) {
            headers.insert("authorization", value);
        }
        let request = Request {
            method: "GET", path: &path, query: &text, headers: &headers, authority: None, body: b"",
        };
        assert!(verify(&request, NOW_S, |_| Some((String::new(), String::new()))).is_err());
    }
}
