"""botocore's own machinery: every waiter and every paginator of what is offered."""

import json
import pathlib
import unittest

import botocore.exceptions
import botocore.waiter
from botocore import xform_name

from installation import Installation

up = None
MODEL = pathlib.Path(__file__).parents[2] / "control" / "model" / "ec2.json"
OFFERED = set(json.loads(MODEL.read_text(encoding="utf-8"))["operations"])
PAGE = 5
# Waited for in test_outside: a NAT gateway needs an address of the outside.
ELSEWHERE = {"nat_gateway_available", "nat_gateway_deleted"}


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def waiters():
    """Names of the waiters on offered actions."""
    config = up.ec2._get_waiter_config()  # pylint: disable=protected-access
    model = botocore.waiter.WaiterModel(config)
    return {xform_name(name) for name in model.waiter_names
            if model.get_waiter(name).operation in OFFERED}


class Clients(unittest.TestCase):
    def wait(self, name, **arguments):
        waiter = up.ec2.get_waiter(name)
        waiter.wait(**arguments, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        self.waited.add(name)

    def test_every_waiter_ends(self):
        self.waited = set()
        kept = [{"DeviceName": "/dev/sdb",
                 "Ebs": {"VolumeSize": 1, "DeleteOnTermination": False}}]
        vm = up.run(BlockDeviceMappings=kept)
        ids = {"InstanceIds": [vm.id]}
        for name in ("instance_exists", "instance_running", "instance_status_ok",
                     "system_status_ok"):
            self.wait(name, **ids)
        volume = vm.describe()["BlockDeviceMappings"][1]["Ebs"]["VolumeId"]
        self.wait("volume_in_use", VolumeIds=[volume])
        with self.assertRaises(botocore.exceptions.WaiterError):
            # Only Windows ever has a password.
            up.ec2.get_waiter("password_data_available").wait(
                InstanceId=vm.id, WaiterConfig={"Delay": 1, "MaxAttempts": 2})
        self.waited.add("password_data_available")
        up.ec2.stop_instances(**ids)
        self.wait("instance_stopped", **ids)
        up.ec2.terminate_instances(**ids)
        self.wait("instance_terminated", **ids)
        self.wait("volume_available", VolumeIds=[volume])
        snapshot = up.ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        self.wait("snapshot_completed", SnapshotIds=[snapshot])
        up.ec2.delete_snapshot(SnapshotId=snapshot)
        up.ec2.delete_volume(VolumeId=volume)
        self.wait("volume_deleted", VolumeIds=[volume])
        for name in ("image_exists", "image_available"):
            self.wait(name, ImageIds=[up.image()])
        vpc = up.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        peer = up.ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
        self.wait("vpc_exists", VpcIds=[vpc])
        self.wait("vpc_available", VpcIds=[vpc])
        subnet = up.ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        self.wait("subnet_available", SubnetIds=[subnet])
        eni = up.ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]
        self.wait("network_interface_available",
                  NetworkInterfaceIds=[eni["NetworkInterfaceId"]])
        self.wait("security_group_exists", GroupIds=[up.group("waited-for")])
        up.ec2.create_key_pair(KeyName="waited-for", KeyType="ed25519")
        self.wait("key_pair_exists", KeyNames=["waited-for"])
        if "CreateInternetGateway" in OFFERED:
            gateway = up.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
            self.wait("internet_gateway_exists", InternetGatewayIds=[gateway])
        if "CreateVpcPeeringConnection" in OFFERED:
            made = up.ec2.create_vpc_peering_connection(VpcId=vpc, PeerVpcId=peer)
            peering = made["VpcPeeringConnection"]["VpcPeeringConnectionId"]
            self.wait("vpc_peering_connection_exists", VpcPeeringConnectionIds=[peering])
            up.ec2.delete_vpc_peering_connection(VpcPeeringConnectionId=peering)
            self.wait("vpc_peering_connection_deleted", VpcPeeringConnectionIds=[peering])
        self.assertEqual(waiters() - self.waited, ELSEWHERE, "waiters that nobody waited for")

    def test_every_paginator_gives_each_item_once(self):
        subnet = up.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        for number in range(7):
            name = f"page-{number}"
            up.group(name)
            up.ec2.create_vpc(CidrBlock="10.9.0.0/16")
            up.ec2.create_network_interface(SubnetId=subnet, TagSpecifications=[
                {"ResourceType": "network-interface", "Tags": [{"Key": "n", "Value": name}]}])
            up.ec2.create_launch_template(
                LaunchTemplateName=name, LaunchTemplateData={"InstanceType": "t3.nano"})
        listed = up.ec2.create_managed_prefix_list(
            PrefixListName="pages", MaxEntries=20, AddressFamily="IPv4",
            Entries=[{"Cidr": f"10.{n}.0.0/16"} for n in range(12)])["PrefixList"]
        vpc = up.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        needed = {"GetManagedPrefixListEntries": {"PrefixListId": listed["PrefixListId"]},
                  "DescribeLaunchTemplateVersions": {"Versions": ["$Latest"]},
                  "GetSecurityGroupsForVpc": {"VpcId": vpc},
                  "DescribeStaleSecurityGroups": {"VpcId": vpc},
                  "GetManagedPrefixListAssociations": {"PrefixListId": listed["PrefixListId"]}}
        paged = 0
        for action in sorted(OFFERED):
            method = xform_name(action)
            if not up.ec2.can_paginate(method):
                continue
            with self.subTest(action):
                paginator = up.ec2.get_paginator(method)
                keys = [str(key.expression) for key in paginator.result_keys]
                arguments = needed.get(action, {})
                whole = getattr(up.ec2, method)(**arguments)
                pages = list(paginator.paginate(**arguments, PaginationConfig={"PageSize": PAGE}))
                for key in keys:
                    items = [item for page in pages for item in page.get(key, [])]
                    self.assertEqual(items, whole.get(key, []))
                    self.assertTrue(all(len(page.get(key, [])) <= PAGE for page in pages))
                paged += 1
        self.assertGreater(paged, 20)

    def test_what_resources_do_is_heard(self):
        """Calls of boto3's resources that ask for what is so already."""
        vm = up.run()
        root = vm.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
        up.ec2.modify_volume_attribute(VolumeId=root, AutoEnableIO={"Value": True})
        told = up.ec2.describe_volume_attribute(VolumeId=root, Attribute="autoEnableIO")
        self.assertTrue(told["AutoEnableIO"]["Value"])
        up.ec2.enable_volume_io(VolumeId=root)
        up.ec2.report_instance_status(
            Instances=[vm.id], Status="impaired", ReasonCodes=["unresponsive"])
        vm.terminate()
