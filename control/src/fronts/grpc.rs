//! The gRPC front: the same operations, by the same names, from the same extract
//! (`proto/`), over the same semantics.
//!
//! Calls are signed like EC2's: metadata `x-amz-date` and `authorization` hold
//! Signature Version 4 of `POST /ocs.ec2.v1.Ec2/ACTION`, whose body is the
//! request message's bytes (without gRPC's five-byte frame header), for host =
//! the HTTP/2 authority. Refusals carry EC2's code in metadata `ocs-error-code`, and as
//! `google.rpc.ErrorInfo` in their status' details. Reflection (v1) and health
//! checking need no signature.

use super::call::{Front, SERVICES, model_of, request_id};
use super::listen::Peer;
use super::sigv4::Request as Signed;
use crate::audit::Trail;
use crate::wire::{ApiError, Value};
use bytes::{Buf, BufMut, Bytes};
use http::request::Parts;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use std::{future::Future, pin::Pin, sync::Arc};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::UnaryService;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Largest request message.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Whose error codes those in `google.rpc.ErrorInfo` are.
const DOMAIN: &str = "ec2.amazonaws.com";
/// When a throttled call may be tried again at the earliest.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Descriptors of `proto/*.proto`.
///
/// # Errors
/// If the embedded descriptors are broken.
pub fn descriptors() -> anyhow::Result<DescriptorPool> {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api.bin"));
    Ok(DescriptorPool::decode(bytes)?)
}

/// The front as routes of a tonic server.
///
/// # Errors
/// If the embedded descriptors are broken.
pub fn routes(front: Arc<Front>) -> anyhow::Result<tonic::service::Routes> {
    let mut router = axum::Router::new();
    for service in descriptors()?.services() {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            let front = Arc::clone(&front);
            let handler = move |request: axum::extract::Request| {
                let (parts, body) = request.into_parts();
                let call = Call {
                    front: Arc::clone(&front),
                    method: method.clone(),
                    parts: Arc::new(parts.clone()),
                };
                async move {
                    let mut grpc =
                        tonic::server::Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE_BYTES);
                    let request = http::Request::from_parts(parts, body);
                    grpc.unary(call, request).await.map(axum::body::Body::new)
                }
            };
            router = router.route(&path, axum::routing::post(handler));
        }
    }
    let (_, health) = tonic_health::server::health_reporter();
    let described: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api.bin"));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(described)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let routes = tonic::service::Routes::from(router);
    Ok(routes.add_service(health).add_service(reflection))
}

/// One call.
struct Call {
    front: Arc<Front>,
    method: MethodDescriptor,
    parts: Arc<Parts>,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (front, method) = (Arc::clone(&self.front), self.method.clone());
        let parts = Arc::clone(&self.parts);
        Box::pin(async move {
            let peer = parts.extensions.get::<Peer>();
            let mut trail = Trail {
                request_id: request_id(),
                front: "grpc",
                source: peer.map(|peer| peer.0.ip().to_string()).unwrap_or_default(),
                action: method.name().to_owned(),
                ..Trail::default()
            };
            let answer = match front.begin(&trail) {
                Ok(()) => answer(&front, &method, &parts, request.get_ref(), &mut trail).await,
                Err(error) => Err(error),
            };
            front
                .end(&trail, answer)
                .map(Response::new)
                .map_err(|error| status(&error, &trail.request_id))
        })
    }
}

async fn answer(
    front: &Front,
    method: &MethodDescriptor,
    parts: &Parts,
    body: &Bytes,
    trail: &mut Trail,
) -> Result<Bytes, ApiError> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let signed = Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: "",
        headers: &parts.headers,
        authority,
        body,
    };
    let identity = front.authenticate(&signed, SERVICES, trail)?;
    let package = method.parent_service().package_name().to_owned();
    if package != format!("ocs.{}.v1", identity.service) {
        return Err(ApiError::new(
            "AuthFailure",
            "Credential should be scoped to correct service.",
        ));
    }
    let message = DynamicMessage::decode(method.input(), body.clone())
        .map_err(|error| ApiError::new("MalformedRequest", error.to_string()))?;
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    let value: Value = message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| ApiError::new("MalformedRequest", error.to_string()))?;
    let host = authority.unwrap_or_default();
    let answer = front
        .execute(&identity, method.name(), value, trail, host)
        .await?;
    let operation = model_of(&identity.service).operations.get(method.name());
    let value = match operation.and_then(|operation| operation.output) {
        Some(_) => Value::from(answer),
        None => Value::Object(serde_json::Map::new()),
    };
    let message = DynamicMessage::deserialize(method.output(), value)
        .map_err(|error| ApiError::internal(&error))?;
    Ok(message.encode_to_vec().into())
}

fn status(error: &ApiError, request_id: &str) -> Status {
    let code = match error.status {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        412 => Code::FailedPrecondition,
        503 if error.code == "RequestLimitExceeded" => Code::ResourceExhausted,
        503 => Code::Unavailable,
        _ if error.code.starts_with("Insufficient") => Code::ResourceExhausted,
        500.. => Code::Internal,
        _ if error.code.ends_with("NotFound") => Code::NotFound,
        _ if error.code == "DependencyViolation" || error.code.starts_with("Incorrect") => {
            Code::FailedPrecondition
        }
        _ => Code::InvalidArgument,
    };
    let mut details = ErrorDetails::with_error_info(
        error.code.to_string(),
        DOMAIN,
        [("http-status".to_owned(), error.status.to_string())],
    );
    details.set_request_info(request_id, "");
    if error.code == "RequestLimitExceeded" {
        details.set_retry_info(Some(RETRY));
    }
    let mut status = Status::with_error_details(code, error.to_string(), details);
    for (name, value) in [
        ("ocs-error-code", error.code.as_ref()),
        ("ocs-request-id", request_id),
    ] {
        if let Ok(value) = value.parse() {
            status.metadata_mut().insert(name, value);
        }
    }
    status
}

/// Messages as bytes: the descriptors decode them, once they are authenticated.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}
