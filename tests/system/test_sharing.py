"""What accounts share, and what an account begins with, as guests see it."""

import datetime
import unittest

from guest import word
from installation import Installation, error_code, wait_for

up = None
stranger = None
stranger_id = None


def setUpModule():
    global up, stranger, stranger_id
    up = Installation()
    other = up.ocs("account", "create")
    stranger_id = other["account_id"]
    stranger = up.client("ec2", aws_access_key_id=other["access_key_id"],
                         aws_secret_access_key=other["secret_access_key"])


def tearDownModule():
    up.close()


def filled():
    """A guest whose root begins with a pattern."""
    vm = up.run("disk 0 fill 1MiB 5")
    vm.wait_line("disk: 0 fill")
    return vm


class Sharing(unittest.TestCase):
    def test_an_image_is_run_by_whom_it_is_shared_with(self):
        vm = filled()
        image = up.ec2.create_image(InstanceId=vm.id, Name="shared")["ImageId"]
        wait_for("the image is made", lambda: up.ec2.describe_images(ImageIds=[image])
                 ["Images"][0]["State"] == "available", 60)
        vm.terminate()
        def refused():
            return error_code(lambda: up.run(wait=False, ec2=stranger, ImageId=image))
        self.assertEqual(refused(), "InvalidAMIID.NotFound")
        up.ec2.modify_image_attribute(
            ImageId=image, LaunchPermission={"Add": [{"UserId": stranger_id}]})
        theirs = up.run("disk 0 verify 1MiB 5", ec2=stranger, ImageId=image)
        theirs.wait_line("disk: 0 verify", " ok ")
        up.ec2.reset_image_attribute(ImageId=image, Attribute="launchPermission")
        self.assertEqual(refused(), "InvalidAMIID.NotFound")
        theirs.terminate()

    def test_an_image_is_deprecated_disabled_and_protected_by_its_owner(self):
        vm = filled()
        image = up.ec2.create_image(InstanceId=vm.id, Name="of age")["ImageId"]
        wait_for("the image is made", lambda: up.ec2.describe_images(ImageIds=[image])
                 ["Images"][0]["State"] == "available", 60)
        vm.terminate()
        share = {"ImageId": image, "LaunchPermission": {"Add": [{"UserId": stranger_id}]}}
        up.ec2.modify_image_attribute(**share)

        def listed(ec2, **more):
            owners = up.client("sts").get_caller_identity()["Account"]
            images = ec2.describe_images(Owners=[owners], **more)["Images"]
            return [shown for shown in images if shown["ImageId"] == image]
        self.assertTrue(listed(stranger))
        up.ec2.enable_image_deprecation(
            ImageId=image, DeprecateAt=datetime.datetime.now(datetime.UTC)
            + datetime.timedelta(seconds=2))
        wait_for("it is deprecated", lambda: not listed(stranger), 40)
        self.assertIn("DeprecationTime", listed(up.ec2)[0])
        self.assertTrue(listed(stranger, IncludeDeprecated=True))
        theirs = up.run("disk 0 verify 1MiB 5", ec2=stranger, ImageId=image)
        theirs.wait_line("disk: 0 verify", " ok ")
        theirs.terminate()
        up.ec2.disable_image_deprecation(ImageId=image)
        self.assertTrue(listed(stranger))

        up.ec2.disable_image(ImageId=image)
        self.assertFalse(listed(up.ec2))
        self.assertEqual(listed(up.ec2, IncludeDisabled=True)[0]["State"], "disabled")
        def refused(ec2):
            return error_code(lambda: up.run(wait=False, ec2=ec2, ImageId=image))
        self.assertEqual(refused(up.ec2), "InvalidAMIID.Unavailable")
        self.assertEqual(refused(stranger), "InvalidAMIID.NotFound")
        self.assertEqual(error_code(lambda: up.ec2.modify_image_attribute(**share)),
                         "InvalidAMIID.Unavailable")
        up.ec2.enable_image(ImageId=image)
        self.assertEqual(refused(stranger), "InvalidAMIID.NotFound", "sharing does not come back")
        again = up.run("disk 0 verify 1MiB 5", ImageId=image)
        again.wait_line("disk: 0 verify", " ok ")
        again.terminate()

        up.ec2.enable_image_deregistration_protection(ImageId=image)
        self.assertEqual(error_code(lambda: up.ec2.deregister_image(ImageId=image)),
                         "OperationNotPermitted")
        up.ec2.disable_image_deregistration_protection(ImageId=image)
        up.ec2.deregister_image(ImageId=image)

    def test_a_snapshot_is_read_by_whom_it_is_shared_with_and_registered_as_an_image(self):
        vm = filled()
        row = vm.describe()
        zone = row["Placement"]["AvailabilityZone"]
        kept = up.ec2.create_snapshot(
            VolumeId=row["BlockDeviceMappings"][0]["Ebs"]["VolumeId"])["SnapshotId"]
        up.ec2.get_waiter("snapshot_completed").wait(
            SnapshotIds=[kept], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        vm.terminate()

        blank = {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": kept}}
        def theirs(**more):
            return up.run("disk 1 verify 1MiB 5", ec2=stranger, BlockDeviceMappings=[blank],
                          Placement={"AvailabilityZone": zone}, **more)
        self.assertEqual(error_code(lambda: theirs(wait=False)), "InvalidSnapshot.NotFound")
        up.ec2.modify_snapshot_attribute(
            SnapshotId=kept, Attribute="createVolumePermission", OperationType="add",
            UserIds=[stranger_id])
        reader = theirs()
        reader.wait_line("disk: 1 verify", " ok ")
        up.ec2.reset_snapshot_attribute(SnapshotId=kept, Attribute="createVolumePermission")
        self.assertEqual(error_code(lambda: theirs(wait=False)), "InvalidSnapshot.NotFound")
        reader.terminate()

        image = up.ec2.register_image(
            Name="registered", RootDeviceName="/dev/xvda", BlockDeviceMappings=[
                {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": kept}}])["ImageId"]
        again = up.run("disk 0 verify 1MiB 5", ImageId=image)
        again.wait_line("disk: 0 verify", " ok ")
        again.terminate()
        up.ec2.deregister_image(ImageId=image)
        self.assertEqual(error_code(lambda: up.run(wait=False, ImageId=image)),
                         "InvalidAMIID.NotFound")


class Beginnings(unittest.TestCase):
    def test_default_subnets_and_vpcs_come_again_when_asked_for(self):
        west = up.client("ec2", "eu-west-1")
        vpc = west.describe_vpcs()["Vpcs"][0]["VpcId"]
        def subnets():
            return west.describe_subnets(
                Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
        def leave():
            for row in subnets():
                west.delete_subnet(SubnetId=row["SubnetId"])
        zone = subnets()[0]["AvailabilityZone"]
        leave()
        self.assertEqual(error_code(lambda: up.run(wait=False, ec2=west)), "MissingInput")
        made = west.create_default_subnet(AvailabilityZone=zone)["Subnet"]
        vm = up.run(ec2=west)
        self.assertEqual(vm.launch["SubnetId"], made["SubnetId"])
        self.assertTrue(word(vm.newest("dhcp:")[1], "address").startswith("172.31."))
        vm.terminate()

        leave()
        gateway = west.describe_internet_gateways()["InternetGateways"][0]["InternetGatewayId"]
        self.assertEqual(
            error_code(lambda: west.delete_internet_gateway(InternetGatewayId=gateway)),
            "DependencyViolation")
        west.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        west.delete_internet_gateway(InternetGatewayId=gateway)
        west.delete_vpc(VpcId=vpc)
        self.assertEqual(error_code(lambda: up.run(wait=False, ec2=west)), "VPCIdNotSpecified")
        new = west.create_default_vpc()["Vpc"]["VpcId"]
        vm = up.run(ec2=west)
        self.assertEqual(vm.launch["VpcId"], new)
        vm.terminate()
