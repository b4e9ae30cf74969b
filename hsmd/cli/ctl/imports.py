"""hsmctl import: material from a file, wrapped here for the HSM and imported, in one step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hsmd.algorithms import KEY_SPECS, KeyAlgorithm
from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Leaf, example, pass_context

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurve
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_LARGEST_FILE = 64 * 1024
_TEMPORARY_KEY_BYTES = 32


@click.command(
    "import",
    cls=Leaf,
    epilog=example(
        "hsmctl key create seals --spec EC_P256 --external",
        "hsmctl import alias/seals seals.pem",
        "hsmctl import alias/books books.bin --expires 2030-01-01",
    ),
)
@click.argument("key")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--expires", type=click.DateTime(), help="When the material is to go, in UTC.")
@pass_context
def import_(context: Context, key: str, file: Path, expires: datetime | None) -> None:
    """Import material for a key that was created with --external.

    FILE holds for a key pair its private key, as PEM, as DER PKCS#8 or, of an EC key, as the bare scalar;
    for any other key its bytes. The material is encrypted for the HSM before it leaves this machine.
    """
    with file.open("rb") as source:
        data = source.read(_LARGEST_FILE)
    with context.client() as client:
        from hsmd.pb.v1 import imports_pb2 as pb

        found = output.document(client.describe_key(key))
        wanted = pb.GetParametersForImportRequest(
            key_id=found["key_id"], wrapping_algorithm=pb.WRAPPING_ALGORITHM_RSAES_OAEP_SHA_256
        )
        parameters = client.imports.GetParametersForImport(wanted)
        material, private_key = _encrypted(KEY_SPECS[found["key_spec"]], data, file, parameters.public_key)
        request = pb.ImportKeyMaterialRequest(
            key_id=found["key_id"],
            import_token=parameters.import_token,
            encrypted_key_material=material,
            encrypted_privatekey=private_key,
            expiration_time=_seconds(expires),
        )
        client.imports.ImportKeyMaterial(request)
        state = output.document(client.describe_key(found["key_id"]))["key_state"]
    if context.json:
        output.print_json({"key_id": found["key_id"], "key_state": state})
    else:
        output.say(f"{found['key_id']} is {state}.")


def _seconds(expires: datetime | None) -> int | None:
    from datetime import UTC

    return None if expires is None else int(expires.replace(tzinfo=UTC).timestamp())


def _encrypted(row: KeyAlgorithm, data: bytes, file: Path, public_key: bytes) -> tuple[bytes, bytes]:
    """encrypted_key_material and encrypted_privatekey. Raises click.FileError."""
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

    if not row.asymmetric:
        if len(data) != row.bits // 8:
            raise _unfit(file, f"{row.name} has {row.bits // 8} bytes, the file {len(data)}")
        return _oaep(public_key, data), b""
    temporary = os.urandom(_TEMPORARY_KEY_BYTES)
    private_key = aes_key_wrap_with_padding(temporary, _pkcs8(row, data, file))
    return _oaep(public_key, temporary), private_key


def _oaep(public_key: bytes, data: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    key = load_der_public_key(public_key)
    if not isinstance(key, RSAPublicKey):
        raise click.ClickException("The service's wrapping key is no RSA key.")
    return key.encrypt(data, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), label=None))


def _pkcs8(row: KeyAlgorithm, data: bytes, file: Path) -> bytes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    try:
        key = _loaded(row, data)
    except TypeError as error:  # what cryptography raises when a password is due
        raise _unfit(file, "the key is encrypted: decrypt it first, by openssl pkey") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unfit(file, "no private key as PEM, DER or, of an EC key, as its scalar") from error
    if not _fits(row, key):
        raise _unfit(file, f"the private key is none of {row.name}")
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _loaded(row: KeyAlgorithm, data: bytes) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

    if b"-----BEGIN " in data:
        return load_pem_private_key(data, None)
    if row.kind == "ec" and len(data) == row.bits // 8:
        return ec.derive_private_key(int.from_bytes(data, "big"), _curve(row))
    return load_der_private_key(data, None)


def _curve(row: KeyAlgorithm) -> EllipticCurve:
    from cryptography.hazmat.primitives.asymmetric import ec

    known = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP256K1())
    return dict(zip(("EC_P256", "EC_P384", "SECP256K1"), known, strict=True))[row.name]


def _fits(row: KeyAlgorithm, key: PrivateKeyTypes) -> bool:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, EllipticCurvePrivateKey):
        return row.kind == "ec" and key.curve.name == _curve(row).name
    return isinstance(key, RSAPrivateKey) and row.kind == "rsa" and key.key_size == row.bits


def _unfit(file: Path, reason: str) -> click.FileError:
    return click.FileError(str(file), reason)
