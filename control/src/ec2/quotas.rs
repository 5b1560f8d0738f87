//! Quotas: AWS's published defaults, for accounts of the profile `ec2`. Those of
//! `private` have as much as there is; limits that are part of semantics (rules of
//! a group, tags) are elsewhere and hold for both.

use crate::core::Tx;
use crate::rows::*;
use crate::view::Kept;
use crate::wire::ApiError;

/// A kind of row that a quota counts in a region.
pub trait Counted: Kept {
    /// Most of them (AWS's Service Quotas).
    const MOST: usize;
    /// EC2's code for one more.
    const CODE: &'static str;
    /// What they are, for the message.
    const NOUN: &'static str;
}

macro_rules! quotas {
    ($($row:ty: $most:literal, $code:literal, $noun:literal;)*) => {$(
        impl Counted for $row {
            const MOST: usize = $most;
            const CODE: &'static str = $code;
            const NOUN: &'static str = $noun;
        }
    )*};
}

quotas! {
    Vpc: 5, "VpcLimitExceeded", "VPCs";
    Group: 2_500, "SecurityGroupLimitExceeded", "security groups";
    Interface: 5_000, "NetworkInterfaceLimitExceeded", "network interfaces";
    Gateway: 5, "InternetGatewayLimitExceeded", "internet gateways";
    Address: 5, "AddressLimitExceeded", "Elastic IP addresses";
    KeyPair: 5_000, "KeyPairLimitExceeded", "key pairs";
    LaunchTemplate: 5_000, "TemplateLimitExceeded", "launch templates";
    PrefixList: 100, "PrefixListLimitExceeded", "prefix lists";
    PlacementGroup: 500, "PlacementGroupLimitExceeded", "placement groups";
}

/// vCPUs of running on-demand standard instances (AWS quota L-1216C47A).
const MOST_VCPUS: u32 = 5;

/// The caller's profile.
pub fn limits(tx: &Tx<'_>) -> Limits {
    let account = tx.scope.account.to_string();
    let row = tx.view.get::<Account>(&Scope::global(), &account);
    row.map_or_else(Limits::default, |row| row.limits)
}

/// One more row of a kind may be made.
///
/// # Errors
/// The kind's …LimitExceeded.
pub fn room_for_one<T: Counted>(tx: &Tx<'_>) -> Result<(), ApiError> {
    if limits(tx) == Limits::Ec2 && tx.view.all::<T>(&tx.scope).count() >= T::MOST {
        return Err(ApiError::new(
            T::CODE,
            format!("The maximum number of {} has been reached.", T::NOUN),
        ));
    }
    Ok(())
}

/// So many more virtual CPUs may run.
///
/// # Errors
/// `VcpuLimitExceeded`.
pub fn room_for_vcpus(tx: &Tx<'_>, more: u32) -> Result<(), ApiError> {
    if limits(tx) != Limits::Ec2 {
        return Ok(());
    }
    let instances = tx.view.all::<Instance>(&tx.scope);
    let used: u32 = instances
        .filter(|row| row.reserved)
        .map(|row| row.vcpus)
        .sum();
    if used.saturating_add(more) > MOST_VCPUS {
        return Err(ApiError::new(
            "VcpuLimitExceeded",
            format!(
                "You have requested more vCPU capacity than your current vCPU limit of {MOST_VCPUS} \
                 allows for the instance bucket that the specified instance type belongs to."
            ),
        ));
    }
    Ok(())
}
