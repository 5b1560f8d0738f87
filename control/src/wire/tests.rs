//! The codec: rules of the protocol, and whatever a hostile caller may send.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn decode(action: &str, params: &[(&str, &str)]) -> Result<Value, ApiError> {
    let params = params
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect();
    let input = ec2().operations[action].input;
    let value = query::decode(ec2(), input, params)?;
    validate::request(ec2(), input, &value)?;
    Ok(value)
}

#[test]
fn the_ec2_protocols_names_decode() {
    let value = decode(
        "RunInstances",
        &[
            ("MinCount", "1"),
            ("MaxCount", "2"),
            ("SecurityGroupId.2", "sg-b"),
            ("SecurityGroupId.1", "sg-a"),
            ("NetworkInterface.1.DeviceIndex", "0"),
            ("NetworkInterface.1.SecurityGroupId.1", "sg-c"),
            ("TagSpecification.1.Tag.1.Key", "Name"),
            ("BlockDeviceMapping.10.DeviceName", "/dev/sdb"),
            ("BlockDeviceMapping.9.Ebs.DeleteOnTermination", "TRUE"),
            ("UserData", ""),
        ],
    );
    let expected = json!({
        "MinCount": 1, "MaxCount": 2, "SecurityGroupIds": ["sg-a", "sg-b"],
        "NetworkInterfaces": [{"DeviceIndex": 0, "Groups": ["sg-c"]}],
        "TagSpecifications": [{"Tags": [{"Key": "Name"}]}],
        "BlockDeviceMappings": [{"Ebs": {"DeleteOnTermination": true}}, {"DeviceName": "/dev/sdb"}],
    });
    assert_eq!(value, Ok(expected));
}

#[test]
fn what_is_unknown_is_refused_by_name() {
    for (name, value) in [
        ("Nothing", "1"),
        ("InstanceId", "i-1"),
        ("InstanceId.1.2", "i-1"),
        ("InstanceId.01x", "i-1"),
        ("Filter.1.Value", "x"),
        ("instanceId.1", "i-1"),
        ("", "x"),
        ("Filter", "x"),
    ] {
        let error = decode("DescribeInstances", &[(name, value)]).unwrap_err();
        assert_eq!(error.code, "UnknownParameter", "{name}: {error}");
    }
    let twice = decode(
        "DescribeInstances",
        &[("MaxResults", "5"), ("MaxResults", "6")],
    );
    assert_eq!(twice.unwrap_err().code, "InvalidQueryParameter");
}

#[test]
fn answers_encode_as_ec2_writes_them() {
    let value = json!({"Return": true, "UnknownIpPermissions": [], "RevokedSecurityGroupRules": [
        {"GroupId": "sg-1", "IsEgress": false, "FromPort": -1, "Description": "a<b&\"c\"\u{1}"}
    ]});
    let xml = xml::ec2(ec2(), "RevokeSecurityGroupIngress", &value.into(), "id");
    assert_eq!(
        xml,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <RevokeSecurityGroupIngressResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>id</requestId><return>true</return><unknownIpPermissionSet/>\
         <revokedSecurityGroupRuleSet><item><groupId>sg-1</groupId><isEgress>false</isEgress>\
         <fromPort>-1</fromPort><description>a&lt;b&amp;&quot;c&quot;\u{fffd}</description></item>\
         </revokedSecurityGroupRuleSet></RevokeSecurityGroupIngressResponse>"
    );
    let none = xml::ec2(ec2(), "CreateTags", &json!({}).into(), "id");
    assert!(none.contains("<return>true</return>"), "{none}");
    assert_eq!(
        validate::strangers(
            ec2(),
            ec2().operations["CreateSecurityGroup"].output,
            &json!({"Id": 1})
        ),
        [".Id"]
    );
}

#[test]
fn an_answer_is_in_the_models_order_however_it_was_made() {
    let mut made = shown::shown!({"UnknownIpPermissions": []});
    made["Return"] = false.into();
    made["Return"] = true.into();
    made["RevokedSecurityGroupRules"] = [shown::shown!({"IsEgress": true, "GroupId": "sg-1"})]
        .into_iter()
        .collect();
    let value = json!({"RevokedSecurityGroupRules": [{"GroupId": "sg-1", "IsEgress": true}],
        "UnknownIpPermissions": [], "Return": true});
    assert_eq!(Value::from(made.clone()), value);
    assert_eq!(made["Return"].text().as_deref(), Some("true"));
    let write = |shown: &Shown| xml::ec2(ec2(), "RevokeSecurityGroupIngress", shown, "id");
    assert_eq!(write(&made), write(&value.into()));
    assert!(write(&made).contains(
        "<return>true</return><unknownIpPermissionSet/><revokedSecurityGroupRuleSet><item>\
         <groupId>sg-1</groupId><isEgress>true</isEgress></item>"
    ));
}

/// Names made of the model's own words, so that they get far.
fn names() -> impl Strategy<Value = String> {
    let words = [
        "Filter",
        "Value",
        "Name",
        "InstanceId",
        "1",
        "2",
        "0",
        "99999999999",
        "Ebs",
        "",
        "BlockDeviceMapping",
        "NetworkInterface",
        "TagSpecification",
        "Tag",
        "Key",
        "é",
        "MaxCount",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 1..8)
        .prop_map(|parts| parts.join("."))
}

proptest! {
    #[test]
    fn fuzz_any_form_is_decoded_or_refused(text in "\\PC{0,200}") {
        if let Ok(params) = query::parse_form(&text) {
            let _ = query::decode(ec2(), ec2().operations["RunInstances"].input, params);
        }
    }

    #[test]
    fn fuzz_plausible_names_are_decoded_or_refused(
        params in prop::collection::vec((names(), "\\PC{0,6}"), 0..12),
        action in prop::sample::select(ec2().operations.keys().cloned().collect::<Vec<_>>()),
    ) {
        let input = ec2().operations[&action].input;
        if let Ok(value) = query::decode(ec2(), input, params) {
            // What is decoded is of the model's types.
            prop_assert_eq!(validate::strangers(ec2(), input, &value), Vec::<String>::new());
        }
    }
}
