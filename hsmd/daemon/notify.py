"""Tells systemd, or whoever holds NOTIFY_SOCKET, how a process is doing. Source: sd_notify(3)."""

import os
import socket


def notify(state: str) -> None:
    """Send "READY=1", "STOPPING=1", "STATUS=..."; nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address)
    except OSError:
        pass  # being watched is no condition for working
