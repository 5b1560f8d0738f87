"""A probe guest, seen through GetConsoleOutput and DescribeInstances alone."""

import re
import time

import botocore.exceptions

LINE = re.compile(r"\[\s*(\d+\.\d+)\] (.*)")


class Guest:
    """One instance and what it printed."""

    def __init__(self, ec2, instance):
        self.ec2 = ec2
        self.id = instance["InstanceId"]
        self.address = instance["PrivateIpAddress"]
        self.launch = instance

    def describe(self):
        """Its row in DescribeInstances."""
        answer = self.ec2.describe_instances(InstanceIds=[self.id])
        return answer["Reservations"][0]["Instances"][0]

    def state(self):
        """Its state's name."""
        return self.describe()["State"]["Name"]

    def wait_state(self, state, limit_s=60):
        """Waits for a state by name. Yields the row."""
        until = time.monotonic() + limit_s
        while True:
            row = self.describe()
            if row["State"]["Name"] == state:
                return row
            assert time.monotonic() < until, (
                f"{self.id} is {row['State']['Name']}, not {state}, after {limit_s} s: "
                f"{row.get('StateReason')} {self.tail()}")
            time.sleep(0.05)

    def lines(self):
        """Every line held, as (seconds since the guest's boot, text)."""
        output = self.console()
        matches = (LINE.match(line.strip()) for line in output.splitlines())
        return [(float(match[1]), match[2]) for match in matches if match]

    def console(self, limit_s=30):
        """GetConsoleOutput, asked again while the host is reconnecting after a kill."""
        until = time.monotonic() + limit_s
        while True:
            try:
                return self.ec2.get_console_output(InstanceId=self.id, Latest=True).get("Output", "")
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
                answer = getattr(error, "response", {"Error": {"Code": "InternalError"}})
                if answer["Error"]["Code"] != "InternalError" or time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def boot_lines(self):
        """The lines since the newest boot."""
        lines = self.lines()
        boots = [i for i, (_, text) in enumerate(lines) if text.startswith("probe: boot")]
        return lines[boots[-1]:] if boots else []

    def boots(self):
        """How often it booted, as far as the console reaches back."""
        return sum(text.startswith("probe: boot") for _, text in self.lines())

    def wait_line(self, start, has="", after_s=-1.0, limit_s=60):
        """The first line of this boot after `after_s` that starts and contains so."""
        until = time.monotonic() + limit_s
        while True:
            for at, text in self.boot_lines():
                if at > after_s and text.startswith(start) and has in text:
                    return at, text
            assert time.monotonic() < until, (
                f"no line {start!r} … {has!r} on the console of {self.id} within {limit_s} s"
                f"{self.tail()}")
            time.sleep(0.1)

    def newest(self, start):
        """The newest line of this boot with that start."""
        found = [(at, text) for at, text in self.boot_lines() if text.startswith(start)]
        assert found, f"no line {start!r} on the console of {self.id}{self.tail()}"
        return found[-1]

    def now(self):
        """The guest's clock at its newest line."""
        lines = self.boot_lines()
        return lines[-1][0] if lines else 0.0

    def tail(self):
        """The end of the console, for messages."""
        return "".join(f"\n  [{at}] {text}" for at, text in self.lines()[-8:])

    def stop(self, **more):
        """StopInstances, to the end."""
        self.ec2.stop_instances(InstanceIds=[self.id], **more)
        return self.wait_state("stopped")

    def start(self):
        """StartInstances, until the guest is ready."""
        boots = self.boots()
        self.ec2.start_instances(InstanceIds=[self.id])
        self.wait_state("running")
        until = time.monotonic() + 60
        while self.boots() <= boots:
            assert time.monotonic() < until, f"{self.id} does not boot again{self.tail()}"
            time.sleep(0.1)
        self.wait_line("ready")

    def terminate(self):
        """TerminateInstances, to the end."""
        self.ec2.terminate_instances(InstanceIds=[self.id])
        return self.wait_state("terminated")


def number(text, name):
    """The number behind `NAME=` in a line."""
    match = re.search(rf"\b{name}=(\d+)", text)
    assert match, f"no {name}= in {text!r}"
    return int(match[1])


def word(text, name):
    """The word behind `NAME=` in a line."""
    match = re.search(rf"(?:^|\s){name}=(\S+)", text)
    assert match, f"no {name}= in {text!r}"
    return match[1]
