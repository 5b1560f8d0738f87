"""Public addresses, from a host outside: a network namespace of the test's own."""

import contextlib
import ctypes
import ipaddress
import os
import socket
import subprocess
import threading
import unittest

from installation import Installation, error_code, wait_for

CLONE_NEWNET = 0x40000000
# TEST-NET-2 and 3 (RFC 5737); they exist nowhere but in the namespace.
BLOCK = "198.51.100.0/29"
OUTSIDE = "203.0.113.1/32"
# Of the prefix for documentation (RFC 3849).
POOL = "2001:db8:100::/48"
OUTSIDE_IPV6 = "2001:db8:f::1"

up = None
old_namespace = None
resolver = None


def setUpModule():
    global up, old_namespace
    libc = ctypes.CDLL(None, use_errno=True)
    old_namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", OUTSIDE, "dev", "lo"], check=True)
    subprocess.run(["ip", "address", "add", OUTSIDE_IPV6 + "/128", "dev", "lo"], check=True)
    be_the_hosts_resolver()
    up = Installation("--outside", "ocs-out", "--public-cidrs", BLOCK, "--ipv6-pool", POOL)


def be_the_hosts_resolver():
    """Answers what is asked of the first name server of this host, in the namespace."""
    global resolver
    with open("/etc/resolv.conf", encoding="ascii") as lines:
        servers = [words[1] for words in map(str.split, lines)
                   if words[:1] == ["nameserver"] and ":" not in words[1]]
    if not servers:
        return
    if not servers[0].startswith("127."):
        subprocess.run(["ip", "address", "add", servers[0] + "/32", "dev", "lo"], check=True)
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind((servers[0], 53))
    threading.Thread(target=answer_names, daemon=True).start()


def answer_names():
    """192.0.2.53 to every question (RFC 1035 §4.1); an OPT record stays unanswered."""
    with contextlib.suppress(OSError):
        while True:
            message, peer = resolver.recvfrom(4096)
            end = message.index(b"\0", 12) + 5
            head = message[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([192, 0, 2, 53])
            resolver.sendto(head + message[12:end] + answer, peer)


def tearDownModule():
    try:
        if up:
            up.close()
    finally:
        libc = ctypes.CDLL(None, use_errno=True)
        if resolver:
            resolver.close()
        assert libc.setns(old_namespace, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(old_namespace)


def echoes(address):
    """Whether the echo server at a public address answers."""
    with contextlib.suppress(OSError):
        with socket.create_connection((address, 7), timeout=0.5) as connection:
            connection.settimeout(2)
            connection.sendall(b"from outside")
            return connection.recv(64) == b"from outside"
    return False


class Outside(unittest.TestCase):
    def test_ipv6_leaves_and_arrives_by_an_internet_gateway_as_rules_say(self):
        vpc = up.ec2.create_vpc(CidrBlock="10.7.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]
        block = ipaddress.ip_network(vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"])
        self.assertTrue(block.subnet_of(ipaddress.ip_network(POOL)))
        vpc = vpc["VpcId"]
        subnet = up.ec2.create_subnet(
            VpcId=vpc, CidrBlock="10.7.0.0/24",
            Ipv6CidrBlock=str(next(block.subnets(new_prefix=64))))["Subnet"]["SubnetId"]
        gateway = up.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        up.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        group = up.ec2.create_security_group(
            VpcId=vpc, GroupName="ipv6-outside", Description="x")["GroupId"]
        line = f"connect: [{OUTSIDE_IPV6}]:7070"
        with socket.create_server((OUTSIDE_IPV6, 7070), family=socket.AF_INET6):
            guest = up.run(
                f"ipv6\nlisten tcp 7\nconnect [{OUTSIDE_IPV6}]:7070 every 200ms",
                SubnetId=subnet, SecurityGroupIds=[group], Ipv6AddressCount=1)
            guest.wait_line("ipv6: addresses=")
            at = guest.describe()["Ipv6Address"]
            guest.wait_line(line, "timeout")
            table = up.ec2.describe_route_tables(
                Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]["RouteTableId"]
            route = {"RouteTableId": table, "DestinationIpv6CidrBlock": "::/0"}
            up.ec2.create_route(**route, GatewayId=gateway)
            # EC2 gives a group a rule for all of IPv6 outwards, too.
            guest.wait_line(line, " ok ", after_s=guest.now())
            self.assertFalse(echoes(at), "no rule lets it in")
            up.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
                {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
                 "Ipv6Ranges": [{"CidrIpv6": OUTSIDE_IPV6 + "/128"}]}])
            wait_for("the guest is reached from outside", lambda: echoes(at), 10)
            up.ec2.delete_route(**route)
            wait_for("it is reached no more", lambda: not echoes(at), 10)
            guest.wait_line(line, "timeout", after_s=guest.now())
        guest.terminate()

    def test_by_an_egress_only_gateway_ipv6_leaves_and_nothing_new_arrives(self):
        vpc = up.ec2.create_vpc(CidrBlock="10.8.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]
        block = ipaddress.ip_network(vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"])
        vpc = vpc["VpcId"]
        subnet = up.ec2.create_subnet(
            VpcId=vpc, CidrBlock="10.8.0.0/24",
            Ipv6CidrBlock=str(next(block.subnets(new_prefix=64))))["Subnet"]["SubnetId"]
        internet = up.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        up.ec2.attach_internet_gateway(InternetGatewayId=internet, VpcId=vpc)
        gateway = up.ec2.create_egress_only_internet_gateway(
            VpcId=vpc)["EgressOnlyInternetGateway"]["EgressOnlyInternetGatewayId"]
        group = up.ec2.create_security_group(
            VpcId=vpc, GroupName="egress-only", Description="x")["GroupId"]
        up.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
             "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}])
        line = f"connect: [{OUTSIDE_IPV6}]:7071"
        with socket.create_server((OUTSIDE_IPV6, 7071), family=socket.AF_INET6) as server:
            server.settimeout(30)
            guest = up.run(
                f"ipv6\nlisten tcp 7\nconnect [{OUTSIDE_IPV6}]:7071 every 200ms",
                SubnetId=subnet, SecurityGroupIds=[group], Ipv6AddressCount=1)
            guest.wait_line("ipv6: addresses=")
            at = guest.describe()["Ipv6Address"]
            guest.wait_line(line, "timeout")
            table = up.ec2.describe_route_tables(
                Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]["RouteTableId"]
            route = {"RouteTableId": table, "DestinationIpv6CidrBlock": "::/0"}
            up.ec2.create_route(**route, EgressOnlyInternetGatewayId=gateway)
            connection, peer = server.accept()
            connection.close()
            self.assertEqual(peer[0], at, "seen as its own address")
            guest.wait_line(line, " ok ", after_s=guest.now())
            self.assertFalse(echoes(at), "nobody gets in that way, whatever the group says")

            up.ec2.replace_route(**route, GatewayId=internet)
            wait_for("by an internet gateway it is reached", lambda: echoes(at), 10)
            up.ec2.replace_route(**route, EgressOnlyInternetGatewayId=gateway)
            wait_for("it is reached no more", lambda: not echoes(at), 10)
            guest.wait_line(line, " ok ", after_s=guest.now())

            up.ec2.delete_route(**route)
            guest.wait_line(line, "timeout", after_s=guest.now())
            up.ec2.create_route(**route, EgressOnlyInternetGatewayId=gateway)
            guest.wait_line(line, " ok ", after_s=guest.now())
            up.ec2.delete_egress_only_internet_gateway(EgressOnlyInternetGatewayId=gateway)
            guest.wait_line(line, "timeout", after_s=guest.now())
        guest.terminate()

    def test_an_associated_address_reaches_the_guest_and_no_other_does(self):
        guest = up.run("listen tcp 7")
        group = guest.describe()["SecurityGroups"][0]["GroupId"]
        given = up.ec2.allocate_address(Domain="vpc")
        address, allocation = given["PublicIp"], given["AllocationId"]
        rule = [{"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
                 "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        self.assertFalse(echoes(address))

        association = up.ec2.associate_address(
            AllocationId=allocation, InstanceId=guest.id)["AssociationId"]
        self.assertEqual(guest.describe()["PublicIpAddress"], address)
        self.assertFalse(echoes(address), "no rule lets it in")

        up.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rule)
        wait_for("the guest is reached from outside", lambda: echoes(address), 10)

        up.ec2.disassociate_address(AssociationId=association)
        wait_for("it is reached no more", lambda: not echoes(address), 10)
        up.ec2.release_address(AllocationId=allocation)
        guest.terminate()

    def test_an_address_of_its_own_lasts_from_start_to_stop(self):
        guest = up.run("listen tcp 7")
        group = up.group("outside-own")
        up.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
             "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
        up.ec2.modify_instance_attribute(InstanceId=guest.id, Groups=[group])
        own = guest.describe()["PublicIpAddress"]
        wait_for("the guest is reached at its own address", lambda: echoes(own), 10)
        guest.stop()
        self.assertNotIn("PublicIpAddress", guest.describe())
        self.assertFalse(echoes(own))
        guest.start()
        new = guest.describe()["PublicIpAddress"]
        self.assertNotEqual(new, own)
        wait_for("the guest is reached at its new address", lambda: echoes(new), 10)
        self.assertFalse(echoes(own))
        guest.terminate()
        self.assertFalse(echoes(new))

    def test_a_subnet_gives_public_addresses_while_it_is_told_to(self):
        subnet = up.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        path = "http://169.254.169.254/latest/meta-data/public-ipv4"
        for gives, status in ((False, 404), (True, 200)):
            up.ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": gives})
            guest = up.run(f"http-get {path}", SubnetId=subnet)
            guest.wait_line(f"http-get: {path}", f"status={status}")
            self.assertEqual("PublicIpAddress" in guest.describe(), gives)
            guest.terminate()

    def test_there_are_as_many_addresses_as_the_operator_gave(self):
        held = []
        with contextlib.suppress(Exception):
            for _ in range(9):
                held.append(up.ec2.allocate_address(Domain="vpc")["AllocationId"])
        self.assertEqual(len(held), 8)
        self.assertEqual(error_code(lambda: up.ec2.allocate_address(Domain="vpc")),
                         "InsufficientAddressCapacity")
        for allocation in held:
            up.ec2.release_address(AllocationId=allocation)

    def test_what_no_vpc_knows_the_hosts_resolver_is_asked_for(self):
        if not resolver:
            self.skipTest("this host has no name server with an IPv4 address")
        guest = up.run("resolve www.example.com every 1s\nresolve 8.8.0.10 every 1s")
        guest.wait_line("resolve: www.example.com", "rcode=0 found=192.0.2.53")
        guest.wait_line("resolve: 8.8.0.10", "rcode=0 found=")
        guest.terminate()

    def test_a_private_subnet_reaches_outside_through_a_nat_gateway_alone(self):
        vpc = up.ec2.create_vpc(CidrBlock="10.40.0.0/16")["Vpc"]["VpcId"]
        subnets = [up.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.40.{n}.0/24")["Subnet"]["SubnetId"]
                   for n in (1, 2)]
        public, private = subnets
        gateway = up.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        up.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        tables = [up.ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"] for _ in subnets]
        held = [up.ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)["AssociationId"]
                for table, subnet in zip(tables, subnets)][1]
        everywhere = {"DestinationCidrBlock": "0.0.0.0/0"}
        up.ec2.create_route(RouteTableId=tables[0], GatewayId=gateway, **everywhere)
        address = up.ec2.allocate_address(Domain="vpc")
        allocation = {"AllocationId": address["AllocationId"]}
        nat = up.ec2.create_nat_gateway(SubnetId=public, **allocation)["NatGateway"]["NatGatewayId"]
        up.ec2.get_waiter("nat_gateway_available").wait(
            NatGatewayIds=[nat], WaiterConfig={"Delay": 1, "MaxAttempts": 20})

        with socket.create_server((OUTSIDE.partition("/")[0], 7777)) as server:
            server.settimeout(30)
            guest = up.run("connect 203.0.113.1:7777 every 200ms\nlisten tcp 7", SubnetId=private)
            group = guest.describe()["SecurityGroups"][0]["GroupId"]
            up.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
                {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])
            guest.wait_line("connect: 203.0.113.1:7777 timeout")
            up.ec2.create_route(RouteTableId=tables[1], NatGatewayId=nat, **everywhere)
            connection, peer = server.accept()
            connection.close()
            self.assertEqual(peer[0], address["PublicIp"], "seen as the gateway's Elastic IP")
            guest.wait_line("connect: 203.0.113.1:7777 ok")
            self.assertFalse(echoes(address["PublicIp"]), "nobody gets in that way")

            way = {"RouteTableId": tables[1], "DestinationCidrBlock": "0.0.0.0/0"}
            up.ec2.replace_route(GatewayId=gateway, **way)
            guest.wait_line("connect: 203.0.113.1:7777 timeout", after_s=guest.now())
            up.ec2.replace_route(NatGatewayId=nat, **way)
            guest.wait_line("connect: 203.0.113.1:7777 ok", after_s=guest.now())

            held = up.ec2.replace_route_table_association(
                AssociationId=held, RouteTableId=tables[0])["NewAssociationId"]
            guest.wait_line("connect: 203.0.113.1:7777 timeout", after_s=guest.now())
            held = up.ec2.replace_route_table_association(
                AssociationId=held, RouteTableId=tables[1])["NewAssociationId"]
            guest.wait_line("connect: 203.0.113.1:7777 ok", after_s=guest.now())
            up.ec2.disassociate_route_table(AssociationId=held)
            guest.wait_line("connect: 203.0.113.1:7777 timeout", after_s=guest.now())
            held = up.ec2.associate_route_table(
                RouteTableId=tables[1], SubnetId=private)["AssociationId"]
            guest.wait_line("connect: 203.0.113.1:7777 ok", after_s=guest.now())

            up.ec2.delete_nat_gateway(NatGatewayId=nat)
            up.ec2.get_waiter("nat_gateway_deleted").wait(
                NatGatewayIds=[nat], WaiterConfig={"Delay": 1, "MaxAttempts": 20})
            guest.wait_line("connect: 203.0.113.1:7777 timeout", after_s=guest.now())
            guest.terminate()
        up.ec2.delete_route(**way)
        gone = lambda: up.ec2.delete_route_table(RouteTableId=tables[1])
        self.assertEqual(error_code(gone), "DependencyViolation")
        up.ec2.disassociate_route_table(AssociationId=held)
        gone()
        up.ec2.release_address(**allocation)
        up.ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)

    def test_an_elastic_ip_stands_for_a_secondary_address(self):
        guest = up.run("addresses\nlisten tcp 7")
        row = guest.describe()
        up.ec2.authorize_security_group_ingress(
            GroupId=row["SecurityGroups"][0]["GroupId"], IpPermissions=[
                {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
                 "IpRanges": [{"CidrIp": "198.18.0.0/15"}, {"CidrIp": "203.0.113.0/24"}]}])
        card = row["NetworkInterfaces"][0]["NetworkInterfaceId"]
        second = up.ec2.assign_private_ip_addresses(
            NetworkInterfaceId=card, SecondaryPrivateIpAddressCount=1,
        )["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
        guest.wait_line("addresses: held=2", f"{guest.address},{second}")
        given = up.ec2.allocate_address(Domain="vpc")
        up.ec2.associate_address(AllocationId=given["AllocationId"], NetworkInterfaceId=card,
                                 PrivateIpAddress=second)
        wait_for("reached at the second address", lambda: echoes(given["PublicIp"]), 10)
        at, _ = guest.newest("addresses:")
        up.ec2.unassign_private_ip_addresses(NetworkInterfaceId=card, PrivateIpAddresses=[second])
        wait_for("reached no more", lambda: not echoes(given["PublicIp"]), 10)
        guest.wait_line("addresses: held=1", guest.address, after_s=at)
        up.ec2.release_address(AllocationId=given["AllocationId"])
        guest.terminate()
