"""The administrators' door: the warden's gRPC server, for UKeys. Its files are those of [admin] or [grpc]."""

import hashlib
import ssl
from collections.abc import Sequence, Set
from datetime import timedelta
from typing import Any

from hsmd.api import evidence, server, ukeys
from hsmd.api.health import Health
from hsmd.api.patience import Patience
from hsmd.api.pipeline import AuditLog, Pipeline
from hsmd.api.pool import Pool
from hsmd.api.revocation_list import RevocationList
from hsmd.config import ConfigError, Grpc, Settings, admin_door
from hsmd.domain.core import Core
from hsmd.domain.readiness import PARTS
from hsmd.domain.ukey_sessions import Sessions

_MESSAGE_SECONDS = 10.0


class AdminDoor:
    """One listener with health and the services for UKeys."""

    def __init__(
        self, settings: Settings, core: Core, audit: AuditLog, pool: Pool, owners: Sequence[Any] = ()
    ) -> None:
        """`owners` are servicers with a state of their own, besides that of logins. Raises ConfigError."""
        self._door = admin_door(settings)
        self._core = core
        self._patience = Patience(pool, min(_MESSAGE_SECONDS, self._door.deadline_seconds))
        self._health = Health(server.admin_needs())
        sessions = Sessions(
            _certificate_digest(self._door),
            server.admin_names(),
            ukeys.SERVICE.full_name,
            settings.admin.session_seconds,
        )
        self._pipeline = Pipeline(
            core,
            audit,
            evidence.admin(core, sessions, _revocations(self._door)),
            process="warden",
            deadline=self._door.deadline_seconds,
        )
        self._server = server.build_admin(
            self._pipeline,
            self._patience,
            self._health,
            (ukeys.Logins(sessions), *owners),
            self._door,
            settings.limits.message_bytes,
        )

    def open(self, failing: Set[str]) -> None:
        """Listen. `failing` is as for `tend`. Raises ConfigError."""
        door = self._door
        address = f"[{door.address}]" if ":" in door.address else door.address
        try:
            self._server.add_secure_port(f"{address}:{door.port}", server.server_credentials(door))
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"admin: can't listen on {address}:{door.port}: {error}") from error
        self.tend(failing)
        self._server.start()

    def tend(self, failing: Set[str]) -> None:
        """What is to be done a few times a second: tell which parts fail, and end what takes too long."""
        self._health.tell(failing)
        self._patience.tend()
        self._pipeline.tend()

    def close(self) -> None:
        """Let the calls in flight finish within the grace time."""
        self._health.tell(PARTS)
        self._server.stop(self._door.grace_seconds).wait()
        self._pipeline.end_running()


def _certificate_digest(door: Grpc) -> str:
    """SHA-256 of the door's own certificate (DER), in hex. Raises ConfigError."""
    try:
        text = door.certificate.read_text(encoding="ascii")
        begin = text.index(ssl.PEM_HEADER)  # its own stands first, the intermediates behind it
        first = text[begin : text.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()
    except (OSError, ValueError) as error:
        raise ConfigError(f"admin: the certificate {door.certificate} can't be read") from error


def _revocations(door: Grpc) -> RevocationList | None:
    if door.client_crl is None:
        return None
    return RevocationList(door.client_crl, door.client_ca, timedelta(hours=door.client_crl_grace_hours))
