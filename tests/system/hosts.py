"""Hosts in network namespaces, joined by a switch of the test's own.

    rack = Rack(3)                # namespaces with `up0`: 192.0.2.1, .2, .3
    with rack.inside(0): ...      # this thread is there
    rack.close()
"""

import array
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
SIOCETHTOOL = 0x8946
ETHTOOL_SGRO = 0x2C
# TEST-NET-3 (RFC 5737): someone outside, whom every host reaches.
STRANGER = "203.0.113.1"


def ip(*words):
    """Runs `ip`, which must succeed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def enter(namespace):
    """Moves this thread into a network namespace."""
    assert LIBC.setns(namespace, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def within(namespace):
    """This thread is in a network namespace for a while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(namespace)
    try:
        yield
    finally:
        enter(home)
        os.close(home)


def take_redirected(interface):
    """A veth takes frames that XDP redirects only with GRO, or a program of its own."""
    value = array.array("I", [ETHTOOL_SGRO, 1])
    request = struct.pack("16sP", interface.encode(), value.buffer_info()[0])
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


class Rack:
    """Some hosts and a switch; a stranger's address on each, to listen at."""

    def __init__(self, count):
        self.names = [f"ocs-{os.getpid()}-h{number}" for number in range(count)]
        self.switch = f"ocs-{os.getpid()}-switch"
        self.namespaces = []
        try:
            ip("netns", "add", self.switch)
            ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self.switch, "link", "set", "br0", "up")
            for number, name in enumerate(self.names):
                self.plug(number, name)
                self.namespaces.append(os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC))
            switch = os.open(f"/run/netns/{self.switch}", os.O_RDONLY | os.O_CLOEXEC)
            with within(switch):
                for number in range(count):
                    take_redirected(f"p{number}")
            os.close(switch)
        except BaseException:
            self.close()
            raise

    def plug(self, number, name):
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{STRANGER}/32", "dev", "lo")
        ip("-n", name, "link", "add", "up0", "type", "veth",
           "peer", "name", f"p{number}", "netns", self.switch)
        ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "up0")
        ip("-n", name, "link", "set", "up0", "up")
        ip("-n", self.switch, "link", "set", f"p{number}", "master", "br0", "up")

    def address(self, number):
        """A host's address on the underlay."""
        return f"192.0.2.{number + 1}"

    def options(self, number):
        """What `ocs up` is told there."""
        return ["--uplink", "up0", "--underlay-ip", self.address(number)]

    def link(self, number, *words):
        """`ip link set` of a host's uplink."""
        ip("-n", self.names[number], "link", "set", "up0", *words)

    def inside(self, number):
        """This thread is on a host for a while."""
        return within(self.namespaces[number])

    def close(self):
        """Takes it all down."""
        for namespace in self.namespaces:
            os.close(namespace)
        for name in [*self.names, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class Listeners:
    """The stranger listens on every host, and notes where who comes."""

    def __init__(self, rack, port):
        self.seen = []
        self.sockets = []
        for number in range(len(rack.names)):
            with rack.inside(number):
                self.sockets.append(socket.create_server((STRANGER, port)))
            threading.Thread(target=self.accept, args=(number,), daemon=True).start()

    def accept(self, number):
        with contextlib.suppress(OSError):
            while True:
                connection, peer = self.sockets[number].accept()
                self.seen.append((number, peer[0]))
                connection.close()

    def of(self, address):
        """The hosts on which an address came."""
        return {number for number, peer in list(self.seen) if peer == address}

    def close(self):
        for listener in self.sockets:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
