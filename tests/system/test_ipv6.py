"""IPv6 as guests have it: addresses by DHCPv6, rules and entries that hold, metadata."""

import ipaddress
import unittest

from guest import word
from installation import Installation, error_code, wait_for
from test_network import fails_from_now, tcp

METADATA = "http://[fd00:ec2::254]/latest/meta-data"

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def dual_stack(ec2):
    """A VPC with an IPv6 block, and two subnets of it, one of which gives addresses."""
    vpc = ec2.create_vpc(CidrBlock="10.6.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]
    block = ipaddress.ip_network(vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"])
    blocks = block.subnets(new_prefix=64)
    subnets = []
    for number in (1, 2):
        subnet = ec2.create_subnet(VpcId=vpc["VpcId"], CidrBlock=f"10.6.{number}.0/24")
        subnet = subnet["Subnet"]["SubnetId"]
        ec2.associate_subnet_cidr_block(SubnetId=subnet, Ipv6CidrBlock=str(next(blocks)))
        subnets.append(subnet)
    ec2.modify_subnet_attribute(
        SubnetId=subnets[0], AssignIpv6AddressOnCreation={"Value": True})
    return vpc["VpcId"], subnets


def from_ipv6(cidr):
    return {"Ipv6Ranges": [{"CidrIpv6": cidr}]}


def card_of(vm):
    """The id of a guest's first network interface."""
    return vm.describe()["NetworkInterfaces"][0]["NetworkInterfaceId"]


def explained(vm, to, *of):
    """What the packet path's operator is told of a packet of a guest's."""
    return up.say("explain", "--from", card_of(vm), "--to", to, "--sport", "9", *of)


def addresses(vm):
    """What a guest was given, by its newest report."""
    return word(vm.newest("ipv6:")[1], "addresses").split(",")


class DualStack(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.vpc, (cls.near, cls.far) = dual_stack(up.ec2)

    def setUp(self):
        name = self.id().rsplit(".", 1)[1]
        self.groups = [
            up.ec2.create_security_group(VpcId=self.vpc, GroupName=f"{name}-{side}",
                                         Description=name)["GroupId"]
            for side in ("server", "client")]
        self.guests = []

    def tearDown(self):
        if self.guests:
            up.ec2.terminate_instances(InstanceIds=[vm.id for vm in self.guests])
            for vm in self.guests:
                vm.wait_state("terminated")
        for group in self.groups:
            up.ec2.delete_security_group(GroupId=group)

    def run_in(self, subnet, group, orders, **more):
        vm = up.run(f"ipv6\n{orders}", SubnetId=subnet, SecurityGroupIds=[group], **more)
        self.guests.append(vm)
        vm.wait_line("ipv6: addresses=")
        return vm, vm.describe()["Ipv6Address"]

    def allow(self, *rules):
        up.ec2.authorize_security_group_ingress(GroupId=self.groups[0], IpPermissions=rules)

    def test_instances_reach_each_other_as_rules_say(self):
        server, at = self.run_in(self.near, self.groups[0], "listen tcp 7000\nlisten udp 7000")
        self.assertEqual(addresses(server), [at])
        self.assertEqual(word(server.newest("ipv6:")[1], "router"), "fe80::6f:63ff:fe73:1")
        self.assertEqual(word(server.newest("ipv6:")[1], "dns"), "fd00:ec2::253")
        client, own = self.run_in(
            self.near, self.groups[1],
            f"connect [{at}]:7000 every 100ms\nudp [{at}]:7000 every 100ms\nping {at} every 1s")
        lines = [f"connect: [{at}]:7000", f"udp: [{at}]:7000", f"ping: {at}"]
        for line in lines:
            client.wait_line(line, "timeout")
        # What opens IPv4 opens no IPv6, nor does a block that the client is not in.
        everywhere = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        elsewhere = tcp(7000, **from_ipv6("2001:db8::/32"))
        self.allow(everywhere, elsewhere)
        fails_from_now(self, client, lines[0])
        by_tcp = ["--proto", "tcp", "--dport", "7000"]
        by_udp = ["--proto", "udp", "--dport", "7000"]
        told = explained(client, at, *by_tcp)
        self.assertTrue(told.startswith("DROPPED ingress_denied\n"), told)
        self.assertIn(f"{at} is {card_of(server)} (slot ", told)
        self.assertIn(f"egress   allowed by {self.groups[1]}: all to ::/0 (", told)
        self.assertIn(f"ingress  no rule of {self.groups[0]} allows it\n", told)
        rule = tcp(7000, **from_ipv6(f"{own}/128"))
        self.allow(rule)
        client.wait_line(lines[0], " ok ")
        told = explained(client, at, *by_tcp)
        self.assertTrue(told.startswith("PASSES forwarded\n"), told)
        self.assertIn(
            f"ingress  allowed by {self.groups[0]}: tcp 7000-7000 from {own}/128 (", told)
        fails_from_now(self, client, lines[1])
        self.assertIn("DROPPED ingress_denied\n", explained(client, at, *by_udp))
        self.allow({"IpProtocol": "udp", "FromPort": 7000, "ToPort": 7000,
                    "UserIdGroupPairs": [{"GroupId": self.groups[1]}]},
                   {"IpProtocol": "icmpv6", "FromPort": 128, "ToPort": -1,
                    **from_ipv6("::/0")})
        client.wait_line(lines[1], " ok ")
        client.wait_line(lines[2], " ok ")
        for of, says in [
                (by_udp, f"udp 7000-7000 from {self.groups[1]} ("),
                (["--proto", "icmpv6"], "icmpv6 type 128 code any from ::/0 (")]:
            told = explained(client, at, *of)
            self.assertTrue(told.startswith("PASSES forwarded\n"), told)
            self.assertIn(f"ingress  allowed by {self.groups[0]}: {says}", told)
        self.assertIn("--proto icmp: ", up.refuses(
            "explain", "--from", card_of(client), "--to", at, "--proto", "icmp"))
        up.ec2.revoke_security_group_ingress(GroupId=self.groups[0], IpPermissions=[rule])
        fails_from_now(self, client, lines[0])

    def test_a_network_acl_guards_the_border_by_ipv6(self):
        server, at = self.run_in(self.far, self.groups[0], "listen tcp 7000", Ipv6AddressCount=1)
        self.allow(tcp(7000, **from_ipv6("::/0")))
        client, _ = self.run_in(self.near, self.groups[1], f"connect [{at}]:7000 every 100ms")
        line = f"connect: [{at}]:7000"
        client.wait_line(line, " ok ")
        acls = up.ec2.describe_network_acls(
            Filters=[{"Name": "association.subnet-id", "Values": [self.far]}])["NetworkAcls"]
        entry = {"NetworkAclId": acls[0]["NetworkAclId"], "RuleNumber": 50, "Egress": False}
        up.ec2.create_network_acl_entry(
            **entry, Protocol="-1", RuleAction="deny", Ipv6CidrBlock="::/0")
        fails_from_now(self, client, line)
        told = explained(client, at, "--proto", "tcp", "--dport", "7000")
        self.assertTrue(told.startswith("DROPPED acl_denied\nroute    table rtb-"), told)
        self.assertIn("acl      the receiver's subnet: denied\n", told)
        up.ec2.delete_network_acl_entry(**entry)
        client.wait_line(line, " ok ", after_s=client.now())
        self.assertEqual(server.state(), "running")

    def test_addresses_come_and_go(self):
        server, first = self.run_in(self.near, self.groups[0], "listen tcp 7000")
        self.allow(tcp(7000, **from_ipv6("::/0")))
        eni = card_of(server)
        given = up.ec2.assign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6AddressCount=1)
        second = given["AssignedIpv6Addresses"][0]
        up.ec2.reboot_instances(InstanceIds=[server.id])
        wait_for("the second boot", lambda: server.boots() == 2)
        server.wait_line("ipv6: addresses=", second)
        self.assertEqual(addresses(server), [first, second])
        client, _ = self.run_in(self.near, self.groups[1], "\n".join(
            f"connect [{at}]:7000 every 100ms" for at in (first, second)))
        for at in (first, second):
            client.wait_line(f"connect: [{at}]:7000", " ok ")
        up.ec2.unassign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6Addresses=[second])
        fails_from_now(self, client, f"connect: [{second}]:7000")
        client.wait_line(f"connect: [{first}]:7000", " ok ", after_s=client.now())

    def test_metadata_answers_by_ipv6_where_it_is_switched_on(self):
        with_it, at = self.run_in(
            self.near, self.groups[0], f"http-get {METADATA}/ipv6",
            MetadataOptions={"HttpProtocolIpv6": "enabled"})
        _, text = with_it.wait_line("http-get:", "status=200")
        self.assertIn(f"bytes={len(at)}", text)
        without, _ = self.run_in(self.near, self.groups[0], f"http-get {METADATA}/ipv6")
        without.wait_line("http-get:", "error=")

    def test_a_subnet_loses_its_block_once_nobody_has_an_address(self):
        spare = up.ec2.create_subnet(VpcId=self.vpc, CidrBlock="10.6.3.0/24")["Subnet"]
        vpc = up.ec2.describe_vpcs(VpcIds=[self.vpc])["Vpcs"][0]
        block = ipaddress.ip_network(vpc["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"])
        last = list(block.subnets(new_prefix=64))[-1]
        made = up.ec2.associate_subnet_cidr_block(
            SubnetId=spare["SubnetId"], Ipv6CidrBlock=str(last))["Ipv6CidrBlockAssociation"]
        vm, at = self.run_in(spare["SubnetId"], self.groups[0], "idle", Ipv6AddressCount=1)
        self.assertIn(ipaddress.ip_address(at), last)
        association = {"AssociationId": made["AssociationId"]}
        self.assertEqual(
            error_code(lambda: up.ec2.disassociate_subnet_cidr_block(**association)),
            "InvalidCidrBlock.InUse")
        eni = card_of(vm)
        up.ec2.unassign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6Addresses=[at])
        up.ec2.disassociate_subnet_cidr_block(**association)
        up.ec2.reboot_instances(InstanceIds=[vm.id])
        wait_for("the second boot", lambda: vm.boots() == 2)
        vm.wait_line("ready")
        self.assertFalse([text for _, text in vm.boot_lines() if text.startswith("ipv6: addr")])


if __name__ == "__main__":
    unittest.main()
