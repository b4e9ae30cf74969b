"""Fills the store of a development HSM: a process of its own, told by JSON on stdin, answering by JSON.

Called by development.py alone. Secrets travel through the pipes, never through arguments.
"""

import dataclasses
import json
import sys
from pathlib import Path

from hsmd import config
from hsmd.daemon import setup


def main() -> None:
    """Read the order, initialise, print the credentials."""
    order: dict[str, str] = json.load(sys.stdin)
    settings = config.load(Path(order["config"]), {})
    if settings.hsm.pin_file is None:
        raise config.ConfigError(f"{order['config']}: hsm.pin_file is missing")
    made = setup.initialise(
        dataclasses.replace(settings, store=config.Store(url=order["store"])),
        pin=settings.hsm.pin_file.read_text(encoding="utf-8").strip(),
        domain=order["domain"],
        project=order["project"],
        user=order["user"],
        password=order["password"],
        roles=("KMS Administrator",),
        certificate_names=(f"CN:{order['user']}",),
    )
    json.dump({**dataclasses.asdict(made), "password": order["password"]}, sys.stdout)


if __name__ == "__main__":
    main()
