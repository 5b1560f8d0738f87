//! The EC2 Query decoder: form parameters to a [`Value`], by the model's tables.
//!
//! Rules (botocore's `ec2` protocol): a member is called by its `queryName`, else
//! its capitalised `locationName`; lists are flattened and numbered from 1
//! (`Filter.1.Value.2`); an empty scalar is an absent one.

use super::shapes::{Model, Shape, ShapeId};
use super::{ApiError, Value, instant};
use serde_json::Map;
use std::collections::BTreeMap;

/// Most parameters of one request.
pub const MAX_PARAMETERS: usize = 10_000;
/// Deepest `A.1.B.2…` of a parameter name; the model's deepest has 8 parts.
const MAX_DEPTH: usize = 16;

/// Parameters by the parts of their dotted names.
#[derive(Debug, Default)]
struct Node {
    value: Option<String>,
    children: BTreeMap<String, Node>,
}

/// Parses `a=b&c=d`, `+` and `%xx` decoded.
///
/// # Errors
/// `MalformedQueryString` where it is not UTF-8 or too many parameters.
pub fn parse_form(text: &str) -> Result<Vec<(String, String)>, ApiError> {
    let mut pairs = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == MAX_PARAMETERS {
            return Err(ApiError::new(
                "MalformedQueryString",
                format!("The request has more than {MAX_PARAMETERS} parameters."),
            ));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((unescape(name)?, unescape(value)?));
    }
    Ok(pairs)
}

fn unescape(text: &str) -> Result<String, ApiError> {
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| {
        ApiError::new(
            "MalformedQueryString",
            "The query string contains a syntax error: not UTF-8.",
        )
    })
}

/// Decodes the parameters of a request of shape `input`.
///
/// # Errors
/// EC2's codes for unknown and mistyped parameters; what is missing is left to
/// [`super::validate`].
pub fn decode(
    model: &Model,
    input: Option<ShapeId>,
    parameters: Vec<(String, String)>,
) -> Result<Value, ApiError> {
    let mut root = Node::default();
    for (name, value) in parameters {
        let mut node = &mut root;
        for (depth, part) in name.split('.').enumerate() {
            if depth == MAX_DEPTH {
                return Err(unknown(&name));
            }
            node = node.children.entry(part.to_owned()).or_default();
        }
        if node.value.replace(value).is_some() {
            return Err(ApiError::new(
                "InvalidQueryParameter",
                format!("The parameter {name} is given more than once."),
            ));
        }
    }
    match input {
        Some(shape) => {
            let value = structure(model, shape, &root, "")?;
            Ok(value.unwrap_or_else(|| Value::Object(Map::new())))
        }
        None => match root.children.keys().next() {
            Some(name) => Err(unknown(name)),
            None => Ok(Value::Object(Map::new())),
        },
    }
}

fn unknown(path: &str) -> ApiError {
    ApiError::new(
        "UnknownParameter",
        format!("The parameter {path} is not recognized"),
    )
}

fn join(path: &str, part: &str) -> String {
    if path.is_empty() {
        part.to_owned()
    } else {
        format!("{path}.{part}")
    }
}

fn any(model: &Model, shape: ShapeId, node: &Node, path: &str) -> Result<Option<Value>, ApiError> {
    match model.shape(shape) {
        Shape::Structure { .. } => structure(model, shape, node, path),
        Shape::List { member, .. } => list(model, *member, node, path),
        scalar_shape => {
            if let Some(child) = node.children.keys().next() {
                return Err(unknown(&join(path, child)));
            }
            let text = node.value.as_deref().unwrap_or_default();
            if text.is_empty() {
                Ok(None)
            } else {
                scalar(scalar_shape, text, path).map(Some)
            }
        }
    }
}

fn structure(
    model: &Model,
    shape: ShapeId,
    node: &Node,
    path: &str,
) -> Result<Option<Value>, ApiError> {
    if node.value.as_ref().is_some_and(|value| !value.is_empty()) {
        return Err(unknown(path));
    }
    let members = model.members(shape);
    for part in node.children.keys() {
        if !members.iter().any(|member| member.query == *part) {
            return Err(unknown(&join(path, part)));
        }
    }
    let mut object = Map::new();
    for member in members {
        if let Some(child) = node.children.get(&member.query)
            && let Some(value) = any(model, member.shape, child, &join(path, &member.query))?
        {
            object.insert(member.name.clone(), value);
        }
    }
    Ok((!object.is_empty()).then_some(Value::Object(object)))
}

fn list(
    model: &Model,
    member: ShapeId,
    node: &Node,
    path: &str,
) -> Result<Option<Value>, ApiError> {
    if node.value.as_ref().is_some_and(|value| !value.is_empty()) {
        return Err(unknown(path));
    }
    let mut elements = BTreeMap::new();
    for (part, child) in &node.children {
        let index: u32 = part
            .parse()
            .ok()
            .filter(|index| *index > 0)
            .ok_or_else(|| unknown(&join(path, part)))?;
        elements.insert(index, child);
    }
    let text = matches!(model.shape(member), Shape::String { .. });
    let structured = matches!(model.shape(member), Shape::Structure { .. });
    let mut values = Vec::with_capacity(elements.len());
    for (index, child) in elements {
        match any(model, member, child, &join(path, &index.to_string()))? {
            Some(value) => values.push(value),
            None if text => values.push(Value::String(String::new())),
            None if structured => values.push(Value::Object(Map::new())),
            None => {}
        }
    }
    Ok((!values.is_empty()).then_some(Value::Array(values)))
}

fn scalar(shape: &Shape, text: &str, path: &str) -> Result<Value, ApiError> {
    let wrong = |expected: &str| ApiError::value(text, path, &format!("Expected {expected}."));
    Ok(match shape {
        Shape::Integer { .. } => Value::from(text.parse::<i64>().map_err(|_| wrong("an integer"))?),
        // As in proto3's JSON: what JSON has no number for is its name.
        Shape::Float if matches!(text, "NaN" | "Infinity" | "-Infinity") => Value::from(text),
        Shape::Float => {
            let number: f64 = text.parse().map_err(|_| wrong("a number"))?;
            serde_json::Number::from_f64(number)
                .ok_or_else(|| wrong("a number"))?
                .into()
        }
        Shape::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return Err(wrong("a boolean")),
        },
        Shape::Blob => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_err(|_| wrong("base64"))?;
            Value::from(text)
        }
        Shape::Timestamp(format) => match instant::read(*format, text) {
            Some(text) => Value::from(text),
            None => return Err(wrong("a timestamp (ISO 8601)")),
        },
        Shape::Map { .. } => return Err(unknown(path)),
        Shape::String { .. } | Shape::Structure { .. } | Shape::List { .. } => Value::from(text),
    })
}
