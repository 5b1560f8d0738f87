//! Managed prefix lists: their blocks in rules, their versions, who uses them.

use crate::actions::{first, told};
use crate::support::{text, until};
use crate::world::world;
use ocs_node_api::rule;

#[test]
fn prefix_lists_are_their_blocks_to_nodes() {
    let world = world(10);
    let control = &world.control;
    let list = control.ok(
        "CreateManagedPrefixList",
        &[
            ("PrefixListName", "offices"),
            ("MaxEntries", "40"),
            ("AddressFamily", "IPv4"),
            ("Entry.1.Cidr", "10.1.0.0/16"),
        ],
    );
    let list = first(&list, "prefixListId");
    let group = [("GroupName", "g"), ("GroupDescription", "d")];
    let group = first(&control.ok("CreateSecurityGroup", &group), "groupId");
    let allow = [
        ("GroupId", group.as_str()),
        ("IpPermissions.1.IpProtocol", "-1"),
        (
            "IpPermissions.1.PrefixListIds.1.PrefixListId",
            list.as_str(),
        ),
    ];
    let made = control.ok("AuthorizeSecurityGroupIngress", &allow);
    let rule = first(&made, "securityGroupRuleId");
    let id = world.run("1", &[("SecurityGroupId.1", &group)]).remove(0);
    told(&world, &id, |_| true);
    let blocks = || {
        let seen = world.node.seen.lock().unwrap();
        let rules = seen.groups[&group].rules.iter().filter(|rule| !rule.egress);
        let mut blocks: Vec<String> = rules
            .filter_map(|rule| match &rule.peer {
                Some(rule::Peer::Cidr(cidr)) => Some(cidr.clone()),
                _ => None,
            })
            .collect();
        blocks.sort();
        blocks
    };
    assert_eq!(blocks(), ["10.1.0.0/16"]);
    let change = [
        ("PrefixListId", list.as_str()),
        ("CurrentVersion", "1"),
        ("AddEntry.1.Cidr", "10.2.0.0/16"),
    ];
    control.ok("ModifyManagedPrefixList", &change);
    until("told of the new version", || {
        (blocks() == ["10.1.0.0/16", "10.2.0.0/16"]).then_some(())
    });
    control.refused(
        "ModifyManagedPrefixList",
        &change,
        "PrefixListVersionMismatch",
    );
    control.refused(
        "DeleteManagedPrefixList",
        &[("PrefixListId", &list)],
        "DependencyViolation",
    );
    let more = [("PrefixListId", list.as_str()), ("MaxEntries", "61")];
    control.refused(
        "ModifyManagedPrefixList",
        &more,
        "RulesPerSecurityGroupLimitExceeded",
    );
    let old = [("PrefixListId", list.as_str()), ("TargetVersion", "1")];
    assert_eq!(
        text(&control.ok("GetManagedPrefixListEntries", &old), "cidr").len(),
        1
    );
    let modify = [
        ("GroupId", group.as_str()),
        ("SecurityGroupRule.1.SecurityGroupRuleId", rule.as_str()),
        ("SecurityGroupRule.1.SecurityGroupRule.IpProtocol", "tcp"),
        ("SecurityGroupRule.1.SecurityGroupRule.FromPort", "80"),
        ("SecurityGroupRule.1.SecurityGroupRule.ToPort", "80"),
        (
            "SecurityGroupRule.1.SecurityGroupRule.CidrIpv4",
            "10.9.0.0/16",
        ),
    ];
    control.ok("ModifySecurityGroupRules", &modify);
    until("told of the changed rule", || {
        (blocks() == ["10.9.0.0/16"]).then_some(())
    });
    let shown = control.ok(
        "DescribeSecurityGroupRules",
        &[("SecurityGroupRuleId.1", &rule)],
    );
    assert_eq!(first(&shown, "cidrIpv4"), "10.9.0.0/16");
    let words = [
        ("GroupId", group.as_str()),
        (
            "SecurityGroupRuleDescription.1.SecurityGroupRuleId",
            rule.as_str(),
        ),
        ("SecurityGroupRuleDescription.1.Description", "ours"),
    ];
    control.ok("UpdateSecurityGroupRuleDescriptionsIngress", &words);
    let shown = control.ok(
        "DescribeSecurityGroupRules",
        &[("SecurityGroupRuleId.1", &rule)],
    );
    assert_eq!(first(&shown, "description"), "ours");
    control.ok("DeleteManagedPrefixList", &[("PrefixListId", &list)]);
}

#[test]
fn a_prefix_list_goes_back_to_what_it_was_and_says_who_uses_it() {
    let world = world(10);
    let control = &world.control;
    let create = [
        ("PrefixListName", "offices"),
        ("MaxEntries", "4"),
        ("AddressFamily", "IPv4"),
        ("Entry.1.Cidr", "10.1.0.0/16"),
    ];
    let list = first(
        &control.ok("CreateManagedPrefixList", &create),
        "prefixListId",
    );
    let id = ("PrefixListId", list.as_str());
    let group = [("GroupName", "g"), ("GroupDescription", "d")];
    let group = first(&control.ok("CreateSecurityGroup", &group), "groupId");
    let users = || {
        text(
            &control.ok("GetManagedPrefixListAssociations", &[id]),
            "resourceId",
        )
    };
    assert!(users().is_empty());
    let allow = [
        ("GroupId", group.as_str()),
        ("IpPermissions.1.IpProtocol", "-1"),
        (
            "IpPermissions.1.PrefixListIds.1.PrefixListId",
            list.as_str(),
        ),
    ];
    control.ok("AuthorizeSecurityGroupIngress", &allow);
    assert_eq!(users(), std::slice::from_ref(&group));
    let instance = world.run("1", &[("SecurityGroupId.1", &group)]).remove(0);
    world.await_state(&instance, "running");
    let change = [
        id,
        ("CurrentVersion", "1"),
        ("AddEntry.1.Cidr", "10.2.0.0/16"),
        ("RemoveEntry.1.Cidr", "10.1.0.0/16"),
    ];
    control.ok("ModifyManagedPrefixList", &change);
    let restore = [id, ("PreviousVersion", "1"), ("CurrentVersion", "2")];
    let body = control.ok("RestoreManagedPrefixListVersion", &restore);
    assert_eq!(
        (first(&body, "version"), first(&body, "state")),
        ("3".to_owned(), "restore-in-progress".to_owned())
    );
    let entries = control.ok("GetManagedPrefixListEntries", &[id]);
    assert_eq!(text(&entries, "cidr"), ["10.1.0.0/16"]);
    until("the node has them again", || {
        use ocs_node_api::rule::Peer;
        let seen = world.node.seen.lock().unwrap();
        let is = |rule: &ocs_node_api::Rule| rule.peer == Some(Peer::Cidr("10.1.0.0/16".into()));
        seen.groups[&group].rules.iter().any(is).then_some(())
    });
    control.refused(
        "RestoreManagedPrefixListVersion",
        &restore,
        "PrefixListVersionMismatch",
    );
    let none = [id, ("PreviousVersion", "9"), ("CurrentVersion", "3")];
    control.refused(
        "RestoreManagedPrefixListVersion",
        &none,
        "InvalidParameterValue",
    );
}
