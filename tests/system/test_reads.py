"""Describe calls: what a new region has, filters, pages, tags."""

import unittest

from installation import REGIONS, Installation

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


class Region(unittest.TestCase):
    """The default VPC, as EC2 makes it."""

    def test_every_region_has_one(self):
        for region in REGIONS:
            with self.subTest(region):
                ec2 = up.client("ec2", region)
                vpcs = ec2.describe_vpcs()["Vpcs"]
                self.assertEqual([(v["CidrBlock"], v["IsDefault"]) for v in vpcs],
                                 [("172.31.0.0/16", True)])
                zones = [z["ZoneName"] for z in
                         ec2.describe_availability_zones()["AvailabilityZones"]]
                self.assertEqual(zones, [f"{region}{letter}" for letter in "abc"])
                subnets = ec2.describe_subnets()["Subnets"]
                self.assertEqual(sorted(s["AvailabilityZone"] for s in subnets), zones)
                for subnet in subnets:
                    self.assertTrue(subnet["DefaultForAz"] and subnet["MapPublicIpOnLaunch"])
                    self.assertTrue(subnet["CidrBlock"].endswith("/20"))
                    self.assertEqual(subnet["AvailableIpAddressCount"], 4091)

    def test_the_default_group_refers_to_itself(self):
        group = up.ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]
        self.assertEqual([pair["GroupId"] for rule in group["IpPermissions"]
                          for pair in rule["UserIdGroupPairs"]], [group["GroupId"]])
        self.assertEqual([block["CidrIp"] for rule in group["IpPermissionsEgress"]
                          for block in rule["IpRanges"]], ["0.0.0.0/0"])

    def test_the_caller_is_the_account(self):
        identity = up.client("sts").get_caller_identity()
        self.assertEqual(identity["Account"], up.env["OCS_ACCOUNT_ID"])

    def test_two_public_images_of_the_system(self):
        images = up.ec2.describe_images(Owners=["amazon"])["Images"]
        self.assertLessEqual({"ocs-probe", "ocs-probe-instance-store"},
                             {image["Name"] for image in images})
        self.assertEqual(up.image(), up.env["OCS_PROBE_AMI"])


class Many(unittest.TestCase):
    """Filters and pages over real instances that never start to matter."""

    @classmethod
    def setUpClass(cls):
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "one of many"}]}]
        cls.guests = up.run_many(12, wait=False, TagSpecifications=tags)
        cls.ids = {vm.id for vm in cls.guests}
        for vm in cls.guests:
            vm.wait_state("running")

    @classmethod
    def tearDownClass(cls):
        up.ec2.terminate_instances(InstanceIds=sorted(cls.ids))
        for vm in cls.guests:
            vm.wait_state("terminated")

    def found(self, **filters):
        answer = up.ec2.describe_instances(Filters=[
            {"Name": name.replace("_", "-"), "Values": values} for name, values in filters.items()])
        return {row["InstanceId"] for r in answer["Reservations"] for row in r["Instances"]}

    def test_filters(self):
        one = self.guests[3]
        self.assertEqual(self.found(private_ip_address=[one.address]), {one.id})
        self.assertEqual(self.found(instance_state_name=["running"]), self.ids)
        self.assertEqual(self.found(instance_state_name=["stopped"]), set())
        self.assertEqual(self.found(instance_type=["t3.*"]), self.ids)
        self.assertEqual(self.found(**{"tag:Name": ["one*"]}), self.ids)
        self.assertEqual(self.found(**{"tag:Name": ["two*"]}), set())

    def test_pages_hold_each_once(self):
        up.run_many(1, wait=False)[0].terminate()
        seen = []
        for page in up.ec2.get_paginator("describe_instances").paginate(
                Filters=[{"Name": "instance-state-name", "Values": ["running"]}],
                PaginationConfig={"PageSize": 5}):
            seen += [row["InstanceId"] for r in page["Reservations"] for row in r["Instances"]]
        self.assertEqual(sorted(seen), sorted(self.ids))

    def test_status_volumes_and_interfaces_agree(self):
        status = up.ec2.describe_instance_status(InstanceIds=sorted(self.ids))["InstanceStatuses"]
        self.assertEqual({row["InstanceId"] for row in status}, self.ids)
        volumes = up.ec2.describe_volumes(
            Filters=[{"Name": "attachment.instance-id", "Values": sorted(self.ids)}])["Volumes"]
        self.assertEqual(len(volumes), 12)
        cards = up.ec2.describe_network_interfaces(
            Filters=[{"Name": "attachment.instance-id", "Values": sorted(self.ids)}])
        self.assertEqual({row["PrivateIpAddress"] for row in cards["NetworkInterfaces"]},
                         {vm.address for vm in self.guests})

    def test_tags_come_and_go(self):
        one = self.guests[0]
        up.ec2.create_tags(Resources=[one.id], Tags=[{"Key": "role", "Value": "web"}])
        self.assertEqual(self.found(**{"tag:role": ["web"]}), {one.id})
        up.ec2.delete_tags(Resources=[one.id], Tags=[{"Key": "role"}])
        self.assertEqual(self.found(**{"tag:role": ["web"]}), set())
