use super::*;
use crate::responder::testing::record;
use proptest::prelude::*;

const NOW_S: u64 = 1_800_000_000;

struct Guest {
    record: Record,
    key: TokenKey,
}

impl Guest {
    fn new(change: impl FnOnce(&mut Record)) -> Self {
        let mut record = record();
        change(&mut record);
        Self {
            record,
            key: TokenKey::new(&[1; 32]),
        }
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Vec<u8>> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, value.parse().unwrap());
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let uri = path.parse().unwrap();
        answer(&method, &uri, &map, &self.record, &self.key, None, NOW_S)
    }

    fn token(&self) -> String {
        let response = self.ask("PUT", "/latest/api/token", &[(TTL_HEADER, "60")]);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[TTL_HEADER], "60");
        String::from_utf8(response.into_body()).unwrap()
    }

    fn status(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        self.ask(method, path, headers).status().as_u16()
    }
}

#[test]
fn version_2_needs_a_token_of_this_eni() {
    let guest = Guest::new(|_| {});
    let token = guest.token();
    let path = "/latest/meta-data/instance-id";
    let response = guest.ask("GET", path, &[("X-aws-ec2-metadata-token", &token)]);
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()[TTL_HEADER], "60");
    assert_eq!(response.headers()[SERVER], "EC2ws");
    assert_eq!(response.body(), b"i-0123456789abcdef0");
    assert_eq!(guest.status("GET", path, &[]), 401);
    assert_eq!(guest.status("GET", path, &[(TOKEN_HEADER, "x")]), 401);
    let other = Guest::new(|r| r.interfaces[0].id = "eni-other".into());
    assert_eq!(other.status("GET", path, &[(TOKEN_HEADER, &token)]), 401);
}

#[test]
fn version_1_is_served_where_tokens_are_optional_yet_a_bad_token_is_not() {
    let guest = Guest::new(|r| r.instance.http_tokens_required = false);
    let path = "/latest/meta-data/local-ipv4";
    let response = guest.ask("GET", path, &[]);
    assert_eq!(response.body(), b"172.31.16.5");
    assert!(!response.headers().contains_key(TTL_HEADER));
    assert_eq!(guest.status("GET", path, &[(TOKEN_HEADER, "x")]), 401);
    let token = guest.token();
    assert_eq!(guest.status("GET", path, &[(TOKEN_HEADER, &token)]), 200);
}

#[test]
fn a_token_is_refused_without_a_good_ttl_and_through_a_proxy() {
    let guest = Guest::new(|_| {});
    let path = "/latest/api/token";
    for ttl in ["0", "21601", "-1", "", "6 0", "1e3"] {
        assert_eq!(
            guest.status("PUT", path, &[(TTL_HEADER, ttl)]),
            400,
            "{ttl:?}"
        );
    }
    assert_eq!(guest.status("PUT", path, &[]), 400);
    for ttl in ["1", "21600"] {
        assert_eq!(
            guest.status("PUT", path, &[(TTL_HEADER, ttl)]),
            200,
            "{ttl}"
        );
    }
    let proxied = [(TTL_HEADER, "60"), ("X-Forwarded-For", "10.0.0.1")];
    assert_eq!(guest.status("PUT", path, &proxied), 403);
}

#[test]
fn methods_and_paths_out_of_place_are_refused() {
    let guest = Guest::new(|_| {});
    let token = guest.token();
    let with = [(TOKEN_HEADER, token.as_str()), (TTL_HEADER, "60")];
    for (method, path, status) in [
        ("GET", "/latest/api/token", 405),
        ("PUT", "/latest/meta-data/", 405),
        ("PUT", "/2021-03-23/api/token", 405),
        ("POST", "/latest/meta-data/", 405),
        ("DELETE", "/", 405),
        ("GET", "/latest/meta-data/nothing", 404),
        ("GET", "/1999-01-01/meta-data/", 404),
        ("GET", "/latest/../meta-data", 404),
        ("GET", "/latest/meta-data/%ff", 400),
        ("GET", "/latest/dynamic/instance-identity/pkcs7", 404),
        ("HEAD", "/latest/meta-data/mac", 200),
        ("GET", "/2021-03-23/meta-data/mac", 200),
        ("GET", "/latest//meta-data///mac/?x=1", 200),
        ("GET", "/latest/meta-data/tags/instance/N%61me", 200),
    ] {
        assert_eq!(guest.status(method, path, &with), status, "{method} {path}");
    }
    let denied = guest.ask("PUT", "/latest/meta-data/", &with);
    assert_eq!(denied.headers()[ALLOW], "OPTIONS, GET, HEAD");
    let page = String::from_utf8(denied.into_body()).unwrap();
    assert!(
        page.contains("<title>405 - Method Not Allowed</title>"),
        "{page}"
    );
}

#[test]
fn a_disabled_endpoint_refuses_everything() {
    let guest = Guest::new(|r| {
        r.instance.http_endpoint_enabled = false;
        r.instance.http_tokens_required = false;
    });
    for (method, path) in [("GET", "/"), ("PUT", "/latest/api/token")] {
        assert_eq!(guest.status(method, path, &[(TTL_HEADER, "60")]), 403);
    }
}

#[test]
fn user_data_is_given_byte_for_byte() {
    let guest = Guest::new(|_| {});
    let token = guest.token();
    let response = guest.ask("GET", "/latest/user-data", &[(TOKEN_HEADER, &token)]);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/octet-stream");
    assert_eq!(response.body(), b"listen tcp 80\n\xff");
    let empty = Guest::new(|r| r.instance.user_data.clear());
    let token = empty.token();
    assert_eq!(
        empty.status("GET", "/latest/user-data", &[(TOKEN_HEADER, &token)]),
        404
    );
}

#[test]
fn the_root_lists_the_versions() {
    let guest = Guest::new(|r| r.instance.http_tokens_required = false);
    let body = guest.ask("GET", "/", &[]).into_body();
    let body = String::from_utf8(body).unwrap();
    assert!(
        body.starts_with("1.0\n2007-01-19\n") && body.ends_with("\nlatest"),
        "{body}"
    );
    assert_eq!(
        guest.ask("GET", "/latest", &[]).body(),
        b"dynamic/\nmeta-data/\nuser-data"
    );
}

proptest! {
    #[test]
    fn fuzz_no_request_without_a_token_learns_anything(
        method in "GET|HEAD|PUT|POST|OPTIONS|[A-Z]{1,8}",
        path in "(/(latest|1\\.0|meta-data|user-data|dynamic|\\.\\.|%[0-9a-f]{2}|[!-~]{0,6})){0,6}/?",
        token in proptest::option::of("[ -~]{0,80}"),
        ttl in proptest::option::of("-?[0-9]{0,25}"),
    ) {
        let guest = Guest::new(|_| {});
        let mut headers = Vec::new();
        headers.extend(token.as_deref().map(|token| (TOKEN_HEADER, token)));
        headers.extend(ttl.as_deref().map(|ttl| (TTL_HEADER, ttl)));
        prop_assume!(path.parse::<Uri>().is_ok());
        let response = guest.ask(&method, &path, &headers);
        let is_issue = method == "PUT" && response.body().len() == 56;
        prop_assert!(response.status() != 200 || is_issue, "{:?}", response);
    }
}
