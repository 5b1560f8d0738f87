"""Security groups, as guests feel them; VPCs whose addresses overlap."""

import unittest

from guest import number, word
from installation import Installation, error_code

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def tcp(port, **peer):
    """One rule for one TCP port."""
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **peer}


def from_group(group):
    return {"UserIdGroupPairs": [{"GroupId": group}]}


def from_cidr(cidr):
    return {"IpRanges": [{"CidrIp": cidr}]}


def fails_from_now(test, vm, start):
    """New attempts on lines that start so fail, and none succeeds."""
    since = vm.now() + 1.5
    _, text = vm.wait_line(start, after_s=since + 1.0)
    later = [line for at, line in vm.boot_lines() if at > since and line.startswith(start)]
    test.assertFalse([line for line in later if " ok " in line], text)


class Groups(unittest.TestCase):
    def setUp(self):
        name = self.id().rsplit(".", 1)[1]
        self.server_group = up.group(f"{name}-s")
        self.client_group = up.group(f"{name}-c")
        self.guests = []

    def tearDown(self):
        if self.guests:
            up.ec2.terminate_instances(InstanceIds=[vm.id for vm in self.guests])
            for vm in self.guests:
                vm.wait_state("terminated")
        for group in [self.server_group, self.client_group]:
            up.ec2.delete_security_group(GroupId=group)

    def pair(self, server, client):
        """A server, and a client whose orders know the server's address."""
        one = up.run(server, SecurityGroupIds=[self.server_group])
        two = up.run(client.format(server=one.address), SecurityGroupIds=[self.client_group])
        self.guests += [one, two]
        return one, two

    def allow(self, rule):
        up.ec2.authorize_security_group_ingress(GroupId=self.server_group, IpPermissions=[rule])

    def revoke(self, rule):
        up.ec2.revoke_security_group_ingress(GroupId=self.server_group, IpPermissions=[rule])

    def test_a_group_reference_opens_one_port_and_no_other(self):
        _, client = self.pair("listen tcp 7000\nlisten tcp 7001",
                              "connect {server}:7000 every 100ms\nconnect {server}:7001 every 100ms")
        opened, closed = (f"connect: {self.guests[0].address}:{port}" for port in (7000, 7001))
        client.wait_line(opened, "timeout")
        rule = tcp(7000, **from_group(self.client_group))
        self.allow(rule)
        client.wait_line(opened, " ok ")
        self.assertEqual(number(client.newest(closed)[1], "ok_total"), 0)
        self.revoke(rule)
        fails_from_now(self, client, opened)

    def test_a_cidr_rule_opens_to_its_addresses_alone(self):
        server, client = self.pair("listen tcp 7000", "connect {server}:7000 every 100ms")
        start = f"connect: {server.address}:7000"
        client.wait_line(start, "timeout")
        elsewhere = tcp(7000, **from_cidr("172.31.255.255/32"))
        self.allow(elsewhere)
        fails_from_now(self, client, start)
        self.allow(tcp(7000, **from_cidr(f"{client.address}/32")))
        client.wait_line(start, " ok ")

    def test_udp_and_ping_need_rules_of_their_own(self):
        server, client = self.pair("listen udp 7000",
                                   "udp {server}:7000 every 100ms\nping {server} every 1s")
        client.wait_line("udp:", "timeout")
        client.wait_line("ping:", "timeout")
        self.allow({"IpProtocol": "udp", "FromPort": 7000, "ToPort": 7000,
                    **from_group(self.client_group)})
        client.wait_line("udp:", " ok ")
        self.allow({"IpProtocol": "icmp", "FromPort": 8, "ToPort": -1,
                    **from_group(self.client_group)})
        client.wait_line("ping:", " ok ")
        self.assertEqual(server.state(), "running")

    def test_without_egress_nothing_leaves(self):
        server, client = self.pair("listen tcp 7000", "connect {server}:7000 every 100ms")
        self.allow(tcp(7000, **from_group(self.client_group)))
        start = f"connect: {server.address}:7000"
        client.wait_line(start, " ok ")
        everything = {"IpProtocol": "-1", **from_cidr("0.0.0.0/0")}
        up.ec2.revoke_security_group_egress(GroupId=self.client_group, IpPermissions=[everything])
        fails_from_now(self, client, start)
        up.ec2.authorize_security_group_egress(
            GroupId=self.client_group, IpPermissions=[everything])
        client.wait_line(start, " ok ", after_s=client.now())

    def test_a_file_is_whole(self):
        server, client = self.pair("listen http 80 3MiB", "http-get http://{server}/")
        self.allow(tcp(80, **from_group(self.client_group)))
        _, text = client.wait_line("http-get:", "status=200")
        self.assertEqual(number(text, "bytes"), 3 << 20)
        self.assertEqual(len(word(text, "sha256")), 64)
        self.assertEqual(server.state(), "running")

    def test_a_group_in_use_stays(self):
        self.pair("idle", "idle")
        self.assertEqual(
            error_code(lambda: up.ec2.delete_security_group(GroupId=self.server_group)),
            "DependencyViolation")
        self.assertEqual(len(up.ec2.describe_security_groups(
            GroupIds=[self.server_group])["SecurityGroups"]), 1)


class Overlap(unittest.TestCase):
    """The default VPCs of two regions have the same addresses."""

    def test_equal_addresses_in_two_vpcs_do_not_meet(self):
        east, west = up.client("ec2", "us-east-1"), up.client("ec2", "eu-west-1")
        guests = {}
        for region, ec2 in [("us-east-1", east), ("eu-west-1", west)]:
            subnets = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])
            subnet = min(subnets["Subnets"], key=lambda row: row["CidrBlock"])
            network = subnet["CidrBlock"].rsplit(".", 1)[0]
            orders = f"listen tcp 7000\nconnect {network}.21:7000 every 100ms"
            guests[region] = [
                up.run(orders, ec2=ec2, SubnetId=subnet["SubnetId"],
                       PrivateIpAddress=f"{network}.20")]
        # Only the west has a listener at .21: the east's connections must die.
        target = guests["eu-west-1"][0].address.rsplit(".", 1)[0] + ".21"
        subnet = guests["eu-west-1"][0].launch["SubnetId"]
        guests["eu-west-1"].append(
            up.run("listen tcp 7000", ec2=west, SubnetId=subnet, PrivateIpAddress=target))
        self.assertEqual(guests["us-east-1"][0].address, guests["eu-west-1"][0].address)
        for vm in (guests["us-east-1"][0], guests["eu-west-1"][0]):
            self.assertEqual(word(vm.newest("imds:")[1], "instance-id"), vm.id)
        guests["eu-west-1"][0].wait_line(f"connect: {target}:7000", " ok ")
        fails_from_now(self, guests["us-east-1"][0], f"connect: {target}:7000")
        for vm in guests["us-east-1"] + guests["eu-west-1"]:
            vm.terminate()


class Metadata(unittest.TestCase):
    """HttpTokens: what the request says, else the image, else optional."""

    def test_tokens_are_required_or_not_as_asked(self):
        for tokens, status in [("required", "401"), ("optional", "200")]:
            with self.subTest(tokens):
                vm = up.run("idle", MetadataOptions={"HttpTokens": tokens})
                self.assertEqual(word(vm.newest("imds:")[1], "v1_status"), status)
                self.assertEqual(vm.describe()["MetadataOptions"]["HttpTokens"], tokens)
                vm.terminate()
