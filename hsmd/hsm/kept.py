"""The door's third part: keys that are token objects and stay in the token, found by their label."""

import time
from abc import abstractmethod

from pkcs11 import Attribute

from hsmd.algorithms import KeyAlgorithm
from hsmd.errors import SPEC_INVALID, UNAVAILABLE, Error
from hsmd.hsm import templates
from hsmd.hsm.connection import Connection
from hsmd.hsm.desk import Desk
from hsmd.hsm.handles import Handle
from hsmd.hsm.loading import passing
from hsmd.hsm.pairs import PairWork, needed, public_key
from hsmd.hsm.templates import PAIR_GENERATORS

_MOST_KNOWN = 100_000  # handles remembered; beyond, the one found first is looked for anew
_LONGEST_LABEL = 255
_SEVERAL = 16  # objects of one label destroyed at once
_YOUNG_SECONDS = 10.0  # more than it takes until who was refused tries again
_OLD_SECONDS = 600.0  # the same for a key that many connections did not show
_MOST_TIMES = 16
# An object that stays where keys were ever kept: a token that doesn't show it is another one, or was emptied.
_MARK = "hsmd-keystore"


class KeptWork(PairWork):
    """What Token does with keys that it keeps: sensitive, never extractable. Faults as with all of Token."""

    _missing: dict[str, int]  # how many connections in a row were given up for a label

    @abstractmethod
    def _lost(self, desk: Desk, reason: str) -> Error:
        """The connection counts as lost from now on."""

    def keeps(self, row: KeyAlgorithm) -> bool:
        """Whether such keys of this row can be made and used, by the last probe."""
        return self._has(*needed(row))

    def make_kept(self, row: KeyAlgorithm, label: str) -> bytes | None:
        """Make a key of that label, which nobody has yet; a pair's public key as SubjectPublicKeyInfo.

        Raises Error(SPEC_INVALID) when the token can't do such keys.
        """
        template = templates.kept(row, label)
        with self._patience(), self._desk().call(work=("generate", row.name)) as desk:
            if not self.keeps(row):
                raise Error(SPEC_INVALID, reason=f"this HSM can't do {row.name}")
            connection = desk.connection
            session, module = connection.open_session(write=True), connection.module
            try:
                if not module.find(session, templates.is_kept(_MARK), 1):
                    module.generate(
                        session, templates.GENERATORS["generic-secret"], templates.hmac_key(_MARK)
                    )
                if not row.asymmetric:
                    module.generate(session, templates.GENERATORS[row.kind], template)
                    return None
                curve = connection.found.edwards_curve if row.kind == "edwards" else row.curve
                newborn = templates.newborn_public(row, curve)
                public, _ = module.generate_pair(session, PAIR_GENERATORS[row.kind], newborn, template)
                with passing(desk, public):
                    return public_key(desk, row, public)
            finally:
                session.close()

    def find_kept(self, row: KeyAlgorithm, label: str) -> Handle:
        """The key of that label. Raises Error(UNAVAILABLE) unless there is exactly one."""
        with self._desk().call(work=("find", "")) as desk:
            connection = desk.connection
            known = connection.kept.get(label)
            if known is None or known.value not in connection.handles.objects:
                wanted = templates.is_kept(label, row)
                found = connection.module.find(desk.session, wanted, 2)
                if not found:
                    self._look_anew(desk, label)
                    raise Error(UNAVAILABLE, reason=f"the HSM holds no key labelled {label}")
                self._missing.pop(label, None)
                if len(found) > 1:
                    raise Error(UNAVAILABLE, reason=f"the HSM holds several keys labelled {label}")
                known = connection.kept[label] = connection.handles.admit(found[0])
                while len(connection.kept) > _MOST_KNOWN:
                    _forget(connection, next(iter(connection.kept)))
            return known

    def check_kept(self, label: str) -> None:
        """Returns when whatever has that label could be destroyed now: it is read, or is certainly gone.

        Raises Error(UNAVAILABLE) when that can't be told.
        """
        with self._desk().call() as desk:
            module = desk.connection.module
            found = module.find(desk.session, templates.is_kept(label), _SEVERAL)
            if not found:
                self._expect_gone(desk, label)
            for each in found:
                module.read(desk.session, each, Attribute.LABEL, _LONGEST_LABEL)

    def destroy_kept(self, label: str) -> int:
        """Destroy whatever has that label, for good; how many objects. None is well: they were destroyed.

        Raises Error(UNAVAILABLE) when nothing is to be seen of what we keep there.
        """
        with self._desk().call() as desk:
            connection = desk.connection
            _forget(connection, label)
            session = connection.open_session(write=True)
            try:
                found = connection.module.find(session, templates.is_kept(label), _SEVERAL)
                if not found:
                    self._expect_gone(desk, label)
                for each in found:
                    connection.module.destroy(session, each)
            finally:
                session.close()
            return len(found)

    def _look_anew(self, desk: Desk, label: str) -> None:
        """The connection counts as lost if another one may show the key; less and less often for one key.

        Else each use of a key that is lost for good would end the sessions of all others, again and again.
        """
        times = self._missing.get(label, 0)
        believed = min(_YOUNG_SECONDS * 2**times, _OLD_SECONDS)
        if time.monotonic() - desk.connection.made > believed:
            self._missing[label] = min(times + 1, _MOST_TIMES)
            while len(self._missing) > _MOST_KNOWN:
                self._missing.pop(next(iter(self._missing)), None)
        self._expect_gone(desk, label, believed)

    def _expect_gone(self, desk: Desk, label: str, young: float = _YOUNG_SECONDS) -> None:
        """Returns when it is certain that the token holds no such object; else Error(UNAVAILABLE).

        SoftHSM2 whose folder was away doesn't show the objects that were used meanwhile, without a fault. So
        only a young connection that shows our mark is believed; an old one counts as lost.
        """
        if time.monotonic() - desk.connection.made > young:
            raise self._lost(desk, f"no object labelled {label}")
        if not desk.connection.module.find(desk.session, templates.is_kept(_MARK), 1):
            raise Error(UNAVAILABLE, reason="the HSM shows nothing of what was kept there: is it the same?")


def _forget(connection: Connection, label: str) -> None:
    known = connection.kept.pop(label, None)
    if known is not None:
        connection.handles.withdraw(known)
