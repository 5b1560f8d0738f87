//! The instance metadata service: one request in, one answer out.
//!
//! ```text
//! PUT /latest/api/token  X-aws-ec2-metadata-token-ttl-seconds: 1–21600  → a token
//! GET /latest/…          X-aws-ec2-metadata-token: TOKEN                → a value or a listing
//! GET /latest/…          (version 1, unless tokens are required)        → the same
//! ```
//! Source: EC2 User Guide, "Use the Instance Metadata Service to access instance
//! metadata" (404, 401, 403, 400, hop limit, `X-Forwarded-For`).

use super::identity::Signer;
use super::record::Record;
use super::token::TokenKey;
use super::tree::{Node, Tree, VERSIONS};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, SERVER};
use hyper::{Method, Response, StatusCode, Uri};
use percent_encoding::percent_decode_str;

const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const MAX_TOKEN_TTL_S: u64 = 21_600;
const TOKEN_PATH: &str = "api/token";

/// Answers one request of the ENI that `record` describes; `signer` is its region's.
#[must_use]
pub fn answer(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    record: &Record,
    key: &TokenKey,
    signer: Option<&Signer>,
    now_s: u64,
) -> Response<Vec<u8>> {
    if !record.instance.http_endpoint_enabled {
        return error(StatusCode::FORBIDDEN);
    }
    let Ok(path) = percent_decode_str(uri.path()).decode_utf8() else {
        return error(StatusCode::BAD_REQUEST);
    };
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let version = segments.next();
    let rest = Vec::from_iter(segments).join("/");
    let eni = record.own_interface().map_or("", |eni| eni.id.as_str());
    let is_token_path = version == Some("latest") && rest == TOKEN_PATH;
    match *method {
        Method::PUT if is_token_path => issue(headers, record, eni, key, now_s),
        Method::GET | Method::HEAD if is_token_path => not_allowed("OPTIONS, PUT"),
        Method::GET | Method::HEAD => {
            let left_s = match headers.get(TOKEN_HEADER) {
                Some(token) => {
                    let token = token.as_bytes();
                    match key.check(token, &record.instance.id, eni, now_s) {
                        Some(left_s) => Some(left_s),
                        None => return error(StatusCode::UNAUTHORIZED),
                    }
                }
                None if record.instance.http_tokens_required => {
                    return error(StatusCode::UNAUTHORIZED);
                }
                None => None,
            };
            let mut response = match version {
                None => text(VERSIONS.join("\n").into_bytes()),
                Some(version) if !VERSIONS.contains(&version) => error(StatusCode::NOT_FOUND),
                Some(_) => look_up(record, signer, &rest),
            };
            if let Some(left_s) = left_s {
                let headers = response.headers_mut();
                headers.insert(TTL_HEADER, HeaderValue::from(left_s));
            }
            response
        }
        _ => not_allowed("OPTIONS, GET, HEAD"),
    }
}

fn look_up(record: &Record, signer: Option<&Signer>, path: &str) -> Response<Vec<u8>> {
    match Tree::new(record, signer).get(path) {
        Some(Node::Leaf(value)) if path == "user-data" => {
            let mut response = text(value);
            let kind = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Some(Node::Leaf(value)) => text(value),
        Some(Node::Listing(names)) => text(names.into_bytes()),
        None => error(StatusCode::NOT_FOUND),
    }
}

/// A proxy adds `X-Forwarded-For`; a token must not travel through one.
fn issue(
    headers: &HeaderMap,
    record: &Record,
    eni: &str,
    key: &TokenKey,
    now_s: u64,
) -> Response<Vec<u8>> {
    if headers.contains_key("x-forwarded-for") {
        return error(StatusCode::FORBIDDEN);
    }
    let ttl_s = headers
        .get(TTL_HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok())
        .filter(|ttl_s| (1..=MAX_TOKEN_TTL_S).contains(ttl_s));
    let Some(ttl_s) = ttl_s else {
        return error(StatusCode::BAD_REQUEST);
    };
    let token = key.issue(&record.instance.id, eni, now_s.saturating_add(ttl_s));
    let mut response = text(token.into_bytes());
    let headers = response.headers_mut();
    headers.insert(TTL_HEADER, HeaderValue::from(ttl_s));
    response
}

fn not_allowed(methods: &'static str) -> Response<Vec<u8>> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED);
    let methods = HeaderValue::from_static(methods);
    response.headers_mut().insert(ALLOW, methods);
    response
}

fn text(body: Vec<u8>) -> Response<Vec<u8>> {
    with_type(body, "text/plain")
}

/// The page that EC2 sends with an error.
fn error(status: StatusCode) -> Response<Vec<u8>> {
    let title = format!(
        "{} - {}",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error")
    );
    let page = format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
         <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
         \t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
         <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
         <head>\n  <title>{title}</title>\n </head>\n \
         <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    );
    let mut response = with_type(page.into_bytes(), "text/html");
    *response.status_mut() = status;
    response
}

fn with_type(body: Vec<u8>, kind: &'static str) -> Response<Vec<u8>> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("EC2ws"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
