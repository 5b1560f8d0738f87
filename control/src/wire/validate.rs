//! Checks that a front's decoder leaves to the model: what must be there, what
//! may be named, what must lie within bounds. Both fronts pass through here.

use super::shapes::{Model, Shape, ShapeId};
use super::{ApiError, Value};

/// Checks a decoded request.
///
/// # Errors
/// `MissingParameter` or `InvalidParameterValue`, by the parameter's query name.
pub fn request(model: &Model, input: Option<ShapeId>, value: &Value) -> Result<(), ApiError> {
    input.map_or(Ok(()), |shape| check(model, shape, value, ""))
}

fn check(model: &Model, shape: ShapeId, value: &Value, path: &str) -> Result<(), ApiError> {
    match (model.shape(shape), value) {
        (Shape::Structure { members, required }, Value::Object(object)) => {
            for member in members {
                let path = if path.is_empty() {
                    member.query.clone()
                } else {
                    format!("{path}.{}", member.query)
                };
                match object.get(&member.name) {
                    Some(value) => check(model, member.shape, value, &path)?,
                    None if required.contains(&member.name) => {
                        return Err(ApiError::missing(&path));
                    }
                    None => {}
                }
            }
            Ok(())
        }
        (Shape::List { member, .. }, Value::Array(elements)) => elements
            .iter()
            .enumerate()
            .try_for_each(|(index, element)| {
                check(model, *member, element, &format!("{path}.{}", index + 1))
            }),
        (
            Shape::String {
                values: Some(values),
            },
            Value::String(text),
        ) => {
            if values.contains(text) {
                return Ok(());
            }
            Err(ApiError::value(
                text,
                path,
                "It is not one of the permitted values.",
            ))
        }
        (Shape::Integer { min, max }, Value::Number(number)) => {
            let number = number.as_i64().unwrap_or(i64::MAX);
            if (*min..=*max).contains(&number) {
                return Ok(());
            }
            Err(ApiError::value(
                number,
                path,
                &format!("It must be from {min} to {max}."),
            ))
        }
        _ => Ok(()),
    }
}

/// Paths in an answer that the model does not have: a slip of ours, which the
/// encoder would drop without a word.
pub fn strangers(model: &Model, output: Option<ShapeId>, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(shape) = output {
        collect(model, shape, value, "", &mut found);
    }
    found
}

fn collect(model: &Model, shape: ShapeId, value: &Value, path: &str, found: &mut Vec<String>) {
    match (model.shape(shape), value) {
        (Shape::Structure { members, .. }, Value::Object(object)) => {
            for (name, value) in object {
                let path = format!("{path}.{name}");
                match members.iter().find(|member| member.name == *name) {
                    Some(member) => collect(model, member.shape, value, &path, found),
                    None => found.push(path),
                }
            }
        }
        (Shape::List { member, .. }, Value::Array(elements)) => {
            for element in elements {
                collect(model, *member, element, path, found);
            }
        }
        (Shape::Map { value: shape }, Value::Object(object)) => {
            for (name, value) in object {
                collect(model, *shape, value, &format!("{path}.{name}"), found);
            }
        }
        (_, Value::Null)
        | (
            Shape::String { .. } | Shape::Blob | Shape::Timestamp(_) | Shape::Float,
            Value::String(_),
        )
        | (Shape::Integer { .. } | Shape::Float, Value::Number(_))
        | (Shape::Boolean, Value::Bool(_)) => {}
        _ => found.push(format!("{path}: wrong type")),
    }
}
