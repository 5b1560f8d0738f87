//! What a machine says that it is.

use crate::check::{SpecError, must};
use serde::{Deserialize, Serialize};

/// The words of SMBIOS that a guest reads (Linux: `/sys/class/dmi/id`), each at most 64
/// printable ASCII characters; an empty one is not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Smbios {
    /// Of system, board, chassis and BIOS.
    #[serde(default)]
    pub vendor: String,
    /// The system's.
    #[serde(default)]
    pub product: String,
    /// The system's, as `01234567-89ab-cdef-0123-456789abcdef`; empty: not set.
    #[serde(default)]
    pub uuid: String,
    /// The system's.
    #[serde(default)]
    pub serial: String,
    /// The chassis'.
    #[serde(default)]
    pub asset_tag: String,
    /// The board's.
    #[serde(default)]
    pub board_asset_tag: String,
}

impl Smbios {
    /// Checks its bounds; `field` is where it stands.
    pub fn check(&self, field: &str) -> Result<(), SpecError> {
        for (name, text) in [
            ("vendor", &self.vendor),
            ("product", &self.product),
            ("serial", &self.serial),
            ("asset_tag", &self.asset_tag),
            ("board_asset_tag", &self.board_asset_tag),
        ] {
            must(
                text.len() <= 64 && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()),
                format!("{field}.{name}"),
                format!("{text:?} is not up to 64 printable ASCII characters"),
            )?;
        }
        must(
            self.uuid.is_empty() || self.uuid_bytes().is_some(),
            format!("{field}.uuid"),
            format!("{:?} is no UUID", self.uuid),
        )
    }

    /// The UUID's 16 bytes in the order in which they are written.
    #[must_use]
    pub fn uuid_bytes(&self) -> Option<[u8; 16]> {
        let hyphens = [8, 13, 18, 23];
        let fits = self.uuid.len() == 36
            && (self.uuid.bytes().enumerate())
                .all(|(at, byte)| (byte == b'-') == hyphens.contains(&at));
        let digits: String = self.uuid.split('-').collect();
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u128::from_str_radix(&digits, 16).ok();
        value.filter(|_| fits && is_hex).map(u128::to_be_bytes)
    }
}
