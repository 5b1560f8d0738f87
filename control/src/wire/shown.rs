//! An answer before a front writes it: what EC2 shows, by the model's member names.
//!
//! [`super::Value`] would do, and does for most actions, but it copies and hashes every
//! name. Of an instance there are a hundred names, on a page a thousand instances: here
//! names are borrowed from the program, and an object is a list in the order of the model.

use super::Value;
use serde::{Serialize, Serializer};
use serde_json::{Map, Number};
use std::borrow::Cow;
use std::ops::{Index, IndexMut};

/// A value of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// Nothing, which is not written.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer or fraction.
    Number(Number),
    /// Text, also instants and blobs.
    Text(Cow<'static, str>),
    /// A list.
    List(Vec<Shown>),
    /// A structure's members, or a map's entries; each name once.
    Object(Vec<(Cow<'static, str>, Shown)>),
}

/// What filters look at.
pub trait Tree: Sized {
    /// A member of an object.
    fn member(&self, name: &str) -> Option<&Self>;
    /// The elements of a list.
    fn elements(&self) -> Option<&[Self]>;
    /// A scalar as it is written.
    fn text(&self) -> Option<Cow<'_, str>>;
}

impl Tree for Value {
    fn member(&self, name: &str) -> Option<&Self> {
        self.get(name)
    }

    fn elements(&self) -> Option<&[Self]> {
        self.as_array().map(Vec::as_slice)
    }

    fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::String(text) => Some(Cow::Borrowed(text)),
            Self::Bool(_) | Self::Number(_) => Some(Cow::Owned(self.to_string())),
            _ => None,
        }
    }
}

impl Tree for Shown {
    fn member(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else {
            return None;
        };
        let found = members.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value)
    }

    fn elements(&self) -> Option<&[Self]> {
        match self {
            Self::List(elements) => Some(elements),
            _ => None,
        }
    }

    fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Bool(true) => Some(Cow::Borrowed("true")),
            Self::Bool(false) => Some(Cow::Borrowed("false")),
            Self::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }
}

impl Index<&'static str> for Shown {
    type Output = Shown;

    /// A member; null where there is none.
    fn index(&self, name: &'static str) -> &Shown {
        self.member(name).unwrap_or(&Self::Null)
    }
}

impl IndexMut<&'static str> for Shown {
    /// A member, which is made where there is none; what is no object becomes one.
    fn index_mut(&mut self, name: &'static str) -> &mut Shown {
        if !matches!(self, Self::Object(_)) {
            *self = Self::Object(Vec::new());
        }
        let Self::Object(members) = self else {
            unreachable!("it was made an object");
        };
        let at = members.iter().position(|(known, _)| known == name);
        let at = at.unwrap_or_else(|| {
            members.push((Cow::Borrowed(name), Self::Null));
            members.len() - 1
        });
        &mut members[at].1
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(elements) => serializer.collect_seq(elements),
            Self::Object(members) => {
                serializer.collect_map(members.iter().map(|(name, value)| (name, value)))
            }
        }
    }
}

impl From<bool> for Shown {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

macro_rules! numbers {
    ($($of:ty)*) => {$(
        impl From<$of> for Shown {
            fn from(value: $of) -> Self {
                Self::Number(value.into())
            }
        }
    )*};
}

numbers!(u16 u32 i32 u64 i64);

impl From<&'static str> for Shown {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Shown {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<&String> for Shown {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

impl From<Vec<Shown>> for Shown {
    fn from(elements: Vec<Shown>) -> Self {
        Self::List(elements)
    }
}

impl FromIterator<Shown> for Shown {
    fn from_iter<I: IntoIterator<Item = Shown>>(elements: I) -> Self {
        Self::List(elements.into_iter().collect())
    }
}

impl From<Value> for Shown {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => Self::Number(number),
            Value::String(text) => text.into(),
            Value::Array(elements) => elements.into_iter().map(Self::from).collect(),
            Value::Object(members) => Self::Object(
                members
                    .into_iter()
                    .map(|(name, value)| (Cow::Owned(name), value.into()))
                    .collect(),
            ),
        }
    }
}

impl From<Shown> for Value {
    fn from(shown: Shown) -> Self {
        match shown {
            Shown::Null => Self::Null,
            Shown::Bool(value) => Self::Bool(value),
            Shown::Number(number) => Self::Number(number),
            Shown::Text(text) => Self::String(text.into_owned()),
            Shown::List(elements) => elements.into_iter().map(Self::from).collect(),
            Shown::Object(members) => Self::Object(
                members
                    .into_iter()
                    .map(|(name, value)| (name.into_owned(), value.into()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// A [`Shown`] in the notation of [`serde_json::json`]; strings of rows by reference.
macro_rules! shown {
    ({ $($members:tt)* }) => { $crate::wire::shown::shown!(@object [] $($members)*) };
    ([]) => { $crate::wire::Shown::List(Vec::new()) };
    ($value:expr) => { $crate::wire::Shown::from($value) };
    (@object [$($done:expr,)*]) => { $crate::wire::Shown::Object(vec![$($done),*]) };
    (@object [$($done:expr,)*] $name:literal: {$($inner:tt)*} $(, $($rest:tt)*)?) => {
        $crate::wire::shown::shown!(@object [
            $($done,)*
            (std::borrow::Cow::Borrowed($name), $crate::wire::shown::shown!({$($inner)*})),
        ] $($($rest)*)?)
    };
    (@object [$($done:expr,)*] $name:literal: [] $(, $($rest:tt)*)?) => {
        $crate::wire::shown::shown!(@object [
            $($done,)*
            (std::borrow::Cow::Borrowed($name), $crate::wire::shown::shown!([])),
        ] $($($rest)*)?)
    };
    (@object [$($done:expr,)*] $name:literal: $value:expr $(, $($rest:tt)*)?) => {
        $crate::wire::shown::shown!(@object [
            $($done,)*
            (std::borrow::Cow::Borrowed($name), $crate::wire::Shown::from($value)),
        ] $($($rest)*)?)
    };
}
pub(crate) use shown;
