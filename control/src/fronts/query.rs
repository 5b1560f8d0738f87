//! The EC2 Query front: HTTP/1.1, form parameters in, XML out.

use super::call::{Front, model_of, not_offered, request_id};
use super::sigv4::{Identity, Request as Signed};
use crate::wire::{ApiError, query, xml};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::{Method, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// Largest body of a request.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Longest time a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The front as an axum router.
pub fn router(front: Arc<Front>) -> axum::Router {
    axum::Router::new().fallback(handle).with_state(front)
}

async fn handle(State(front): State<Arc<Front>>, request: Request) -> Response {
    let request_id = request_id();
    let mut service = String::new();
    let (status, text) = match answer(&front, request, &request_id, &mut service).await {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => {
            let status =
                StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let text = match service.as_str() {
                "sts" => xml::sts_error(model_of("sts"), &error, &request_id),
                _ => xml::ec2_error(&error, &request_id),
            };
            (status, text)
        }
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        http::HeaderValue::from_static("text/xml;charset=UTF-8"),
    );
    headers.insert(
        "cache-control",
        http::HeaderValue::from_static("no-cache, no-store"),
    );
    if let Ok(value) = http::HeaderValue::from_str(&request_id) {
        headers.insert("x-amzn-requestid", value);
    }
    response
}

async fn answer(
    front: &Front,
    request: Request,
    request_id: &str,
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
    let identity = front.authenticate(&Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: raw_query,
        headers: &parts.headers,
        authority: None,
        body: &body,
    })?;
    service.clone_from(&identity.service);
    let parameters = parameters(raw_query, &body)?;
    let host = parts
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    run(front, &identity, parameters, request_id, host).await
}

/// Parameters of query string and body, less those of a presigned signature.
fn parameters(raw_query: &str, body: &[u8]) -> Result<Vec<(String, String)>, ApiError> {
    let mut parameters = query::parse_form(raw_query)?;
    parameters.retain(|(name, _)| !name.starts_with("X-Amz-"));
    let body = std::str::from_utf8(body).map_err(|_| {
        ApiError::new(
            "MalformedQueryString",
            "The request body is not form-encoded text.",
        )
    })?;
    parameters.extend(query::parse_form(body)?);
    Ok(parameters)
}

async fn run(
    front: &Front,
    identity: &Identity,
    mut parameters: Vec<(String, String)>,
    request_id: &str,
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
    let value = front
        .execute(identity, &action, value, request_id, host)
        .await?;
    Ok(match identity.service.as_str() {
        "sts" => xml::sts(model, &action, &value, request_id),
        _ => xml::ec2(model, &action, &value, request_id),
    })
}
