//! Requests that are wrong: EC2's code for each, by both fronts, and nothing changes.

use crate::support::{Control, text};
use ocs_control::store::{Embedded, Entry, Store as _};
use ocs_control::wire::query;
use std::collections::BTreeSet;
use std::path::Path;

const TABLE: &str = include_str!("bad_requests.txt");

/// One line of the table.
pub struct Case {
    /// EC2's code.
    pub code: String,
    /// The action.
    pub action: String,
    /// Its parameters.
    pub params: Vec<(String, String)>,
}

/// Makes what the table's lines name, and gives the lines with it filled in.
pub fn cases(control: &Control) -> Vec<Case> {
    let image = |region: &str| {
        control.ready["images"][region]["ocs-probe"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = |body: &str, element: &str| text(body, element).remove(0);
    let shown = |action: &str, element: &str| first(&control.ok(action, &[]), element);
    let default = shown("DescribeSecurityGroups", "groupId");
    let group = [("GroupName", "g"), ("GroupDescription", "d")];
    let group = first(&control.ok("CreateSecurityGroup", &group), "groupId");
    let rule = [
        ("GroupId", group.as_str()),
        ("IpProtocol", "tcp"),
        ("FromPort", "80"),
        ("ToPort", "80"),
        ("CidrIp", "10.0.0.0/8"),
    ];
    let rule = control.ok("AuthorizeSecurityGroupIngress", &rule);
    // Not of the first zone, whose subnet launches without one go to.
    let last = [
        ("Filter.1.Name", "availability-zone"),
        ("Filter.1.Value.1", "us-east-1c"),
    ];
    let subnet = first(&control.ok("DescribeSubnets", &last), "subnetId");
    control.ok("CreateKeyPair", &[("KeyName", "k"), ("KeyType", "ed25519")]);
    let eni = control.ok("CreateNetworkInterface", &[("SubnetId", &subnet)]);
    let template = [
        ("LaunchTemplateName", "web"),
        ("LaunchTemplateData.ImageId", "ami-1"),
    ];
    let template = control.ok("CreateLaunchTemplate", &template);
    let list = [
        ("PrefixListName", "l"),
        ("MaxEntries", "5"),
        ("AddressFamily", "IPv4"),
    ];
    let list = control.ok("CreateManagedPrefixList", &list);
    // Longer names before those that they begin with.
    let values = [
        ("$IMAGE", image("us-east-1")),
        ("$ELSEWHERE", image("eu-west-1")),
        ("$DEFAULT", default),
        ("$GROUP", group.clone()),
        ("$BIG", "A".repeat(21_848)),
        ("$T65", "t".repeat(65)),
        ("$VPC", shown("DescribeVpcs", "vpcId")),
        ("$TABLE", shown("DescribeRouteTables", "routeTableId")),
        ("$ACL", shown("DescribeNetworkAcls", "networkAclId")),
        (
            "$IGW",
            shown("DescribeInternetGateways", "internetGatewayId"),
        ),
        ("$OPTIONS", shown("DescribeDhcpOptions", "dhcpOptionsId")),
        ("$SUBNET", subnet),
        ("$ENI", first(&eni, "networkInterfaceId")),
        ("$IP", first(&eni, "privateIpAddress")),
        ("$TEMPLATE", first(&template, "launchTemplateId")),
        ("$LIST", first(&list, "prefixListId")),
        ("$RULE", first(&rule, "securityGroupRuleId")),
    ];
    let launch = [
        ("ImageId", image("us-east-1")),
        ("MinCount", "1".into()),
        ("MaxCount", "1".into()),
    ];
    let lines = TABLE.lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let case = |line: &str| {
        let mut words = line.split_whitespace();
        let (code, action) = (words.next().unwrap(), words.next().unwrap());
        let mut form = words.next().unwrap_or_default().to_owned();
        let kind = form.chars().next();
        if let Some('+' | '@') = kind {
            form.remove(0);
        }
        for (name, value) in &values {
            form = form.replace(name, value);
        }
        let mut params = query::parse_form(&form).unwrap();
        let more: &[(&str, String)] = match kind {
            Some('+') => &launch,
            Some('@') => &[("GroupId", group.clone())],
            _ => &[],
        };
        for (name, value) in more {
            if params.iter().all(|(known, _)| known != name) {
                params.push(((*name).to_owned(), value.clone()));
            }
        }
        Case {
            code: code.to_owned(),
            action: action.to_owned(),
            params,
        }
    };
    let mut cases: Vec<Case> = lines.map(case).collect();
    let mut many: Vec<(String, String)> = vec![("ResourceId.1".to_owned(), group.clone())];
    many.extend((1..=51).map(|n| (format!("Tag.{n}.Key"), format!("k{n}"))));
    cases.push(Case {
        code: "TagLimitExceeded".to_owned(),
        action: "CreateTags".to_owned(),
        params: many,
    });
    cases
}

#[test]
fn each_wrong_request_has_ec2s_code_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let cases = cases(&control);
    // A store is its owner's alone: it is read while nobody serves from it.
    control.kill();
    let before = dump(dir.path());
    let control = Control::start(dir.path());
    let mut distinct = BTreeSet::new();
    for case in &cases {
        let params: Vec<(&str, &str)> = case
            .params
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let (status, body) = control.call(&case.action, &params);
        let found = text(&body, "Code").into_iter().next().unwrap_or_default();
        assert_eq!(
            (status, found.as_str()),
            (status_of(&case.code), case.code.as_str()),
            "{} {params:?}: {body}",
            case.action
        );
        distinct.insert((&case.action, &case.params));
    }
    assert!(distinct.len() >= 250, "{}", distinct.len());
    control.kill();
    assert_eq!(dump(dir.path()), before, "nothing has changed");
}

/// EC2 API reference, "Error codes": client errors are 400 but for these.
fn status_of(code: &str) -> u16 {
    match code {
        "DryRunOperation" => 412,
        "InsufficientInstanceCapacity" => 500,
        _ => 400,
    }
}

/// Every key of the store and its value.
fn dump(dir: &Path) -> Vec<(String, String)> {
    // A copy: whoever opens a store holds it a moment longer.
    let copy = tempfile::tempdir().unwrap();
    for name in ["store.redb", "store.0.journal", "store.1.journal"] {
        std::fs::copy(dir.join("state").join(name), copy.path().join(name)).unwrap();
    }
    let store = Embedded::open(&copy.path().join("store.redb")).unwrap();
    let show = |entry: Entry| (entry.key, String::from_utf8(entry.value).unwrap());
    let entries = store.range("", "\u{10ffff}").unwrap();
    entries.into_iter().map(show).collect()
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
