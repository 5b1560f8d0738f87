"""What an action does, as a running guest sees it, and its undoing."""

import hashlib
import pathlib
import subprocess
import time
import unittest

from guest import number, word
from installation import BINARIES, Installation, error_code, wait_for
from test_network import fails_from_now

up = None
METADATA = "http://169.254.169.254/latest/meta-data"


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def told(vm, path):
    """The status and hash of what the guest's `http-get` of a metadata path got."""
    line = vm.wait_line(f"http-get: {METADATA}/{path}", "status=")[1]
    return number(line, "status"), word(line, "sha256")


def vpc_with_subnet(block="10.7.0.0/16", subnet="10.7.3.0/24"):
    """A new VPC with one subnet, and its default group open to all of the VPC."""
    vpc = up.ec2.create_vpc(CidrBlock=block)["Vpc"]["VpcId"]
    made = up.ec2.create_subnet(VpcId=vpc, CidrBlock=subnet)["Subnet"]["SubnetId"]
    groups = up.ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    up.ec2.authorize_security_group_ingress(
        GroupId=groups["SecurityGroups"][0]["GroupId"],
        IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": block}]}])
    return vpc, made


def packets(card, reason=""):
    """Packets of an interface so far, those of one reason if it is given."""
    lines = up.say("metrics").splitlines()
    return sum(int(line.split()[-1]) for line in lines
               if line.startswith("ocs_eni_packets_total{") and f'eni="{card}"' in line
               and f'reason="{reason}' in line)


class Launch(unittest.TestCase):
    def test_a_key_pair_is_in_the_metadata(self):
        up.ec2.create_key_pair(KeyName="mine", KeyType="ed25519")
        pairs = up.ec2.describe_key_pairs(KeyNames=["mine"], IncludePublicKey=True)
        public = pairs["KeyPairs"][0]["PublicKey"]
        path = "public-keys/0/openssh-key"
        with_key = up.run(f"http-get {METADATA}/{path}", KeyName="mine")
        without = up.run(f"http-get {METADATA}/{path}")
        self.assertEqual(told(with_key, path), (200, sha256(public)))
        self.assertEqual(told(without, path)[0], 404)
        up.ec2.delete_key_pair(KeyName="mine")
        with_key.ec2.reboot_instances(InstanceIds=[with_key.id])
        wait_for("the second boot", lambda: with_key.boots() == 2)
        self.assertEqual(told(with_key, path), (200, sha256(public)))
        with_key.terminate()
        without.terminate()

    def test_a_type_and_user_data_change_with_the_next_start(self):
        vm = up.run("idle", InstanceType="t2.nano")
        boot = vm.newest("probe: boot")[1]
        self.assertEqual((number(boot, "cpus"), number(boot, "memory_mib")), (1, 512))
        vm.stop()
        for change in ({"InstanceType": {"Value": "t3.micro"}},
                       {"UserData": {"Value": b"idle\nidle\nidle"}}):
            vm.ec2.modify_instance_attribute(InstanceId=vm.id, **change)
        vm.start()
        boot = vm.newest("probe: boot")[1]
        self.assertEqual((number(boot, "cpus"), number(boot, "memory_mib")), (2, 1024))
        self.assertEqual(number(vm.newest("user-data:")[1], "orders"), 3)
        vm.terminate()

    def test_a_launch_template_makes_the_instance(self):
        up.ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData={
            "ImageId": up.image(), "InstanceType": "t2.micro", "UserData": "aWRsZQppZGxl"})
        launched = up.ec2.run_instances(
            MinCount=1, MaxCount=1, LaunchTemplate={"LaunchTemplateName": "web"})
        vm = up.guest(launched["Instances"][0])
        vm.wait_line("ready")
        self.assertEqual(number(vm.newest("probe: boot")[1], "memory_mib"), 1024)
        self.assertEqual(number(vm.newest("user-data:")[1], "orders"), 2)
        vm.terminate()
        up.ec2.create_launch_template_version(
            LaunchTemplateName="web", SourceVersion="1",
            LaunchTemplateData={"InstanceType": "t2.nano"})
        up.ec2.modify_launch_template(LaunchTemplateName="web", DefaultVersion="2")
        up.ec2.delete_launch_template_versions(LaunchTemplateName="web", Versions=["1"])
        launched = up.ec2.run_instances(
            MinCount=1, MaxCount=1, LaunchTemplate={"LaunchTemplateName": "web"})
        vm = up.guest(launched["Instances"][0])
        vm.wait_line("ready")
        self.assertEqual(number(vm.newest("probe: boot")[1], "memory_mib"), 512)
        vm.terminate()
        up.ec2.delete_launch_template(LaunchTemplateName="web")

    def test_metadata_options_of_a_running_instance_are_felt(self):
        vm = up.run()
        self.assertIn("v1_status=200", vm.newest("imds:")[1])
        up.ec2.modify_instance_metadata_options(InstanceId=vm.id, HttpTokens="required")
        up.ec2.reboot_instances(InstanceIds=[vm.id])
        wait_for("the second boot", lambda: vm.boots() == 2)
        self.assertIn("v1_status=401", vm.wait_line("imds:")[1])
        vm.terminate()
        up.ec2.modify_instance_metadata_defaults(HttpTokens="required")
        vm = up.run()
        self.assertIn("v1_status=401", vm.newest("imds:")[1])
        up.ec2.modify_instance_metadata_defaults(HttpTokens="no-preference")
        vm.terminate()

    def test_a_placement_group_is_in_the_metadata_and_is_kept_to(self):
        up.ec2.create_placement_group(GroupName="apart", Strategy="spread")
        vm = up.run(f"http-get {METADATA}/placement/group-name", Placement={"GroupName": "apart"})
        self.assertEqual(told(vm, "placement/group-name"), (200, sha256("apart")))
        self.assertEqual(error_code(lambda: up.run(wait=False, Placement={"GroupName": "apart"})),
                         "InsufficientInstanceCapacity")
        vm.terminate()
        up.ec2.delete_placement_group(GroupName="apart")


class Networks(unittest.TestCase):
    def test_two_vpcs_of_one_block_are_two_networks(self):
        (first, a), (second, b) = vpc_with_subnet(), vpc_with_subnet()
        server = up.run("listen tcp 7", SubnetId=a, PrivateIpAddress="10.7.3.10")
        friend = up.run("connect 10.7.3.10:7 every 200ms", SubnetId=a)
        stranger = up.run("connect 10.7.3.10:7 every 200ms", SubnetId=b)
        self.assertEqual(word(server.newest("dhcp:")[1], "address"), "10.7.3.10/24")
        self.assertEqual(word(friend.newest("dhcp:")[1], "router"), "10.7.3.1")
        friend.wait_line("connect: 10.7.3.10:7 ok")
        stranger.wait_line("connect: 10.7.3.10:7 timeout")
        line = stranger.newest("connect: 10.7.3.10:7")[1]
        self.assertEqual(number(line, "ok_total"), 0)
        for vm in (server, friend, stranger):
            vm.terminate()
        for vpc, subnet in ((first, a), (second, b)):
            up.ec2.delete_subnet(SubnetId=subnet)
            up.ec2.delete_vpc(VpcId=vpc)
            self.assertEqual(error_code(lambda: up.ec2.describe_vpcs(VpcIds=[vpc])),
                             "InvalidVpcID.NotFound")

    def test_dhcp_options_are_in_the_lease(self):
        vpc, subnet = vpc_with_subnet()
        options = up.ec2.create_dhcp_options(DhcpConfigurations=[
            {"Key": "domain-name-servers", "Values": ["10.7.0.9"]}])["DhcpOptions"]["DhcpOptionsId"]
        vm = up.run("idle", SubnetId=subnet)
        self.assertEqual(word(vm.newest("dhcp:")[1], "dns"), "10.7.0.2")
        up.ec2.associate_dhcp_options(DhcpOptionsId=options, VpcId=vpc)
        vm.ec2.reboot_instances(InstanceIds=[vm.id])
        wait_for("the second boot", lambda: vm.boots() == 2)
        self.assertEqual(word(vm.wait_line("dhcp:", "dns=")[1], "dns"), "10.7.0.9")
        gone = lambda: up.ec2.delete_dhcp_options(DhcpOptionsId=options)
        self.assertEqual(error_code(gone), "DependencyViolation")
        up.ec2.associate_dhcp_options(DhcpOptionsId="default", VpcId=vpc)  # none
        gone()
        vm.ec2.reboot_instances(InstanceIds=[vm.id])
        wait_for("the third boot", lambda: vm.boots() == 3)
        self.assertEqual(word(vm.wait_line("dhcp:", "dns=")[1], "dns"), "none")
        vm.terminate()

    def test_names_are_resolved_both_ways_while_the_vpc_supports_it(self):
        vpc, subnet = vpc_with_subnet("10.8.0.0/16", "10.8.3.0/24")
        vm = up.run("resolve ip-10-8-3-9.ec2.internal every 200ms\n"
                    "resolve ip-10-8-3-10.ec2.internal every 1s at 169.254.169.253\n"
                    "resolve 10.8.3.10 every 1s\n"
                    "resolve ip-10-9-0-1.ec2.internal every 1s",
                    SubnetId=subnet, PrivateIpAddress="10.8.3.9")
        own = "resolve: ip-10-8-3-9.ec2.internal server=10.8.0.2"
        vm.wait_line(own, "rcode=0 found=10.8.3.9")
        vm.wait_line("resolve: ip-10-8-3-10.ec2.internal server=169.254.169.253",
                     "rcode=0 found=10.8.3.10")
        vm.wait_line("resolve: 10.8.3.10 server=10.8.0.2",
                     "rcode=0 found=ip-10-8-3-10.ec2.internal")
        vm.wait_line("resolve: ip-10-9-0-1.ec2.internal", "rcode=3")
        self.assertEqual(vm.describe()["PrivateDnsName"], "ip-10-8-3-9.ec2.internal")
        up.ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsSupport={"Value": False})
        at, _ = vm.wait_line(own, "rcode=5")
        up.ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsSupport={"Value": True})
        vm.wait_line(own, "rcode=0 found=10.8.3.9", after_s=at)
        vm.terminate()

    def test_an_interface_keeps_its_address_from_guest_to_guest(self):
        subnet = up.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        eni = up.ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]
        nics = [{"DeviceIndex": 0, "NetworkInterfaceId": eni["NetworkInterfaceId"]}]
        for _ in range(2):
            vm = up.run("idle", NetworkInterfaces=nics)
            address = word(vm.newest("dhcp:")[1], "address").split("/")[0]
            self.assertEqual(address, eni["PrivateIpAddress"])
            self.assertEqual(word(vm.newest("net: mac=")[1], "mac"), eni["MacAddress"])
            vm.terminate()
        up.ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])

    def test_an_interface_comes_to_a_running_guest_and_goes(self):
        vm = up.run("idle")
        eni = up.ec2.create_network_interface(SubnetId=vm.launch["SubnetId"])["NetworkInterface"]
        card, address = eni["NetworkInterfaceId"], eni["PrivateIpAddress"]
        pinger = up.run(f"ping {address} every 200ms", SubnetId=vm.launch["SubnetId"])
        start = f"ping: {address}"
        pinger.wait_line(start, "timeout")
        attachment = up.ec2.attach_network_interface(
            InstanceId=vm.id, NetworkInterfaceId=card, DeviceIndex=1)["AttachmentId"]
        vm.wait_line(f"net: mac={eni['MacAddress']}")
        vm.wait_line(f"dhcp: address={address}/")
        pinger.wait_line(start, " ok ")
        def statuses():
            rows = up.ec2.describe_network_interfaces(NetworkInterfaceIds=[card])
            row = rows["NetworkInterfaces"][0]
            return row["Status"], row.get("Attachment", {}).get("Status")
        wait_for("it is attached", lambda: statuses() == ("in-use", "attached"))
        cards = vm.describe()["NetworkInterfaces"]
        self.assertEqual([row["Attachment"]["DeviceIndex"] for row in cards], [0, 1])

        up.ec2.detach_network_interface(AttachmentId=attachment)
        vm.wait_line("net: gone")
        wait_for("it is available", lambda: statuses() == ("available", None))
        since = pinger.now() + 1.5
        pinger.wait_line(start, "timeout", after_s=since)
        up.ec2.delete_network_interface(NetworkInterfaceId=card)
        for guest in (vm, pinger):
            guest.terminate()

    def test_new_groups_of_a_running_interface_are_felt(self):
        server = up.run("listen tcp 7")
        client = up.run(f"connect {server.address}:7 every 100ms",
                        SubnetId=server.launch["SubnetId"])
        start = f"connect: {server.address}:7"
        client.wait_line(start, " ok ")
        row = server.describe()
        card = row["NetworkInterfaces"][0]["NetworkInterfaceId"]
        was, closed = row["SecurityGroups"][0]["GroupId"], up.group("closed-card")
        def regroup(group):
            up.ec2.modify_network_interface_attribute(NetworkInterfaceId=card, Groups=[group])
        regroup(closed)
        fails_from_now(self, client, start)
        regroup(was)
        client.wait_line(start, " ok ", after_s=client.now())
        for guest in (server, client):
            guest.terminate()

    def test_an_interface_hears_for_others_until_it_is_reset(self):
        vpc, subnet = vpc_with_subnet()
        router = up.run(SubnetId=subnet)
        card = router.describe()["NetworkInterfaces"][0]["NetworkInterfaceId"]
        table = up.ec2.describe_route_tables(
            Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]["RouteTableId"]
        up.ec2.create_route(RouteTableId=table, DestinationCidrBlock="10.99.0.0/16",
                            NetworkInterfaceId=card)
        sender = up.run("ping 10.99.0.1 every 100ms", SubnetId=subnet)
        own = sender.describe()["NetworkInterfaces"][0]["NetworkInterfaceId"]
        def is_checked():
            """Whether frames on that way are dropped, because it hears for itself alone."""
            sent, dropped = packets(own), packets(own, "source_dest_check")
            wait_for("more frames", lambda: packets(own) > sent + 5)
            return packets(own, "source_dest_check") > dropped
        self.assertTrue(is_checked())
        up.ec2.modify_network_interface_attribute(
            NetworkInterfaceId=card, SourceDestCheck={"Value": False})
        wait_for("it forwards", lambda: not is_checked())
        up.ec2.reset_network_interface_attribute(
            NetworkInterfaceId=card, SourceDestCheck="true")
        wait_for("it does so no more", is_checked)
        for vm in (router, sender):
            vm.terminate()

    def test_without_credits_an_instance_has_its_baseline_until_it_is_unlimited(self):
        # It starts with no credits, earns a tenth of a CPU, and reads as fast as it can.
        up.ec2.modify_default_credit_specification(InstanceFamily="t3", CpuCredits="standard")
        self.addCleanup(up.ec2.modify_default_credit_specification,
                        InstanceFamily="t3", CpuCredits="unlimited")
        vm = up.run("bench disk 0 read 4KiB depth 32 for 300s", wait=False,
                    InstanceType="t3.nano")
        vm.wait_state("running")
        def kept(*names):
            """The first of these files of the VMM's control groups."""
            return next(path for name in names
                        for path in pathlib.Path("/sys/fs/cgroup").glob(f"**/ocs-*/{vm.id}/{name}"))
        def quota():
            """Millionths of a CPU, or nothing."""
            path = kept("cpu.cfs_quota_us", "cpu.max")
            words = path.read_text().split()
            period = (words + [0])[1] or (path.parent / "cpu.cfs_period_us").read_text()
            return None if words[0] in ("-1", "max") else int(words[0]) * 1_000_000 // int(period)
        def used_s():
            path = kept("cpuacct.usage", "cpu.stat")
            words = path.read_text().split()
            return int(words[0]) / 1e9 if len(words) == 1 else int(words[1]) / 1e6
        def share():
            """CPUs that it used for two seconds."""
            before, began = used_s(), time.monotonic()
            time.sleep(2)
            return (used_s() - before) / (time.monotonic() - began)
        wait_for("it is held to its baseline", lambda: quota() == 100_000)
        self.assertLess(share(), 0.13)
        up.ec2.modify_instance_credit_specification(InstanceCreditSpecifications=[
            {"InstanceId": vm.id, "CpuCredits": "unlimited"}])
        wait_for("it is not", lambda: quota() is None)
        up.ec2.modify_instance_credit_specification(InstanceCreditSpecifications=[
            {"InstanceId": vm.id, "CpuCredits": "standard"}])
        wait_for("it is again", lambda: quota() == 100_000)
        # The node's successor knows how much is left.
        up.kill("node")
        wait_for("it stays", lambda: quota() == 100_000)
        vm.terminate()

    def test_the_source_check_holds_a_running_guest_to_its_address(self):
        vm, other = up.run_many(2, "idle")
        card = vm.describe()["NetworkInterfaces"][0]["NetworkInterfaceId"]
        def fate():
            """What becomes of a packet with somebody else's source."""
            return up.say("explain", "--from", card, "--to", other.address,
                          "--source", "10.99.0.1", "--proto", "icmp")
        dropped = fate()
        self.assertIn("spoofed", dropped)
        up.ec2.modify_instance_attribute(InstanceId=vm.id, SourceDestCheck={"Value": False})
        wait_for("it may send for others", lambda: "spoofed" not in fate())
        up.ec2.reset_instance_attribute(InstanceId=vm.id, Attribute="sourceDestCheck")
        wait_for("it may not", lambda: fate() == dropped)
        vm.terminate()
        other.terminate()

    def test_a_prefix_list_lets_in_what_it_holds(self):
        made = up.ec2.create_managed_prefix_list(
            PrefixListName="friends", MaxEntries=5, AddressFamily="IPv4",
            Entries=[{"Cidr": "172.31.0.0/16"}])["PrefixList"]
        group = up.group("prefixes")
        rule = {"GroupId": group, "IpPermissions": [
            {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
             "PrefixListIds": [{"PrefixListId": made["PrefixListId"]}]}]}
        up.ec2.authorize_security_group_ingress(**rule)
        server = up.run("listen tcp 7", SecurityGroupIds=[group])
        client = up.run(f"connect {server.address}:7 every 200ms")
        topic = f"connect: {server.address}:7"
        client.wait_line(topic, " ok ")
        up.ec2.modify_managed_prefix_list(
            PrefixListId=made["PrefixListId"], CurrentVersion=1,
            RemoveEntries=[{"Cidr": "172.31.0.0/16"}], AddEntries=[{"Cidr": "192.0.2.0/24"}])
        client.wait_line(topic, " timeout ", after_s=client.now())
        up.ec2.restore_managed_prefix_list_version(
            PrefixListId=made["PrefixListId"], PreviousVersion=1, CurrentVersion=2)
        client.wait_line(topic, " ok ", after_s=client.now())
        gone = lambda: up.ec2.delete_managed_prefix_list(PrefixListId=made["PrefixListId"])
        self.assertEqual(error_code(gone), "DependencyViolation")
        up.ec2.revoke_security_group_ingress(**rule)
        gone()
        self.assertEqual(
            error_code(lambda: up.ec2.authorize_security_group_ingress(**rule)),
            "InvalidPrefixListID.NotFound")
        server.terminate()
        client.terminate()

    def test_a_changed_rule_lets_in_another_port(self):
        group = up.group("changed")
        rule = up.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 9, "ToPort": 9,
             "IpRanges": [{"CidrIp": "172.31.0.0/16"}]}])["SecurityGroupRules"][0]
        server = up.run("listen tcp 7", SecurityGroupIds=[group])
        client = up.run(f"connect {server.address}:7 every 200ms")
        topic = f"connect: {server.address}:7"
        client.wait_line(topic, " timeout ")
        up.ec2.modify_security_group_rules(GroupId=group, SecurityGroupRules=[{
            "SecurityGroupRuleId": rule["SecurityGroupRuleId"],
            "SecurityGroupRule": {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
                                  "CidrIpv4": "172.31.0.0/16"}}])
        client.wait_line(topic, " ok ", after_s=client.now())
        server.terminate()
        client.terminate()


class Operator(unittest.TestCase):
    def test_accounts_are_apart_and_every_call_is_written_down(self):
        other = up.ocs("account", "create")
        stranger = up.client("ec2", aws_access_key_id=other["access_key_id"],
                             aws_secret_access_key=other["secret_access_key"])
        vm = up.run("idle")
        self.assertEqual(error_code(lambda: stranger.describe_instances(InstanceIds=[vm.id])),
                         "InvalidInstanceID.NotFound")
        self.assertEqual(error_code(lambda: stranger.terminate_instances(InstanceIds=[vm.id])),
                         "InvalidInstanceID.NotFound")
        vm.terminate()
        before = up.ocs("audit", "verify")
        stranger.describe_regions()
        after = up.ocs("audit", "verify")
        self.assertGreater(after["entries"], before["entries"])
        up.ocs("key", "delete", other["access_key_id"])
        self.assertEqual(error_code(stranger.describe_regions), "AuthFailure")

    def test_a_console_is_shown_and_followed_to_its_end(self):
        vm = up.run()
        self.assertIn("ready", up.say("console", vm.id))
        follower = subprocess.Popen(
            [BINARIES / "ocs", "console", "--follow", vm.id, "--state", up.state],
            stdout=subprocess.PIPE, text=True)
        vm.terminate()
        said = follower.communicate(timeout=30)[0]
        self.assertEqual((follower.returncode, said.count("probe: boot")), (0, 1))
        self.assertIn("power: ", said)

    def test_tls_is_served_on_the_same_port(self):
        secure = up.client("ec2", secure=True)
        self.assertTrue(secure.describe_regions()["Regions"])


class Ways(unittest.TestCase):
    def pair(self, vpc, subnet):
        """A server and a client in two subnets of a VPC; the client's topic."""
        other = up.ec2.create_subnet(VpcId=vpc, CidrBlock="10.7.4.0/24")["Subnet"]["SubnetId"]
        server = up.run("listen tcp 7", SubnetId=subnet, PrivateIpAddress="10.7.3.10")
        client = up.run("connect 10.7.3.10:7 every 200ms", SubnetId=other)
        client.wait_line("connect: 10.7.3.10:7", " ok ")
        return server, client, "connect: 10.7.3.10:7"

    def test_a_network_acl_drops_at_the_border(self):
        vpc, subnet = vpc_with_subnet()
        server, client, topic = self.pair(vpc, subnet)
        acl = up.ec2.create_network_acl(VpcId=vpc)["NetworkAcl"]["NetworkAclId"]
        held = up.ec2.describe_network_acls(Filters=[
            {"Name": "association.subnet-id", "Values": [subnet]}])["NetworkAcls"][0]
        old = next(a["NetworkAclAssociationId"] for a in held["Associations"]
                   if a["SubnetId"] == subnet)
        new = up.ec2.replace_network_acl_association(
            AssociationId=old, NetworkAclId=acl)["NewAssociationId"]
        client.wait_line(topic, " timeout ", after_s=client.now())
        up.ec2.replace_network_acl_association(
            AssociationId=new, NetworkAclId=held["NetworkAclId"])
        client.wait_line(topic, " ok ", after_s=client.now())
        deny = {"NetworkAclId": held["NetworkAclId"], "RuleNumber": 100, "Protocol": "-1",
                "Egress": False, "CidrBlock": "0.0.0.0/0"}
        up.ec2.replace_network_acl_entry(RuleAction="deny", **deny)
        client.wait_line(topic, " timeout ", after_s=client.now())
        up.ec2.replace_network_acl_entry(RuleAction="allow", **deny)
        client.wait_line(topic, " ok ", after_s=client.now())
        up.ec2.delete_network_acl(NetworkAclId=acl)
        server.terminate()
        client.terminate()

    def test_a_further_block_of_a_vpc_is_part_of_it(self):
        vpc, subnet = vpc_with_subnet("10.11.0.0/16", "10.11.1.0/24")
        block = up.ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock="10.12.0.0/16")
        block = block["CidrBlockAssociation"]["AssociationId"]
        other = up.ec2.create_subnet(VpcId=vpc, CidrBlock="10.12.1.0/24")["Subnet"]["SubnetId"]
        server = up.run("listen tcp 7", SubnetId=subnet)
        client = up.run(f"connect {server.address}:7 every 200ms", SubnetId=other)
        self.assertEqual(client.address, "10.12.1.4")
        client.wait_line(f"connect: {server.address}:7", " ok ")
        server.terminate()
        client.terminate()
        up.ec2.delete_subnet(SubnetId=other)
        up.ec2.disassociate_vpc_cidr_block(AssociationId=block)

    def test_a_reserved_range_is_given_by_name_alone_until_it_is_no_more(self):
        _, subnet = vpc_with_subnet("10.19.0.0/16", "10.19.3.0/28")
        held = up.ec2.create_subnet_cidr_reservation(
            SubnetId=subnet, Cidr="10.19.3.0/29", ReservationType="explicit",
        )["SubnetCidrReservation"]["SubnetCidrReservationId"]
        first = up.run("addresses", SubnetId=subnet)
        self.assertEqual(first.address, "10.19.3.8")
        named = up.run("addresses", SubnetId=subnet, PrivateIpAddress="10.19.3.4")
        for guest in (first, named):
            guest.wait_line("addresses: held=1", guest.address)
        up.ec2.delete_subnet_cidr_reservation(SubnetCidrReservationId=held)
        second = up.run("addresses", SubnetId=subnet)
        second.wait_line("addresses: held=1", "10.19.3.5")
        for guest in (first, named, second):
            guest.terminate()

    def test_a_rule_names_a_group_beyond_a_peering_until_it_is_deleted(self):
        (a, near), (b, far) = (vpc_with_subnet("10.17.0.0/16", "10.17.1.0/24"),
                               vpc_with_subnet("10.18.0.0/16", "10.18.1.0/24"))
        peering = up.ec2.create_vpc_peering_connection(
            VpcId=a, PeerVpcId=b)["VpcPeeringConnection"]["VpcPeeringConnectionId"]
        up.ec2.accept_vpc_peering_connection(VpcPeeringConnectionId=peering)
        for vpc, block in ((a, "10.18.0.0/16"), (b, "10.17.0.0/16")):
            table = up.ec2.describe_route_tables(
                Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]["RouteTableId"]
            up.ec2.create_route(RouteTableId=table, DestinationCidrBlock=block,
                                VpcPeeringConnectionId=peering)
        servers = up.ec2.create_security_group(
            VpcId=b, GroupName="servers", Description="x")["GroupId"]
        clients = up.ec2.create_security_group(
            VpcId=a, GroupName="clients", Description="x")["GroupId"]
        server = up.run("listen tcp 7", SubnetId=far, PrivateIpAddress="10.18.1.10",
                        SecurityGroupIds=[servers])
        order, topic = "connect 10.18.1.10:7 every 200ms", "connect: 10.18.1.10:7"
        client = up.run(order, SubnetId=near, SecurityGroupIds=[clients])
        other = up.run(order, SubnetId=near)
        client.wait_line(topic, " timeout ")
        rule = {"GroupId": servers, "IpPermissions": [
            {"IpProtocol": "tcp", "FromPort": 7, "ToPort": 7,
             "UserIdGroupPairs": [{"GroupId": clients}]}]}
        up.ec2.authorize_security_group_ingress(**rule)
        client.wait_line(topic, " ok ", after_s=client.now())
        other.wait_line(topic, " timeout ", after_s=other.now())
        self.assertEqual(
            up.ec2.describe_security_group_references(
                GroupId=[clients])["SecurityGroupReferenceSet"],
            [{"GroupId": clients, "ReferencingVpcId": b, "VpcPeeringConnectionId": peering}])
        self.assertEqual(
            up.ec2.describe_stale_security_groups(VpcId=b)["StaleSecurityGroupSet"], [])

        up.ec2.delete_vpc_peering_connection(VpcPeeringConnectionId=peering)
        client.wait_line(topic, " timeout ", after_s=client.now())
        stale, = up.ec2.describe_stale_security_groups(VpcId=b)["StaleSecurityGroupSet"]
        self.assertEqual(stale["GroupId"], servers)
        self.assertEqual(stale["StaleIpPermissions"][0]["UserIdGroupPairs"], [
            {"GroupId": clients, "UserId": up.client("sts").get_caller_identity()["Account"], "VpcId": a,
             "VpcPeeringConnectionId": peering, "PeeringStatus": "deleted"}])
        self.assertEqual(
            error_code(lambda: up.ec2.authorize_security_group_ingress(
                GroupId=servers, IpPermissions=[
                    {"IpProtocol": "udp", "FromPort": 7, "ToPort": 7,
                     "UserIdGroupPairs": [{"GroupId": clients}]}])), "InvalidGroup.NotFound")
        up.ec2.revoke_security_group_ingress(**rule)
        self.assertEqual(
            up.ec2.describe_stale_security_groups(VpcId=b)["StaleSecurityGroupSet"], [])
        for guest in (server, client, other):
            guest.terminate()

    def test_a_peering_joins_two_vpcs_until_it_is_deleted(self):
        (a, near), (b, far) = vpc_with_subnet(), vpc_with_subnet("10.8.0.0/16", "10.8.1.0/24")
        for vpc, block in ((a, "10.8.0.0/16"), (b, "10.7.0.0/16")):
            groups = up.ec2.describe_security_groups(
                Filters=[{"Name": "vpc-id", "Values": [vpc]}])["SecurityGroups"]
            up.ec2.authorize_security_group_ingress(
                GroupId=groups[0]["GroupId"],
                IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": block}]}])
        server = up.run("listen tcp 7", SubnetId=far, PrivateIpAddress="10.8.1.10")
        client = up.run("connect 10.8.1.10:7 every 200ms", SubnetId=near)
        topic = "connect: 10.8.1.10:7"
        client.wait_line(topic, " timeout ")
        def asked():
            return up.ec2.create_vpc_peering_connection(
                VpcId=a, PeerVpcId=b)["VpcPeeringConnection"]["VpcPeeringConnectionId"]
        peering = asked()
        up.ec2.reject_vpc_peering_connection(VpcPeeringConnectionId=peering)
        self.assertEqual(error_code(lambda: up.ec2.accept_vpc_peering_connection(
            VpcPeeringConnectionId=peering)), "InvalidStateTransition")
        fails_from_now(self, client, topic)
        peering = asked()
        up.ec2.accept_vpc_peering_connection(VpcPeeringConnectionId=peering)
        for vpc, block in ((a, "10.8.0.0/16"), (b, "10.7.0.0/16")):
            table = up.ec2.describe_route_tables(
                Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]["RouteTableId"]
            up.ec2.create_route(RouteTableId=table, DestinationCidrBlock=block,
                                VpcPeeringConnectionId=peering)
        client.wait_line(topic, " ok ", after_s=client.now())
        # EC2's defaults are what there is, and change nothing.
        up.ec2.modify_vpc_peering_connection_options(
            VpcPeeringConnectionId=peering,
            AccepterPeeringConnectionOptions={"AllowDnsResolutionFromRemoteVpc": False})
        client.wait_line(topic, " ok ", after_s=client.now())
        up.ec2.delete_vpc_peering_connection(VpcPeeringConnectionId=peering)
        client.wait_line(topic, " timeout ", after_s=client.now())
        server.terminate()
        client.terminate()
