//! CPU credits of burstable instances: `standard` ones are held to their baseline once they
//! have none left, which their nodes see to.

use super::instances::named;
use super::list::Query;
use super::params::Filter;
use super::types::InstanceType;
use super::{Ctx, types};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

const STANDARD: &str = "standard";
const UNLIMITED: &str = "unlimited";

/// Checks `CpuCredits`.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn check(text: &str) -> Result<(), ApiError> {
    if matches!(text, STANDARD | UNLIMITED) {
        return Ok(());
    }
    Err(ApiError::value(
        text,
        "CpuCredits",
        "Expected standard or unlimited.",
    ))
}

/// The account's default for a type, where it chose one.
pub fn default(tx: &Tx<'_>, kind: InstanceType) -> Option<String> {
    let family = kind.name.split('.').next()?;
    let row = tx.get::<Settings>(&Settings::NAME.to_owned())?;
    row.cpu_credits.get(family).cloned()
}

/// What EC2 has for a family until an account chooses.
///
/// # Errors
/// `InvalidParameterValue` for a family that this cloud has no types of.
fn of_family(family: &str) -> Result<&'static str, ApiError> {
    let kind = types::TYPES
        .iter()
        .find(|kind| kind.burstable() && kind.name.split('.').next() == Some(family));
    kind.map(InstanceType::default_credits)
        .ok_or_else(|| ApiError::value(family, "InstanceFamily", "It has no types in this cloud."))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Default {
    instance_family: String,
    cpu_credits: Option<String>,
}

fn shown(family: &str, credits: &str) -> Value {
    json!({"InstanceFamilyCreditSpecification": {
        "InstanceFamily": family, "CpuCredits": credits,
    }})
}

/// GetDefaultCreditSpecification.
///
/// # Errors
/// EC2's codes.
pub async fn get_default(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Default = ctx.params(action, request)?;
    let family = &params.instance_family;
    let begun = of_family(family)?;
    ctx.read(|view| {
        let row = view.get::<Settings>(&ctx.scope, &Settings::NAME.to_owned());
        let chosen = row.and_then(|row| row.cpu_credits.get(family));
        Ok(shown(family, chosen.map_or(begun, String::as_str)))
    })
    .await
}

/// ModifyDefaultCreditSpecification: of instances that are launched from now on.
///
/// # Errors
/// EC2's codes.
pub async fn modify_default(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Default = ctx.params(action, request)?;
    let credits = params.cpu_credits.as_deref();
    let credits = credits.ok_or_else(|| ApiError::missing("CpuCredits"))?;
    check(credits)?;
    of_family(&params.instance_family)?;
    ctx.write(|tx| {
        let row = tx.get::<Settings>(&Settings::NAME.to_owned());
        let mut row = row.as_deref().cloned().unwrap_or_default();
        row.cpu_credits
            .insert(params.instance_family.clone(), credits.to_owned());
        tx.put(row)?;
        Ok(shown(&params.instance_family, credits))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    instance_credit_specifications: Vec<Specification>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Specification {
    instance_id: String,
    cpu_credits: Option<String>,
}

impl Specification {
    /// Changes one instance; or EC2's code and why not.
    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), ApiError> {
        let credits = self.cpu_credits.as_deref().unwrap_or_default();
        check(credits)?;
        let id = InstanceId::parse(&self.instance_id)?;
        let row = tx
            .get::<Instance>(&id)
            .ok_or_else(|| InstanceId::not_found(id))?;
        if !matches!(row.state, State::Running | State::Stopped) {
            return Err(ApiError::new(
                "IncorrectInstanceState",
                format!("The instance '{id}' is '{}'.", row.state.name()),
            ));
        }
        if !types::find(&row.instance_type)?.burstable() {
            return Err(ApiError::new(
                "InstanceCreditSpecification.NotSupported",
                format!("The instance '{id}' is not a burstable performance instance."),
            ));
        }
        let mut row = row.as_ref().clone();
        row.credits = Some(credits.to_owned());
        row.generation += 1;
        tx.put(row)
    }
}

/// ModifyInstanceCreditSpecification: each instance succeeds or fails by itself.
///
/// # Errors
/// `MissingParameter`, and EC2's other codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    if params.instance_credit_specifications.is_empty() {
        return Err(ApiError::missing("InstanceCreditSpecification"));
    }
    if params.instance_credit_specifications.len() > MAX_INSTANCES {
        let why = format!("At most {MAX_INSTANCES} instances may be named.");
        let count = params.instance_credit_specifications.len();
        return Err(ApiError::value(count, "InstanceCreditSpecification", &why));
    }
    ctx.write(|tx| {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for one in &params.instance_credit_specifications {
            let id = &one.instance_id;
            match one.apply(tx) {
                Ok(()) => done.push(json!({"InstanceId": id})),
                Err(error) if error.status < 500 => failed.push(json!({
                    "InstanceId": id,
                    "Error": {"Code": error.code, "Message": error.message},
                })),
                Err(error) => return Err(error),
            }
        }
        Ok(json!({
            "SuccessfulInstanceCreditSpecifications": done,
            "UnsuccessfulInstanceCreditSpecifications": failed,
        }))
    })
    .await
}

/// Most instances of one call: each is a row of its transaction.
const MAX_INSTANCES: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    instance_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeInstanceCreditSpecifications: as EC2 has it, named instances must be
/// burstable, and without names those are listed that are `unlimited`.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let by_id = !params.instance_ids.is_empty();
    let query = Query {
        action,
        member: "InstanceCreditSpecifications",
        by_id,
        filters: &params.filters,
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let mut items = Vec::new();
        for row in named(view, &ctx.scope, &params.instance_ids)? {
            let kind = types::find(&row.instance_type)?;
            if by_id && !kind.burstable() {
                return Err(ApiError::new(
                    "IncorrectInstanceState",
                    format!(
                        "The instance ID(s) '{}' is not a burstable performance instance.",
                        row.id
                    ),
                ));
            }
            let credits = row.credits.as_deref().unwrap_or(kind.default_credits());
            if kind.burstable()
                && row.state != State::Terminated
                && (by_id || credits == "unlimited")
            {
                let id = row.id.to_string();
                items.push((id.clone(), json!({"InstanceId": id, "CpuCredits": credits})));
            }
        }
        query.answer(items)
    })
    .await
}
