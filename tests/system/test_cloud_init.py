"""cloud-init's Ec2 data source reads everything that the metadata service lists.

Debian's package, unmodified, in a network namespace in a guest's place: what it is told
is what the node told the responder of a running instance.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from installation import BINARIES, Installation, wait_for

PLACES = [pathlib.Path(__file__).parents[2] / "target/cloud-init/usr/lib/python3/dist-packages",
          pathlib.Path("/usr/lib/python3/dist-packages")]
ADDRESS = "169.254.169.254"
UID = "64002"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMS3ZKJMl8SbuRvAnhFjsUxLM4tFwsoP9IBvjKc9UUpT"
USER_DATA = "#cloud-config\nhostname: chosen\n"

# Runs in the guest's place. The platform is told by firmware, which a namespace has none of.
CRAWL = """
import json
from cloudinit.sources import DataSourceEc2

class Source(DataSourceEc2.DataSourceEc2):
    cloud_name = "aws"

source = Source({}, None, None)
crawled = source.crawl_metadata()
source.metadata = crawled.get("meta-data")
macs = source.metadata["network"]["interfaces"]["macs"]
nics = {mac: f"eth{number}" for number, mac in enumerate(macs)}
network = DataSourceEc2.convert_ec2_metadata_network_config(
    source.metadata["network"], macs_to_nics=nics, fallback_nic="eth0")
crawled["user-data"] = crawled["user-data"].decode()
print(json.dumps({"crawled": crawled, "instance": source.get_instance_id(),
                  "zone": source.availability_zone, "region": source.region,
                  "keys": source.get_public_ssh_keys(), "network": network,
                  "root": source.device_name_to_device("root")}))
"""

up = None


def setUpModule():
    global up
    if not any((place / "cloudinit").is_dir() for place in PLACES):
        raise unittest.SkipTest("Debian's package cloud-init is not to be had")
    up = Installation("--public-cidrs", "198.51.100.0/28")


def tearDownModule():
    if up:
        up.close()


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def in_place_of(vm):
    """A namespace with the address by which the responder knows a guest."""
    records = (up.state / "run/responder").glob("169.254.*.json")
    mine = [path for path in records if json.loads(path.read_text())["instance"]["id"] == vm.id]
    server, guest = (f"ocs-{side}-{os.getpid()}" for side in ("cs", "cg"))
    state = pathlib.Path(tempfile.mkdtemp(prefix="ocs-cloud-init-"))
    state.chmod(0o755)
    responder = None
    try:
        (state / "run/responder").mkdir(parents=True)
        shutil.copytree(up.state / "pki/identity", state / "pki/identity")
        shutil.copy(mine[0], state / "run/responder")
        (state / "run/responder" / mine[0].name).chmod(0o644)
        for name in (server, guest):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", guest, "link", "add", "svc0", "type", "veth", "peer", "name", "svc1",
           "netns", server)
        for name, link, address in ((server, "svc1", ADDRESS), (guest, "svc0", mine[0].stem)):
            ip("-n", name, "address", "add", f"{address}/16", "dev", link)
            ip("-n", name, "link", "set", link, "up")
        responder = subprocess.Popen(
            [BINARIES / "ocs-responder", "--state", state, "--netns", f"/run/netns/{server}",
             "--uid", UID, "--gid", UID])
        probe = ["ip", "netns", "exec", guest, "bash", "-c", f"</dev/tcp/{ADDRESS}/80"]
        wait_for("the responder serves",
                 lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0)
        yield guest
    finally:
        if responder:
            responder.kill()
            responder.wait()
        for name in (server, guest):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        shutil.rmtree(state)


class CloudInit(unittest.TestCase):
    def test_the_data_source_reads_the_whole_tree(self):
        up.ec2.import_key_pair(KeyName="admin", PublicKeyMaterial=KEY.encode())
        vm = up.run(USER_DATA, KeyName="admin", MetadataOptions={
            "HttpTokens": "required", "InstanceMetadataTags": "enabled"},
            TagSpecifications=[{"ResourceType": "instance",
                                "Tags": [{"Key": "Name", "Value": "web"}]}])
        row = vm.describe()
        path = os.pathsep.join(str(place) for place in PLACES if (place / "cloudinit").is_dir())
        with in_place_of(vm) as guest:
            done = subprocess.run(
                ["ip", "netns", "exec", guest, sys.executable, "-c", CRAWL],
                env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
                timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        told = json.loads(done.stdout)
        data = told["crawled"]["meta-data"]
        nic = row["NetworkInterfaces"][0]
        self.assertEqual(told["crawled"]["user-data"], USER_DATA)
        self.assertEqual(told["instance"], vm.id)
        self.assertEqual(told["zone"], row["Placement"]["AvailabilityZone"])
        self.assertEqual(told["region"], "us-east-1")
        self.assertEqual(told["keys"], [f"{KEY} admin"])
        name = f"ip-{vm.address.replace('.', '-')}.ec2.internal"
        self.assertEqual((data["hostname"], data["local-hostname"]), (name, name))
        self.assertEqual((data["public-ipv4"], data["public-hostname"]),
                         (row["PublicIpAddress"], row["PublicDnsName"]))
        self.assertEqual(data["tags"], {"instance": {"Name": "web"}})
        self.assertEqual(data["block-device-mapping"]["root"], row["RootDeviceName"])
        card = data["network"]["interfaces"]["macs"][nic["MacAddress"]]
        expected = {"interface-id": nic["NetworkInterfaceId"], "subnet-id": row["SubnetId"],
                    "local-ipv4s": vm.address, "public-ipv4s": row["PublicIpAddress"],
                    "device-number": "0", "vpc-id": row["VpcId"], "security-groups": "default",
                    "vpc-ipv4-cidr-blocks": "172.31.0.0/16"}
        self.assertEqual({key: card[key] for key in expected}, expected)
        self.assertEqual(told["network"]["ethernets"]["eth0"]["dhcp4"], True)
        identity = told["crawled"]["dynamic"]["instance-identity"]
        self.assertEqual(identity["document"]["instanceId"], vm.id)
        # Lines of base64, as EC2's; cloud-init makes a list of them.
        self.assertGreater(len("".join(identity["pkcs7"])), 500)
        vm.terminate()
