//! The gRPC front: the same operations, signed the same way.

use crate::bad_requests::cases;
use crate::support::{Control, sign};
use bytes::{Buf, BufMut, Bytes};
use ocs_control::fronts::grpc::descriptors;
use ocs_control::wire::{ec2, query};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::SystemTime;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| descriptors().unwrap());

/// Calls a method of `ocs.ec2.v1.Ec2`, signed or not.
async fn call(
    control: &Control,
    method: &str,
    request: Value,
    signed: bool,
) -> Result<Value, Status> {
    let host = control.ready["grpc_listen"].as_str().unwrap();
    let service = DESCRIPTORS.get_service_by_name("ocs.ec2.v1.Ec2").unwrap();
    let found = service
        .methods()
        .find(|known| known.name() == method)
        .unwrap();
    let body = DynamicMessage::deserialize(found.input(), request)
        .unwrap()
        .encode_to_vec();
    let path = format!("/ocs.ec2.v1.Ec2/{method}");
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{host}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let mut message = Request::new(Bytes::from(body.clone()));
    if signed {
        let format =
            time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
        let now = time::OffsetDateTime::from(SystemTime::now())
            .format(&format)
            .unwrap();
        let (id, secret) = (
            &control.keys["access_key_id"],
            &control.keys["secret_access_key"],
        );
        let (id, secret) = (id.as_str().unwrap(), secret.as_str().unwrap());
        for (name, value) in sign(id, secret, host, &now, "us-east-1/ec2", &path, &body) {
            message.metadata_mut().insert(name, value.parse().unwrap());
        }
    }
    let answer = client
        .unary(message, path.parse().unwrap(), Raw)
        .await?
        .into_inner();
    let answer = DynamicMessage::decode(found.output(), answer).unwrap();
    Ok(serde_json::to_value(answer).unwrap())
}

#[derive(Default, Clone, Copy)]
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

#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_the_same_api() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let group = json!({"GroupName": "g", "Description": "d", "TagSpecifications": [
        {"ResourceType": "security-group", "Tags": [{"Key": "a", "Value": "b"}]}
    ]});
    let made = call(&control, "CreateSecurityGroup", group.clone(), true)
        .await
        .unwrap();
    let again = call(&control, "CreateSecurityGroup", group, true)
        .await
        .unwrap_err();
    assert_eq!(
        again.metadata().get("ocs-error-code").unwrap(),
        "InvalidGroup.Duplicate"
    );
    assert_eq!(again.code(), Code::InvalidArgument);
    let details = again.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("InvalidGroup.Duplicate", "ec2.amazonaws.com")
    );
    assert!(!details.request_info().unwrap().request_id.is_empty());
    let filter = json!({"Filters": [{"Name": "tag:a", "Values": ["b"]}]});
    let seen = call(&control, "DescribeSecurityGroups", filter, true)
        .await
        .unwrap();
    assert_eq!(seen["SecurityGroups"][0]["GroupId"], made["GroupId"]);
    assert_eq!(seen["SecurityGroups"].as_array().unwrap().len(), 1);
    let id = made["GroupId"].as_str().unwrap();
    assert!(
        control
            .ok("DescribeSecurityGroups", &[("GroupId.1", id)])
            .contains(id)
    );
    let missing = call(&control, "RunInstances", json!({"ImageId": "ami-1"}), true)
        .await
        .unwrap_err();
    assert_eq!(
        missing.metadata().get("ocs-error-code").unwrap(),
        "MissingParameter"
    );
    let absent = json!({"InstanceIds": ["i-0123456789abcdef0"]});
    let absent = call(&control, "DescribeInstances", absent, true)
        .await
        .unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let anyone = call(&control, "DescribeVpcs", json!({}), false)
        .await
        .unwrap_err();
    assert_eq!(anyone.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_cases_have_the_same_codes() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let mut tried = 0;
    for case in cases(&control) {
        // What the query front's decoder refuses has no form in gRPC.
        let Some(operation) = ec2().operations.get(&case.action) else {
            continue;
        };
        let Ok(value) = query::decode(ec2(), operation.input, case.params) else {
            continue;
        };
        // Nor has a number that is out of its field's range.
        let service = DESCRIPTORS.get_service_by_name("ocs.ec2.v1.Ec2").unwrap();
        let method = service.methods().find(|m| m.name() == case.action);
        if DynamicMessage::deserialize(method.unwrap().input(), value.clone()).is_err() {
            continue;
        }
        let refused = call(&control, &case.action, value.clone(), true).await;
        let refused = refused.unwrap_err();
        let code = refused.metadata().get("ocs-error-code").unwrap();
        assert_eq!(
            code,
            case.code.as_str(),
            "{} {value}: {refused}",
            case.action
        );
        tried += 1;
    }
    assert!(tried > 200, "{tried}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_and_health_need_no_signature() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    };
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let host = control.ready["grpc_listen"].as_str().unwrap();
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{host}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await
        .unwrap();
    assert_eq!(health.into_inner().status, 1, "SERVING");
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"ocs.ec2.v1.Ec2"), "{names:?}");
}
