"""One `ocs up` for a test module, and what tests ask of it.

    up = Installation()            # in setUpModule
    vm = up.run("listen tcp 7")    # a probe guest; its orders are its user data
    vm.wait_line("listen: tcp 7")  # read through GetConsoleOutput alone
    up.close()                     # in tearDownModule: ctrl-C; fails if anything is left
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import boto3
import botocore.config
import botocore.exceptions

from guest import Guest

BINARIES = pathlib.Path(os.environ.get("OCS_BIN", "../../target/debug")).resolve()
LONG = os.environ.get("OCS_LONG") == "1"
REGIONS = ["us-east-1", "eu-west-1"]
PARTS = ["control", "node", "responder", "storaged"]

os.environ.pop("AWS_CA_BUNDLE", None)
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def wait_for(what, condition, limit_s=30.0, pause_s=0.05):
    """Polls until `condition()` is truthy and yields that; its errors count as no."""
    until = time.monotonic() + limit_s
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
        except (AssertionError, OSError, ValueError, botocore.exceptions.BotoCoreError,
                botocore.exceptions.ClientError) as error:
            last = error
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit_s} s: {what} ({last!r})")
        time.sleep(pause_s)


def error_code(call):
    """The EC2 error code that the call ends in, or what it returned instead."""
    try:
        return f"no error: {call()!r:.300}"
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]


class Installation:
    """A running `ocs up` with a state folder of its own."""

    def __init__(self, *options, join=None, before=None):
        """With the file `join`, as another's host; `before` is called in its first process."""
        self.join, self.before = join, before
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ocs-system-"))
        self.folder.chmod(0o755)
        self.state = self.folder / "state"
        self.options = options
        self.process = None
        try:
            self.start()
        except BaseException:
            self.abandon()
            raise

    def start(self):
        """Starts `ocs up` on the state folder and waits until it serves."""
        env_file = self.folder / "env"
        ready = self.state / "run" / "node.ready" if self.join else env_file
        ready.unlink(missing_ok=True)
        role = (["--join", self.join] if self.join else
                ["--listen", "127.0.0.1:0", "--regions", ",".join(REGIONS),
                 "--write-env", env_file])
        with open(self.folder / "up.log", "ab") as log:
            self.process = subprocess.Popen(
                [BINARIES / "ocs", "up", "--state", self.state, *role, *self.options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=self.before)
        def serving():
            assert self.process.poll() is None, f"ocs up ended:\n{self.log()}"
            return ready.exists()
        try:
            wait_for("ocs up serves", serving, 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None
        if self.join:
            return
        lines = [line.removeprefix("export ") for line in env_file.read_text().splitlines()]
        self.env = {name: value.strip("'\"")
                    for name, value in (line.split("=", 1) for line in lines if "=" in line)}
        self.ec2 = self.client("ec2")

    def client(self, service, region=REGIONS[0], secure=False, **more):
        """A boto3 client that tries once; over TLS if asked."""
        config = botocore.config.Config(
            retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=60)
        keys = {"aws_access_key_id": self.env["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": self.env["AWS_SECRET_ACCESS_KEY"], **more}
        endpoint = self.env["OCS_ENDPOINT"]
        if secure:
            endpoint = endpoint.replace("http://", "https://")
            keys["verify"] = str(self.state / "pki" / "ca.pem")
        return boto3.client(service, region_name=region, endpoint_url=endpoint, config=config,
                            **keys)

    def say(self, *words):
        """What an `ocs` command prints that must succeed."""
        done = subprocess.run([BINARIES / "ocs", *words, "--state", self.state],
                              capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, *words):
        """What an `ocs` command says that must fail."""
        done = subprocess.run([BINARIES / "ocs", *words, "--state", self.state],
                              capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def ocs(self, *words):
        """What an `ocs` command prints, parsed."""
        return json.loads(self.say(*words))

    def guest(self, instance):
        """A guest that was run by hand."""
        return Guest(self.ec2, instance)

    # Instances

    def run(self, orders="", wait=True, ec2=None, **more):
        """Runs one probe with these orders; by default until it is ready."""
        return self.run_many(1, orders, wait, ec2, **more)[0]

    def run_many(self, count, orders="", wait=True, ec2=None, **more):
        """Runs `count` probes in one call."""
        ec2 = ec2 or self.ec2
        arguments = {"ImageId": self.image(ec2), "InstanceType": "t3.nano",
                     "MinCount": count, "MaxCount": count, "UserData": orders or "idle", **more}
        answer = ec2.run_instances(**arguments)
        guests = [Guest(ec2, instance) for instance in answer["Instances"]]
        if wait:
            for guest in guests:
                guest.wait_line("ready")
        return guests

    def image(self, ec2=None, name="ocs-probe"):
        """The id of a public image in the client's region."""
        images = (ec2 or self.ec2).describe_images(Filters=[{"Name": "name", "Values": [name]}])
        return images["Images"][0]["ImageId"]

    def group(self, name, ec2=None):
        """A new security group in the default VPC: default deny in, open out."""
        return (ec2 or self.ec2).create_security_group(
            GroupName=name, Description="system test")["GroupId"]

    # Processes

    def part(self, name):
        """The process id of a part now."""
        return int((self.state / "run" / f"{name}.lock").read_text())

    def kill(self, name):
        """SIGKILLs a part and waits for its successor. Yields both process ids."""
        old = self.part(name)
        os.kill(old, signal.SIGKILL)
        def successor():
            new = self.part(name)
            return new if new != old and pathlib.Path(f"/proc/{new}").exists() else None
        return old, wait_for(f"a new {name}", successor)

    def serves(self):
        """Waits until the API answers."""
        wait_for("the API answers", lambda: self.ec2.describe_regions()["Regions"])

    def vmm(self, guest):
        """The process id of an instance's VMM."""
        marks = [pid for pid in processes(guest.id) if "ocs-vmm" in processes_line(pid)]
        assert len(marks) == 1, f"VMMs of {guest.id}: {marks}"
        return marks[0]

    def interrupt(self):
        """Ctrl-C: waits for the end, which must be clean."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        assert code == 0, f"ocs up ended with {code}:\n{self.log()}"

    def close(self):
        """Ctrl-C, then looks for leftovers."""
        try:
            if self.process.poll() is None:
                self.interrupt()
            left = [processes_line(pid) for pid in processes(str(self.state))]
            assert not left, f"processes left: {left}"
            mounts = [line for line in open("/proc/self/mountinfo", encoding="utf-8")
                      if str(self.state) in line]
            assert not mounts, f"mounts left: {mounts}"
            run = list((self.state / "run").rglob("*")) if (self.state / "run").exists() else []
            assert not run, f"runtime files left: {run}"
        finally:
            self.abandon()

    def abandon(self):
        """Removes everything, also after a failure."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            if self.process.poll() is None:
                self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self):
        """The ends of the logs."""
        texts = []
        for path in [self.folder / "up.log", *sorted((self.state / "log").glob("*.log"))]:
            with contextlib.suppress(OSError):
                tail = path.read_text(errors="replace").splitlines()[-10:]
                texts.append(f"{path.name}:\n" + "\n".join(tail))
        return "\n".join(texts)


def processes(mark):
    """Ids of processes with `mark` in their command line or environment, but ours."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            text = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            if mark.encode() in text:
                found.append(int(entry.name))
    return found


def processes_line(pid):
    """The command line of a process, or nothing if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
