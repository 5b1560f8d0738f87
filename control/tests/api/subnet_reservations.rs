//! Reserved ranges of subnets, and what is given beside them.

use crate::networks::first;
use crate::support::text;
use crate::world::world;

#[test]
fn addresses_are_given_beside_what_is_reserved() {
    let world = world(20);
    let control = &world.control;
    let vpc = [
        ("CidrBlock", "10.1.0.0/16"),
        ("AmazonProvidedIpv6CidrBlock", "true"),
    ];
    let made = control.ok("CreateVpc", &vpc);
    let vpc = first(&made, "vpcId");
    let block = first(&made, "ipv6CidrBlock").replace("/56", "/64");
    let subnet = [
        ("VpcId", vpc.as_str()),
        ("CidrBlock", "10.1.1.0/28"),
        ("Ipv6CidrBlock", block.as_str()),
    ];
    let subnet = first(&control.ok("CreateSubnet", &subnet), "subnetId");
    let here = ("SubnetId", subnet.as_str());
    let reserve = |cidr: &str, kind: &str| {
        let wish = [here, ("Cidr", cidr), ("ReservationType", kind)];
        let made = control.ok("CreateSubnetCidrReservation", &wish);
        first(&made, "subnetCidrReservationId")
    };
    let named = reserve("10.1.1.4/30", "explicit");
    let prefixes = reserve("10.1.1.8/30", "prefix");
    let overlapping = [here, ("Cidr", "10.1.1.0/29"), ("ReservationType", "prefix")];
    control.refused(
        "CreateSubnetCidrReservation",
        &overlapping,
        "InvalidParameterValue",
    );
    // Of the /64's half that random addresses would fall into as often as not.
    let net: ipnet::Ipv6Net = block.parse().unwrap();
    let half = std::net::Ipv6Addr::from(u128::from(net.network()) | 1 << 63);
    let high = reserve(&format!("{half}/65"), "explicit");
    let list = |more: &[(&str, &str)]| {
        let mut params = vec![here];
        params.extend(more);
        control.ok("GetSubnetCidrReservations", &params)
    };
    let all = list(&[]);
    assert_eq!(text(&all, "subnetCidrReservationId").len(), 3);
    let (ipv4, ipv6) = all.split_once("<subnetIpv6CidrReservationSet>").unwrap();
    assert!(ipv4.contains(&named) && ipv4.contains(&prefixes) && ipv6.contains(&high));
    let filter = [
        ("Filter.1.Name", "reservationType"),
        ("Filter.1.Value.1", "prefix"),
    ];
    assert_eq!(
        text(&list(&filter), "subnetCidrReservationId"),
        [prefixes.as_str()]
    );

    // 10.1.1.12, .13 and .14 are left.
    let image = crate::world::ami(control);
    let run = |count: &str, more: &[(&str, &str)]| {
        let mut ids = world.run(count, &[&[here], more].concat());
        let body = control.ok("DescribeInstances", &[("InstanceId.1", &ids.remove(0))]);
        (first(&body, "privateIpAddress"), text(&body, "ipv6Address"))
    };
    let (ip, ipv6) = run("1", &[("Ipv6AddressCount", "4")]);
    assert_eq!(ip, "10.1.1.12");
    for address in &ipv6 {
        let address: std::net::Ipv6Addr = address.parse().unwrap();
        assert_eq!(address.segments()[4] >> 15, 0, "{address}");
    }
    let many = |least: &'static str, most: &'static str| {
        [
            ("ImageId", image.as_str()),
            ("MinCount", least),
            ("MaxCount", most),
            here,
        ]
    };
    let few = "InsufficientFreeAddressesInSubnet";
    control.refused("RunInstances", &many("3", "3"), few);
    let body = control.ok("RunInstances", &many("1", "3"));
    let given = text(&body, "privateIpAddress");
    assert!(given.contains(&"10.1.1.13".to_owned()) && given.contains(&"10.1.1.14".to_owned()));
    control.refused("RunInstances", &many("1", "1"), few);
    assert_eq!(run("1", &[("PrivateIpAddress", "10.1.1.6")]).0, "10.1.1.6");
    let mut kept = many("1", "1").to_vec();
    kept.push(("PrivateIpAddress", "10.1.1.9"));
    control.refused("RunInstances", &kept, "InvalidIPAddress.InUse");

    let gone = |id: &str| {
        let named = [("SubnetCidrReservationId", id)];
        control.ok("DeleteSubnetCidrReservation", &named);
    };
    gone(&prefixes);
    assert_eq!(run("1", &[]).0, "10.1.1.8");
    let bare = [("VpcId", vpc.as_str()), ("CidrBlock", "10.1.2.0/28")];
    let bare = first(&control.ok("CreateSubnet", &bare), "subnetId");
    let wish = [
        ("SubnetId", bare.as_str()),
        ("Cidr", "10.1.2.0/29"),
        ("ReservationType", "explicit"),
    ];
    let made = control.ok("CreateSubnetCidrReservation", &wish);
    control.refused("DeleteSubnet", &wish[..1], "DependencyViolation");
    gone(&first(&made, "subnetCidrReservationId"));
    control.ok("DeleteSubnet", &wish[..1]);
}
