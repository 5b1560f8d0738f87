//! The gRPC front: the same operations, signed the same way.

use crate::support::{Control, sign};
use bytes::{Buf, BufMut, Bytes};
use ocs_control::fronts::grpc::descriptors;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};
use std::time::SystemTime;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

/// Calls a method of `ocs.ec2.v1.Ec2`, signed or not.
async fn call(
    control: &Control,
    method: &str,
    request: Value,
    signed: bool,
) -> Result<Value, Status> {
    let host = control.ready["grpc_listen"].as_str().unwrap();
    let service = descriptors()
        .unwrap()
        .get_service_by_name("ocs.ec2.v1.Ec2")
        .unwrap();
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
