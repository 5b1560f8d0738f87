//! The EC2 Query front: HTTP/1.1, form parameters in, XML out.

use super::call::{Front, SERVICES, model_of, not_offered, request_id};
use super::listen::{Connection, Peer};
use super::sigv4::{Identity, Request as Signed};
use super::tunnel;
use crate::audit::Trail;
use crate::wire::{ApiError, query, xml};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

/// Largest body of a request.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Longest time a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Shorter answers are not worth compressing.
const MIN_GZIP_BYTES: usize = 1_024;
/// Longer answers leave in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;
/// Longest time from a connection, or the end of an answer, to the next head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest head of a request: a presigned query string and room.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Serves connections until there are no more.
pub async fn serve(
    mut connections: ReceiverStream<Result<Connection, std::io::Error>>,
    front: Arc<Front>,
) {
    let router = router(front);
    while let Some(connection) = connections.next().await {
        let Ok(connection) = connection else { continue };
        let router = router.clone().layer(axum::Extension(Peer(connection.peer)));
        tokio::spawn(async move {
            let service = hyper_util::service::TowerToHyperService::new(router);
            // What goes wrong on a connection is its client's business.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(hyper_util::rt::TokioIo::new(connection), service)
                .with_upgrades()
                .await;
        });
    }
}

/// The front as an axum router.
pub fn router(front: Arc<Front>) -> axum::Router {
    axum::Router::new()
        .route(tunnel::PATH, axum::routing::any(tunnel::open))
        .fallback(handle)
        .with_state(front)
}

async fn handle(State(front): State<Arc<Front>>, request: Request) -> Response {
    let peer = request.extensions().get::<Peer>();
    let mut trail = Trail {
        request_id: request_id(),
        front: "query",
        source: peer.map(|peer| peer.0.ip().to_string()).unwrap_or_default(),
        ..Trail::default()
    };
    let zip = accepts_gzip(request.headers());
    let mut service = String::new();
    let answer = match front.begin(&trail) {
        Ok(()) => answer(&front, request, &mut trail, &mut service).await,
        Err(error) => Err(error),
    };
    let (status, text) = match front.end(&trail, answer) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => {
            let status =
                StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let text = match service.as_str() {
                "sts" => xml::sts_error(model_of("sts"), &error, &trail.request_id),
                _ => xml::ec2_error(&error, &trail.request_id),
            };
            (status, text)
        }
    };
    respond(status, text, zip, &trail.request_id)
}

fn respond(status: StatusCode, text: String, zip: bool, request_id: &str) -> Response {
    let zipped = (zip && text.len() >= MIN_GZIP_BYTES)
        .then(|| gzip(text.as_bytes()).ok())
        .flatten();
    let is_zipped = zipped.is_some();
    let body = zipped.unwrap_or_else(|| text.into_bytes());
    let mut response = Response::new(streamed(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-type", "text/xml;charset=UTF-8"),
        ("cache-control", "no-cache, no-store"),
        ("vary", "accept-encoding"),
    ] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    if is_zipped {
        headers.insert("content-encoding", http::HeaderValue::from_static("gzip"));
    }
    if let Ok(value) = http::HeaderValue::from_str(request_id) {
        headers.insert("x-amzn-requestid", value);
    }
    response
}

/// A body of known length, or for large ones a stream of pieces, each of which is
/// freed once it is sent.
fn streamed(body: Vec<u8>) -> Body {
    if body.len() <= PIECE_BYTES {
        return Body::from(body);
    }
    let pieces: Vec<Result<bytes::Bytes, std::convert::Infallible>> = body
        .chunks(PIECE_BYTES)
        .map(|piece| Ok(bytes::Bytes::copy_from_slice(piece)))
        .collect();
    Body::from_stream(tokio_stream::iter(pieces))
}

fn accepts_gzip(headers: &http::HeaderMap) -> bool {
    let values = headers.get_all("accept-encoding");
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value.split(',').any(|coding| {
                let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
                let refused = weight.trim().trim_end_matches('0').trim_end_matches('.') == "q=";
                matches!(name.trim(), "gzip" | "*") && !refused
            })
        })
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Write as _;
    let level = flate2::Compression::fast();
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 8), level);
    encoder.write_all(bytes)?;
    encoder.finish()
}

async fn answer(
    front: &Front,
    request: Request,
    trail: &mut Trail,
    service: &mut String,
) -> Result<String, ApiError> {
    let (parts, body) = request.into_parts();
    if parts.uri.path() != "/" || !matches!(parts.method, Method::GET | Method::POST) {
        let mut error = ApiError::new(
            "InvalidRequest",
            "Requests are GET or POST of the path '/'.",
        );
        error.status = 404;
        return Err(error);
    }
    let body = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES))
        .await
        .map_err(|_| ApiError::new("RequestTimeout", "The request body did not arrive in time."))?
        .map_err(|_| {
            ApiError::new(
                "RequestEntityTooLarge",
                format!("The request body did not arrive whole or exceeds {MAX_BODY_BYTES} bytes."),
            )
        })?;
    let raw_query = parts.uri.query().unwrap_or_default();
    let signed = Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: raw_query,
        headers: &parts.headers,
        authority: None,
        body: &body,
    };
    let identity = front.authenticate(&signed, SERVICES, trail)?;
    service.clone_from(&identity.service);
    let parameters = parameters(raw_query, &parts.headers, &body)?;
    let host = parts
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    run(front, &identity, parameters, trail, host).await
}

/// Parameters of query string and body, less those of a presigned signature. A signature is
/// of the body as it was sent, so it is unpacked here, after that was verified.
///
/// # Errors
/// `MalformedQueryString`; `RequestEntityTooLarge` for a body that unpacks to more than one
/// may be; `InvalidRequest` for a coding other than gzip.
pub fn parameters(
    raw_query: &str,
    headers: &http::HeaderMap,
    body: &[u8],
) -> Result<Vec<(String, String)>, ApiError> {
    let mut parameters = query::parse_form(raw_query)?;
    parameters.retain(|(name, _)| !name.starts_with("X-Amz-"));
    let body = unpacked(headers, body)?;
    let body = std::str::from_utf8(&body).map_err(|_| {
        ApiError::new(
            "MalformedQueryString",
            "The request body is not form-encoded text.",
        )
    })?;
    parameters.extend(query::parse_form(body)?);
    Ok(parameters)
}

fn unpacked<'a>(headers: &http::HeaderMap, body: &'a [u8]) -> Result<Cow<'a, [u8]>, ApiError> {
    use std::io::Read as _;
    let coding = headers.get("content-encoding").map(|value| value.to_str());
    match coding {
        None | Some(Ok("" | "identity")) => Ok(Cow::Borrowed(body)),
        Some(Ok(coding)) if coding.eq_ignore_ascii_case("gzip") => {
            let most = MAX_BODY_BYTES as u64 + 1;
            let mut plain = Vec::new();
            flate2::read::MultiGzDecoder::new(body)
                .take(most)
                .read_to_end(&mut plain)
                .map_err(|_| {
                    ApiError::new("MalformedQueryString", "The request body is not gzip.")
                })?;
            if plain.len() > MAX_BODY_BYTES {
                return Err(ApiError::new(
                    "RequestEntityTooLarge",
                    format!("The request body unpacks to more than {MAX_BODY_BYTES} bytes."),
                ));
            }
            Ok(Cow::Owned(plain))
        }
        Some(_) => Err(ApiError::new(
            "InvalidRequest",
            "The only Content-Encoding of a request is gzip.",
        )),
    }
}

async fn run(
    front: &Front,
    identity: &Identity,
    mut parameters: Vec<(String, String)>,
    trail: &mut Trail,
    host: &str,
) -> Result<String, ApiError> {
    let mut take = |name: &str| {
        let at = parameters.iter().position(|(key, _)| key == name)?;
        Some(parameters.swap_remove(at).1)
    };
    let action = take("Action")
        .filter(|action| !action.is_empty())
        .ok_or_else(|| {
            ApiError::new(
                "MissingAction",
                "The request is missing an action or a required parameter.",
            )
        })?;
    trail.action.clone_from(&action);
    let version = take("Version").ok_or_else(|| ApiError::missing("Version"))?;
    let model = model_of(&identity.service);
    if version != model.api_version {
        return Err(ApiError::new(
            "NoSuchVersion",
            format!(
                "The requested version ({version}) of service {} does not exist",
                identity.service
            ),
        ));
    }
    let Some(operation) = model.operations.get(&action) else {
        return Err(not_offered(model, &action));
    };
    let value = query::decode(model, operation.input, parameters)?;
    let value = front.execute(identity, &action, value, trail, host).await?;
    Ok(match identity.service.as_str() {
        "sts" => xml::sts(model, &action, &value, &trail.request_id),
        _ => xml::ec2(model, &action, &value, &trail.request_id),
    })
}
