//! Describe actions: by ids or all, filtered, in pages.
//!
//! A page's token is the key of its last item, so pages stay right while items
//! come and go.

use super::filters::{Filters, Paths};
use super::params::Filter;
use crate::wire::shapes::Shape;
use crate::wire::shown::shown;
use crate::wire::{ApiError, Shown, Tree, Value};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Map;

/// Most items of one page.
const MAX_PAGE: i64 = 1_000;
/// Fewest that a caller may ask for.
const MIN_PAGE: i64 = 5;

/// What describe actions have in common.
#[derive(Debug)]
pub struct Query<'a> {
    /// The action.
    pub action: &'a str,
    /// How the action's answer calls the list.
    pub member: &'a str,
    /// Ids were given.
    pub by_id: bool,
    /// Filters.
    pub filters: &'a [Filter],
    /// Where filter names lead.
    pub paths: Paths,
    /// `MaxResults`.
    pub max_results: Option<i64>,
    /// `NextToken`.
    pub next_token: Option<&'a str>,
}

/// Which items to make, and how many at most.
pub struct Page {
    filters: Filters,
    after: Option<String>,
    limit: usize,
    prefix: String,
}

impl Query<'_> {
    /// Checks bounds, token and filters.
    ///
    /// # Errors
    /// `InvalidParameterValue`, `InvalidParameterCombination`, `InvalidNextToken`.
    pub fn page(&self) -> Result<Page, ApiError> {
        let (least, most) = bounds(self.action);
        let limit = match self.max_results {
            Some(_) if self.by_id => {
                return Err(ApiError::combination(
                    "The parameter maxResults cannot be used with a list of ids.",
                ));
            }
            Some(max) if max < least => {
                return Err(ApiError::value(
                    max,
                    "maxResults",
                    &format!("Expecting a value greater than or equal to {least}."),
                ));
            }
            Some(max) => max.min(most),
            None if self.next_token.is_some() => most,
            None => i64::MAX,
        };
        let prefix = format!("1.{}.", self.action);
        let after = self
            .next_token
            .map(|token| decode(&prefix, token))
            .transpose()?;
        Ok(Page {
            filters: Filters::compile(self.action, self.filters, self.paths)?,
            after,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            prefix,
        })
    }

    /// The whole answer from items in the order of their keys.
    ///
    /// # Errors
    /// As [`Query::page`].
    pub fn answer(
        &self,
        items: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Value, ApiError> {
        let (items, token) = self.page()?.fill(items);
        let mut answer = Map::new();
        answer.insert(self.member.to_owned(), Value::Array(items));
        if let Some(token) = token {
            answer.insert("NextToken".to_owned(), Value::String(token));
        }
        Ok(Value::Object(answer))
    }
}

/// Page sizes that an action takes: the model's, else EC2's usual ones.
fn bounds(action: &str) -> (i64, i64) {
    let model = crate::wire::ec2();
    let input = model.operations.get(action).and_then(|o| o.input);
    let members = input.map(|input| model.members(input)).unwrap_or_default();
    let member = members.iter().find(|member| member.name == "MaxResults");
    match member.map(|member| model.shape(member.shape)) {
        Some(Shape::Integer { min, max }) if *min > 0 => (*min, (*max).min(MAX_PAGE)),
        _ => (MIN_PAGE, MAX_PAGE),
    }
}

impl Page {
    /// Whether an item is on this page or a later one.
    fn is_ahead(&self, key: &str) -> bool {
        self.after.as_deref().is_none_or(|after| key > after)
    }

    /// The key of the last item of the page before.
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// Takes what belongs to this page; items come in the order of their keys.
    pub fn fill<T: Tree>(
        &self,
        items: impl IntoIterator<Item = (String, T)>,
    ) -> (Vec<T>, Option<String>) {
        let mut page = Vec::new();
        let mut last = String::new();
        for (key, item) in items {
            if !self.is_ahead(&key) || !self.filters.pass(&item) {
                continue;
            }
            if page.len() == self.limit {
                return (
                    page,
                    Some(URL_SAFE_NO_PAD.encode(format!("{}{last}", self.prefix))),
                );
            }
            page.push(item);
            last = key;
        }
        (page, None)
    }
}

fn decode(prefix: &str, token: &str) -> Result<String, ApiError> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.as_deref()
        .and_then(|text| text.strip_prefix(prefix))
        .map(str::to_owned)
        .ok_or_else(|| ApiError::new("InvalidNextToken", "The specified NextToken is not valid."))
}

/// Parses a list of ids and sees to it that each names something.
///
/// # Errors
/// The kind's Malformed or NotFound code for the first that does not.
pub fn lookup<I: Copy, T>(
    texts: &[String],
    parse: impl Fn(&str) -> Result<I, ApiError>,
    find: impl Fn(I) -> Option<T>,
    not_found: impl Fn(&str) -> ApiError,
) -> Result<Vec<T>, ApiError> {
    let ids = texts
        .iter()
        .map(|text| Ok((parse(text)?, text)))
        .collect::<Result<Vec<_>, ApiError>>()?;
    let missing: Vec<&str> = ids
        .iter()
        .filter(|(id, _)| find(*id).is_none())
        .map(|(_, text)| text.as_str())
        .collect();
    if !missing.is_empty() {
        return Err(not_found(&missing.join(", ")));
    }
    Ok(ids.into_iter().filter_map(|(id, _)| find(id)).collect())
}

/// Tags as EC2 lists them.
pub fn tag_set(tags: &crate::rows::Tags) -> Shown {
    tags.iter()
        .map(|(key, value)| shown!({"Key": key, "Value": value}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn query(max: Option<i64>, token: Option<&str>) -> Query<'_> {
        Query {
            action: "DescribeVpcs",
            member: "Vpcs",
            by_id: false,
            filters: &[],
            paths: &[],
            max_results: max,
            next_token: token,
        }
    }

    proptest! {
        #[test]
        fn pages_hold_each_lasting_item_once(total in 0_usize..60, size in 5_i64..20, gone in 0_usize..60) {
            let item = |n: usize| (format!("{n:04}"), json!({"N": n}));
            let mut seen = Vec::new();
            let mut token: Option<String> = None;
            loop {
                // One item disappears after the first page.
                let items = (0..total).filter(|n| token.is_none() || *n != gone).map(item);
                let answer = query(Some(size), token.as_deref()).answer(items).unwrap();
                let page = answer["Vpcs"].as_array().unwrap();
                seen.extend(page.iter().map(|v| usize::try_from(v["N"].as_u64().unwrap()).unwrap()));
                token = answer["NextToken"].as_str().map(str::to_owned);
                if token.is_none() { break; }
            }
            seen.retain(|n| *n != gone);
            let expected: Vec<_> = (0..total).filter(|n| *n != gone).collect();
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn bounds_and_tokens_are_checked() {
        let code = |query: Query<'_>| query.answer([]).unwrap_err().code;
        assert_eq!(code(query(Some(4), None)), "InvalidParameterValue");
        assert_eq!(code(query(None, Some("nonsense"))), "InvalidNextToken");
        let other = URL_SAFE_NO_PAD.encode("1.DescribeSubnets.x");
        assert_eq!(code(query(None, Some(&other))), "InvalidNextToken");
        let by_id = Query {
            by_id: true,
            ..query(Some(5), None)
        };
        assert_eq!(code(by_id), "InvalidParameterCombination");
    }
}
