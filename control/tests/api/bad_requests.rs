//! Requests that are wrong: EC2's code for each, and nothing changes.

use crate::support::{Control, text};
use ocs_control::wire::query;

const TABLE: &str = include_str!("bad_requests.txt");

#[test]
fn each_wrong_request_has_ec2s_code() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(dir.path());
    let image = |region: &str| {
        control.ready["images"][region]["ocs-probe"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let default = text(&control.ok("DescribeSecurityGroups", &[]), "groupId").remove(0);
    let made = control.ok(
        "CreateSecurityGroup",
        &[("GroupName", "g"), ("GroupDescription", "d")],
    );
    let group = text(&made, "groupId").remove(0);
    let rule = [
        ("GroupId", group.as_str()),
        ("IpProtocol", "tcp"),
        ("FromPort", "80"),
        ("ToPort", "80"),
        ("CidrIp", "10.0.0.0/8"),
    ];
    control.ok("AuthorizeSecurityGroupIngress", &rule);
    let before = dump(&control);
    let values = [
        ("$IMAGE", image("us-east-1")),
        ("$ELSEWHERE", image("eu-west-1")),
        ("$DEFAULT", default),
        ("$GROUP", group.clone()),
        ("$BIG", "A".repeat(21_848)),
        ("$T65", "t".repeat(65)),
    ];
    let launch = [
        ("ImageId", image("us-east-1")),
        ("MinCount", "1".into()),
        ("MaxCount", "1".into()),
    ];
    let mut cases = 0;
    for line in TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
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
        let params: Vec<(&str, &str)> = params
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        control.refused(action, &params, code);
        cases += 1;
    }
    assert!(cases > 180, "{cases}");
    let mut many: Vec<(String, String)> = vec![("ResourceId.1".to_owned(), group)];
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
