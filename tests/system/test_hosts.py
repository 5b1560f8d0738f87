"""One installation on two hosts: the real system on each, in a network namespace of its
own, and guests that reach each other across."""

import os
import stat
import unittest

from guest import number
from hosts import Cable, enter
from installation import Installation, wait_for
from test_network import fails_from_now, from_cidr, from_group, tcp
from test_outside import echoes

BLOCKS = ["198.51.100.0/29", "198.51.100.8/29"]

cable = None
home = None
first = None
second = None


def setUpModule():
    global cable, home, first, second
    cable = Cable()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(cable.namespaces[0])
    outside = ["--outside", "ocs-out", "--public-cidrs", ",".join(BLOCKS)]
    first = Installation(*cable.options(0), *outside)
    bundle = first.folder / "rack-2.join"
    first.say("host", "add", "rack-2", "--out", bundle)
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    second = Installation(*cable.options(1), *outside, join=bundle,
                          before=lambda: enter(cable.namespaces[1]))
    wait_for("the second host is there", lambda: len(reachable()) == 2)


def tearDownModule():
    global cable, home, first, second
    try:
        for host in [second, first]:
            if host:
                host.close()
    finally:
        if home is not None:
            enter(home)
            os.close(home)
        if cable:
            cable.close()
        # A runner of several modules calls this twice.
        cable = home = first = second = None


def reachable():
    hosts = first.ocs("host", "list")["hosts"]
    return {host["name"]: host for host in hosts if host["reachable"]}


def host_of(guest):
    """The installation that holds a guest."""
    held = [host for host in (first, second)
            if (host.state / "run" / "instances" / guest.id).exists()]
    assert len(held) == 1, f"{guest.id} is on {len(held)} hosts"
    return held[0]


class Hosts(unittest.TestCase):
    def setUp(self):
        name = self.id().rsplit(".", 1)[1]
        self.spread = f"apart-{name}"
        first.ec2.create_placement_group(GroupName=self.spread, Strategy="spread")
        self.guests = []

    def tearDown(self):
        if self.guests:
            first.ec2.terminate_instances(InstanceIds=[vm.id for vm in self.guests])
            for vm in self.guests:
                vm.wait_state("terminated")
        first.ec2.delete_placement_group(GroupName=self.spread)

    def run_apart(self, orders, **more):
        """A guest on a host on which none of this test's others is."""
        vm = first.run(orders, InstanceType="t3.micro",
                       Placement={"GroupName": self.spread}, **more)
        self.guests.append(vm)
        return vm

    def group(self, name, **more):
        name = f"{self.spread}-{name}"
        return first.ec2.create_security_group(
            GroupName=name, Description="system test", **more)["GroupId"]

    def test_a_group_reference_holds_across_hosts(self):
        servers, clients = self.group("s"), self.group("c")
        server = self.run_apart("listen tcp 7000\nlisten udp 7001\nlisten http 80 3MiB",
                                SecurityGroupIds=[servers])
        client = self.run_apart(
            f"connect {server.address}:7000 every 100ms\nudp {server.address}:7001 every 100ms\n"
            f"ping {server.address} every 200ms\nhttp-get http://{server.address}/",
            SecurityGroupIds=[clients])
        self.assertNotEqual(host_of(server), host_of(client))
        self.assertEqual({host["guest_mtu"] for host in reachable().values()}, {1450})
        client.wait_line("dhcp:", "mtu=1450")
        start = f"connect: {server.address}:7000"
        for line in [start, "udp:", "ping:"]:
            client.wait_line(line, "timeout")

        rules = [tcp(7000, **from_group(clients)), tcp(80, **from_group(clients)),
                 {"IpProtocol": "udp", "FromPort": 7001, "ToPort": 7001, **from_group(clients)},
                 {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1, **from_group(clients)}]
        first.ec2.authorize_security_group_ingress(GroupId=servers, IpPermissions=rules)
        for line in [start, "udp:", "ping:"]:
            client.wait_line(line, " ok ")
        client.wait_line("http-get:", "status=200")
        self.assertEqual(number(client.newest("http-get:")[1], "bytes"), 3 << 20)

        # Who leaves the group is let in no more.
        first.ec2.modify_instance_attribute(InstanceId=client.id, Groups=[servers])
        fails_from_now(self, client, start)
        first.ec2.modify_instance_attribute(InstanceId=client.id, Groups=[clients])
        client.wait_line(start, " ok ", after_s=client.now() + 1)

        # Nor does the packet path need anyone above it.
        for host in (first, second):
            host.kill("node")
        first.kill("control")
        client.wait_line(start, " ok ", after_s=client.now() + 1)
        first.serves()
        wait_for("both hosts are back", lambda: len(reachable()) == 2)

    def test_acls_and_peerings_hold_across_hosts(self):
        networks = []
        for block in ("10.1", "10.2"):
            vpc = first.ec2.create_vpc(CidrBlock=f"{block}.0.0/16")["Vpc"]["VpcId"]
            subnet = first.ec2.create_subnet(VpcId=vpc, CidrBlock=f"{block}.1.0/24")
            networks.append((vpc, subnet["Subnet"]["SubnetId"]))
        (a, in_a), (b, in_b) = networks
        servers = self.group("s", VpcId=b)
        first.ec2.authorize_security_group_ingress(
            GroupId=servers, IpPermissions=[tcp(7000, **from_cidr("10.1.0.0/16"))])
        server = self.run_apart("listen tcp 7000", SubnetId=in_b, SecurityGroupIds=[servers])
        client = self.run_apart(f"connect {server.address}:7000 every 100ms", SubnetId=in_a)
        start = f"connect: {server.address}:7000"
        client.wait_line(start, "timeout")

        peering = first.ec2.create_vpc_peering_connection(VpcId=a, PeerVpcId=b)
        peering = peering["VpcPeeringConnection"]["VpcPeeringConnectionId"]
        first.ec2.accept_vpc_peering_connection(VpcPeeringConnectionId=peering)
        for vpc, block in [(a, "10.2.0.0/16"), (b, "10.1.0.0/16")]:
            tables = first.ec2.describe_route_tables(
                Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
            first.ec2.create_route(RouteTableId=tables[0]["RouteTableId"],
                                   DestinationCidrBlock=block, VpcPeeringConnectionId=peering)
        client.wait_line(start, " ok ")

        acls = first.ec2.describe_network_acls(Filters=[{"Name": "vpc-id", "Values": [b]}])
        acl = acls["NetworkAcls"][0]["NetworkAclId"]
        first.ec2.create_network_acl_entry(
            NetworkAclId=acl, RuleNumber=10, Protocol="6", RuleAction="deny", Egress=False,
            CidrBlock="10.1.1.0/24", PortRange={"From": 7000, "To": 7000})
        fails_from_now(self, client, start)
        first.ec2.delete_network_acl_entry(NetworkAclId=acl, RuleNumber=10, Egress=False)
        client.wait_line(start, " ok ", after_s=client.now() + 1)
        first.ec2.delete_vpc_peering_connection(VpcPeeringConnectionId=peering)
        fails_from_now(self, client, start)

    def test_an_elastic_address_is_answered_for_where_its_instance_is(self):
        group = self.group("e")
        first.ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=[tcp(7, **from_cidr("0.0.0.0/0"))])
        guests = [self.run_apart("listen tcp 7", SecurityGroupIds=[group]) for _ in range(2)]
        addresses = {}
        for vm in guests:
            given = first.ec2.allocate_address(Domain="vpc")
            first.ec2.associate_address(AllocationId=given["AllocationId"], InstanceId=vm.id)
            addresses[host_of(vm)] = given["PublicIp"]
        for at, host in enumerate([first, second]):
            with cable.inside(at):
                wait_for("the guest is reached from outside", lambda: echoes(addresses[host]), 10)
                other = addresses[second if host is first else first]
                self.assertFalse(echoes(other), "an address of the other host's")

    def test_a_host_that_comes_back_is_the_same(self):
        pair = [self.run_apart("listen tcp 7000") for _ in range(2)]
        there = next(vm for vm in pair if host_of(vm) is second)
        second.process.kill()
        second.process.wait()
        second.join = second.state / "host.json"  # what it has kept of the bundle
        second.start()
        wait_for("the second host is back", lambda: "rack-2" in reachable())
        self.assertEqual(there.boots(), 1, "its guest has not noticed")
