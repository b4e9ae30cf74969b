"""What a key is made of: its versions, its public key, and its handle in the HSM at work."""

from collections.abc import Callable
from typing import TypeVar, cast

from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsmd.algorithms import KeyAlgorithm
from hsmd.domain import kept, keystores
from hsmd.domain.core import Call
from hsmd.domain.publickeys import PublicKey
from hsmd.hsm import Handle, Token
from hsmd.store import keys
from hsmd.store.keys import Key, KeyVersion

Result = TypeVar("Result")

_PROOF_BLOCK = bytes(64)


def version(call: Call, key_id: str, number: int) -> KeyVersion | None:
    """A version of the key, from the cache; None when there is none."""

    def load() -> KeyVersion | None:
        with call.read() as tx:
            return keys.get_version(tx, key_id, number)

    return call.core.cache.get(key_id, number, load)


def current(call: Call, key: Key) -> KeyVersion:
    """The key's current version, noted for the audit record. LookupError: the store contradicts itself."""
    found = version(call, key.id, key.current_version)
    if found is None:
        raise LookupError(f"key {key.id} lacks its current version {key.current_version}")
    call.key_version = found.version
    return found


def use(call: Call, found: KeyVersion, operation: Callable[[Token, Handle], Result]) -> Result:
    """Run the operation on the version's handle and the token that holds it.

    Raises what it raises, and the token's faults.
    """
    if found.keystore_id is not None:
        return kept.use(call, found, found.keystore_id, operation)
    token = call.core.token
    return call.core.keyring.use(
        found.key_id, found.version, found, lambda handle: operation(token, handle), call.moment
    )


def proof(call: Call, row: KeyAlgorithm, wrapped: bytes, root_label: str, purpose: bytes) -> bytes:
    """Bytes that tell a secret key from others, made by the key itself, so that its value stays in the HSM.

    An AES key encrypts a fixed block. That its IV is fixed too is safe: nobody ever sees the result.
    """
    token = call.core.token
    handle = token.unwrap(row, wrapped, token.find(root_label))
    try:
        if row.kind == "aes":
            return token.encrypt(handle, bytes(12), _PROOF_BLOCK, purpose)
        return token.hmac(handle, purpose)
    finally:
        token.destroy(handle)


def public_der(call: Call, key: Key) -> bytes:
    """The public key of a pair as DER SubjectPublicKeyInfo. Raises Error(KEYSTORE_REFUSED)."""
    if key.keystore_id is not None:
        keystores.of_key(call, key.keystore_id)
    der = current(call, key).public_key
    if der is None:
        raise LookupError(f"key {key.id} lacks its public key")
    return der


def public_key(call: Call, key: Key) -> PublicKey:
    """The same ready for use, from the cache: to read it takes longer than to verify a signature of RSA."""
    der = public_der(call, key)
    found = call.core.cache.get(key.id, "public key", lambda: load_der_public_key(der))
    return cast("PublicKey", found)  # other kinds are never stored
