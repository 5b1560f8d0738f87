//! What volumes are held to: set at any time, durable, effective at once.

use super::refusal::{Refused, check_name, failed, not_found, refused};
use super::{Volumes, qos};
use crate::qos::Group;
use ocs_storaged_api::{ErrorCode, Limits, VolumeLimits, VolumeName};
use std::sync::Arc;

/// Most groups of one storaged.
const MAX_GROUPS: usize = 4096;

impl Volumes {
    /// Holds a volume to `limits`.
    pub(super) fn set_limits(
        &self,
        name: &VolumeName,
        limits: &VolumeLimits,
    ) -> Result<(), Refused> {
        let name = check_name(name)?;
        let invalid = |why| refused(ErrorCode::Invalid, why);
        limits.check().map_err(invalid)?;
        let _claim = self.claim(name);
        let (record, volume) = self.find(name).ok_or_else(|| not_found(name))?;
        // Held to the end, lest the group ends meanwhile.
        let mut table = self.store.table();
        let group = self.group(limits);
        if let (Some(named), None) = (&limits.group, &group) {
            let why = format!("limits.group: there is no group {named:?}");
            return Err(refused(ErrorCode::NotFound, why));
        }
        if record.limits != *limits {
            table
                .update(|contents| {
                    if let Some(record) = contents.volumes.get_mut(name) {
                        record.limits = limits.clone();
                    }
                })
                .map_err(|error| failed("the table", &error))?;
            volume.qos.change(limits, group, qos::now_ns());
            drop(table);
            self.save_credits(false);
            self.tell_shards();
        }
        Ok(())
    }

    /// Makes, changes or ends a group.
    pub(super) fn set_group(&self, name: &str, limits: &Limits) -> Result<(), Refused> {
        check_name(&VolumeName(name.to_owned()))
            .map_err(|error| refused(error.code, error.message.replacen("volume", "group", 1)))?;
        let invalid = |why| refused(ErrorCode::Invalid, why);
        limits.check().map_err(invalid)?;
        let mut table = self.store.table();
        let ends = limits.iops.is_none() && limits.bytes.is_none();
        let member = |r: &super::Record| r.limits.group.as_deref() == Some(name);
        if ends && let Some((volume, _)) = table.volumes().iter().find(|(_, r)| member(r)) {
            let why = format!("group {name} has a member, {volume}");
            return Err(refused(ErrorCode::Conflict, why));
        }
        match table.groups().get(name) {
            Some(known) if known == limits => return Ok(()),
            None if ends => return Ok(()),
            None if table.groups().len() >= MAX_GROUPS => {
                let why = format!("there are {MAX_GROUPS} groups");
                return Err(refused(ErrorCode::Full, why));
            }
            _ => {}
        }
        table
            .update(|contents| {
                contents.groups.remove(name);
                if !ends {
                    contents.groups.insert(name.to_owned(), *limits);
                }
            })
            .map_err(|error| failed("the table", &error))?;
        let now_ns = qos::now_ns();
        let mut live = self.live();
        if ends {
            live.groups.remove(name);
        } else {
            let fresh = || Arc::new(Group::new(limits, now_ns));
            let group = live.groups.entry(name.to_owned()).or_insert_with(fresh);
            group.change(limits, now_ns);
        }
        drop(live);
        drop(table);
        self.save_credits(false);
        self.tell_shards();
        Ok(())
    }

    /// The group that `limits` name, if there is one.
    pub(super) fn group(&self, limits: &VolumeLimits) -> Option<Arc<Group>> {
        let name = limits.group.as_deref()?;
        self.live().groups.get(name).cloned()
    }

    fn tell_shards(&self) {
        for shard in &self.shards {
            if let Err(error) = shard.limits_changed() {
                tracing::error!(%error, "limits not announced");
            }
        }
    }
}
