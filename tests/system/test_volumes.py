"""Volumes, snapshots and images, as the guests see them."""

import re
import tempfile
import unittest

from installation import Installation, error_code, wait_for

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def volume(state, volume_id, limit_s=30):
    """Waits until a volume is in a state."""
    return wait_for(f"{volume_id} is {state}", lambda: next(
        (row for row in up.ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
         if row["State"] == state), None), limit_s)


def make(zone, **more):
    """A new volume, there."""
    made = up.ec2.create_volume(AvailabilityZone=zone, **({"Size": 1} | more))["VolumeId"]
    volume("available", made)
    return made


def attach(volume_id, guest, device="/dev/sdf"):
    """AttachVolume, until it is."""
    up.ec2.attach_volume(VolumeId=volume_id, InstanceId=guest.id, Device=device)
    return wait_for("attached", lambda: up.ec2.describe_volumes(VolumeIds=[volume_id])
                    ["Volumes"][0]["Attachments"][0]["State"] == "attached")


def snapshot(volume_id):
    """CreateSnapshot, until it is taken."""
    taken = up.ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    up.ec2.get_waiter("snapshot_completed").wait(
        SnapshotIds=[taken], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    return taken


def delete(*volumes):
    """DeleteVolume, until they are gone."""
    for one in volumes:
        up.ec2.delete_volume(VolumeId=one)
    for one in volumes:
        wait_for(f"{one} is gone", lambda one=one: error_code(
            lambda: up.ec2.describe_volumes(VolumeIds=[one])) == "InvalidVolume.NotFound")


class Attach(unittest.TestCase):
    def test_a_volume_comes_goes_and_carries_its_bytes_to_another_guest(self):
        first = up.run("disk 1 await\ndisk 1 fill 1MiB 7\ndisk 1 loop 64KiB")
        zone = first.describe()["Placement"]["AvailabilityZone"]
        carried = make(zone, Encrypted=True)
        attach(carried, first)
        first.wait_line("disk: 1 fill")
        first.wait_line("disk: 1 loop")
        up.ec2.detach_volume(VolumeId=carried)
        volume("available", carried)
        first.wait_line("disk: index=1 gone")
        self.assertEqual(first.state(), "running")
        # The loop wrote the first 64 KiB anew; the rest is what was filled. Planted again:
        second = up.run("disk 1 await\ndisk 1 fill 1MiB 9",
                        Placement={"AvailabilityZone": zone})
        attach(carried, second)
        second.wait_line("disk: 1 fill")
        up.ec2.detach_volume(VolumeId=carried)
        volume("available", carried)
        third = up.run("disk 1 await\ndisk 1 verify 1MiB 9",
                       Placement={"AvailabilityZone": zone})
        attach(carried, third)
        third.wait_line("disk: 1 verify", " ok ")
        for vm in (first, second, third):
            vm.terminate()
        volume("available", carried)
        delete(carried)

    def test_a_volume_attached_to_a_stopped_instance_is_there_when_it_starts(self):
        vm = up.run("disk 1 await\ndisk 1 fill 1MiB 3")
        zone = vm.describe()["Placement"]["AvailabilityZone"]
        vm.stop()
        added = make(zone)
        attach(added, vm)
        vm.start()
        vm.wait_line("disk: 1 fill")
        self.assertEqual(error_code(lambda: up.ec2.delete_volume(VolumeId=added)), "VolumeInUse")
        vm.terminate()
        volume("available", added)
        delete(added)


class Snapshots(unittest.TestCase):
    def test_a_snapshot_keeps_what_was_and_makes_volumes(self):
        vm = up.run("disk 0 fill 1MiB 5")
        vm.wait_line("disk: 0 fill")
        row = vm.describe()
        root = row["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
        zone = row["Placement"]["AvailabilityZone"]
        kept = snapshot(root)
        vm.terminate()
        copy = make(zone, SnapshotId=kept, Size=2)
        reader = up.run("disk 1 await\ndisk 1 verify 1MiB 5\ndisk 1 fill 1MiB 6",
                        Placement={"AvailabilityZone": zone})
        attach(copy, reader)
        reader.wait_line("disk: 1 verify", " ok ")
        reader.wait_line("disk: 1 fill")
        # What was written since is the volume's alone; a launch makes one, too.
        mapping = [{"DeviceName": "/dev/sdg", "Ebs": {
            "SnapshotId": kept, "DeleteOnTermination": True, "Encrypted": True}}]
        again = up.run("disk 1 verify 1MiB 5", BlockDeviceMappings=mapping)
        again.wait_line("disk: 1 verify", " ok ")
        # Through a file into a volume that began empty.
        with tempfile.TemporaryDirectory() as folder:
            disk = f"{folder}/disk.qcow2"
            up.say("volume", "export", kept, disk)
            self.assertRegex(open(disk, "rb").read(4), b"QFI\xfb")
            with self.assertRaisesRegex(AssertionError, "is attached to"):
                up.say("volume", "import", copy, disk)
            poured = make(zone, Encrypted=True)
            up.say("volume", "import", poured, disk)
        last = up.run("disk 1 await\ndisk 1 verify 1MiB 5", Placement={"AvailabilityZone": zone})
        attach(poured, last)
        last.wait_line("disk: 1 verify", " ok ")
        reader.terminate()
        again.terminate()
        last.terminate()
        volume("available", poured)
        delete(copy, poured)
        up.ec2.delete_snapshot(SnapshotId=kept)
        wait_for("the snapshot is gone", lambda: error_code(
            lambda: up.ec2.describe_snapshots(SnapshotIds=[kept])) == "InvalidSnapshot.NotFound")

    def test_an_image_of_an_instance_boots_with_its_blocks(self):
        vm = up.run("disk 0 verify 1MiB 8\ndisk 0 fill 1MiB 8")
        vm.wait_line("disk: 0 fill")
        image = up.ec2.create_image(InstanceId=vm.id, Name="copy")["ImageId"]
        wait_for("the reboot", lambda: vm.boots() == 2)
        up.ec2.get_waiter("image_available").wait(
            ImageIds=[image], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        vm.wait_line("disk: 0 verify", " ok ")
        copy = up.run("disk 0 verify 1MiB 8", ImageId=image)
        copy.wait_line("disk: 0 verify", " ok ")
        row = up.ec2.describe_images(ImageIds=[image])["Images"][0]
        kept = row["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
        self.assertEqual(error_code(lambda: up.ec2.delete_snapshot(SnapshotId=kept)),
                         "InvalidSnapshot.InUse")
        vm.terminate()
        copy.terminate()
        up.ec2.deregister_image(ImageId=image)
        up.ec2.delete_snapshot(SnapshotId=kept)


class Copies(unittest.TestCase):
    def test_copies_carry_the_blocks_and_outlive_what_they_are_of(self):
        vm = up.run("disk 0 fill 1MiB 11")
        vm.wait_line("disk: 0 fill")
        row = vm.describe()
        kept = snapshot(row["BlockDeviceMappings"][0]["Ebs"]["VolumeId"])
        made = up.ec2.create_image(InstanceId=vm.id, Name="first", NoReboot=True)["ImageId"]
        up.ec2.get_waiter("image_available").wait(
            ImageIds=[made], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        region = up.env["AWS_DEFAULT_REGION"]
        copies = [up.ec2.copy_snapshot(SourceRegion=region, SourceSnapshotId=kept,
                                       Encrypted=encrypted)["SnapshotId"]
                  for encrypted in (False, True)]
        image = up.ec2.copy_image(SourceRegion=region, SourceImageId=made, Name="second",
                                  Encrypted=True)["ImageId"]
        # They need not be waited for before what they are of goes, nor does it need to stay.
        up.ec2.deregister_image(ImageId=made)
        up.ec2.delete_snapshot(SnapshotId=kept)
        vm.terminate()
        up.ec2.get_waiter("image_available").wait(
            ImageIds=[image], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        up.ec2.get_waiter("snapshot_completed").wait(
            SnapshotIds=copies, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        wait_for("the origin is gone", lambda: error_code(
            lambda: up.ec2.describe_snapshots(SnapshotIds=[kept])) == "InvalidSnapshot.NotFound")
        mappings = [{"DeviceName": f"/dev/sd{letter}", "Ebs": {
            "SnapshotId": one, "DeleteOnTermination": True}}
            for letter, one in zip("fg", copies)]
        reader = up.run("\n".join(f"disk {n} verify 1MiB 11" for n in range(3)),
                        ImageId=image, BlockDeviceMappings=mappings)
        for n in range(3):
            reader.wait_line(f"disk: {n} verify", " ok ")
        volumes = up.ec2.describe_volumes(
            Filters=[{"Name": "attachment.instance-id", "Values": [reader.id]}])["Volumes"]
        self.assertEqual({v["Attachments"][0]["Device"]: v["Encrypted"] for v in volumes},
                         {"/dev/sda1": True, "/dev/sdf": False, "/dev/sdg": True})
        reader.terminate()
        up.ec2.deregister_image(ImageId=image)

    def test_snapshots_of_an_instance_make_another_like_it(self):
        data = [{"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "DeleteOnTermination": True}}]
        vm = up.run("disk 0 fill 1MiB 12\ndisk 1 fill 1MiB 13", BlockDeviceMappings=data)
        vm.wait_line("disk: 1 fill")
        made = up.ec2.create_snapshots(InstanceSpecification={"InstanceId": vm.id})["Snapshots"]
        self.assertEqual(len(made), 2)
        up.ec2.get_waiter("snapshot_completed").wait(
            SnapshotIds=[row["SnapshotId"] for row in made],
            WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        vm.terminate()
        image = up.ec2.register_image(Name="again", RootDeviceName="/dev/sda1", BlockDeviceMappings=[
            {"DeviceName": device, "Ebs": {"SnapshotId": row["SnapshotId"]}}
            for device, row in zip(("/dev/sda1", "/dev/sdf"), made)])["ImageId"]
        again = up.run("disk 0 verify 1MiB 12\ndisk 1 verify 1MiB 13", ImageId=image)
        again.wait_line("disk: 0 verify", " ok ")
        again.wait_line("disk: 1 verify", " ok ")
        again.terminate()
        up.ec2.deregister_image(ImageId=image)
        for row in made:
            up.ec2.delete_snapshot(SnapshotId=row["SnapshotId"])

    def test_encryption_by_default(self):
        up.ec2.enable_ebs_encryption_by_default()
        self.addCleanup(up.ec2.disable_ebs_encryption_by_default)
        vm = up.run("disk 0 fill 1MiB 14\ndisk 0 verify 1MiB 14")
        vm.wait_line("disk: 0 verify", " ok ")
        root = vm.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
        self.assertTrue(up.ec2.describe_volumes(VolumeIds=[root])["Volumes"][0]["Encrypted"])
        # There is one key, and no other to be had.
        key = up.ec2.reset_ebs_default_kms_key_id()["KmsKeyId"]
        self.assertEqual(up.ec2.modify_ebs_default_kms_key_id(KmsKeyId=key)["KmsKeyId"],
                         "alias/aws/ebs")
        vm.terminate()


class Sharing(unittest.TestCase):
    def test_what_is_blocked_is_not_made_public_and_another_account_does_not_see_it(self):
        other = up.ocs("account", "create")
        stranger = up.client("ec2", aws_access_key_id=other["access_key_id"],
                             aws_secret_access_key=other["secret_access_key"])
        zone = up.ec2.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"]
        held = make(zone)
        kept = snapshot(held)
        seen = lambda: error_code(lambda: stranger.describe_snapshots(
            SnapshotIds=[kept])) != "InvalidSnapshot.NotFound"
        share = lambda: up.ec2.modify_snapshot_attribute(
            SnapshotId=kept, CreateVolumePermission={"Add": [{"Group": "all"}]})
        up.ec2.enable_snapshot_block_public_access(State="block-new-sharing")
        self.assertEqual(error_code(share), "OperationNotPermitted")
        up.ec2.disable_snapshot_block_public_access()
        share()
        self.assertTrue(seen())
        up.ec2.enable_snapshot_block_public_access(State="block-all-sharing")
        self.assertFalse(seen())
        up.ec2.disable_snapshot_block_public_access()
        self.assertTrue(seen())
        image = up.ec2.register_image(
            Name="public", RootDeviceName="/dev/sda1", BlockDeviceMappings=[
                {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": self.rooted()}}])["ImageId"]
        everybody = {"Add": [{"Group": "all"}]}
        up.ec2.enable_image_block_public_access(
            ImageBlockPublicAccessState="block-new-sharing")
        self.assertEqual(error_code(lambda: up.ec2.modify_image_attribute(
            ImageId=image, LaunchPermission=everybody)), "OperationNotPermitted")
        up.ec2.disable_image_block_public_access()
        up.ec2.modify_image_attribute(ImageId=image, LaunchPermission=everybody)
        self.assertEqual(len(stranger.describe_images(ImageIds=[image])["Images"]), 1)
        up.ec2.deregister_image(ImageId=image)
        delete(held)

    @staticmethod
    def rooted():
        """A snapshot that an instance can boot from: the public image's, copied."""
        region = up.env["AWS_DEFAULT_REGION"]
        public = up.ec2.describe_images(ImageIds=[up.image()])["Images"][0]
        made = up.ec2.copy_snapshot(
            SourceRegion=region,
            SourceSnapshotId=public["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])["SnapshotId"]
        up.ec2.get_waiter("snapshot_completed").wait(
            SnapshotIds=[made], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
        return made


class Modify(unittest.TestCase):
    def test_a_volume_grows(self):
        vm = up.run("idle")
        zone = vm.describe()["Placement"]["AvailabilityZone"]
        grown = make(zone)
        up.ec2.modify_volume(VolumeId=grown, Size=2, VolumeType="gp3")
        wait_for("it is modified", lambda: up.ec2.describe_volumes_modifications(
            VolumeIds=[grown])["VolumesModifications"][0]["ModificationState"] == "completed")
        attach(grown, vm)
        vm.wait_line("disk: index=1", f"size_bytes={2 << 30}")
        up.ec2.detach_volume(VolumeId=grown)
        volume("available", grown)
        delete(grown)
        vm.terminate()

    def test_a_running_guest_sees_the_larger_size_and_the_other_rate(self):
        order = "bench disk 1 read 4KiB depth 16 for 3s"
        vm = up.run(f"disk 1 await\n{order}\ndisk 1 grown 8GiB\n{order}")
        zone = vm.describe()["Placement"]["AvailabilityZone"]
        held = make(zone, Size=4, VolumeType="io1", Iops=100)
        attach(held, vm)
        slow_at, slow = vm.wait_line("bench: disk 1 read")
        asked = up.ec2.modify_volume(VolumeId=held, Size=8, Iops=400)["VolumeModification"]
        self.assertEqual((asked["ModificationState"], asked["Progress"]), ("modifying", 0))
        vm.wait_line("disk: 1 grown", f"size_bytes={8 << 30}", after_s=slow_at)
        _, fast = vm.wait_line("bench: disk 1 read", after_s=slow_at)
        rate = lambda line: float(re.search(r" iops=(\d+)", line).group(1))
        # A bucket holds 40 ms' worth; the clock is the guest's own.
        self.assertLessEqual(rate(slow), 100 * 1.05)
        self.assertGreaterEqual(rate(slow), 100 * 0.8)
        self.assertLessEqual(rate(fast), 400 * 1.05)
        self.assertGreaterEqual(rate(fast), 400 * 0.8)
        told = wait_for("it is modified", lambda: next(
            (row for row in up.ec2.describe_volumes_modifications(
                VolumeIds=[held])["VolumesModifications"]
             if row["ModificationState"] == "completed"), None))
        self.assertEqual((told["Progress"], told["TargetSize"], told["TargetIops"]),
                         (100, 8, 400))
        self.assertIn("EndTime", told)
        up.ec2.detach_volume(VolumeId=held)
        volume("available", held)
        delete(held)
        vm.terminate()

    def test_killed_parts_change_nothing(self):
        vm = up.run("disk 1 await\ndisk 1 loop 1MiB")
        zone = vm.describe()["Placement"]["AvailabilityZone"]
        held = make(zone)
        attach(held, vm)
        vm.wait_line("disk: 1 loop")
        for part in ("storaged", "node", "control"):
            up.kill(part)
        up.serves()
        taken = snapshot(held)
        up.kill("storaged")
        now = vm.now()
        vm.wait_line("disk: 1 loop", " errors=0", after_s=now)
        up.ec2.detach_volume(VolumeId=held)
        volume("available", held)
        vm.terminate()
        up.ec2.delete_snapshot(SnapshotId=taken)
        delete(held)
