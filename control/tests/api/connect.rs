//! Instance-connect endpoints, as nodes are told of them, and who may open tunnels.

use crate::support::{Control, Credentials, escape, sha, signature, text, until};
use crate::world::{World, world};
use ocs_node_api::ConnectEndpoint;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

fn first(body: &str, element: &str) -> String {
    text(body, element).into_iter().next().unwrap_or_default()
}

fn told(world: &World, id: &str, so: impl Fn(&ConnectEndpoint) -> bool) -> ConnectEndpoint {
    until(&format!("the node is told of {id}"), || {
        let seen = world.node.seen.lock().unwrap();
        seen.connect_endpoints
            .get(id)
            .filter(|row| so(row))
            .cloned()
    })
}

fn state(control: &Control, id: &str) -> String {
    let named = [("InstanceConnectEndpointId.1", id)];
    first(
        &control.ok("DescribeInstanceConnectEndpoints", &named),
        "state",
    )
}

fn await_state(control: &Control, id: &str, wanted: &str) {
    until(&format!("{id} {wanted}"), || {
        (state(control, id) == wanted).then_some(())
    });
}

/// A subnet of a new VPC, and its VPC.
fn subnet(control: &Control, cidr: &str) -> (String, String) {
    let vpc = first(&control.ok("CreateVpc", &[("CidrBlock", cidr)]), "vpcId");
    let made = control.ok("CreateSubnet", &[("VpcId", &vpc), ("CidrBlock", cidr)]);
    (first(&made, "subnetId"), vpc)
}

#[test]
fn an_endpoint_lives_on_a_node_and_leaves_nothing() {
    let world = world(10);
    let control = &world.control;
    let (subnet, vpc) = subnet(control, "10.7.0.0/24");
    let group = [
        ("GroupName", "way"),
        ("GroupDescription", "d"),
        ("VpcId", vpc.as_str()),
    ];
    let group = first(&control.ok("CreateSecurityGroup", &group), "groupId");
    let here = [
        ("SubnetId", subnet.as_str()),
        ("ClientToken", "once"),
        ("PreserveClientIp", "false"),
        ("IpAddressType", "ipv4"),
        (
            "TagSpecification.1.ResourceType",
            "instance-connect-endpoint",
        ),
        ("TagSpecification.1.Tag.1.Key", "use"),
        ("TagSpecification.1.Tag.1.Value", "ssh"),
    ];
    control.refused(
        "CreateInstanceConnectEndpoint",
        &[here[0], ("DryRun", "true")],
        "DryRunOperation",
    );
    let made = control.ok("CreateInstanceConnectEndpoint", &here);
    assert_eq!(first(&made, "state"), "create-in-progress");
    assert_eq!(first(&made, "clientToken"), "once");
    let id = first(&made, "instanceConnectEndpointId");
    let again = control.ok("CreateInstanceConnectEndpoint", &here);
    assert_eq!(first(&again, "instanceConnectEndpointId"), id);
    await_state(control, &id, "create-complete");
    control.refused(
        "CreateInstanceConnectEndpoint",
        &here[..1],
        "InstanceConnectEndpointLimitExceeded",
    );
    let shown = control.ok(
        "DescribeInstanceConnectEndpoints",
        &[
            ("Filter.1.Name", "vpc-id"),
            ("Filter.1.Value.1", &vpc),
            ("Filter.2.Name", "tag:use"),
            ("Filter.2.Value.1", "ssh"),
        ],
    );
    assert_eq!(first(&shown, "instanceConnectEndpointId"), id);
    assert_eq!(
        first(&shown, "dnsName"),
        control.ready["listen"].as_str().unwrap()
    );

    // What its node has is an interface like any other.
    let eni = told(&world, &id, |_| true).network_interface.unwrap();
    assert_eq!(
        (eni.private_ip.as_str(), eni.subnet_cidr.as_str(), eni.mtu),
        ("10.7.0.4", "10.7.0.0/24", 1_500)
    );
    assert!(eni.source_dest_check && !eni.route_table.is_empty() && !eni.network_acl.is_empty());
    until("its group and its network", || {
        let seen = world.node.seen.lock().unwrap();
        let default = eni.security_groups.first()?;
        seen.networks.get(&eni.vni)?;
        seen.groups.get(default).map(|_| ())
    });
    // It is nobody else's to change.
    let named = [("NetworkInterfaceId", eni.id.as_str())];
    let shown = control.ok(
        "DescribeNetworkInterfaces",
        &[("NetworkInterfaceId.1", &eni.id)],
    );
    assert_eq!(
        (
            first(&shown, "interfaceType").as_str(),
            first(&shown, "requesterManaged").as_str()
        ),
        ("ec2_instance_connect_endpoint", "true")
    );
    let in_use = "InvalidNetworkInterface.InUse";
    control.refused("DeleteNetworkInterface", &named, in_use);
    let change = [named[0], ("SecurityGroupId.1", group.as_str())];
    control.refused("ModifyNetworkInterfaceAttribute", &change, "AuthFailure");
    let change = [named[0], ("SourceDestCheck", "x")];
    control.refused("ResetNetworkInterfaceAttribute", &change, "AuthFailure");
    let more = [named[0], ("SecondaryPrivateIpAddressCount", "1")];
    control.refused("AssignPrivateIpAddresses", &more, "AuthFailure");
    let image = crate::world::ami(control);
    let launch = [
        ("ImageId", image.as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.NetworkInterfaceId", &eni.id),
    ];
    control.refused("RunInstances", &launch, in_use);

    // Its groups change as one with it.
    let modify = [
        ("InstanceConnectEndpointId", id.as_str()),
        ("SecurityGroupId.1", group.as_str()),
    ];
    control.ok("ModifyInstanceConnectEndpoint", &modify);
    told(&world, &id, |row| {
        let eni = row.network_interface.as_ref();
        eni.is_some_and(|eni| eni.security_groups == [group.clone()])
    });
    await_state(control, &id, "update-complete");
    for (action, parameter, value) in [
        ("DeleteSecurityGroup", "GroupId", &group),
        ("DeleteSubnet", "SubnetId", &subnet),
        ("DeleteVpc", "VpcId", &vpc),
    ] {
        control.refused(action, &[(parameter, value)], "DependencyViolation");
    }

    let gone = [("InstanceConnectEndpointId", id.as_str())];
    let body = control.ok("DeleteInstanceConnectEndpoint", &gone);
    assert_eq!(first(&body, "state"), "delete-in-progress");
    await_state(control, &id, "delete-complete");
    let code = "InvalidInstanceConnectEndpointId.NotFound";
    control.refused("DeleteInstanceConnectEndpoint", &gone, code);
    let code = "InvalidNetworkInterfaceID.NotFound";
    let none = [("NetworkInterfaceId.1", eni.id.as_str())];
    control.refused("DescribeNetworkInterfaces", &none, code);
    control.ok("DeleteSecurityGroup", &[("GroupId", &group)]);
    control.ok("DeleteSubnet", &[("SubnetId", &subnet)]);
    control.ok("DeleteVpc", &[("VpcId", &vpc)]);
}

/// How a request for a tunnel is signed.
struct Signed<'a> {
    key: &'a Credentials,
    at: SystemTime,
    region: &'a str,
    service: &'a str,
}

/// Asks for a tunnel; HTTP status and the code of the refusal.
fn ask(control: &Control, signed: &Signed<'_>, parameters: &[(&str, &str)]) -> (u16, String) {
    let host = control.ready["listen"].as_str().unwrap();
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = time::OffsetDateTime::from(signed.at)
        .format(&format)
        .unwrap();
    let scope = format!(
        "{}/{}/{}/aws4_request",
        &at[..8],
        signed.region,
        signed.service
    );
    let credential = format!("{}/{scope}", signed.key.id);
    let mut pairs = vec![
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", &at),
        ("X-Amz-Expires", "60"),
        ("X-Amz-SignedHeaders", "host"),
    ];
    pairs.extend(parameters);
    pairs.sort_unstable();
    // `escape` escapes more than SigV4's canonical form does.
    let plain = |text: &str| {
        escape(text)
            .replace("%2D", "-")
            .replace("%2E", ".")
            .replace("%5F", "_")
    };
    let pairs = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", plain(value)));
    let query = pairs.collect::<Vec<_>>().join("&");
    let canonical = format!(
        "GET\n/openTunnel\n{query}\nhost:{host}\n\nhost\n{}",
        sha(b"")
    );
    let signature = signature(&signed.key.secret, &at, &scope, &canonical);
    let mut stream = TcpStream::connect(host).unwrap();
    write!(
        stream,
        "GET /openTunnel?{query}&X-Amz-Signature={signature} HTTP/1.1\r\nhost: {host}\r\n\
         connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut answer = Vec::new();
    let mut bytes = [0; 4_096];
    let whole = |answer: &[u8]| answer.ends_with(b"}") || answer.starts_with(b"HTTP/1.1 101");
    while !whole(&answer) {
        let length = stream.read(&mut bytes).unwrap();
        assert_ne!(length, 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..length]);
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let told: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    (
        status,
        told["ErrorCode"].as_str().unwrap_or_default().to_owned(),
    )
}

#[test]
fn a_tunnel_is_for_whom_the_endpoint_is_and_within_its_vpc() {
    let world = world(10);
    let control = &world.control;
    let default = first(&control.ok("DescribeSubnets", &[]), "subnetId");
    let made = control.ok("CreateInstanceConnectEndpoint", &[("SubnetId", &default)]);
    let endpoint = first(&made, "instanceConnectEndpointId");
    let instance = world.run("1", &[("InstanceType", "t2.nano")]).remove(0);
    world.await_state(&instance, "running");
    let shown = control.ok("DescribeInstances", &[("InstanceId.1", &instance)]);
    let address = first(&shown, "privateIpAddress");
    let (elsewhere, _) = subnet(control, "10.9.0.0/24");
    let made = control.ok("CreateNetworkInterface", &[("SubnetId", &elsewhere)]);
    let elsewhere = first(&made, "privateIpAddress");
    await_state(control, &endpoint, "create-complete");

    let own = control.credentials();
    let by = |key| Signed {
        key,
        at: SystemTime::now(),
        region: "us-east-1",
        service: "ec2-instance-connect",
    };
    let to = |address| {
        [
            ("instanceConnectEndpointId", endpoint.as_str()),
            ("privateIpAddress", address),
            ("remotePort", "22"),
        ]
    };
    let good = to(&address);
    // The fake node has nobody to connect to: this is as far as a good request comes.
    let there = (504, "ConnectionFailed".to_owned());
    assert_eq!(ask(control, &by(&own), &good), there);
    let short = [("instanceId", instance.as_str()), ("remotePort", "22")];
    assert_eq!(ask(control, &by(&own), &short), there);

    let stranger = control.account("private");
    let liar = Credentials {
        secret: "wrong".to_owned(),
        ..own.clone()
    };
    let late = Signed {
        at: SystemTime::now() - Duration::from_secs(61),
        ..by(&own)
    };
    let otherwise = Signed {
        service: "ec2",
        ..by(&own)
    };
    let nowhere = Signed {
        region: "mars-1",
        ..by(&own)
    };
    let abroad = Signed {
        region: "eu-west-1",
        ..by(&own)
    };
    let missing = "InvalidInstanceConnectEndpointId.NotFound";
    for (signed, parameters, status, code) in [
        (by(&stranger), &good[..], 400, missing),
        (by(&stranger), &short[..], 400, "InvalidInstanceID.NotFound"),
        (by(&liar), &good[..], 401, "AuthFailure"),
        (late, &good[..], 400, "RequestExpired"),
        (otherwise, &good[..], 401, "AuthFailure"),
        (nowhere, &good[..], 401, "AuthFailure"),
        (abroad, &good[..], 400, missing),
        (by(&own), &to(&elsewhere)[..], 400, "InvalidParameter"),
        (
            by(&own),
            &to("169.254.169.254")[..],
            400,
            "InvalidParameter",
        ),
        (by(&own), &good[..2], 400, "MissingParameter"),
        (by(&own), &good[1..], 400, "MissingParameter"),
    ] {
        let told = ask(control, &signed, parameters);
        assert_eq!(told, (status, code.to_owned()), "{parameters:?}");
    }
    // Without a signature, and of an EC2 request, there is none.
    let body = "Action=OpenTunnel&Version=2016-11-15";
    let (_, answer) = control.post("us-east-1", "ec2-instance-connect", body);
    assert_eq!(first(&answer, "Code"), "AuthFailure");

    let gone = [("InstanceConnectEndpointId", endpoint.as_str())];
    control.ok("DeleteInstanceConnectEndpoint", &gone);
    await_state(control, &endpoint, "delete-complete");
    let told = ask(control, &by(&own), &good);
    assert_eq!(told, (400, missing.to_owned()));
    let told = ask(control, &by(&own), &short);
    assert_eq!(told, (400, missing.to_owned()));

    let log = std::fs::read_to_string(control.dir.join("state/audit.log")).unwrap();
    let opened = |line: &&str| line.contains("OpenTunnel") && line.contains(&address);
    assert!(
        log.lines().any(|line| opened(&line)),
        "each is written down"
    );
}
