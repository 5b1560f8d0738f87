"""One installation on several hosts: the real system on each, in a network namespace of its
own, and guests that reach each other across."""

import contextlib
import os
import signal
import stat
import unittest

from guest import number
from hosts import STRANGER, Listeners, Rack, enter
from installation import LONG, Installation, processes, wait_for
from test_connect import awaited, connect, made
from test_ipv6 import dual_stack
from test_network import fails_from_now, from_cidr, from_group, tcp
from test_outside import echoes

HOSTS = 5 if LONG else 3
BLOCKS = ["198.51.100.0/29", "198.51.100.8/29"]

rack = None
home = None
hosts = []


def setUpModule():
    global rack, home
    rack = Rack(HOSTS)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(rack.namespaces[0])
    for at in range(HOSTS):
        hosts.append(Installation(*rack.options(at), *OUTSIDE) if at == 0 else join(at))
    wait_for("all hosts are there", lambda: len(reachable()) == HOSTS)


OUTSIDE = ["--outside", "ocs-out", "--public-cidrs", ",".join(BLOCKS)]


def name_of(at):
    """The name of a host."""
    return f"rack-{at + 1}" if at else "local"


def bundle_for(at):
    """Admits a host: the file with which it joins."""
    bundle = hosts[0].folder / f"{name_of(at)}.join"
    hosts[0].say("host", "add", name_of(at), "--out", bundle)
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    return bundle


def join(at):
    """Starts a host that joins."""
    return Installation(*rack.options(at), *OUTSIDE, join=bundle_for(at),
                        before=lambda: enter(rack.namespaces[at]))


def tearDownModule():
    global rack, home
    try:
        while hosts:
            hosts.pop().close()
    finally:
        if home is not None:
            enter(home)
            os.close(home)
        if rack:
            rack.close()
        # A runner of several modules calls this twice.
        rack = home = None


def reachable():
    listed = hosts[0].ocs("host", "list")["hosts"]
    return {host["name"]: host for host in listed if host["reachable"]}


def place_of(guest):
    """The number of the host that holds a guest."""
    held = [at for at, host in enumerate(hosts)
            if (host.state / "run" / "instances" / guest.id).exists()]
    assert len(held) == 1, f"{guest.id} is on {len(held)} hosts"
    return held[0]


class Hosts(unittest.TestCase):
    def setUp(self):
        name = self.id().rsplit(".", 1)[1]
        self.spread = f"apart-{name}"
        hosts[0].ec2.create_placement_group(GroupName=self.spread, Strategy="spread")
        self.guests = []

    def tearDown(self):
        if self.guests:
            hosts[0].ec2.terminate_instances(InstanceIds=[vm.id for vm in self.guests])
            for vm in self.guests:
                vm.wait_state("terminated")
        hosts[0].ec2.delete_placement_group(GroupName=self.spread)

    def run_apart(self, orders, **more):
        """A guest on a host on which none of this test's others is."""
        vm = hosts[0].run(orders, InstanceType="t3.micro",
                          Placement={"GroupName": self.spread}, **more)
        self.guests.append(vm)
        return vm

    def group(self, name, **more):
        name = f"{self.spread}-{name}"
        return hosts[0].ec2.create_security_group(
            GroupName=name, Description="system test", **more)["GroupId"]

    def test_a_group_reference_holds_across_hosts(self):
        vpc, (subnet, _) = dual_stack(hosts[0].ec2)
        servers, clients = self.group("s", VpcId=vpc), self.group("c", VpcId=vpc)
        server = self.run_apart("ipv6\nlisten tcp 7000\nlisten udp 7001\nlisten http 80 3MiB",
                                SubnetId=subnet, SecurityGroupIds=[servers])
        by_ipv4, by_ipv6 = server.address, f"[{server.describe()['Ipv6Address']}]"
        asked = lambda ip, pause: (
            f"connect {ip}:7000 every {pause}\nudp {ip}:7001 every {pause}\n"
            f"ping {ip.strip('[]')} every {pause}\nhttp-get http://{ip}/\n")
        orders = "ipv6\n" + asked(by_ipv4, "200ms") + asked(by_ipv6, "500ms")
        others = [self.run_apart(orders, SubnetId=subnet, SecurityGroupIds=[clients])
                  for _ in range(HOSTS - 1)]
        self.assertEqual(len({place_of(vm) for vm in self.guests}), HOSTS)
        self.assertEqual({host["guest_mtu"] for host in reachable().values()}, {1450})
        starts = [f"connect: {ip}:7000" for ip in (by_ipv4, by_ipv6)]
        lines = starts + [line for ip in (by_ipv4, by_ipv6)
                          for line in (f"udp: {ip}:7001", f"ping: {ip.strip('[]')}")]
        for client in others:
            client.wait_line("dhcp:", "mtu=1450")
            for line in lines:
                client.wait_line(line, "timeout")

        rules = [tcp(7000, **from_group(clients)), tcp(80, **from_group(clients)),
                 {"IpProtocol": "udp", "FromPort": 7001, "ToPort": 7001, **from_group(clients)},
                 {"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1, **from_group(clients)},
                 {"IpProtocol": "icmpv6", "FromPort": 128, "ToPort": -1, **from_group(clients)}]
        hosts[0].ec2.authorize_security_group_ingress(GroupId=servers, IpPermissions=rules)
        for client in others:
            for line in lines:
                client.wait_line(line, " ok ")
            for ip in (by_ipv4, by_ipv6):
                _, text = client.wait_line(f"http-get: http://{ip}/", "status=200")
                self.assertEqual(number(text, "bytes"), 3 << 20)
                self.assert_explained(client, ip.strip("[]"), server, clients)

        # Who leaves the group is let in no more; the others are.
        client, *rest = others
        hosts[0].ec2.modify_instance_attribute(InstanceId=client.id, Groups=[servers])
        for start in starts:
            fails_from_now(self, client, start)
            for other in rest:
                other.wait_line(start, " ok ", after_s=other.now() + 1)
        hosts[0].ec2.modify_instance_attribute(InstanceId=client.id, Groups=[clients])
        for start in starts:
            client.wait_line(start, " ok ", after_s=client.now() + 1)

        # Nor does the packet path need anyone above it.
        for host in hosts:
            host.kill("node")
        hosts[0].kill("control")
        for start in starts:
            client.wait_line(start, " ok ", after_s=client.now() + 1)
        hosts[0].serves()
        wait_for("all hosts are back", lambda: len(reachable()) == HOSTS)

    def assert_explained(self, client, to, server, group):
        """The client's host says on which host the server is, and which rule lets it go."""
        card = client.describe()["NetworkInterfaces"][0]["NetworkInterfaceId"]
        told = hosts[place_of(client)].say("explain", "--from", card, "--to", to,
                                           "--proto", "tcp", "--dport", "7000", "--sport", "9")
        self.assertTrue(told.startswith("PASSES forwarded\n"), told)
        self.assertIn(f"{to} is on host {rack.address(place_of(server))} (slot ", told)
        everyone = "::/0" if ":" in to else "0.0.0.0/0"
        self.assertIn(f"egress   allowed by {group}: all to {everyone} (", told)
        self.assertNotIn("ingress", told)

    def test_acls_and_peerings_hold_across_hosts(self):
        networks = []
        for block in ("10.1", "10.2"):
            vpc = hosts[0].ec2.create_vpc(CidrBlock=f"{block}.0.0/16")["Vpc"]["VpcId"]
            subnet = hosts[0].ec2.create_subnet(VpcId=vpc, CidrBlock=f"{block}.1.0/24")
            networks.append((vpc, subnet["Subnet"]["SubnetId"]))
        (a, in_a), (b, in_b) = networks
        servers = self.group("s", VpcId=b)
        hosts[0].ec2.authorize_security_group_ingress(
            GroupId=servers, IpPermissions=[tcp(7000, **from_cidr("10.1.0.0/16"))])
        server = self.run_apart("listen tcp 7000", SubnetId=in_b, SecurityGroupIds=[servers])
        client = self.run_apart(f"connect {server.address}:7000 every 100ms", SubnetId=in_a)
        start = f"connect: {server.address}:7000"
        client.wait_line(start, "timeout")

        peering = hosts[0].ec2.create_vpc_peering_connection(VpcId=a, PeerVpcId=b)
        peering = peering["VpcPeeringConnection"]["VpcPeeringConnectionId"]
        hosts[0].ec2.accept_vpc_peering_connection(VpcPeeringConnectionId=peering)
        for vpc, block in [(a, "10.2.0.0/16"), (b, "10.1.0.0/16")]:
            tables = hosts[0].ec2.describe_route_tables(
                Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
            hosts[0].ec2.create_route(RouteTableId=tables[0]["RouteTableId"],
                                   DestinationCidrBlock=block, VpcPeeringConnectionId=peering)
        client.wait_line(start, " ok ")

        acls = hosts[0].ec2.describe_network_acls(Filters=[{"Name": "vpc-id", "Values": [b]}])
        acl = acls["NetworkAcls"][0]["NetworkAclId"]
        hosts[0].ec2.create_network_acl_entry(
            NetworkAclId=acl, RuleNumber=10, Protocol="6", RuleAction="deny", Egress=False,
            CidrBlock="10.1.1.0/24", PortRange={"From": 7000, "To": 7000})
        fails_from_now(self, client, start)
        hosts[0].ec2.delete_network_acl_entry(NetworkAclId=acl, RuleNumber=10, Egress=False)
        client.wait_line(start, " ok ", after_s=client.now() + 1)
        hosts[0].ec2.delete_vpc_peering_connection(VpcPeeringConnectionId=peering)
        fails_from_now(self, client, start)

    def test_an_endpoint_connects_to_every_host(self):
        ec2 = hosts[0].ec2
        ours, theirs = self.group("way"), self.group("server")
        ec2.authorize_security_group_ingress(
            GroupId=theirs, IpPermissions=[tcp(7000, **from_group(ours))])
        default = [{"Name": "default-for-az", "Values": ["true"]}]
        subnet = ec2.describe_subnets(Filters=default)["Subnets"][0]["SubnetId"]
        row = made(ec2, SubnetId=subnet, SecurityGroupIds=[ours])
        guests = [self.run_apart("listen tcp 7000", SecurityGroupIds=[theirs]) for _ in hosts]
        self.assertEqual({place_of(vm) for vm in guests}, set(range(HOSTS)))
        much = os.urandom(1 << 20)
        for vm in guests:
            wait_for(f"connects to {vm.id}",
                     lambda: connect(vm.id, 7000, say=b"1", installation=hosts[0]) == b"1")
            self.assertEqual(connect(vm.id, 7000, say=much, installation=hosts[0]), much)
        endpoint = row["InstanceConnectEndpointId"]
        ec2.delete_instance_connect_endpoint(InstanceConnectEndpointId=endpoint)
        awaited(ec2, endpoint, "delete-complete")

    def test_an_elastic_address_is_answered_for_where_its_instance_is(self):
        group = self.group("e")
        hosts[0].ec2.authorize_security_group_ingress(
            GroupId=group, IpPermissions=[tcp(7, **from_cidr("0.0.0.0/0"))])
        guests = [self.run_apart("listen tcp 7", SecurityGroupIds=[group]) for _ in hosts]
        addresses = {}
        for vm in guests:
            given = hosts[0].ec2.allocate_address(Domain="vpc")
            hosts[0].ec2.associate_address(AllocationId=given["AllocationId"], InstanceId=vm.id)
            addresses[place_of(vm)] = given["PublicIp"]
        for at, address in addresses.items():
            with rack.inside(at):
                wait_for("the guest is reached from outside", lambda: echoes(address), 10)
                others = [other for other in addresses.values() if other != address]
                self.assertFalse(any(map(echoes, others)), "addresses of the other hosts'")

    def test_a_host_that_comes_back_is_the_same(self):
        guests = [self.run_apart("listen tcp 7000") for _ in hosts]
        there = next(vm for vm in guests if place_of(vm) == 1)
        second = hosts[1]
        second.process.kill()
        second.process.wait()
        second.join = second.state / "host.json"  # what it has kept of the bundle
        second.start()
        wait_for("the second host is back", lambda: "rack-2" in reachable())
        self.assertEqual(there.boots(), 1, "its guest has not noticed")

    def test_an_uplink_that_carries_less_is_every_guests_limit(self):
        server = self.run_apart("listen http 80 3MiB")
        group = server.describe()["SecurityGroups"][0]["GroupId"]
        rule = [tcp(80, **from_group(group))]
        ec2 = hosts[0].ec2
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rule)
        long_before = self.run_apart(
            f"bench udp {server.address}:9 1422 for 600s\nhttp-get http://{server.address}/")
        long_before.wait_line("http-get:", "status=200")
        at = next(at for at in range(1, HOSTS) if at != place_of(server))
        try:
            rack.link(at, "mtu", "1400")
            hosts[at].kill("node")
            wait_for("the host says so", lambda: mtu_of(at) == 1350)
            # Who began with more is told, packet by packet (RFC 792, type 3 code 4); who
            # begins now knows, and what both speak fits.
            wait_for("the longer ones are refused by name", lambda: too_long(long_before) > 0)
            late = self.run_apart(f"http-get http://{server.address}/")
            late.wait_line("dhcp:", "mtu=1350")
            late.wait_line("http-get:", "status=200")
            self.assertEqual(number(late.newest("http-get:")[1], "bytes"), 3 << 20)
        finally:
            rack.link(at, "mtu", "1500")
            hosts[at].kill("node")
            wait_for("as it was", lambda: mtu_of(at) == 1450)
            ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rule)

    def test_a_host_that_dies_for_good_is_removed_and_replaced(self):
        ec2, last = hosts[0].ec2, HOSTS - 1
        private, route, gateways = self.gateways()
        listeners = Listeners(rack, 7777)
        self.addCleanup(listeners.close)
        guests = [self.run_apart(f"listen tcp 7000\nconnect {STRANGER}:7777 every 200ms",
                                 SubnetId=private) for _ in hosts]
        lost = next(vm for vm in guests if place_of(vm) == last)
        near = next(vm for vm in guests if place_of(vm) == 0)

        # Each gateway is another host's, and every guest reaches it there.
        carried = {}
        for nat, address in gateways.items():
            ec2.replace_route(NatGatewayId=nat, **route)
            wait_for("a way out", lambda: listeners.of(address))
            for vm in guests:
                vm.wait_line(f"connect: {STRANGER}:7777 ok", after_s=vm.now() + 0.5)
            (carried[nat],) = listeners.of(address)
        self.assertEqual(sorted(carried.values()), list(range(HOSTS)))
        doomed = next(nat for nat, at in carried.items() if at == last)
        ec2.replace_route(NatGatewayId=doomed, **route)

        die(last, lost)
        status = lambda: ec2.describe_instance_status(InstanceIds=[lost.id])["InstanceStatuses"][0]
        wait_for("its instance is impaired",
                 lambda: status()["SystemStatus"]["Status"] == "impaired", 60)
        self.assertNotIn(name_of(last), reachable())
        self.assertIn("holds 1 instances, 1 volumes", hosts[0].refuses("host", "remove", name_of(last)))
        self.assertEqual(lost.state(), "running")
        held = hosts[0].ocs("host", "remove", name_of(last), "--force")["held"]
        self.assertEqual((held["instances"], held["nat_gateways"]), (1, 1))
        row = lost.describe()
        self.assertEqual((row["State"]["Name"], row["StateReason"]["Code"]),
                         ("terminated", "Server.InternalError"))

        # Its gateway is another's now, its address a new guest's.
        wait_for("another way out", lambda: listeners.of(gateways[doomed]) - {last})
        near.wait_line(f"connect: {STRANGER}:7777 ok", after_s=near.now() + 0.5)
        self.guests.remove(lost)
        heir = hosts[0].run("listen tcp 7000", SubnetId=private, PrivateIpAddress=lost.address)
        self.guests.append(heir)
        self.assertNotEqual(place_of(heir), last)

        # What comes back is not let in, and ends what it held; by a new bundle it is.
        dead = hosts[last]
        rack.link(last, "up")
        dead.join = dead.state / "host.json"
        dead.start()
        wait_for("it is told", lambda: "has been removed" in dead.log())
        wait_for("it holds nothing",
                 lambda: not (dead.state / "run" / "instances" / lost.id).exists())
        dead.interrupt()
        self.assertNotIn(name_of(last), reachable())
        dead.join = bundle_for(last)
        dead.start()
        wait_for("it is back", lambda: len(reachable()) == HOSTS)
        self.assertEqual(place_of(self.run_apart("idle")), last)
        self.forget(gateways)

    def gateways(self):
        """A private subnet and its default route, without a target yet; and a NAT gateway
        for each host, by its public address."""
        ec2 = hosts[0].ec2
        vpc = ec2.create_vpc(CidrBlock="10.40.0.0/16")["Vpc"]["VpcId"]
        public, private = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.40.{n}.0/24")["Subnet"]["SubnetId"]
            for n in (1, 2)]
        gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        tables = []
        for subnet in (public, private):
            table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
            ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
            ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0",
                             GatewayId=gateway)
            tables.append(table)
        made = {}
        for _ in hosts:
            given = ec2.allocate_address(Domain="vpc")
            nat = ec2.create_nat_gateway(SubnetId=public, AllocationId=given["AllocationId"])
            made[nat["NatGateway"]["NatGatewayId"]] = given["PublicIp"]
        ec2.get_waiter("nat_gateway_available").wait(
            NatGatewayIds=list(made), WaiterConfig={"Delay": 1, "MaxAttempts": 20})
        return private, {"RouteTableId": tables[1], "DestinationCidrBlock": "0.0.0.0/0"}, made

    def forget(self, gateways):
        """Deletes NAT gateways and their addresses."""
        ec2 = hosts[0].ec2
        for nat in gateways:
            ec2.delete_nat_gateway(NatGatewayId=nat)
        ec2.get_waiter("nat_gateway_deleted").wait(
            NatGatewayIds=list(gateways), WaiterConfig={"Delay": 1, "MaxAttempts": 20})
        rows = ec2.describe_addresses(PublicIps=list(gateways.values()))["Addresses"]
        for row in rows:
            ec2.release_address(AllocationId=row["AllocationId"])


def mtu_of(at):
    """What a host says that its guests' packets may be long; nothing while it is away."""
    return reachable().get(name_of(at), {}).get("guest_mtu")


def too_long(guest):
    """Packets of a guest that were longer than its interface may send."""
    card = guest.describe()["NetworkInterfaces"][0]["NetworkInterfaceId"]
    lines = hosts[place_of(guest)].say("top").splitlines()
    counted = [line.split() for line in lines]
    return sum(int(words[3]) for words in counted
               if words[:3] == [card, "egress", "too_long"])


def die(at, guest):
    """A host loses power: whatever ran there is gone, and nobody hears of it."""
    host = hosts[at]
    rack.link(at, "down")
    host.process.kill()
    host.process.wait()
    for pid in [*processes(str(host.state)), host.vmm(guest)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
