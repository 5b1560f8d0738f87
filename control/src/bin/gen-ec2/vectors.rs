//! The protocol's own vectors, as botocore ships them for its clients, run the other way:
//! what a client would send is decoded to what it was given, and what it would be given is
//! encoded to what it reads. `cargo xtask test` fetches them.

use crate::extract::extract;
use flate2::{Compression, write::GzEncoder};
use ocs_control::fronts::query::parameters;
use ocs_control::wire::shapes::{Shape, ShapeId};
use ocs_control::wire::{ApiError, Model, Value, query, validate, xml};
use serde_json::{Map, json};
use std::io::Write as _;

/// Each way.
const CASES: usize = 29;
/// What a client that needs a token and has none takes in the vectors.
const TOKEN: &str = "00000000-0000-4000-8000-000000000000";

/// The cases of a direction, each with the tables of its suite; nothing is left out.
fn cases(direction: &str) -> Vec<(Model, Value, Value)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/wire-vectors");
    let path = format!("{path}/{direction}.json");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}; `cargo xtask setup` fetches it"));
    let suites: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for suite in suites {
        for case in suite["cases"].as_array().unwrap() {
            let name = case["given"]["name"].as_str().unwrap();
            let service = json!({
                "metadata": {
                    "apiVersion": suite["metadata"]["apiVersion"],
                    "protocol": suite["metadata"]["protocol"],
                    "xmlNamespace": suite["metadata"]["xmlNamespace"]["uri"]
                        .as_str().or(suite["metadata"]["xmlNamespace"].as_str()).unwrap_or(""),
                },
                "operations": {name: case["given"]},
                "shapes": suite["shapes"],
            });
            let model = extract(&service, &[name]).unwrap().to_text().unwrap();
            let model = Model::parse(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.push((model, suite["shapes"].clone(), case.clone()));
        }
    }
    assert_eq!(found.len(), CASES, "{direction}");
    found
}

/// What a client holds, as our codec does: blobs in base64, instants in RFC 3339.
fn held(model: &Model, shape: ShapeId, value: &Value) -> Value {
    use base64::Engine as _;
    use time::format_description::well_known::Rfc3339;
    match (model.shape(shape), value) {
        (Shape::Structure { members, .. }, Value::Object(given)) => {
            let mut object = Map::new();
            for member in members {
                if let Some(value) = given.get(&member.name) {
                    object.insert(member.name.clone(), held(model, member.shape, value));
                }
            }
            Value::Object(object)
        }
        (Shape::List { member, .. }, Value::Array(elements)) => elements
            .iter()
            .map(|element| held(model, *member, element))
            .collect(),
        (Shape::Map { value: shape }, Value::Object(given)) => given
            .iter()
            .map(|(key, value)| (key.clone(), held(model, *shape, value)))
            .collect(),
        (Shape::Blob, Value::String(text)) => base64::engine::general_purpose::STANDARD
            .encode(text)
            .into(),
        (Shape::Timestamp(_), Value::Number(seconds)) => {
            let nanos = (seconds.as_f64().unwrap() * 1e3).round() as i128 * 1_000_000;
            let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
            time.format(&Rfc3339).unwrap().into()
        }
        _ => value.clone(),
    }
}

/// Name, text and parts of an element. Attributes are namespaces, which no client of EC2
/// reads; neither is the order of parts of different names.
#[derive(Debug, PartialEq)]
struct Element {
    name: String,
    text: String,
    parts: Vec<Element>,
}

/// Reads one element of well-formed XML, and gives what follows.
fn read(text: &str) -> (Element, &str) {
    let (head, mut rest) = text.trim_start()[1..].split_once('>').unwrap();
    let empty = head.ends_with('/');
    let name = head.trim_end_matches('/').split(' ').next().unwrap();
    let mut element = Element {
        name: name.to_owned(),
        text: String::new(),
        parts: Vec::new(),
    };
    if empty {
        return (element, rest);
    }
    loop {
        let (before, _) = rest.split_once('<').unwrap();
        element.text.push_str(before.trim());
        rest = &rest[before.len()..];
        if let Some(after) = rest.strip_prefix(&format!("</{name}>")) {
            element.parts.sort_by(|a, b| a.name.cmp(&b.name));
            return (element, after);
        }
        let (part, after) = read(rest);
        element.parts.push(part);
        rest = after;
    }
}

fn document(text: &str) -> Element {
    let text = text.trim_start();
    read(
        text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>")
            .unwrap_or(text),
    )
    .0
}

/// The element less its parts of these names, at any depth.
fn without(mut element: Element, names: &[&str]) -> Element {
    element
        .parts
        .retain(|part| !names.contains(&part.name.as_str()));
    element.parts = element
        .parts
        .into_iter()
        .map(|part| without(part, names))
        .collect();
    element
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_clients_send_is_decoded() {
    for (model, shapes, case) in cases("input") {
        let id = case["id"].as_str().unwrap();
        let action = case["given"]["name"].as_str().unwrap();
        let input = model.operations[action].input;
        let mut given = case["params"].clone();
        let members = &shapes[case["given"]["input"]["shape"].as_str().unwrap_or_default()];
        for (name, member) in members["members"].as_object().into_iter().flatten() {
            if member["idempotencyToken"] == true && given.get(name).is_none() {
                given[name] = TOKEN.into();
            }
        }
        let mut headers = http::HeaderMap::new();
        let serialized = &case["serialized"];
        let body = match serialized["body"].as_str() {
            Some(body) => body.as_bytes().to_vec(),
            // Where the vectors ask for gzip they leave the bytes to the client.
            None => {
                assert_eq!(serialized["headers"]["Content-Encoding"], "gzip", "{id}");
                headers.insert("content-encoding", http::HeaderValue::from_static("gzip"));
                let pair = |(name, value): (&String, &Value)| {
                    let capital = name[..1].to_uppercase() + &name[1..];
                    let set = percent_encoding::NON_ALPHANUMERIC;
                    let value = percent_encoding::utf8_percent_encode(value.as_str().unwrap(), set);
                    format!("&{capital}={value}")
                };
                let pairs: String = given.as_object().unwrap().iter().map(pair).collect();
                gzip(&format!("Action={action}&Version=2020-01-08{pairs}"))
            }
        };
        let mut form = parameters("", &headers, &body).unwrap();
        assert_eq!(
            form.remove(0),
            ("Action".to_owned(), action.to_owned()),
            "{id}"
        );
        assert_eq!(
            form.remove(0),
            ("Version".to_owned(), model.api_version.clone()),
            "{id}"
        );
        let decoded = query::decode(&model, input, form).unwrap_or_else(|e| panic!("{id}: {e}"));
        assert_eq!(validate::request(&model, input, &decoded), Ok(()), "{id}");
        let mut expected = input.map_or(json!({}), |input| held(&model, input, &given));
        if let Value::Object(members) = &mut expected {
            // A list of nothing has no parameter that could tell of it.
            members.retain(|_, value| *value != json!([]));
        }
        assert_eq!(decoded, expected, "{id}");
    }
}

#[test]
fn what_clients_read_is_encoded() {
    for (model, _, case) in cases("output") {
        let id = case["id"].as_str().unwrap();
        let action = case["given"]["name"].as_str().unwrap();
        let mut expected = document(case["response"]["body"].as_str().unwrap());
        let ours = if let Some(code) = case["errorCode"].as_str() {
            // EC2's model declares no error with members of its own, so ours have none.
            let own = case["error"].as_object().unwrap().keys();
            let own: Vec<&str> = own
                .map(String::as_str)
                .filter(|own| *own != "Message")
                .collect();
            expected = without(expected, &own);
            let error = ApiError::new(code.to_owned(), "Hi");
            assert_eq!(
                u64::from(error.status),
                case["response"]["status_code"],
                "{id}"
            );
            document(&xml::ec2_error(&error, "foo-id"))
        } else {
            let output = model.operations[action].output.unwrap();
            let value = held(&model, output, &case["result"]);
            assert_eq!(
                validate::strangers(&model, Some(output), &value),
                [""; 0],
                "{id}"
            );
            document(&xml::ec2(&model, action, &value.into(), "requestid"))
        };
        // Three vectors leave out the request id, and two write an instant in another zone.
        if !expected.parts.iter().any(|part| part.name == "requestId")
            && case["errorCode"].is_null()
        {
            expected
                .parts
                .push(read("<requestId>requestid</requestId>").0);
            expected.parts.sort_by(|a, b| a.name.cmp(&b.name));
        }
        if id.contains("Offset") {
            for part in &mut expected.parts {
                if part.name == "datetime" {
                    use time::format_description::well_known::Rfc3339;
                    let time = time::OffsetDateTime::parse(&part.text, &Rfc3339).unwrap();
                    part.text = time
                        .to_offset(time::UtcOffset::UTC)
                        .format(&Rfc3339)
                        .unwrap();
                }
            }
        }
        assert_eq!(ours, expected, "{id}");
    }
}

#[test]
fn a_body_that_unpacks_without_end_is_refused() {
    let mut headers = http::HeaderMap::new();
    headers.insert("content-encoding", http::HeaderValue::from_static("gzip"));
    let code = |body: &[u8], headers: &http::HeaderMap| {
        parameters("", headers, body).unwrap_err().code.into_owned()
    };
    assert_eq!(
        code(&gzip(&"a".repeat(2 << 20)), &headers),
        "RequestEntityTooLarge"
    );
    assert_eq!(
        code(b"Action=DescribeVpcs", &headers),
        "MalformedQueryString"
    );
    headers.insert("content-encoding", http::HeaderValue::from_static("br"));
    assert_eq!(code(b"Action=DescribeVpcs", &headers), "InvalidRequest");
}
