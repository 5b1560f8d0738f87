//! GetLaunchTemplateData: a template's data from an instance.

use crate::ec2::list::tag_set;
use crate::ec2::{Ctx, present};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    instance_id: String,
}

/// GetLaunchTemplateData: what would launch an instance like this one.
///
/// # Errors
/// EC2's codes.
pub async fn data(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.read(|view| {
        let scope = &ctx.scope;
        let id = InstanceId::parse(&params.instance_id)?;
        let row = view
            .get::<Instance>(scope, &id)
            .filter(|row| row.state != State::Terminated)
            .ok_or_else(|| InstanceId::not_found(id))?;
        let shown = present::instance(view, scope, row);
        let disks = row.mappings.iter().filter_map(|mapping| {
            let volume = view.get::<Volume>(scope, &mapping.volume)?;
            let attachment = volume.attachment.as_ref()?;
            let mut ebs = json!({
                "DeleteOnTermination": attachment.delete_on_termination,
                "VolumeSize": volume.size_gib,
                "VolumeType": volume.volume_type,
                "Encrypted": volume.encrypted,
            });
            if let Some(iops) = volume.iops {
                ebs["Iops"] = iops.into();
            }
            if let Some(throughput) = volume.throughput_mib_s {
                ebs["Throughput"] = throughput.into();
            }
            if let Some(snapshot) = volume.snapshot {
                ebs["SnapshotId"] = snapshot.to_string().into();
            }
            Some(json!({"DeviceName": mapping.device, "Ebs": ebs}))
        });
        let interfaces = row.interfaces.iter().filter_map(|id| {
            let interface = view.get::<Interface>(scope, id)?;
            let attachment = interface.attachment.as_ref()?;
            let mut item = json!({
                "DeleteOnTermination": attachment.delete_on_termination,
                "Description": interface.description,
                "DeviceIndex": attachment.device_index,
                "Groups": interface.groups.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "SubnetId": interface.subnet.to_string(),
            });
            // How many, since two interfaces cannot have the same ones.
            if !interface.ipv6.is_empty() {
                item["Ipv6AddressCount"] = interface.ipv6.len().into();
            }
            Some(item)
        });
        let behaviour = if row.terminate_on_shutdown {
            "terminate"
        } else {
            "stop"
        };
        let mut data = json!({
            "BlockDeviceMappings": disks.collect::<Vec<_>>(),
            "NetworkInterfaces": interfaces.collect::<Vec<_>>(),
            "ImageId": row.boot.image.to_string(),
            "InstanceType": row.instance_type,
            "Monitoring": {"Enabled": row.monitoring},
            "Placement": {"AvailabilityZone": row.zone},
            "DisableApiTermination": row.disable_termination,
            "DisableApiStop": row.disable_stop,
            "InstanceInitiatedShutdownBehavior": behaviour,
        });
        let metadata = &shown["MetadataOptions"];
        for name in [
            "HttpTokens",
            "HttpPutResponseHopLimit",
            "HttpEndpoint",
            "HttpProtocolIpv6",
            "InstanceMetadataTags",
        ] {
            data["MetadataOptions"][name] = metadata[name].clone().into();
        }
        if let Some(credits) = &row.credits {
            data["CreditSpecification"] = json!({"CpuCredits": credits});
        }
        if !row.key_name.is_empty() {
            data["KeyName"] = row.key_name.clone().into();
        }
        if let Some(text) = crate::ec2::attributes::user_data(view, scope, row) {
            data["UserData"] = text.into();
        }
        if !row.tags.is_empty() {
            data["TagSpecifications"] =
                json!([{"ResourceType": "instance", "Tags": tag_set(&row.tags)}]);
        }
        Ok(json!({"LaunchTemplateData": data}))
    })
    .await
}
