"""Terraform's AWS provider: apply, nothing more to do, change, apply, destroy.

The configuration is a tenant's (`terraform/main.tf`); only its endpoint is ours. Where
the provider is not in Terraform's plugin folders, `OCS_TERRAFORM_PLUGINS` names one that
holds it, as `terraform init -plugin-dir` takes it.
"""

import json
import os
import pathlib
import shutil
import subprocess
import unittest

from installation import REGIONS, Installation

SOURCE = pathlib.Path(__file__).parent / "terraform"
PLUGINS = [os.environ.get("OCS_TERRAFORM_PLUGINS", ""), "/opt/tf-plugins"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMS3ZKJMl8SbuRvAnhFjsUxLM4tFwsoP9IBvjKc9UUpT admin"

up = None


def setUpModule():
    global up
    if not shutil.which("terraform"):
        raise unittest.SkipTest("terraform is not on this host")
    up = Installation("--public-cidrs", "198.51.100.0/28")


def tearDownModule():
    if up:
        up.close()


class Terraform(unittest.TestCase):
    def terraform(self, *words, codes=(0,)):
        """Runs terraform in the test's own copy of the configuration."""
        try:
            done = subprocess.run(
                ["terraform", *words], cwd=self.folder, env=self.env, capture_output=True,
                text=True, timeout=400, check=False)
        except subprocess.TimeoutExpired as error:
            text = (error.stdout or b"").decode(errors="replace")
            self.fail(f"terraform {words} does not end: {text[-4000:]}\n{up.log()}")
        self.assertIn(done.returncode, codes,
                      f"terraform {words}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    def setUp(self):
        self.folder = up.folder / "terraform"
        shutil.copytree(SOURCE, self.folder)
        self.env = {name: value for name, value in os.environ.items()
                    if not name.startswith(("TF_", "AWS_"))}
        self.env |= {
            "AWS_ACCESS_KEY_ID": up.env["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": up.env["AWS_SECRET_ACCESS_KEY"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "3",
            "CHECKPOINT_DISABLE": "1",
            "TF_IN_AUTOMATION": "1",
            "TF_VAR_endpoint": up.env["OCS_ENDPOINT"],
            "TF_VAR_region": REGIONS[0],
            "TF_VAR_image": up.image(),
            "TF_VAR_public_key": KEY,
        }
        self.choose("t3.nano", "test")
        plugins = [f"-plugin-dir={folder}" for folder in PLUGINS
                   if folder and pathlib.Path(folder).is_dir()][:1]
        done = self.terraform("init", "-no-color", *plugins, codes=(0, 1))
        if done.returncode:
            self.skipTest(f"the AWS provider is not to be had: {done.stderr.strip()[:200]}")

    def choose(self, instance_type, stage):
        self.env |= {"TF_VAR_instance_type": instance_type, "TF_VAR_stage": stage}

    def apply(self):
        self.terraform("apply", "-no-color", "-input=false", "-auto-approve")

    def nothing_to_do(self):
        """The plan after an apply is empty: what was read back is what was asked for."""
        done = self.terraform("plan", "-no-color", "-input=false", "-detailed-exitcode",
                              codes=(0, 2))
        self.assertEqual(done.returncode, 0, done.stdout)

    def outputs(self):
        text = self.terraform("output", "-json").stdout
        return {name: row["value"] for name, row in json.loads(text).items()}

    def row(self, instance):
        answer = up.ec2.describe_instances(InstanceIds=[instance])
        return answer["Reservations"][0]["Instances"][0]

    def test_apply_change_and_destroy(self):
        before = up.ec2.describe_vpcs()["Vpcs"]
        self.apply()
        self.nothing_to_do()
        out = self.outputs()
        web = self.row(out["web"])
        self.assertEqual(web["State"]["Name"], "running")
        self.assertEqual(web["PublicIpAddress"], out["address"])
        second = web["NetworkInterfaces"][1]["PrivateIpAddresses"]
        self.assertCountEqual([row["PrivateIpAddress"] for row in second],
                              ["10.20.2.50", "10.20.2.51"])
        self.assertIn({"Key": "Stage", "Value": "test"}, web["Tags"])

        self.choose("t3.micro", "production")
        self.apply()
        self.nothing_to_do()
        changed = self.row(out["web"])
        self.assertEqual(changed["InstanceType"], "t3.micro", "the same instance, another type")
        self.assertIn({"Key": "Stage", "Value": "production"}, changed["Tags"])
        self.assertEqual(changed["PublicIpAddress"], out["address"])

        self.terraform("destroy", "-no-color", "-input=false", "-auto-approve")
        self.assertEqual(self.row(out["web"])["State"]["Name"], "terminated")
        self.assertEqual(up.ec2.describe_vpcs()["Vpcs"], before)
        self.assertEqual(up.ec2.describe_volumes()["Volumes"], [])
        self.assertEqual(up.ec2.describe_addresses()["Addresses"], [])
        gateways = up.ec2.describe_nat_gateways()["NatGateways"]
        self.assertEqual([row["State"] for row in gateways], ["deleted"])
