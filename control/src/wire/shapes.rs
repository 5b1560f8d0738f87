//! The extract of AWS's service model, as `gen-ec2` writes it.

use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

/// Index of a shape in its [`Model`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShapeId(usize);

/// One service's tables.
#[derive(Debug)]
pub struct Model {
    /// The only `Version` that callers may name.
    pub api_version: String,
    /// Namespace of answers.
    pub xml_namespace: String,
    /// Offered actions by name.
    pub operations: BTreeMap<String, Operation>,
    /// Actions that the service has and we do not offer.
    pub unoffered: HashSet<String>,
    shapes: Vec<Shape>,
}

/// One action.
#[derive(Debug)]
pub struct Operation {
    /// Shape of the request.
    pub input: Option<ShapeId>,
    /// Shape of the answer; some actions answer `return` alone.
    pub output: Option<ShapeId>,
    /// Documented filter names.
    pub filters: Vec<String>,
}

/// A type of the model.
#[derive(Debug)]
pub enum Shape {
    /// Members in wire order.
    Structure {
        /// Members in wire order.
        members: Vec<Member>,
        /// Names of members that must be there.
        required: Vec<String>,
    },
    /// A list; flattened in requests.
    List {
        /// Shape of an element.
        member: ShapeId,
        /// Element name in answers.
        xml: String,
        /// In answers each element bears the list's own name, and nothing wraps them.
        flattened: bool,
    },
    /// Text to values, in answers alone: the protocol has none in requests.
    Map {
        /// Shape of a value.
        value: ShapeId,
    },
    /// Text, perhaps one of few values.
    String {
        /// Permitted values; none: any.
        values: Option<Vec<String>>,
    },
    /// A 32 or 64 bit integer within bounds.
    Integer {
        /// Smallest permitted value.
        min: i64,
        /// Largest permitted value.
        max: i64,
    },
    /// A decimal fraction.
    Float,
    /// `true` or `false`.
    Boolean,
    /// Bytes, base64 on the wire.
    Blob,
    /// An instant.
    Timestamp(Instant),
}

/// How an instant is written on the wire. In a [`super::Value`] it is RFC 3339 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instant {
    /// `2026-01-25T08:00:00Z`.
    Iso8601,
    /// Seconds since 1970.
    UnixSeconds,
    /// `Sun, 25 Jan 2026 08:00:00 GMT`.
    HttpDate,
}

/// A member of a structure.
#[derive(Debug)]
pub struct Member {
    /// Name in the model, and in a [`super::Value`].
    pub name: String,
    /// Its type.
    pub shape: ShapeId,
    /// Name in a request.
    pub query: String,
    /// Name in an answer.
    pub xml: String,
}

impl Model {
    /// The shape of an id.
    pub fn shape(&self, id: ShapeId) -> &Shape {
        &self.shapes[id.0]
    }

    /// Members of a structure; nothing for other shapes.
    pub fn members(&self, id: ShapeId) -> &[Member] {
        match self.shape(id) {
            Shape::Structure { members, .. } => members,
            _ => &[],
        }
    }

    /// Tables from an extract's text.
    ///
    /// # Errors
    /// What is not an extract, or names shapes that it lacks.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let file: ModelFile = serde_json::from_str(text)?;
        let ids: HashMap<&str, ShapeId> = file
            .shapes
            .keys()
            .enumerate()
            .map(|(i, name)| (name.as_str(), ShapeId(i)))
            .collect();
        let id = |name: &str| {
            ids.get(name).copied().ok_or_else(|| {
                serde::de::Error::custom(format!("shape {name} is named but not defined"))
            })
        };
        let mut shapes = Vec::with_capacity(file.shapes.len());
        for shape in file.shapes.values() {
            shapes.push(shape.resolve(&id)?);
        }
        let mut operations = BTreeMap::new();
        for (name, operation) in file.operations {
            let input = operation.input.as_deref().map(&id).transpose()?;
            let output = operation.output.as_deref().map(&id).transpose()?;
            operations.insert(
                name,
                Operation {
                    input,
                    output,
                    filters: operation.filters,
                },
            );
        }
        Ok(Self {
            api_version: file.metadata.api_version,
            xml_namespace: file.metadata.xml_namespace,
            operations,
            unoffered: file.unoffered.into_iter().collect(),
            shapes,
        })
    }
}

#[derive(Deserialize)]
struct ModelFile {
    metadata: Metadata,
    operations: BTreeMap<String, OperationFile>,
    shapes: BTreeMap<String, ShapeFile>,
    unoffered: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    api_version: String,
    xml_namespace: String,
}

#[derive(Deserialize)]
struct OperationFile {
    input: Option<String>,
    output: Option<String>,
    #[serde(default)]
    filters: Vec<String>,
}

#[derive(Deserialize)]
struct ShapeFile {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    members: Vec<(String, String, String, String)>,
    #[serde(default)]
    required: Vec<String>,
    member: Option<(String, String)>,
    #[serde(rename = "enum")]
    values: Option<Vec<String>>,
    min: Option<i64>,
    max: Option<i64>,
    #[serde(default)]
    flattened: bool,
    format: Option<String>,
}

impl ShapeFile {
    fn resolve(
        &self,
        id: &dyn Fn(&str) -> Result<ShapeId, serde_json::Error>,
    ) -> Result<Shape, serde_json::Error> {
        Ok(match (self.kind.as_str(), &self.member) {
            ("structure", _) => {
                let mut members = Vec::with_capacity(self.members.len());
                for (name, shape, query, xml) in &self.members {
                    members.push(Member {
                        name: name.clone(),
                        shape: id(shape)?,
                        query: query.clone(),
                        xml: xml.clone(),
                    });
                }
                Shape::Structure {
                    members,
                    required: self.required.clone(),
                }
            }
            ("list", Some((member, xml))) => Shape::List {
                member: id(member)?,
                xml: xml.clone(),
                flattened: self.flattened,
            },
            ("map", Some((value, _))) => Shape::Map { value: id(value)? },
            ("string", _) => Shape::String {
                values: self.values.clone(),
            },
            ("integer", _) => Shape::Integer {
                min: self.min.unwrap_or(i32::MIN.into()),
                max: self.max.unwrap_or(i32::MAX.into()),
            },
            ("long", _) => Shape::Integer {
                min: self.min.unwrap_or(i64::MIN),
                max: self.max.unwrap_or(i64::MAX),
            },
            ("float" | "double", _) => Shape::Float,
            ("boolean", _) => Shape::Boolean,
            ("blob", _) => Shape::Blob,
            ("timestamp", _) => Shape::Timestamp(match self.format.as_deref() {
                None | Some("iso8601") => Instant::Iso8601,
                Some("unixTimestamp") => Instant::UnixSeconds,
                Some("rfc822") => Instant::HttpDate,
                Some(format) => {
                    return Err(serde::de::Error::custom(format!(
                        "timestamp of unknown format {format}"
                    )));
                }
            }),
            (kind, _) => {
                return Err(serde::de::Error::custom(format!(
                    "shape of unknown type {kind}"
                )));
            }
        })
    }
}

/// EC2's tables.
pub fn ec2() -> &'static Model {
    static MODEL: LazyLock<Model> =
        LazyLock::new(|| embedded(include_str!("../../model/ec2.json")));
    &MODEL
}

/// The security token service's tables.
pub fn sts() -> &'static Model {
    static MODEL: LazyLock<Model> =
        LazyLock::new(|| embedded(include_str!("../../model/sts.json")));
    &MODEL
}

/// Parses a file of our own that is part of this program.
fn embedded(text: &str) -> Model {
    match Model::parse(text) {
        Ok(model) => model,
        Err(error) => panic!("the embedded service model is broken: {error}"),
    }
}
