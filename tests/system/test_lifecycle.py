"""Run, stop, start, reboot, terminate; what survives each and what does not."""

import unittest

from guest import number, word
from installation import Installation, error_code, wait_for

up = None


def setUpModule():
    global up
    up = Installation()


def tearDownModule():
    up.close()


class Run(unittest.TestCase):
    def test_a_guest_sees_itself(self):
        vm = up.run("idle")
        row = vm.wait_state("running")
        imds = vm.newest("imds:")[1]
        self.assertEqual(word(imds, "instance-id"), vm.id)
        self.assertEqual(word(imds, "local-ipv4"), row["PrivateIpAddress"])
        self.assertEqual(word(vm.newest("dhcp:")[1], "address").split("/")[0], vm.address)
        self.assertEqual(number(vm.newest("user-data:")[1], "orders"), 1)
        vm.terminate()

    def test_one_call_runs_many_under_one_reservation(self):
        guests = up.run_many(3, "idle")
        rows = [vm.describe() for vm in guests]
        self.assertEqual(sorted(row["AmiLaunchIndex"] for row in rows), [0, 1, 2])
        self.assertEqual(len({vm.address for vm in guests}), 3)
        answer = up.ec2.describe_instances(InstanceIds=[vm.id for vm in guests])
        self.assertEqual(len({r["ReservationId"] for r in answer["Reservations"]}), 1)
        up.ec2.terminate_instances(InstanceIds=[vm.id for vm in guests])
        for vm in guests:
            vm.wait_state("terminated")

    def test_a_client_token_runs_once(self):
        first = up.run("idle", ClientToken="once")
        again = up.run("idle", ClientToken="once")
        self.assertEqual(first.id, again.id)
        self.assertEqual(
            error_code(lambda: up.run("exit", wait=False, ClientToken="once")),
            "IdempotentParameterMismatch")
        first.terminate()

    def test_a_dry_run_runs_nothing(self):
        before = len(up.ec2.describe_instances()["Reservations"])
        self.assertEqual(error_code(lambda: up.run(wait=False, DryRun=True)), "DryRunOperation")
        self.assertEqual(len(up.ec2.describe_instances()["Reservations"]), before)


class StopStart(unittest.TestCase):
    def test_the_root_volume_survives_a_stop_and_the_address_too(self):
        vm = up.run("disk 0 verify 4MiB 9\ndisk 0 fill 4MiB 9")
        vm.wait_line("disk: 0 verify", "MISMATCH")
        vm.wait_line("disk: 0 fill")
        row = vm.stop()
        self.assertEqual(row["StateReason"]["Code"], "Client.UserInitiatedShutdown")
        self.assertEqual(row["PrivateIpAddress"], vm.address)
        self.assertEqual(error_code(lambda: vm.ec2.reboot_instances(InstanceIds=[vm.id])),
                         "IncorrectInstanceState")
        vm.start()
        vm.wait_line("disk: 0 verify", " ok ")
        self.assertEqual(word(vm.newest("imds:")[1], "instance-id"), vm.id)
        vm.terminate()

    def test_instance_store_is_erased_by_a_stop(self):
        store = [{"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"}]
        vm = up.run("disk 1 verify 1MiB 9\ndisk 1 fill 1MiB 9\ndisk 1 verify 1MiB 9",
                    InstanceType="m1.small", BlockDeviceMappings=store)
        vm.wait_line("disk: 1 verify", " ok ")
        attest = "volume", "attest-erasure", f"{vm.id}-ephemeral0"
        with self.assertRaisesRegex(AssertionError, "is in use"):
            up.say(*attest)
        vm.stop()
        self.assertIn(f"{vm.id}-ephemeral0: erased", up.say(*attest))
        vm.start()
        vm.wait_line("disk: 1 verify", "MISMATCH")
        vm.terminate()

    def test_an_instance_store_root_cannot_be_stopped(self):
        vm = up.run("idle", InstanceType="m1.small",
                    ImageId=up.image(name="ocs-probe-instance-store"))
        self.assertEqual(vm.describe()["RootDeviceType"], "instance-store")
        self.assertEqual(error_code(lambda: vm.ec2.stop_instances(InstanceIds=[vm.id])),
                         "UnsupportedOperation")
        vm.terminate()

    def test_a_reboot_keeps_everything_but_memory(self):
        vm = up.run("idle")
        vm.ec2.reboot_instances(InstanceIds=[vm.id])
        wait_for("the second boot", lambda: vm.boots() == 2)
        vm.wait_line("ready")
        self.assertEqual(vm.state(), "running")
        self.assertEqual(vm.describe()["LaunchTime"], vm.launch["LaunchTime"])
        vm.terminate()


class Ends(unittest.TestCase):
    def test_a_guest_that_powers_off_is_stopped(self):
        vm = up.run("exit", wait=False)
        row = vm.wait_state("stopped")
        self.assertEqual(row["StateReason"]["Code"], "Client.InstanceInitiatedShutdown")
        vm.terminate()

    def test_or_terminated_if_it_was_run_so(self):
        vm = up.run("exit", wait=False, InstanceInitiatedShutdownBehavior="terminate")
        row = vm.wait_state("terminated")
        self.assertEqual(row["StateReason"]["Code"], "Client.InstanceInitiatedShutdown")

    def test_termination_frees_volume_and_address_and_may_be_repeated(self):
        vm = up.run("idle")
        volume = vm.describe()["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
        self.assertEqual(up.ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"], "in-use")
        vm.terminate()
        vm.terminate()
        wait_for("the volume is gone", lambda: error_code(
            lambda: up.ec2.describe_volumes(VolumeIds=[volume])) == "InvalidVolume.NotFound")
        self.assertEqual(error_code(lambda: vm.ec2.start_instances(InstanceIds=[vm.id])),
                         "IncorrectInstanceState")
        taken = [row["PrivateIpAddress"] for row in
                 up.ec2.describe_network_interfaces()["NetworkInterfaces"]]
        self.assertNotIn(vm.address, taken)
