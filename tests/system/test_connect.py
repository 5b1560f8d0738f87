"""`ocs connect`: through a VPC's instance-connect endpoint, and through its rules."""

import contextlib
import hashlib
import os
import socket
import subprocess
import unittest

from hosts import within
from installation import BINARIES, Installation, error_code, wait_for
from test_network import from_group, tcp

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def command(installation, *words, **environment):
    """How `ocs connect` is called, as a tenant calls it: with what `--write-env` wrote."""
    return {"args": [BINARIES / "ocs", "connect", *map(str, words)],
            "env": {**os.environ, **installation.env, **environment}}


def connect(*words, say=b"", installation=None, **environment):
    """What the other end says to `say` and its end."""
    done = subprocess.run(**command(installation or up, *words, **environment), input=say,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def refused(*words, **environment):
    """Why there is no connection."""
    done = subprocess.run(**command(up, *words, **environment), input=b"x",
                          capture_output=True, timeout=60, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr.decode()


def made(ec2, **where):
    """A new endpoint that connects: its row."""
    row = ec2.create_instance_connect_endpoint(**where)["InstanceConnectEndpoint"]
    assert row["State"] == "create-in-progress", row
    return awaited(ec2, row["InstanceConnectEndpointId"], "create-complete")


def awaited(ec2, endpoint, state):
    """An endpoint's row in a state."""
    def there():
        rows = ec2.describe_instance_connect_endpoints(InstanceConnectEndpointIds=[endpoint])
        row = rows["InstanceConnectEndpoints"][0]
        return row if row["State"] == state else None
    return wait_for(f"{endpoint} is {state}", there)


def interfaces():
    """Names of interfaces in the taps' namespace."""
    namespace = os.open(up.state / "run/netns/taps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with within(namespace):
            return sorted(name for _, name in socket.if_nameindex())
    finally:
        os.close(namespace)


@contextlib.contextmanager
def open_tunnel(*words):
    """A tunnel that stays: its process."""
    process = subprocess.Popen(**command(up, *words), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def echo(process, words):
    """Says something and hears it."""
    process.stdin.write(words)
    heard = b""
    while len(heard) < len(words):
        piece = process.stdout.read(len(words) - len(heard))
        assert piece, process.stderr.read()
        heard += piece
    assert heard == words, heard


class Connect(unittest.TestCase):
    def setUp(self):
        name = self.id().rsplit(".", 1)[1][:40]
        self.ours, self.theirs = up.group(f"{name}-w"), up.group(f"{name}-s")
        subnet = up.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
        self.before = interfaces()
        row = made(up.ec2, SubnetId=subnet, SecurityGroupIds=[self.ours])
        self.endpoint, self.eni = row["InstanceConnectEndpointId"], row["NetworkInterfaceIds"][0]
        self.vm = up.run("listen tcp 7000\nlisten tcp 7001", SecurityGroupIds=[self.theirs])

    def tearDown(self):
        state = up.ec2.describe_instance_connect_endpoints(
            InstanceConnectEndpointIds=[self.endpoint])["InstanceConnectEndpoints"][0]["State"]
        if state != "delete-complete":
            self.delete()
        self.vm.terminate()
        for group in [self.theirs, self.ours]:
            up.ec2.delete_security_group(GroupId=group)

    def delete(self):
        up.ec2.delete_instance_connect_endpoint(InstanceConnectEndpointId=self.endpoint)
        awaited(up.ec2, self.endpoint, "delete-complete")

    def allow(self, port=7000):
        up.ec2.authorize_security_group_ingress(
            GroupId=self.theirs, IpPermissions=[tcp(port, **from_group(self.ours))])

    def test_both_sides_rules_decide_and_bytes_go_both_ways(self):
        self.assertIn("nothing answers", refused(self.vm.id, 7000))
        self.allow()
        wait_for("the rule is in force", lambda: connect(self.vm.id, 7000, say=b"hello") == b"hello")
        self.assertIn("nothing answers", refused(self.vm.id, 7001))
        much = os.urandom(2 << 20)
        digest = lambda data: hashlib.sha256(data).hexdigest()
        self.assertEqual(digest(connect(self.vm.id, 7000, say=much)), digest(much))
        secure = up.env["OCS_ENDPOINT"].replace("http://", "https://")
        heard = connect(self.vm.id, 7000, "--endpoint-url", secure, "--endpoint-id", self.endpoint,
                        say=b"by TLS")
        self.assertEqual(heard, b"by TLS")
        # Whom the guest sees, and what the packet path says of it.
        row = up.ec2.describe_network_interfaces(NetworkInterfaceIds=[self.eni])
        address = row["NetworkInterfaces"][0]["PrivateIpAddress"]
        self.vm.wait_line("listen: tcp 7000", f"from={address}:")
        way = ("explain", "--from", self.eni, "--to", self.vm.address, "--dport")
        self.assertTrue(up.say(*way, "7000").startswith("PASSES"))
        self.assertTrue(up.say(*way, "7001").startswith("DROPPED"))
        self.assertIn(self.eni, up.say("top"))

        # A closed port that is allowed is not what is dropped.
        self.allow(7002)
        wait_for("the guest refuses", lambda: "is refused" in refused(self.vm.id, 7002))

        # The endpoint's own rules.
        everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        with open_tunnel(self.vm.id, 7000) as tunnel:
            echo(tunnel, b"before")
            up.ec2.revoke_security_group_egress(GroupId=self.ours, IpPermissions=[everything])
            wait_for("dropped", lambda: up.say(*way, "7000", "--sport", "50000").startswith("DROPPED"))
            self.assertIn("nothing answers", refused(self.vm.id, 7000))
            # What was there stays, as on any interface.
            echo(tunnel, b"after")
        # Other groups: those that the instance's rules name.
        up.ec2.modify_instance_connect_endpoint(
            InstanceConnectEndpointId=self.endpoint, SecurityGroupIds=[self.theirs])
        awaited(up.ec2, self.endpoint, "update-complete")
        up.ec2.authorize_security_group_ingress(
            GroupId=self.theirs, IpPermissions=[tcp(7001, **from_group(self.theirs))])
        wait_for("the new group is in force",
                 lambda: connect(self.vm.id, 7001, say=b"other") == b"other")
        up.ec2.modify_instance_connect_endpoint(
            InstanceConnectEndpointId=self.endpoint, SecurityGroupIds=[self.ours])
        awaited(up.ec2, self.endpoint, "update-complete")
        up.ec2.revoke_security_group_ingress(
            GroupId=self.theirs, IpPermissions=[tcp(7001, **from_group(self.theirs))])

    def test_nobody_else_connects_and_nowhere_else(self):
        self.allow()
        wait_for("the rule is in force", lambda: connect(self.vm.id, 7000, say=b"1") == b"1")
        other = up.ocs("account", "create")
        keys = {"AWS_ACCESS_KEY_ID": other["access_key_id"],
                "AWS_SECRET_ACCESS_KEY": other["secret_access_key"]}
        self.assertIn("InvalidInstanceID.NotFound", refused(self.vm.id, 7000, **keys))
        self.assertIn("AuthFailure", refused(self.vm.id, 7000, AWS_SECRET_ACCESS_KEY="wrong"))
        abroad = {"AWS_DEFAULT_REGION": "eu-west-1"}
        self.assertIn("InvalidInstanceID.NotFound", refused(self.vm.id, 7000, **abroad))
        # An instance of another VPC, through this one's endpoint and without any.
        vpc = up.ec2.create_vpc(CidrBlock="10.77.0.0/24")["Vpc"]["VpcId"]
        subnet = up.ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.0.0/24")["Subnet"]["SubnetId"]
        far = up.run("listen tcp 7000", SubnetId=subnet)
        code = "InvalidInstanceConnectEndpointId.NotFound"
        self.assertIn(code, refused(far.id, 7000))
        through = ("--endpoint-id", self.endpoint)
        self.assertIn("InvalidParameter", refused(far.id, 7000, *through))
        far.terminate()
        up.ec2.delete_subnet(SubnetId=subnet)
        up.ec2.delete_vpc(VpcId=vpc)
        # Many at once.
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(open_tunnel(self.vm.id, 7000)) for _ in range(16)]
            for tunnel in held:
                echo(tunnel, b"?")

    def test_its_end_ends_tunnels_and_leaves_nothing(self):
        self.allow()
        wait_for("the rule is in force", lambda: connect(self.vm.id, 7000, say=b"1") == b"1")
        tap = set(interfaces()) - set(self.before)
        self.assertEqual(len(tap), 2, tap)
        with open_tunnel(self.vm.id, 7000) as tunnel:
            echo(tunnel, b"there")
            self.delete()
            tunnel.wait(10)
        self.assertEqual(len(set(interfaces()) - set(self.before)), 1)
        self.assertNotIn(self.eni, up.say("top"))
        gone = lambda: up.ec2.describe_network_interfaces(NetworkInterfaceIds=[self.eni])
        self.assertEqual(error_code(gone), "InvalidNetworkInterfaceID.NotFound")
        self.assertIn("NotFound", refused(self.vm.id, 7000))

    def test_a_killed_node_and_control_connect_again(self):
        self.allow()
        answers = lambda: connect(self.vm.id, 7000, say=b"again") == b"again"
        wait_for("the rule is in force", answers)
        names = interfaces()
        for part in ["node", "control"]:
            with open_tunnel(self.vm.id, 7000) as tunnel:
                echo(tunnel, b"there")
                up.kill(part)
                tunnel.wait(30)
            up.serves()
            wait_for(f"connects after the {part}'s end", answers)
            self.assertEqual(interfaces(), names)
