"""What a process is called, and the machine that it runs on."""

from __future__ import annotations

import os
import re
import secrets
import socket


def worker_name() -> str:
    """A name that no other worker has or will have."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", hostname())
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


def hostname() -> str:
    """Of this machine; under Slurm, of the node that Slurm knows it by."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname() or "host"
