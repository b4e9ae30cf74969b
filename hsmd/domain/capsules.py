"""Data-key capsules: a data key under a CMK, and with it the policy that says who may have it opened.

    offset  bytes  field
    0       4      magic and format version
    4       1      1: the policy's id, 2: its terms as JSON text
    5       4      n, length of the next field, big-endian
    9       n      the policy
    9 + n   ...    the data key as envelope.py writes it, of the kind `capsule`

GCM binds all before the envelope, domain and project: a capsule is good where it was made, for its policy
and its key. A new layout gets a new magic; old magics are read for ever, and so are terms in them.

It is opened for an access point that the policy allows, which proves itself by its signature of what
attestations.py writes: of this very request, until a time close by. No signature is taken twice.
"""

import binascii
import hashlib
import struct
from dataclasses import dataclass, field, replace

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from hsmd import attestations
from hsmd.algorithms import SIGNATURE_ALGORITHMS
from hsmd.domain import access, access_points, envelope, guesses, key_policies, kinds, publickeys
from hsmd.domain.core import Call
from hsmd.domain.key_policies import Terms
from hsmd.errors import (
    CAPSULE_REFUSED,
    CIPHERTEXT_INVALID,
    KEYSPACE_THING_NOT_FOUND,
    PARAMETER_INVALID,
    PARAMETER_MISSING,
    Error,
)
from hsmd.store import Tx
from hsmd.store import access_points as point_rows
from hsmd.store import capsules as rows
from hsmd.store import key_policies as policy_rows
from hsmd.store.access_points import AccessPoint
from hsmd.store.key_policies import KeyPolicy

DATA_KEY_BITS = (128, 256)
LONGEST_ATTESTATION_MILLIS = 15 * 60 * 1000  # from now until it expires

_MAGIC = b"HSC\x01"
_FRONT = struct.Struct(">4sBI")
_BY_ID, _BY_TERMS = 1, 2
_LONGEST_POLICY = 16384
_PURPOSE = b"hsmd data key capsule\0"
_SIGNATURE = SIGNATURE_ALGORITHMS["ECDSA_SHA_256"]
_RSA_BITS = range(2048, 4097)
_LONGEST_EXPONENT = 64  # bits; more is nobody's, and slow
_KEPT_MILLIS = 60 * 60 * 1000  # used attestations, past their end: a clock may be set back


@dataclass(frozen=True, slots=True)
class Attestation:
    """What an access point shows: signature (DER), its public key (DER), and until when it stands."""

    signature: bytes
    public_key: bytes
    expire_time: str


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key on its way out: in plaintext, or else under the caller's RSA key."""

    key_id: str
    plain: bytes | None = field(repr=False)
    cipher: bytes | None
    capsule: bytes = b""
    point_id: str = ""


def create(
    call: Call, reference: str, bits: int, *, policy_id: str = "", terms: str = "", public_key: str = ""
) -> DataKey:
    """A new data key of 128 or 256 bits and its capsule, bound to a policy or to the terms themselves.

    `public_key` is an RSA key, or "". DEW: datakey-capsule/create.
    """
    if bits not in DATA_KEY_BITS:
        raise Error(PARAMETER_INVALID, name="datakey_length", reason="128 or 256 is due")
    recipient = _recipient(public_key)
    key = kinds.wrapping(access.usable(access.key(call, reference)))
    front = _front(call, policy_id, terms)
    plain = call.core.token.random(bits // 8)
    sealed = envelope.seal(call, key, envelope.KIND_CAPSULE, plain, _binding(call, front))
    return DataKey(key.id, *_going_out(plain, recipient), capsule=front + sealed)


def decrypt(
    call: Call, reference: str, capsule: bytes, attestation: Attestation, *, public_key: str = ""
) -> DataKey:
    """The data key, for who attests to be an access point that the policy allows now, once an attestation.

    Raises Error(CIPHERTEXT_INVALID) for what is no capsule of this project and key, Error(CAPSULE_REFUSED)
    when it is not to be opened, and Error(RATE_EXCEEDED) after many of these. DEW: datakey-capsule/decrypt.
    """
    _check_whole(attestation)
    expires = key_policies.millis("expire_time", attestation.expire_time)
    recipient = _recipient(public_key)
    key = kinds.wrapping(access.usable(access.key(call, reference)))
    front = _parse(capsule)
    opened = envelope.open_sealed(
        call, capsule[len(front) :], (envelope.KIND_CAPSULE,), _binding(call, front), reference
    )
    signed = attestations.statement(attestation.expire_time, capsule, public_key)
    shown = access_points.fingerprint(attestation.public_key)
    with guesses.of_attestation(call, shown), call.change() as tx:
        policy = _policy(call, tx, front) if front[4] == _BY_ID else None
        terms = key_policies.terms_of(policy) if policy else key_policies.parse("capsule", _content(front))
        point = _attested(call, tx, terms, attestation, signed)
        _check_now(call, terms, expires)
        _use_up(call, tx, attestation, signed, expires)
        if policy:
            policy_rows.update(tx, replace(policy, accessed=call.core.clock()))
        call.also("attestAccessPoint", point.id)
    return DataKey(key.id, *_going_out(opened.data, recipient), point_id=point.id)


def _recipient(public_key: str) -> RSAPublicKey | None:
    if not public_key:
        return None
    try:
        if public_key.lstrip().startswith("-----BEGIN"):
            key = load_pem_public_key(public_key.encode())
        else:
            key = load_der_public_key(binascii.a2b_base64(public_key, strict_mode=True))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if (
        not isinstance(key, RSAPublicKey)
        or key.key_size not in _RSA_BITS
        or key.public_numbers().e.bit_length() > _LONGEST_EXPONENT
    ):
        reason = (
            "an RSA key of 2048 to 4096 bits is due, as PEM or the base64 of its DER SubjectPublicKeyInfo"
        )
        raise Error(PARAMETER_INVALID, name="public_key", reason=reason)
    return key


def _going_out(plain: bytes, recipient: RSAPublicKey | None) -> tuple[bytes | None, bytes | None]:
    return (plain, None) if recipient is None else (None, publickeys.encrypt_oaep(recipient, plain))


def _front(call: Call, policy_id: str, terms: str) -> bytes:
    """What stands before the envelope, for a policy that there is and that has not ended."""
    if bool(policy_id) == bool(terms):
        raise Error(PARAMETER_INVALID, name="policy_id", reason="either it or key_policy is due")
    with call.read() as tx:
        if policy_id:
            policy = key_policies.own(call, tx, policy_id)
            kind, content, parsed = _BY_ID, policy.id, key_policies.terms_of(policy)
        else:
            parsed = key_policies.parse("key_policy", terms)
            key_policies.check_points(call, tx, "key_policy", parsed, None)
            kind, content = _BY_TERMS, key_policies.text(parsed)
    if parsed.ends is not None and parsed.ends <= call.core.clock():
        name = "policy_id" if policy_id else "key_policy"
        raise Error(PARAMETER_INVALID, name=name, reason="the policy has ended, nobody could open it")
    return _FRONT.pack(_MAGIC, kind, len(content)) + content.encode()


def _binding(call: Call, front: bytes) -> bytes:
    return _PURPOSE + f"{call.caller.domain_id}\0{call.caller.project_id}\0".encode() + front


def _parse(capsule: bytes) -> bytes:
    """The part before the envelope, not yet to be trusted. Raises Error(CIPHERTEXT_INVALID)."""
    if len(capsule) > _FRONT.size:
        magic, kind, size = _FRONT.unpack_from(capsule)
        end = _FRONT.size + size
        if magic == _MAGIC and kind in (_BY_ID, _BY_TERMS) and size <= _LONGEST_POLICY and end < len(capsule):
            return capsule[:end]
    raise Error(CIPHERTEXT_INVALID)


def _content(front: bytes) -> str:
    return front[_FRONT.size :].decode()


def _policy(call: Call, tx: Tx, front: bytes) -> KeyPolicy:
    """The policy that a capsule names which was opened."""
    try:
        return key_policies.own(call, tx, _content(front))
    except Error as error:
        if error.fault is KEYSPACE_THING_NOT_FOUND:
            raise Error(CAPSULE_REFUSED, reason="its policy is gone") from error
        raise


def _check_whole(attestation: Attestation) -> None:
    for name, value in (
        ("custom_signature", attestation.signature),
        ("custom_public_key", attestation.public_key),
        ("expire_time", attestation.expire_time),
    ):
        if not value:
            raise Error(PARAMETER_MISSING, name=name)


def _attested(call: Call, tx: Tx, terms: Terms, attestation: Attestation, signed: bytes) -> AccessPoint:
    """The allowed, enabled access point whose signature it is."""
    fingerprint = access_points.fingerprint(attestation.public_key)
    point = point_rows.by_fingerprint(tx, call.caller.project_id, fingerprint)
    if point is None or point.public_key is None or point.id not in terms.points:
        raise Error(CAPSULE_REFUSED, reason="custom_public_key is of no access point that its policy allows")
    public = load_der_public_key(point.public_key)
    if not publickeys.verifies(public, _SIGNATURE, signed, attestation.signature, digest=False):  # type: ignore[arg-type]  # an EC key
        raise Error(CAPSULE_REFUSED, reason="custom_signature does not hold for this request")
    if not point.enabled:
        raise Error(CAPSULE_REFUSED, reason=f"the access point {point.id} is disabled")
    return point


def _check_now(call: Call, terms: Terms, expires: int) -> None:
    now = call.core.clock()
    if expires <= now:
        raise Error(CAPSULE_REFUSED, reason="the attestation has expired")
    if expires > now + LONGEST_ATTESTATION_MILLIS:
        raise Error(CAPSULE_REFUSED, reason="expire_time is more than 15 minutes away")
    if terms.starts is not None and now < terms.starts:
        raise Error(CAPSULE_REFUSED, reason=f"its policy begins at {key_policies.time(terms.starts)}")
    if terms.ends is not None and now >= terms.ends:
        raise Error(CAPSULE_REFUSED, reason=f"its policy ended at {key_policies.time(terms.ends)}")


def _use_up(call: Call, tx: Tx, attestation: Attestation, signed: bytes, expires: int) -> None:
    """Refuse what was used before.

    By the signature's r alone, since whoever has seen r and s can write another s for the same message, but
    no other r.
    """
    r = decode_dss_signature(attestation.signature)[0]
    used = hashlib.sha256(signed + r.to_bytes(32, "big")).hexdigest()
    rows.forget_attestations(tx, call.core.clock() - _KEPT_MILLIS)
    if not rows.use_attestation(tx, used, expires):
        raise Error(CAPSULE_REFUSED, reason="the attestation was used before")
