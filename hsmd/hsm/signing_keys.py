"""The door's fourth part: EC pairs that persist in the token and sign for the daemon itself, by label."""

from pkcs11 import Mechanism, ObjectClass

from hsmd.algorithms import KEY_SPECS, SIGNATURE_ALGORITHMS
from hsmd.errors import FORMAT_INVALID, UNAVAILABLE, Error
from hsmd.hsm import schemes, templates
from hsmd.hsm.connection import locked
from hsmd.hsm.desk import Desk
from hsmd.hsm.kept import KeptWork
from hsmd.hsm.link import Link
from hsmd.hsm.pairs import public_key

_P256 = KEY_SPECS["EC_P256"]
_HALVES = (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)
_SEVERAL = 16
_SIGNING = SIGNATURE_ALGORITHMS["ECDSA_SHA_256"]


class SigningWork(KeptWork):
    """What Token does with such pairs. Faults as with all of Token."""

    _link: Link

    def make_signing_key(self, label: str, *, extractable: bool) -> bytes:
        """Make an EC P-256 pair that signs, nothing else; its public key as SubjectPublicKeyInfo.

        Raises Error(FORMAT_INVALID) if the label is taken.
        """
        public, private = templates.signing_pair(label, _P256.curve, extractable=extractable)
        settings = self._link.settings
        with locked(settings.lock_file, settings.deadline), self._desk().call() as desk:
            module = desk.connection.module
            halves = [_found(desk, label, kind) for kind in _HALVES]
            if all(halves):
                raise Error(FORMAT_INVALID, reason=f"the HSM holds a key labelled {label} already")
            session = desk.connection.open_session(write=True)
            try:
                for half in (each for found in halves for each in found):  # of a pair that nobody ever had
                    module.destroy(session, half)
                made, _ = module.generate_pair(session, Mechanism.EC_KEY_PAIR_GEN, public, private)
                return public_key(desk, _P256, made)
            finally:
                session.close()

    def has_signing_key(self, label: str) -> bool:
        """Whether there is such a pair, both halves of it."""
        with self._desk().call() as desk:
            return all(_found(desk, label, kind) for kind in _HALVES)

    def public_key_of(self, label: str) -> bytes:
        """The public half of a pair, as SubjectPublicKeyInfo. Raises Error(UNAVAILABLE) without one."""
        with self._desk().call() as desk:
            return public_key(desk, _P256, _only(desk, label, ObjectClass.PUBLIC_KEY))

    def sign_with(self, label: str, message: bytes) -> bytes:
        """ECDSA with SHA-256, DER, by the pair of that label. Raises Error(UNAVAILABLE) without one."""
        with self._desk().call() as desk:
            key = _only(desk, label, ObjectClass.PRIVATE_KEY)
            return schemes.sign(desk.session, key, _P256, _SIGNING, message, digest=False)


def _found(desk: Desk, label: str, kind: ObjectClass) -> list[int]:
    return desk.connection.module.find(desk.session, templates.signing_half(label, kind), _SEVERAL)


def _only(desk: Desk, label: str, kind: ObjectClass) -> int:
    found = _found(desk, label, kind)
    if len(found) != 1:
        count = len(found) or "no"
        raise Error(UNAVAILABLE, reason=f"the HSM holds {count} signing keys labelled {label}")
    return found[0]
