//! From a whole service model to the shapes that the offered actions reach.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Ends the names of shapes that stand for flattened lists.
const FLATTENED: &str = "@flattened";

/// What is left of a service model.
pub struct Extract {
    pub metadata: Value,
    pub operations: BTreeMap<String, Value>,
    pub shapes: BTreeMap<String, Value>,
    /// Actions that the service has and we do not offer.
    pub unoffered: Vec<String>,
}

/// Keeps `actions` and every shape that they reach.
pub fn extract(model: &Value, actions: &[&str]) -> Result<Extract> {
    let all = object(model, "operations")?;
    let shapes = object(model, "shapes")?;
    let mut operations = BTreeMap::new();
    let mut queue = Vec::new();
    for action in actions {
        let operation = all
            .get(*action)
            .with_context(|| format!("no operation {action}"))?;
        let mut kept = Map::new();
        for side in ["input", "output"] {
            if let Some(shape) = operation[side]["shape"].as_str() {
                queue.push(shape.to_owned());
                kept.insert(side.to_owned(), shape.into());
            }
        }
        if let Some(input) = operation["input"]["shape"].as_str() {
            // A few actions call them `Filter`.
            let members = &shapes[input]["members"];
            let documented = filters(members.get("Filters").unwrap_or(&members["Filter"]));
            if !documented.is_empty() {
                kept.insert("filters".to_owned(), documented.into());
            }
        }
        operations.insert((*action).to_owned(), Value::Object(kept));
    }
    let mut kept = BTreeMap::new();
    while let Some(name) = queue.pop() {
        if kept.contains_key(&name) {
            continue;
        }
        let shape = shapes
            .get(name.trim_end_matches(FLATTENED))
            .with_context(|| format!("no shape {name}"))?;
        kept.insert(name.clone(), reduce(&name, shape, &mut queue)?);
    }
    let unoffered = all
        .keys()
        .filter(|name| !actions.contains(&name.as_str()))
        .cloned()
        .collect();
    let metadata = json!({
        "apiVersion": model["metadata"]["apiVersion"],
        "protocol": model["metadata"]["protocol"],
        "xmlNamespace": model["metadata"]["xmlNamespace"],
    });
    Ok(Extract {
        metadata,
        operations,
        shapes: kept,
        unoffered,
    })
}

/// One shape without its documentation. Members become `[name, shape, query
/// name, XML name]`: arrays, since the order of members is the order in XML.
fn reduce(name: &str, shape: &Value, queue: &mut Vec<String>) -> Result<Value> {
    let kind = shape["type"]
        .as_str()
        .with_context(|| format!("shape {name} has no type"))?;
    let mut kept = Map::new();
    kept.insert("type".to_owned(), kind.into());
    match kind {
        "structure" => {
            let mut members = Vec::new();
            for (member, target) in object(shape, "members")? {
                let target_name = target["shape"].as_str().context("member without shape")?;
                // A list whose member is flattened is a shape of its own.
                let target_name = match target["flattened"] == true {
                    true => format!("{target_name}{FLATTENED}"),
                    false => target_name.to_owned(),
                };
                queue.push(target_name.clone());
                let xml = target["locationName"].as_str().unwrap_or(member);
                let query = match target["queryName"].as_str() {
                    Some(query) => query.to_owned(),
                    None => capitalised(xml),
                };
                members.push(json!([member, target_name, query, xml]));
            }
            kept.insert("members".to_owned(), members.into());
            if let Some(required) = shape.get("required") {
                kept.insert("required".to_owned(), required.clone());
            }
        }
        "list" => {
            let target = shape["member"]["shape"]
                .as_str()
                .context("list without member")?;
            queue.push(target.to_owned());
            let xml = shape["member"]["locationName"].as_str().unwrap_or("member");
            kept.insert("member".to_owned(), json!([target, xml]));
            if name.ends_with(FLATTENED) || shape["flattened"] == true {
                kept.insert("flattened".to_owned(), true.into());
            }
        }
        "map" => {
            let target = shape["value"]["shape"]
                .as_str()
                .context("map without value")?;
            queue.push(target.to_owned());
            kept.insert("member".to_owned(), json!([target, "value"]));
        }
        "string" | "integer" | "long" | "float" | "double" | "boolean" | "blob" | "timestamp" => {
            // Instance types are an operator's table, not the model's.
            if let (Some(values), true) = (shape.get("enum"), name != "InstanceType") {
                kept.insert("enum".to_owned(), values.clone());
            }
            if let Some(format) = shape.get("timestampFormat") {
                kept.insert("format".to_owned(), format.clone());
            }
            for bound in ["min", "max"] {
                if let (Some(value), "integer" | "long") = (shape.get(bound), kind) {
                    kept.insert(bound.to_owned(), value.clone());
                }
            }
        }
        other => bail!("shape {name} is of type {other}, which the codec does not know"),
    }
    Ok(Value::Object(kept))
}

/// The filter names that a `Filters` member documents: the code word that opens
/// each list item.
fn filters(member: &Value) -> Vec<String> {
    let text = member["documentation"].as_str().unwrap_or_default();
    let mut names = BTreeSet::new();
    for item in text.split("<li>").skip(1) {
        let item = item.trim_start().trim_start_matches("<p>").trim_start();
        if let Some((name, _)) = item
            .strip_prefix("<code>")
            .and_then(|rest| rest.split_once('<'))
        {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            if !name.is_empty() && name.chars().all(plain) {
                names.insert(name.to_owned());
            }
        }
    }
    names.into_iter().collect()
}

fn capitalised(name: &str) -> String {
    let mut chars = name.chars();
    chars
        .next()
        .map(|c| c.to_ascii_uppercase())
        .into_iter()
        .chain(chars)
        .collect()
}

fn object<'a>(value: &'a Value, key: &str) -> Result<&'a Map<String, Value>> {
    value[key]
        .as_object()
        .with_context(|| format!("no object {key:?}"))
}

impl Extract {
    /// JSON with one operation and one shape a line, for readable differences.
    pub fn to_text(&self) -> Result<String> {
        let mut text = format!(
            "{{\n\"metadata\": {},\n",
            serde_json::to_string(&self.metadata)?
        );
        for (title, map) in [("operations", &self.operations), ("shapes", &self.shapes)] {
            writeln!(text, "\"{title}\": {{")?;
            for (index, (name, value)) in map.iter().enumerate() {
                let comma = if index + 1 == map.len() { "" } else { "," };
                writeln!(text, "\"{name}\": {}{comma}", serde_json::to_string(value)?)?;
            }
            text.push_str("},\n");
        }
        writeln!(
            text,
            "\"unoffered\": {}\n}}",
            serde_json::to_string(&self.unoffered)?
        )?;
        Ok(text)
    }
}
