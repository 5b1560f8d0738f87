//! Rules that name a group beyond a peering, and what becomes of them.

use crate::networks::{first, furnished};
use crate::support::{text, until};
use crate::world::world;
use ocs_node_api::rule::Peer;

#[test]
fn a_rule_beyond_a_peering_is_stale_once_that_or_the_group_is_gone() {
    let world = world(10);
    let control = &world.control;
    let (a, ..) = furnished(&world, "10.3.0.0/16", "10.3.1.0/24");
    let (b, subnet, ..) = furnished(&world, "10.4.0.0/16", "10.4.1.0/24");
    let group = |vpc: &str| {
        let wish = [
            ("VpcId", vpc),
            ("GroupName", "g"),
            ("GroupDescription", "d"),
        ];
        first(&control.ok("CreateSecurityGroup", &wish), "groupId")
    };
    let (named, guarded) = (group(&a), group(&b));
    let id = world
        .run(
            "1",
            &[("SubnetId", &subnet), ("SecurityGroupId.1", &guarded)],
        )
        .remove(0);
    world.await_state(&id, "running");
    let pair = [("VpcId", a.as_str()), ("PeerVpcId", b.as_str())];
    let peer = || {
        let made = control.ok("CreateVpcPeeringConnection", &pair);
        let peering = first(&made, "vpcPeeringConnectionId");
        control.ok(
            "AcceptVpcPeeringConnection",
            &[("VpcPeeringConnectionId", &peering)],
        );
        peering
    };
    let rule = [
        ("GroupId", guarded.as_str()),
        ("IpPermissions.1.IpProtocol", "tcp"),
        ("IpPermissions.1.FromPort", "7"),
        ("IpPermissions.1.ToPort", "7"),
        ("IpPermissions.1.Groups.1.GroupId", named.as_str()),
        ("IpPermissions.1.Groups.1.VpcId", a.as_str()),
    ];
    let authorize = "AuthorizeSecurityGroupIngress";
    control.refused(authorize, &rule, "InvalidGroup.NotFound");
    let peering = peer();
    let wrong = [
        rule[0],
        rule[1],
        rule[2],
        rule[3],
        rule[4],
        ("IpPermissions.1.Groups.1.VpcId", b.as_str()),
    ];
    control.refused(authorize, &wrong, "InvalidGroup.NotFound");
    let made = control.ok(authorize, &rule);
    assert_eq!(first(&made, "vpcPeeringConnectionId"), peering);
    assert_eq!(first(&made, "peeringStatus"), "active");
    control.refused(authorize, &rule, "InvalidPermission.Duplicate");
    until("the node is told of the rule", || {
        let seen = world.node.seen.lock().unwrap();
        let rules = &seen.groups.get(&guarded)?.rules;
        let wanted = Some(Peer::SecurityGroup(named.clone()));
        rules.iter().any(|rule| rule.peer == wanted).then_some(())
    });

    let stale = || control.ok("DescribeStaleSecurityGroups", &[("VpcId", &b)]);
    let references = || {
        let asked = [("GroupId.1", named.as_str())];
        let body = control.ok("DescribeSecurityGroupReferences", &asked);
        text(&body, "referencingVpcId")
    };
    assert!(text(&stale(), "groupId").is_empty());
    assert_eq!(references(), [b.as_str()]);

    let this = [("VpcPeeringConnectionId", peering.as_str())];
    control.ok("DeleteVpcPeeringConnection", &this);
    let told = stale();
    assert_eq!(text(&told, "groupId"), [guarded.as_str(), named.as_str()]);
    assert_eq!(first(&told, "peeringStatus"), "deleted");
    assert_eq!(text(&told, "vpcPeeringConnectionId"), [peering.as_str()]);
    assert!(references().is_empty());
    let more = [rule[0], ("IpPermissions.1.IpProtocol", "-1"), rule[4]];
    control.refused(authorize, &more, "InvalidGroup.NotFound");

    let again = peer();
    assert!(text(&stale(), "groupId").is_empty(), "it is in force again");
    let filter = [("GroupId.1", guarded.as_str())];
    let shown = control.ok("DescribeSecurityGroups", &filter);
    assert_eq!(text(&shown, "vpcPeeringConnectionId"), [again.as_str()]);

    control.ok("DeleteSecurityGroup", &[("GroupId", &named)]);
    assert_eq!(
        text(&stale(), "groupId"),
        [guarded.as_str(), named.as_str()]
    );
    control.ok("RevokeSecurityGroupIngress", &rule);
    assert!(text(&stale(), "groupId").is_empty());
    control.refused("RevokeSecurityGroupIngress", &rule, "InvalidGroup.NotFound");
}
