"""Holds the socket on which all gateways of a cluster listen, and hands it to each that starts: `front.py PORT`, in its folder.

The kernel keeps connections waiting as long as anybody has the socket open, so gateways may come and go without losing one. This is
what systemd's socket units do. It accepts nothing itself.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

HANDING_OUT = "front.sock"


def main() -> None:
    """Listen, and give the socket to whoever asks in this folder."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", int(sys.argv[1])))
    listening.listen(2048)
    Path(HANDING_OUT).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(HANDING_OUT)
        door.listen(16)
        while True:
            asking, _ = door.accept()
            with asking:
                socket.send_fds(asking, [b"1"], [listening.fileno()])


def take(folder: Path) -> socket.socket:
    """Return the socket that the holder in this folder has. Raises `OSError` when there is none."""
    place = os.open(folder, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(f"/proc/self/fd/{place}/{HANDING_OUT}")  # a socket's path has at most 107 bytes
            _, (descriptor,), _, _ = socket.recv_fds(asking, 1, 1)
    finally:
        os.close(place)
    return socket.socket(fileno=descriptor)


if __name__ == "__main__":
    main()
