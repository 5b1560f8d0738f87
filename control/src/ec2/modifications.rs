//! Modifications of volumes, as EC2 shows them.

use super::present::timestamp;
use crate::rows::{Performance, Volume};
use crate::wire::Value;
use serde_json::json;

/// What a volume has.
pub fn of(row: &Volume) -> Performance {
    Performance {
        size_gib: row.size_gib,
        volume_type: row.volume_type.clone(),
        iops: row.iops,
        throughput_mib_s: row.throughput_mib_s,
    }
}

/// The last modification of a volume, as EC2 shows it.
pub fn modification(row: &Volume) -> Value {
    let Some(change) = &row.modification else {
        return Value::Null;
    };
    let mut item = json!({
        "VolumeId": row.id.to_string(),
        "ModificationState": if change.done { "completed" } else { "modifying" },
        "Progress": if change.done { 100 } else { 0 },
        "StartTime": timestamp(change.started_at_s),
        "OriginalSize": change.original.size_gib,
        "OriginalVolumeType": change.original.volume_type,
        "OriginalMultiAttachEnabled": false,
        "TargetSize": change.target.size_gib,
        "TargetVolumeType": change.target.volume_type,
        "TargetMultiAttachEnabled": false,
    });
    for (name, value) in [
        ("OriginalIops", change.original.iops),
        ("OriginalThroughput", change.original.throughput_mib_s),
        ("TargetIops", change.target.iops),
        ("TargetThroughput", change.target.throughput_mib_s),
    ] {
        if let Some(value) = value {
            item[name] = value.into();
        }
    }
    if let Some(at_s) = change.ended_at_s {
        item["EndTime"] = timestamp(at_s);
    }
    item
}
