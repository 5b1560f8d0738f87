"""Ansible's collection amazon.aws: a playbook whose second run changes nothing."""

import os
import pathlib
import re
import subprocess
import unittest

from installation import REGIONS, Installation

FOLDER = pathlib.Path(__file__).parents[2] / "target/venv-ansible"
PLAYBOOK = pathlib.Path(__file__).parent / "ansible/playbook.yml"

up = None


def setUpModule():
    global up
    if not (FOLDER / "collections").is_dir():
        raise unittest.SkipTest("Ansible is not in target/venv-ansible")
    up = Installation()


def tearDownModule():
    if up:
        up.close()


class Ansible(unittest.TestCase):
    def play(self):
        """Plays it. Yields how many tasks changed something, and how many there were."""
        given = {"endpoint": up.env["OCS_ENDPOINT"], "region": REGIONS[0],
                 "image": up.image(), "ansible_python_interpreter": FOLDER / "bin/python"}
        extra = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]
        env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        env |= {"AWS_ACCESS_KEY_ID": up.env["AWS_ACCESS_KEY_ID"],
                "AWS_SECRET_ACCESS_KEY": up.env["AWS_SECRET_ACCESS_KEY"],
                "ANSIBLE_COLLECTIONS_PATH": str(FOLDER / "collections"),
                "ANSIBLE_HOME": str(up.folder / "ansible"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run([FOLDER / "bin/ansible-playbook", *extra, PLAYBOOK], env=env,
                              capture_output=True, text=True, timeout=240, check=False)
        self.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-2000:])
        counts = re.search(r"ok=(\d+) +changed=(\d+)", done.stdout)
        return int(counts[2]), int(counts[1])

    def test_the_second_run_changes_nothing(self):
        changed, tasks = self.play()
        self.assertEqual((changed, tasks), (4, 6))
        self.assertEqual(self.play(), (0, tasks))
        named = [{"Name": "tag:Name", "Values": ["play"]}]
        rows = up.ec2.describe_instances(Filters=named)["Reservations"]
        self.assertEqual([row["Instances"][0]["State"]["Name"] for row in rows], ["running"])
        up.ec2.terminate_instances(InstanceIds=[rows[0]["Instances"][0]["InstanceId"]])
