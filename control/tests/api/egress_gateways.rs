//! Egress-only internet gateways, as callers see them and the node is told.

use crate::networks::{first, furnished, network, target};
use crate::support::text;
use crate::world::world;
use ocs_node_api::route::Target;

#[test]
fn an_egress_only_gateway_leads_out_until_it_is_deleted() {
    let world = world(4);
    let control = &world.control;
    let (vpc, _, _, vni) = furnished(&world, "10.5.0.0/16", "10.5.1.0/24");
    let (other, ..) = furnished(&world, "10.6.0.0/16", "10.6.1.0/24");
    let wish = [
        ("VpcId", vpc.as_str()),
        ("ClientToken", "once"),
        (
            "TagSpecification.1.ResourceType",
            "egress-only-internet-gateway",
        ),
        ("TagSpecification.1.Tag.1.Key", "Name"),
        ("TagSpecification.1.Tag.1.Value", "way out"),
    ];
    let made = control.ok("CreateEgressOnlyInternetGateway", &wish);
    let gateway = first(&made, "egressOnlyInternetGatewayId");
    assert_eq!(first(&made, "clientToken"), "once");
    let again = control.ok("CreateEgressOnlyInternetGateway", &wish);
    assert_eq!(first(&again, "egressOnlyInternetGatewayId"), gateway);
    control.refused(
        "CreateEgressOnlyInternetGateway",
        &wish[..1],
        "InvalidParameterValue",
    );
    let elsewhere = first(
        &control.ok("CreateEgressOnlyInternetGateway", &[("VpcId", &other)]),
        "egressOnlyInternetGatewayId",
    );

    let list = "DescribeEgressOnlyInternetGateways";
    let all = control.ok(list, &[]);
    assert_eq!(text(&all, "egressOnlyInternetGatewayId").len(), 2);
    let filter = [("Filter.1.Name", "tag:Name"), ("Filter.1.Value.1", "way *")];
    let shown = control.ok(list, &filter);
    assert_eq!(
        text(&shown, "egressOnlyInternetGatewayId"),
        [gateway.as_str()]
    );
    assert_eq!(first(&shown, "vpcId"), vpc);
    assert_eq!(first(&shown, "state"), "attached");
    let label = [
        ("ResourceId.1", elsewhere.as_str()),
        ("Tag.1.Key", "Name"),
        ("Tag.1.Value", "way back"),
    ];
    control.ok("CreateTags", &label);
    assert_eq!(
        text(&control.ok(list, &filter), "egressOnlyInternetGatewayId").len(),
        2
    );

    let tables = [
        ("Filter.1.Name", "vpc-id"),
        ("Filter.1.Value.1", vpc.as_str()),
    ];
    let table = first(&control.ok("DescribeRouteTables", &tables), "routeTableId");
    let to = |destination: &'static str, cidr: &'static str, gateway: &str| {
        [
            ("RouteTableId".to_owned(), table.clone()),
            (destination.to_owned(), cidr.to_owned()),
            ("EgressOnlyInternetGatewayId".to_owned(), gateway.to_owned()),
        ]
    };
    let refused = |params: &[(String, String)], code: &str| {
        let params: Vec<(&str, &str)> = params
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let (status, body) = control.call("CreateRoute", &params);
        assert_eq!(
            (status, first(&body, "Code").as_str()),
            (400, code),
            "{body}"
        );
    };
    let ipv4 = to("DestinationCidrBlock", "0.0.0.0/0", &gateway);
    refused(&ipv4, "InvalidParameterCombination");
    let foreign = to("DestinationIpv6CidrBlock", "::/0", &elsewhere);
    refused(&foreign, "InvalidParameterValue");

    let way = [
        ("RouteTableId", table.as_str()),
        ("DestinationIpv6CidrBlock", "::/0"),
        ("EgressOnlyInternetGatewayId", gateway.as_str()),
    ];
    control.ok("CreateRoute", &way);
    network(&world, vni, "a way out", |n| {
        target(n, &table, "::/0") == Some(Target::EgressOnly(true))
    });
    let by_target = [
        ("Filter.1.Name", "route.egress-only-internet-gateway-id"),
        ("Filter.1.Value.1", gateway.as_str()),
    ];
    let shown = control.ok("DescribeRouteTables", &by_target);
    assert_eq!(text(&shown, "routeTableId")[0], table);
    assert!(!text(&shown, "state").contains(&"blackhole".to_owned()));

    let bare = first(
        &control.ok("CreateVpc", &[("CidrBlock", "10.7.0.0/16")]),
        "vpcId",
    );
    let its = [("VpcId", bare.as_str())];
    let held = first(
        &control.ok("CreateEgressOnlyInternetGateway", &its),
        "egressOnlyInternetGatewayId",
    );
    control.refused("DeleteVpc", &its, "DependencyViolation");
    let held = [("EgressOnlyInternetGatewayId", held.as_str())];
    control.ok("DeleteEgressOnlyInternetGateway", &held);
    control.ok("DeleteVpc", &its);

    let named = [("EgressOnlyInternetGatewayId", gateway.as_str())];
    control.ok("DeleteEgressOnlyInternetGateway", &named);
    network(&world, vni, "no way out", |n| {
        target(n, &table, "::/0") == Some(Target::Blackhole(true))
    });
    let shown = control.ok("DescribeRouteTables", &by_target);
    assert!(text(&shown, "state").contains(&"blackhole".to_owned()));
    control.ok("DeleteRoute", &way[..2]);
    control.refused(
        "DeleteEgressOnlyInternetGateway",
        &named,
        "InvalidEgressOnlyInternetGatewayId.NotFound",
    );
}
