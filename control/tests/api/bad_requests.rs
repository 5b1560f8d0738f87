//! Requests that are wrong: EC2's code for each, and nothing changes.

use crate::support::{Control, text};

/// Action, parameters, EC2's code.
type Case = (&'static str, Vec<(String, String)>, &'static str);

#[test]
fn each_wrong_request_has_ec2s_code() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let image = control.ready["images"]["us-east-1"]["ocs-probe"]
        .as_str()
        .unwrap()
        .to_owned();
    let elsewhere = control.ready["images"]["eu-west-1"]["ocs-probe"]
        .as_str()
        .unwrap()
        .to_owned();
    let default = text(&control.ok("DescribeSecurityGroups", &[]), "groupId").remove(0);
    let other = text(
        &control.ok(
            "CreateSecurityGroup",
            &[("GroupName", "g"), ("GroupDescription", "d")],
        ),
        "groupId",
    )
    .remove(0);
    let rule = [
        ("GroupId", other.as_str()),
        ("IpProtocol", "tcp"),
        ("FromPort", "80"),
        ("ToPort", "80"),
        ("CidrIp", "10.0.0.0/8"),
    ];
    control.ok("AuthorizeSecurityGroupIngress", &rule);
    let before = dump(&control);

    let launch = |more: &[(&'static str, &str)]| {
        let mut params: Vec<(String, String)> = [
            ("ImageId", image.as_str()),
            ("MinCount", "1"),
            ("MaxCount", "1"),
        ]
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect();
        for (name, value) in more {
            params.retain(|(known, _)| known != name);
            params.push(((*name).to_owned(), (*value).to_owned()));
        }
        params
    };
    let plain = |params: &[(&str, &str)]| -> Vec<(String, String)> {
        params
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    };
    let big = "A".repeat(21_848);
    let long_token = "t".repeat(65);
    let absent = "i-0123456789abcdef0";
    let permission = |more: &[(&str, &str)]| {
        let mut params = plain(&[("GroupId", other.as_str())]);
        params.extend(plain(more));
        params
    };
    let table: Vec<Case> = vec![
        ("RunInstance", launch(&[]), "InvalidAction"),
        ("CreateVpc", plain(&[]), "UnsupportedOperation"),
        (
            "RunInstances",
            plain(&[("ImageId", &image)]),
            "MissingParameter",
        ),
        (
            "RunInstances",
            plain(&[("MinCount", "1"), ("MaxCount", "1")]),
            "MissingParameter",
        ),
        (
            "RunInstances",
            launch(&[("MinCount", "x")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("MinCount", "0")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("MinCount", "2")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("MaxCount", "99999999999999999999")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("Colour", "red")]),
            "UnknownParameter",
        ),
        (
            "RunInstances",
            launch(&[("Placement.Colour", "red")]),
            "UnknownParameter",
        ),
        (
            "RunInstances",
            launch(&[("ImageId.1", "x")]),
            "UnknownParameter",
        ),
        (
            "RunInstances",
            launch(&[("ImageId", "ami-xyz")]),
            "InvalidAMIID.Malformed",
        ),
        (
            "RunInstances",
            launch(&[("ImageId", "ami-12345678")]),
            "InvalidAMIID.NotFound",
        ),
        (
            "RunInstances",
            launch(&[("ImageId", &elsewhere)]),
            "InvalidAMIID.NotFound",
        ),
        (
            "RunInstances",
            launch(&[("InstanceType", "z9.huge")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("KeyName", "none")]),
            "InvalidKeyPair.NotFound",
        ),
        (
            "RunInstances",
            launch(&[("UserData", "!!")]),
            "InvalidUserData.Malformed",
        ),
        (
            "RunInstances",
            launch(&[("UserData", &big)]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("SubnetId", "subnet-1")]),
            "InvalidSubnetID.Malformed",
        ),
        (
            "RunInstances",
            launch(&[("SubnetId", "subnet-0123456789abcdef0")]),
            "InvalidSubnetID.NotFound",
        ),
        (
            "RunInstances",
            launch(&[("SecurityGroupId.1", "sg-zz")]),
            "InvalidGroupId.Malformed",
        ),
        (
            "RunInstances",
            launch(&[("SecurityGroupId.1", "sg-0123456789abcdef0")]),
            "InvalidGroup.NotFound",
        ),
        (
            "RunInstances",
            launch(&[("SecurityGroup.1", "nobody")]),
            "InvalidGroup.NotFound",
        ),
        (
            "RunInstances",
            launch(&[("ClientToken", &long_token)]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("PrivateIpAddress", "10.9.9.9")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("PrivateIpAddress", "300.1.1.1")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("PrivateIpAddress", "172.31.0.1")]),
            "InvalidIPAddress.InUse",
        ),
        (
            "RunInstances",
            launch(&[("Placement.AvailabilityZone", "us-east-1z")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("Placement.Tenancy", "dedicated")]),
            "UnsupportedOperation",
        ),
        (
            "RunInstances",
            launch(&[("Placement.Tenancy", "purple")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("EbsOptimized", "true")]),
            "UnsupportedOperation",
        ),
        (
            "RunInstances",
            launch(&[("EbsOptimized", "maybe")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("Monitoring.Enabled", "true")]),
            "UnsupportedOperation",
        ),
        (
            "RunInstances",
            launch(&[("IamInstanceProfile.Name", "x")]),
            "UnsupportedOperation",
        ),
        (
            "RunInstances",
            launch(&[("MetadataOptions.HttpTokens", "never")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("BlockDeviceMapping.1.DeviceName", "sda one")]),
            "InvalidBlockDeviceMapping",
        ),
        (
            "RunInstances",
            launch(&[
                ("BlockDeviceMapping.1.DeviceName", "/dev/sdb"),
                ("BlockDeviceMapping.1.Ebs.VolumeSize", "0"),
            ]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[("TagSpecification.1.ResourceType", "vpc")]),
            "InvalidParameterValue",
        ),
        (
            "RunInstances",
            launch(&[
                ("TagSpecification.1.ResourceType", "instance"),
                ("TagSpecification.1.Tag.1.Key", "aws:x"),
            ]),
            "InvalidParameterValue",
        ),
        ("RunInstances", launch(&[]), "InsufficientInstanceCapacity"),
        ("TerminateInstances", plain(&[]), "MissingParameter"),
        (
            "TerminateInstances",
            plain(&[("InstanceId.1", "i-1")]),
            "InvalidInstanceID.Malformed",
        ),
        (
            "TerminateInstances",
            plain(&[("InstanceId.1", absent)]),
            "InvalidInstanceID.NotFound",
        ),
        (
            "TerminateInstances",
            plain(&[("InstanceId.x", absent)]),
            "UnknownParameter",
        ),
        (
            "TerminateInstances",
            plain(&[("InstanceId.0", absent)]),
            "UnknownParameter",
        ),
        (
            "StopInstances",
            plain(&[("InstanceId.1", absent)]),
            "InvalidInstanceID.NotFound",
        ),
        (
            "StartInstances",
            plain(&[("InstanceId.1", "vol-1")]),
            "InvalidInstanceID.Malformed",
        ),
        (
            "GetConsoleOutput",
            plain(&[("InstanceId", absent)]),
            "InvalidInstanceID.NotFound",
        ),
        ("GetConsoleOutput", plain(&[]), "MissingParameter"),
        (
            "DescribeInstances",
            plain(&[("InstanceId.1", absent)]),
            "InvalidInstanceID.NotFound",
        ),
        (
            "DescribeInstances",
            plain(&[("MaxResults", "4")]),
            "InvalidParameterValue",
        ),
        (
            "DescribeInstances",
            plain(&[("NextToken", "x")]),
            "InvalidNextToken",
        ),
        (
            "DescribeInstances",
            plain(&[("Filter.1.Name", "hue"), ("Filter.1.Value.1", "x")]),
            "InvalidParameterValue",
        ),
        (
            "DescribeInstances",
            plain(&[("Filter.1.Name", "vpc-id")]),
            "MissingParameter",
        ),
        (
            "DescribeVolumes",
            plain(&[("VolumeId.1", "vol-0123456789abcdef0")]),
            "InvalidVolume.NotFound",
        ),
        (
            "DescribeImages",
            plain(&[("ImageId.1", "ami-0123456789abcdef0")]),
            "InvalidAMIID.NotFound",
        ),
        (
            "DescribeImages",
            plain(&[("Owner.1", "bob")]),
            "InvalidUserID.Malformed",
        ),
        (
            "DescribeInstanceTypes",
            plain(&[("InstanceType.1", "z9.huge")]),
            "InvalidInstanceType",
        ),
        (
            "DescribeRegions",
            plain(&[("RegionName.1", "moon")]),
            "InvalidParameterValue",
        ),
        (
            "DescribeAvailabilityZones",
            plain(&[("ZoneName.1", "moon")]),
            "InvalidParameterValue",
        ),
        (
            "DescribeVpcs",
            plain(&[("VpcId.1", "vpc-0123456789abcdef0")]),
            "InvalidVpcID.NotFound",
        ),
        (
            "DescribeSubnets",
            plain(&[("SubnetId.1", "subnet-x")]),
            "InvalidSubnetID.Malformed",
        ),
        (
            "DescribeNetworkInterfaces",
            plain(&[("NetworkInterfaceId.1", "eni-0123456789abcdef0")]),
            "InvalidNetworkInterfaceID.NotFound",
        ),
        (
            "CreateSecurityGroup",
            plain(&[("GroupName", "x")]),
            "MissingParameter",
        ),
        (
            "CreateSecurityGroup",
            plain(&[("GroupName", "x"), ("GroupDescription", "")]),
            "MissingParameter",
        ),
        (
            "CreateSecurityGroup",
            plain(&[("GroupName", "g"), ("GroupDescription", "d")]),
            "InvalidGroup.Duplicate",
        ),
        (
            "CreateSecurityGroup",
            plain(&[("GroupName", "default"), ("GroupDescription", "d")]),
            "InvalidGroup.Reserved",
        ),
        (
            "CreateSecurityGroup",
            plain(&[
                ("GroupName", "x"),
                ("GroupDescription", "d"),
                ("VpcId", "vpc-0123456789abcdef0"),
            ]),
            "InvalidVpcID.NotFound",
        ),
        (
            "DeleteSecurityGroup",
            plain(&[("GroupId", &default)]),
            "CannotDelete",
        ),
        (
            "DeleteSecurityGroup",
            plain(&[("GroupId", "sg-0123456789abcdef0")]),
            "InvalidGroup.NotFound",
        ),
        ("DeleteSecurityGroup", plain(&[]), "MissingParameter"),
        (
            "AuthorizeSecurityGroupIngress",
            plain(&rule),
            "InvalidPermission.Duplicate",
        ),
        (
            "AuthorizeSecurityGroupIngress",
            permission(&[]),
            "MissingParameter",
        ),
        (
            "AuthorizeSecurityGroupIngress",
            permission(&[
                ("IpProtocol", "tcp"),
                ("FromPort", "1"),
                ("ToPort", "1"),
                ("CidrIp", "10.0.0.0/33"),
            ]),
            "InvalidParameterValue",
        ),
        (
            "AuthorizeSecurityGroupIngress",
            permission(&[
                ("IpProtocol", "tcp"),
                ("FromPort", "9"),
                ("ToPort", "1"),
                ("CidrIp", "10.0.0.0/8"),
            ]),
            "InvalidParameterValue",
        ),
        (
            "AuthorizeSecurityGroupIngress",
            permission(&[("IpProtocol", "carrier-pigeon"), ("CidrIp", "10.0.0.0/8")]),
            "InvalidParameterValue",
        ),
        (
            "AuthorizeSecurityGroupIngress",
            permission(&[
                ("IpPermissions.1.IpProtocol", "-1"),
                ("IpPermissions.1.Groups.1.GroupId", "sg-0123456789abcdef0"),
            ]),
            "InvalidGroup.NotFound",
        ),
        (
            "AuthorizeSecurityGroupIngress",
            permission(&[
                ("IpPermissions.1.IpProtocol", "-1"),
                ("IpPermissions.1.PrefixListIds.1.PrefixListId", "pl-1"),
            ]),
            "UnsupportedOperation",
        ),
        (
            "RevokeSecurityGroupIngress",
            permission(&[
                ("IpProtocol", "udp"),
                ("FromPort", "1"),
                ("ToPort", "1"),
                ("CidrIp", "10.0.0.0/8"),
            ]),
            "InvalidPermission.NotFound",
        ),
        (
            "RevokeSecurityGroupIngress",
            permission(&[("SecurityGroupRuleId.1", "sgr-0123456789abcdef0")]),
            "InvalidSecurityGroupRuleId.NotFound",
        ),
        (
            "CreateTags",
            plain(&[("ResourceId.1", "x-1"), ("Tag.1.Key", "k")]),
            "InvalidID",
        ),
        (
            "CreateTags",
            plain(&[("ResourceId.1", absent), ("Tag.1.Key", "k")]),
            "InvalidInstanceID.NotFound",
        ),
        (
            "CreateTags",
            plain(&[("ResourceId.1", &other), ("Tag.1.Key", "AWS:k")]),
            "InvalidParameterValue",
        ),
        (
            "CreateTags",
            plain(&[("ResourceId.1", &other)]),
            "MissingParameter",
        ),
        (
            "DeleteVolume",
            plain(&[("VolumeId", "vol-0123456789abcdef0")]),
            "InvalidVolume.NotFound",
        ),
        (
            "ModifyInstanceMetadataDefaults",
            plain(&[("HttpPutResponseHopLimit", "65")]),
            "InvalidParameterValue",
        ),
        (
            "DescribeVpcs",
            plain(&[("DryRun", "true")]),
            "DryRunOperation",
        ),
    ];
    for (action, params, code) in &table {
        let params: Vec<(&str, &str)> = params
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        control.refused(action, &params, code);
    }
    let mut many: Vec<(String, String)> = vec![("ResourceId.1".to_owned(), other.clone())];
    many.extend((1..=51).map(|n| (format!("Tag.{n}.Key"), format!("k{n}"))));
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    control.refused("CreateTags", &many, "TagLimitExceeded");
    assert_eq!(dump(&control), before, "nothing has changed");
}

/// What a caller can see of the state.
fn dump(control: &Control) -> Vec<String> {
    let actions = [
        "DescribeInstances",
        "DescribeVolumes",
        "DescribeSecurityGroups",
        "DescribeSecurityGroupRules",
        "DescribeSubnets",
        "DescribeNetworkInterfaces",
        "DescribeTags",
        "GetInstanceMetadataDefaults",
    ];
    let without_id = |body: String| {
        let (head, rest) = body.split_once("<requestId>").unwrap();
        format!("{head}{}", rest.split_once("</requestId>").unwrap().1)
    };
    actions
        .iter()
        .map(|action| without_id(control.ok(action, &[])))
        .collect()
}

#[test]
fn credentials_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let mut control = Control::start(dir.path());
    let (status, body) = control.call_in("mars-1", "DescribeVpcs", &[]);
    assert_eq!(
        (status, text(&body, "Code").remove(0).as_str()),
        (401, "AuthFailure")
    );
    let caller = "Action=GetCallerIdentity&Version=2011-06-15";
    let (status, body) = control.post("us-east-1", "sts", caller);
    assert_eq!(
        (status, text(&body, "Account").remove(0)),
        (200, control.keys["account_id"].as_str().unwrap().to_owned())
    );
    let (status, body) = control.post("us-east-1", "s3", caller);
    assert_eq!(
        (status, text(&body, "Code").remove(0).as_str()),
        (401, "AuthFailure")
    );
    let good = std::mem::take(&mut control.keys["secret_access_key"]);
    control.keys["secret_access_key"] = "wrong".into();
    let (status, body) = control.call("DescribeVpcs", &[]);
    assert_eq!(
        (status, text(&body, "Code").remove(0).as_str()),
        (401, "AuthFailure")
    );
    let (status, body) = control.post("us-east-1", "sts", caller);
    assert_eq!(
        (status, text(&body, "Code").remove(0).as_str()),
        (403, "SignatureDoesNotMatch")
    );
    control.keys["secret_access_key"] = good;
    control.keys["access_key_id"] = "AKIAAAAAAAAAAAAAAAAA".into();
    let (status, body) = control.call("DescribeVpcs", &[]);
    assert_eq!(
        (status, text(&body, "Code").remove(0).as_str()),
        (401, "AuthFailure")
    );
}
