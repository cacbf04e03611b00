"""Carries the frames of one cable: late, and with losses, if it is told so.

Runs as `python -m kmcluster.relay KIND A B DELAY_MS LOSS_AB LOSS_BA`; losses are percent. With KIND `packet` A and B
are network interfaces; frames whose checksum or segmentation the sender left to its card are passed on with that note
(PACKET_VNET_HDR, packet(7)). With `unix` they are paths: a machine receives on PATH.sock, and sends to PATH.cable.
"""

import contextlib
import random
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3
# A frame that is yet to be cut into segments, with its headers.
FRAME_BYTES = 70000
BUFFER_BYTES = 4 << 20
# What one way of a cable holds at most; more is lost.
LATE_FRAMES = 20000
# A UNIX socket takes few frames at once (net.unix.max_dgram_qlen): how long the receiver is given to take them.
PATIENCE_S = 0.05
RETRY_S = 0.001


@dataclass(frozen=True)
class End:
    """One end of the cable; `address` is where to send to, unless the socket knows."""

    socket: socket.socket
    address: str | None = None

    def send(self, frame: bytes) -> None:
        """Send a frame to the machine at this end."""
        if self.address is None:
            self.socket.send(frame)
        else:
            self.socket.sendto(frame, self.address)


@dataclass
class Way:
    """One direction: where it leads, what part is lost, and what is under way, each with the time when it is due."""

    target: End
    loss: float
    late: deque[tuple[float, bytes]] = field(default_factory=deque)

    def put(self, due: float, frame: bytes) -> None:
        """Take a frame, or lose it."""
        if random.random() >= self.loss and len(self.late) < LATE_FRAMES:  # noqa: S311
            self.late.append((due, frame))

    def deliver(self) -> None:
        """Send all that is due and that the receiver takes."""
        while self.late and self.late[0][0] <= time.monotonic():
            due, frame = self.late[0]
            try:
                self.target.send(frame)
            except BlockingIOError:
                if time.monotonic() - due < PATIENCE_S:
                    return
            except OSError:
                # Nobody is there, or the interface is down: the frame is lost.
                pass
            self.late.popleft()

    def wait_s(self) -> float | None:
        """How long there is nothing to do, None for ever."""
        if not self.late:
            return None
        return max(RETRY_S, self.late[0][0] - time.monotonic())


def open_interface(name: str) -> End:
    """An end that receives what comes in on a network interface, and sends out of it."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    opened.bind((name, ETH_P_ALL))
    opened.setblocking(False)
    return End(opened)


def open_path(path: str) -> End:
    """An end between the UNIX sockets PATH.cable and PATH.sock."""
    Path(f"{path}.cable").unlink(missing_ok=True)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    opened.bind(f"{path}.cable")
    opened.setblocking(False)
    return End(opened, f"{path}.sock")


def carry(a: End, b: End, delay_s: float, loss_percent: list[float]) -> None:
    """Carry frames until ended by a signal."""
    ways = {a.socket: Way(b, loss_percent[0] / 100), b.socket: Way(a, loss_percent[1] / 100)}
    while True:
        waits = [wait_s for way in ways.values() if (wait_s := way.wait_s()) is not None]
        for source in select.select(list(ways), [], [], min(waits, default=None))[0]:
            # An interface that is down or gone says so by an error.
            with contextlib.suppress(OSError):
                while frame := source.recv(FRAME_BYTES):
                    ways[source].put(time.monotonic() + delay_s, frame)
        for way in ways.values():
            way.deliver()


def main() -> None:
    """Run as the relay."""
    kind, *ends = sys.argv[1:4]
    a, b = map(open_interface if kind == "packet" else open_path, ends)
    delay_ms, *loss_percent = map(float, sys.argv[4:7])
    carry(a, b, delay_ms / 1000, loss_percent)


if __name__ == "__main__":
    main()
