"""Images that an operator imports: a disk that boots the kernel it holds."""

import shutil
import subprocess
import unittest

from installation import Installation, wait_for

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def imported(name, disk):
    """`ocs image import --disk`, until control offers it."""
    up.say("image", "import", "--name", name, "--disk", disk)
    def offered():
        images = up.ec2.describe_images(Filters=[{"Name": "name", "Values": [name]}])["Images"]
        return images and images[0]["ImageId"]
    return wait_for(f"{name} is offered", offered, 30, 0.5)


def disk_with_probe():
    """An ext4 disk whose kernel is the probe guest."""
    root, disk = up.folder / "root", up.folder / "disk.img"
    (root / "boot").mkdir(parents=True)
    shutil.copy(up.state / "images" / "ocs-probe.elf", root / "boot" / "vmlinuz-1.0")
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, disk, "24M"],
                   env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}, check=True,
                   stdout=subprocess.DEVNULL)
    return disk


class OwnKernel(unittest.TestCase):
    def test_a_disk_boots_with_its_own_kernel_and_so_does_its_image(self):
        image = imported("own-kernel", disk_with_probe())
        guest = up.run("idle", ImageId=image)
        guest.stop()
        guest.start()
        made = up.ec2.create_image(InstanceId=guest.id, Name="made")["ImageId"]
        wait_for("the image is made", lambda: up.ec2.describe_images(ImageIds=[made])
                 ["Images"][0]["State"] == "available", 60)
        up.run("idle", ImageId=made)

    def test_a_disk_without_a_kernel_does_not_run_and_says_so(self):
        disk = up.folder / "nothing.img"
        disk.write_bytes(bytes(1 << 20) + b"x")
        guest = up.run("idle", wait=False, ImageId=imported("no-kernel", disk))
        def over():
            row = guest.describe()
            return row if row["State"]["Name"] in ("stopped", "terminated") else None
        row = wait_for("its end", over, 60, 0.2)
        self.assertIn("boot.disk", str(row["StateReason"]))
