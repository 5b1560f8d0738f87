"""200 idle instances on one host."""

import os
import pathlib
import time
import unittest

from installation import Installation, error_code, processes, wait_for

up = None
COUNT = 200
TYPES = ["t2.nano", "t2.micro", "t3.nano", "t3.micro", "m1.small"]
OBSERVED_S = 20.0


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


def cpu_s(pids):
    """User and system time that the processes have used, in seconds."""
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_kib(pid):
    """What of a process is in memory, its guest's included."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError(f"no Rss of {pid}")


class Idle(unittest.TestCase):
    def test_200_idle_instances_cost_next_to_nothing(self):
        began = time.monotonic()
        guests = []
        for kind in TYPES:
            guests += up.run_many(COUNT // len(TYPES), "idle", wait=False, InstanceType=kind)
        for vm in guests:
            vm.wait_line("ready", limit_s=180)
        print(f"  {COUNT} instances ready after {time.monotonic() - began:.1f} s")

        vmms = [up.vmm(vm) for vm in guests]
        resident = sorted(resident_kib(pid) for pid in vmms)
        print(f"  resident: median {resident[COUNT // 2]} KiB, most {resident[-1]} KiB")
        self.assertLessEqual(resident[-1], 24 * 1024)

        everything = processes(str(up.state)) + vmms
        everything = sorted(set(everything) - {up.process.pid}) + [up.process.pid]
        before, at = cpu_s(everything), time.monotonic()
        time.sleep(OBSERVED_S)
        share = (cpu_s(everything) - before) / (time.monotonic() - at)
        print(f"  all processes: {share * 100:.1f}% of one core")
        self.assertLessEqual(share, 0.10)

        began = time.monotonic()
        answer = up.ec2.describe_instances(InstanceIds=[guests[0].id])
        describe_s = time.monotonic() - began
        self.assertEqual(len(answer["Reservations"]), 1)
        began = time.monotonic()
        one_more = up.run("idle")
        launch_s = time.monotonic() - began
        print(f"  describe: {describe_s * 1000:.0f} ms; launch to ready: {launch_s:.1f} s")
        self.assertLess(describe_s, 1.0)
        self.assertLess(launch_s, 20.0)

        ids = [vm.id for vm in guests] + [one_more.id]
        up.ec2.terminate_instances(InstanceIds=ids)
        def all_terminated():
            states = [row["State"]["Name"]
                      for page in up.ec2.get_paginator("describe_instances").paginate(
                          PaginationConfig={"PageSize": 100})
                      for reservation in page["Reservations"] for row in reservation["Instances"]]
            return len(states) == len(ids) and set(states) == {"terminated"}
        wait_for("all are terminated", all_terminated, 120, 0.5)
        wait_for("all VMMs are gone", lambda: not [
            pid for pid in vmms if os.path.exists(f"/proc/{pid}")], 30)


class Capacity(unittest.TestCase):
    def test_what_does_not_fit_is_refused_whole(self):
        """Overcommit has an end, and it is RunInstances' own answer."""
        biggest = up.ec2.describe_instance_types()["InstanceTypes"]
        kind = max(biggest, key=lambda row: row["MemoryInfo"]["SizeInMiB"])["InstanceType"]
        self.assertEqual(
            error_code(lambda: up.run_many(1000, wait=False, InstanceType=kind)),
            "InsufficientInstanceCapacity")
        running = up.ec2.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}])
        self.assertEqual(running["Reservations"], [])
