"""Every part dies, `ocs up` too; instances never notice, nothing is lost."""

import os
import signal
import unittest

from guest import number
from installation import PARTS, Installation, error_code, processes_line, wait_for

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def busy_pair():
    """A client with a stream to a server, each with a disk that checks itself."""
    server = up.run("listen tcp 7000\ndisk 0 loop 1MiB")
    client = up.run(f"stream {server.address}:7000\ndisk 1 loop 1MiB", InstanceType="m1.small",
                    BlockDeviceMappings=[{"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"}])
    client.wait_line("stream:", " alive ")
    return server, client


def progress(server, client):
    """Counts that grow while all is well; fails if anything broke."""
    lines = [text for _, text in client.boot_lines() if text.startswith("stream:")]
    assert not [text for text in lines if " broken " in text], lines[-3:]
    counts = [number(client.newest("stream:")[1], "records")]
    for vm, disk in [(server, 0), (client, 1)]:
        text = vm.newest(f"disk: {disk} loop")[1]
        assert number(text, "errors") == 0, text
        counts.append(number(text, "rounds"))
    return counts


def goes_on(server, client):
    """Waits until stream and disks are well past where they are now."""
    up.serves()
    before = wait_for("the first counts", lambda: progress(server, client))
    wait_for("stream and disks go on", lambda: all(
        now > was + 2 for now, was in zip(progress(server, client), before)))


class Kills(unittest.TestCase):
    def test_each_part_and_ocs_up_itself(self):
        server, client = busy_pair()
        vmms = [up.vmm(server), up.vmm(client)]
        for part in PARTS:
            with self.subTest(part):
                up.kill(part)
                goes_on(server, client)
        with self.subTest("all parts at once"):
            for part in PARTS:
                os.kill(up.part(part), signal.SIGKILL)
            goes_on(server, client)
        with self.subTest("ocs up"):
            up.process.kill()
            up.process.wait()
            up.start()
            server.ec2 = client.ec2 = up.ec2
            goes_on(server, client)
        self.assertEqual([up.vmm(server), up.vmm(client)], vmms)
        for vm in (server, client):
            self.assertEqual(vm.state(), "running")
            vm.terminate()

    def test_what_was_answered_survives_controls_death(self):
        for round_number in range(5):
            group = up.group(f"durable-{round_number}")
            up.kill("control")
            up.serves()
            self.assertEqual(error_code(lambda: up.group(f"durable-{round_number}")),
                             "InvalidGroup.Duplicate")
            up.ec2.delete_security_group(GroupId=group)

    def test_a_launch_survives_the_nodes_death(self):
        vm = up.run("idle", wait=False)
        up.kill("node")
        vm.wait_line("ready")
        vm.wait_state("running")
        vm.terminate()

    def test_a_termination_survives_the_nodes_death(self):
        vm = up.run("idle")
        pid = up.vmm(vm)
        vm.ec2.terminate_instances(InstanceIds=[vm.id])
        up.kill("node")
        vm.wait_state("terminated")
        # An orphan's entry may wait for init to reap it, but it runs no more.
        self.assertEqual(processes_line(pid), "")

    def test_a_vmm_that_is_killed_stops_its_instance_alone(self):
        victim, other = up.run("idle"), up.run("idle")
        os.kill(up.vmm(victim), signal.SIGKILL)
        row = victim.wait_state("stopped")
        self.assertTrue(row["StateReason"]["Code"].startswith("Server."), row["StateReason"])
        self.assertEqual(other.state(), "running")
        victim.start()
        for vm in (victim, other):
            vm.terminate()


class Interrupt(unittest.TestCase):
    def test_after_ctrl_c_a_second_ocs_up_shows_stopped_and_starts_again(self):
        vm = up.run("disk 0 verify 1MiB 3\ndisk 0 fill 1MiB 3")
        vm.wait_line("disk: 0 fill")
        up.interrupt()
        self.assertFalse((up.state / "run").exists() and list((up.state / "run").iterdir()))
        up.start()
        vm.ec2 = up.ec2
        self.assertEqual(vm.state(), "stopped")
        vm.start()
        vm.wait_line("disk: 0 verify", " ok ")
        vm.terminate()
