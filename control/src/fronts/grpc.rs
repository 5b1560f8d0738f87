//! The gRPC front: the same operations, by the same names, from the same extract
//! (`proto/`), over the same semantics.
//!
//! Calls are signed like EC2's: metadata `x-amz-date` and `authorization` hold
//! Signature Version 4 of `POST /ocs.ec2.v1.Ec2/ACTION`, whose body is the
//! request message's bytes (without gRPC's five-byte frame header), for host =
//! the HTTP/2 authority. Refusals carry EC2's code in metadata
//! `ocs-error-code`.

use super::call::{Front, model_of, request_id};
use super::sigv4::Request as Signed;
use crate::wire::{ApiError, Value};
use bytes::{Buf, BufMut, Bytes};
use http::request::Parts;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use std::{future::Future, pin::Pin, sync::Arc};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::UnaryService;
use tonic::{Code, Request, Response, Status};

/// Largest request message.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

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
    Ok(tonic::service::Routes::from(router))
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
            let id = request_id();
            match answer(&front, &method, &parts, request.get_ref(), &id).await {
                Ok(bytes) => Ok(Response::new(bytes)),
                Err(error) => Err(status(&error, &id)),
            }
        })
    }
}

async fn answer(
    front: &Front,
    method: &MethodDescriptor,
    parts: &Parts,
    body: &Bytes,
    request_id: &str,
) -> Result<Bytes, ApiError> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let identity = front.authenticate(&Signed {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: "",
        headers: &parts.headers,
        authority,
        body,
    })?;
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
    let mut value = front
        .execute(&identity, method.name(), value, request_id, host)
        .await?;
    if model_of(&identity.service)
        .operations
        .get(method.name())
        .is_none_or(|o| o.output.is_none())
    {
        value = Value::Object(serde_json::Map::new());
    }
    let message = DynamicMessage::deserialize(method.output(), value)
        .map_err(|error| ApiError::internal(&error))?;
    Ok(message.encode_to_vec().into())
}

fn status(error: &ApiError, request_id: &str) -> Status {
    let code = match error.status {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        412 => Code::FailedPrecondition,
        503 => Code::Unavailable,
        _ if error.code.starts_with("Insufficient") => Code::ResourceExhausted,
        500.. => Code::Internal,
        _ if error.code.ends_with("NotFound") => Code::NotFound,
        _ if error.code == "DependencyViolation" || error.code.starts_with("Incorrect") => {
            Code::FailedPrecondition
        }
        _ => Code::InvalidArgument,
    };
    let mut status = Status::new(code, error.to_string());
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
