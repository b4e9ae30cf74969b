"""What the quickstart shows: one key used through both faces of a running daemon."""

import base64
import http.client
import itertools
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from hsmd.cli.signing import signed_headers
from hsmd.client import ApiError, Client
from hsmd.daemon.development import Development
from hsmd.pb.v1.keys_pb2 import Key, KeyState

_ALIAS = "demo"
_TEXT = b"born in the HSM, lives in the HSM"
_SECONDS = 20.0


class DemonstrationFailed(Exception):  # noqa: N818 -- named after what happened
    """An answer was not what it must be; the text says which."""


def demonstrate(development: Development) -> Iterator[tuple[str, str]]:
    """Do it, step by step; each step is told as (what, result). Raises ApiError, DemonstrationFailed."""
    with Client(
        development.grpc, ca=development.ca, certificate=development.certificate, key=development.key
    ) as client:
        key, made = _key(client)
        yield ("Created" if made else "Found", f"key {key.key_alias}  {key.key_id}")
        yield from _from_the_last_run(client, development.data / "demo.ciphertext")
        blob = client.encrypt(key.key_id, _TEXT)
        _expect(client.decrypt(blob) == _TEXT, "decrypt-data gave back other data")
        yield "gRPC", f"encrypted {len(_TEXT)} bytes to {len(blob)}, decrypted, compared"
        plain, wrapped = client.create_data_key(key.key_id)
        _expect(client.decrypt_data_key(key.key_id, wrapped) == plain, "decrypt-datakey gave another key")
        yield (
            "gRPC",
            f"made a data key of {8 * len(plain)} bits, wrapped in {len(wrapped)} bytes, opened it again",
        )
        _expect(client.decrypt(_encrypt_by_rest(development, key.key_id)) == _TEXT, "REST and gRPC differ")
        yield "REST", "encrypted with a signed request, decrypted over gRPC"
        (development.data / "demo.ciphertext").write_bytes(blob)


def _key(client: Client) -> tuple[Key, bool]:
    """Return the first of demo, demo-2, ... that is enabled, made when there is none, and whether it was."""
    for number in itertools.count(1):
        alias = _ALIAS if number == 1 else f"{_ALIAS}-{number}"
        try:
            key = client.describe_key(f"alias/{alias}")
        except ApiError as error:
            if error.code != "KMS.0207":
                raise
            created = client.create_key(alias, description="Made by scripts/quickstart")
            return client.describe_key(created), True
        if key.key_state == KeyState.KEY_STATE_ENABLED:
            return key, False
    raise AssertionError("unreachable")  # count() does not end


def _from_the_last_run(client: Client, path: Path) -> Iterator[tuple[str, str]]:
    if not path.exists():
        return
    try:
        kept = client.decrypt(path.read_bytes()) == _TEXT
    except ApiError as error:  # its key may have been disabled or deleted since
        yield "Kept", f"what the last run encrypted stays closed: {error.message}"
        return
    _expect(kept, "what the last run encrypted came back changed")
    yield "Kept", "what the last run encrypted still decrypts"


def _encrypt_by_rest(development: Development, key_id: str) -> bytes:
    url = f"{development.rest}/v1.0/{development.project_id}/kms/encrypt-data"
    body = json.dumps({"key_id": key_id, "plain_text": _TEXT.decode()}).encode()
    headers = signed_headers(
        "POST", url, body, development.access_key, development.secret_key, datetime.now(UTC)
    )
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(
        parts.netloc, timeout=_SECONDS, context=ssl.create_default_context(cafile=development.ca)
    )
    try:
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
    except OSError as error:
        raise DemonstrationFailed(f"{development.rest} does not answer: {error}") from error
    finally:
        connection.close()
    _expect(answer.status == http.HTTPStatus.OK, f"encrypt-data over REST: {answer.status} {text[:500]!r}")
    return base64.b64decode(json.loads(text)["cipher_text"])


def _expect(fine: bool, otherwise: str) -> None:
    if not fine:
        raise DemonstrationFailed(otherwise)
