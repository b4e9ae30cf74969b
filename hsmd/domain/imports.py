"""Material from outside: how it is wrapped, taken in and given up, and known again when it comes back.

A key of origin `external` waits in PENDING_IMPORT. Who imports encrypts the material for a pair that the HSM
made for this import (import_tokens.py): a symmetric key as it is, a private key under a temporary AES key
that goes the same way. All of it is unwrapped inside the HSM where the HSM can decrypt RSAES-OAEP with
SHA-256; where it can't, the symmetric or temporary key passes through this process (hsm/oaep.py). So does
the temporary key where a forged private key could harm the HSM's module (docs/decisions/0012).

Material that expired or was deleted is gone, and the key waits again. Only the same material may come back,
as the same version, so what it encrypted is decrypted again. It is known by a check value: the HMAC by the
sealing key over what nobody but the material's owner can compute, or over the public key of a pair.
"""

import hmac
from dataclasses import dataclass, replace

from hsmd.algorithms import KEY_SPECS, KeyAlgorithm
from hsmd.domain import access, import_tokens
from hsmd.domain.core import DAY_MILLIS, SEALING_KEY_LABEL, Call
from hsmd.domain.import_tokens import WrappingKey
from hsmd.domain.material import proof
from hsmd.errors import (
    EXPIRATION_INVALID,
    EXTERNAL_KEY_DUE,
    KEYSTORE_NOT_IMPORTED,
    MATERIAL_DIFFERS,
    MATERIAL_NOT_DECRYPTED,
    MATERIAL_NOT_DELETED,
    MATERIAL_SIZE_INVALID,
    NOT_PENDING_IMPORT,
    PARAMETER_INVALID,
    PRIVATE_KEY_INVALID,
    PRIVATE_KEY_MISSING,
    PRIVATE_KEY_NOT_DELETED,
    SPEC_INVALID,
    TEMPORARY_KEY_INVALID,
    Error,
)
from hsmd.hsm import BadData, Handle, Pair, WrongSize
from hsmd.keyring import with_token_key
from hsmd.store import Tx
from hsmd.store import imports as rows
from hsmd.store import keys as key_rows
from hsmd.store.keys import Key, KeyVersion

_WRAPPING = KEY_SPECS["RSA_3072"]
_LAST_MILLIS = 253_402_300_799_000  # the year 9999 ends
_CHECK = b"hsmd material check\0"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What an import needs: `public_key` is a DER SubjectPublicKeyInfo, `expires` in milliseconds."""

    key_id: str
    token: bytes
    public_key: bytes
    expires: int


def parameters(call: Call, reference: str) -> Parameters:
    """A wrapping pair and its token, good for 24 hours and this key. DEW: get-parameters-for-import."""
    key = _awaiting(access.key(call, reference))
    token, label = call.core.token, call.core.root_label()
    if not token.supports_oaep():
        reason = "this HSM can't do RSAES_OAEP_SHA_256"
        raise Error(PARAMETER_INVALID, name="wrapping_algorithm", reason=reason)
    if KEY_SPECS[key.spec].asymmetric and not token.supports_foreign_pairs():
        raise Error(SPEC_INVALID, reason="this HSM can't be given private keys from outside")
    pair = with_token_key(token, label, lambda root: token.generate_pair(_WRAPPING, root))
    expires = call.core.clock() + DAY_MILLIS
    sealed = import_tokens.seal(call, key, WrappingKey(pair.wrapped, label), expires)
    return Parameters(key.id, sealed, pair.public_key, expires)


def import_material(
    call: Call,
    reference: str,
    *,
    import_token: bytes,
    material: bytes,
    private_key: bytes,
    expires: int | None,
) -> Key:
    """To ENABLED, with the material until `expires` (ms), or for good. DEW: import-key-material."""
    key = _awaiting(access.key(call, reference))
    row = KEY_SPECS[key.spec]
    _check_expires(call, expires)
    _check_private_key(row, private_key)
    wrapping, label = import_tokens.unseal(call, key, import_token), call.core.root_label()
    made, check = with_token_key(
        call.core.token,
        wrapping.root_label,
        lambda root: _taken_in(call, row, root, wrapping.wrapped, material, private_key, label),
    )
    with call.change() as tx:
        key = _awaiting(access.key_for_change(call, tx, key.id))
        version = _version(call, tx, key, made, check, label)
        key = replace(key, state=access.ENABLED, expires=expires)
        rows.put_material(tx, key, version)
        call.key_version = version.version
        return key


def delete_material(call: Call, reference: str) -> Key:
    """To PENDING_IMPORT; the material is destroyed. DEW: delete-imported-key-material."""
    with call.change() as tx:
        key = _external(access.key_for_change(call, tx, reference))
        if KEY_SPECS[key.spec].asymmetric:
            raise Error(PRIVATE_KEY_NOT_DELETED, key=key.id)
        if key.state not in (access.ENABLED, access.DISABLED):
            raise Error(MATERIAL_NOT_DELETED, key=key.id)
        return _give_up(call, tx, key)


def due(call: Call) -> list[str]:
    """Ids of the keys whose material has expired."""
    with call.read() as tx:
        return rows.due_expirations(tx, call.core.clock())


def expire(call: Call, key_id: str) -> bool:
    """Destroy a key's expired material. False when it has not expired (any more), or is frozen."""
    # Not `call.change`: what another node did meanwhile is no change, and leaves no record.
    with call.core.store.write() as tx:
        key = key_rows.get_key(tx, key_id)
        if key is None or key.state in (key_rows.DESTROYED, access.FROZEN):
            return False
        if not access.has_expired(call, key):
            return False
        _give_up(call, tx, key)
        call.resource = key.id
        call.caller = call.caller._replace(domain_id=key.domain_id, project_id=key.project_id)
        call.before_commit()
    return True


def is_without_material(call: Call, tx: Tx, key: Key) -> bool:
    """Whether the key's material has yet to come, or has gone."""
    version = key_rows.get_version(tx, key.id, key.current_version)
    return version is None or version.wrapped is None or access.has_expired(call, key)


def _external(key: Key) -> Key:
    if key.keystore_id is not None:
        raise Error(KEYSTORE_NOT_IMPORTED, reason=f"the key {key.id} is in one")
    if key.origin != "external":
        raise Error(EXTERNAL_KEY_DUE, key=key.id)
    return key


def _awaiting(key: Key) -> Key:
    if _external(key).state != access.PENDING_IMPORT:
        raise Error(NOT_PENDING_IMPORT, key=key.id)
    return key


def _check_expires(call: Call, expires: int | None) -> None:
    if expires is None:
        return
    if expires <= call.core.clock():
        raise Error(EXPIRATION_INVALID)
    if expires > _LAST_MILLIS:
        raise Error(PARAMETER_INVALID, name="expiration_time", reason="seconds are due, not milliseconds")


def _check_private_key(row: KeyAlgorithm, private_key: bytes) -> None:
    if row.asymmetric and not private_key:
        raise Error(PRIVATE_KEY_MISSING)
    if private_key and not row.asymmetric:
        reason = f"{row.name} is no key pair, it has none"
        raise Error(PARAMETER_INVALID, name="encrypted_privatekey", reason=reason)


def _version(call: Call, tx: Tx, key: Key, made: Pair, check: bytes, label: str) -> KeyVersion:
    """The key's only version, of this material. Raises Error(MATERIAL_DIFFERS) if it has had another one."""
    earlier = key_rows.get_version(tx, key.id, key.current_version)
    if earlier is not None and not hmac.compare_digest(earlier.material_check or b"", check):
        raise Error(MATERIAL_DIFFERS, key=key.id)
    return KeyVersion(
        key_id=key.id,
        version=key.current_version,
        algorithm=key.spec,
        wrapped=made.wrapped,
        root_label=label,
        created=earlier.created if earlier else call.core.clock(),
        destroyed=None,
        public_key=made.public_key or None,
        material_check=check,
    )


def _give_up(call: Call, tx: Tx, key: Key) -> Key:
    """Destroy the material; a key that is to be deleted stays so."""
    key_rows.destroy_versions(tx, key.id, call.core.clock())
    waits = key.state in (access.ENABLED, access.DISABLED)
    key = replace(key, state=access.PENDING_IMPORT if waits else key.state, expires=None)
    key_rows.update_key(tx, key)
    return key


def _taken_in(
    call: Call,
    row: KeyAlgorithm,
    root: Handle,
    wrapping: bytes,
    material: bytes,
    private_key: bytes,
    label: str,
) -> tuple[Pair, bytes]:
    """The material under the root key of that label, and its check value.

    `root` has wrapped the key to unwrap it with.
    """
    token = call.core.token
    opener = token.unwrap(_WRAPPING, wrapping, root)
    try:
        if row.asymmetric:
            made = _pair(call, row, opener, material, private_key, label)
        else:
            made = _secret(call, row, opener, material, label)
    finally:
        token.destroy(opener)
    return made, _check_value(call, row, made, label)


def _secret(call: Call, row: KeyAlgorithm, opener: Handle, material: bytes, label: str) -> Pair:
    token = call.core.token
    try:
        wrapped = token.import_oaep(opener, _WRAPPING, material, row, token.find(label))
    except WrongSize:
        raise Error(MATERIAL_SIZE_INVALID, spec=row.name, length=row.bits // 8) from None
    except BadData as error:
        raise Error(MATERIAL_NOT_DECRYPTED) from error
    return Pair(wrapped, b"")


def _pair(
    call: Call, row: KeyAlgorithm, opener: Handle, material: bytes, private_key: bytes, label: str
) -> Pair:
    token = call.core.token
    value: bytes | None = None
    try:
        temporary = token.unwrap_oaep(opener, _WRAPPING, material)
        if temporary is None:
            value = token.decrypt_oaep(opener, _WRAPPING, material)
            temporary = token.temporary_key(value)
    except WrongSize:
        raise Error(TEMPORARY_KEY_INVALID) from None
    except BadData as error:
        raise Error(MATERIAL_NOT_DECRYPTED) from error
    try:
        return token.import_pair(row, private_key, temporary, token.find(label), value)
    except BadData as error:
        raise Error(PRIVATE_KEY_INVALID) from error
    finally:
        token.destroy(temporary)


def _check_value(call: Call, row: KeyAlgorithm, made: Pair, label: str) -> bytes:
    token = call.core.token
    known = made.public_key or proof(call, row, made.wrapped, label, _CHECK)
    return token.hmac(token.find(SEALING_KEY_LABEL), _CHECK + row.name.encode() + b"\0" + known)
