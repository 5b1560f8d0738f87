"""Two hosts in network namespaces, joined by a cable of the test's own.

    cable = Cable()               # namespaces with `up0`: 192.0.2.1 and 192.0.2.2
    with cable.inside(0): ...     # this thread is there
    cable.close()
"""

import contextlib
import ctypes
import os
import subprocess

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def ip(*words):
    """Runs `ip`, which must succeed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def enter(namespace):
    """Moves this thread into a network namespace."""
    assert LIBC.setns(namespace, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


class Cable:
    """Two hosts, each with one end of a pair; XDP on both ends makes it carry frames."""

    def __init__(self):
        self.names = [f"ocs-{os.getpid()}-h{number}" for number in range(2)]
        self.namespaces = []
        try:
            for name in self.names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", self.names[0], "link", "add", "up0", "type", "veth",
               "peer", "name", "up0", "netns", self.names[1])
            for number, name in enumerate(self.names):
                ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "up0")
                ip("-n", name, "link", "set", "up0", "up")
                self.namespaces.append(os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            self.close()
            raise

    def address(self, number):
        """A host's address on the underlay."""
        return f"192.0.2.{number + 1}"

    def options(self, number):
        """What `ocs up` is told there."""
        return ["--uplink", "up0", "--underlay-ip", self.address(number)]

    @contextlib.contextmanager
    def inside(self, number):
        """This thread is on a host for a while."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        enter(self.namespaces[number])
        try:
            yield
        finally:
            enter(home)
            os.close(home)

    def close(self):
        """Takes it all down."""
        for namespace in self.namespaces:
            os.close(namespace)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
