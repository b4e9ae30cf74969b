"""The UKeys of the people who are there: each is opened for a moment, and asked for what it is needed for."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hsmd import sealfile, ukey
from hsmd.daemon.ceremony.papers import Approval, CeremonyRefused, Member, Package, Seat, data, text
from hsmd.daemon.wiring import now_millis
from hsmd.domain import ukeys
from hsmd.domain.core import Core
from hsmd.hsm import ukey_token
from hsmd.hsm.ukey_token import UKeyToken
from hsmd.sealfile import Seal
from hsmd.ukey import Candidate, Purpose, UKeyError

HOLDER = "holder"  # of a backup, whatever else it may be
_BOX_BYTES = 32

Result = TypeVar("Result")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a UKey is, and how its PIN is had. `role` says whose it is, where that is known."""

    uri: str
    pin: Callable[[], str]
    softhsm_conf: Path | None = None
    role: str = ""


Places = Callable[[str], Iterable[Place]]  # one after the other, for what the text says


@dataclass(frozen=True, slots=True)
class Party:
    """Who is there. `tell` shows what happens to the people."""

    places: Places
    tell: Tell

    def gather(
        self,
        role: str,
        members: Sequence[Member],
        needed: int,
        what: str,
        do: Callable[[UKeyToken, Member], Result],
    ) -> dict[str, Result]:
        """What as many different UKeys of these do as are needed, by their ids.

        Raises CeremonyRefused when there are fewer: then nothing has come of it.
        """
        by_key = {each.fingerprint: each for each in members}
        done: dict[str, Result] = {}
        for place in self.places(f"{needed} of the {role}s' UKeys are due: {what}"):
            if place.role not in ("", role) and role != HOLDER:
                continue
            try:
                with opened(place) as token:
                    member = by_key.get(token.fingerprint)
                    if member is None or member.id in done:
                        who = "is none of theirs" if member is None else "was here before"
                        self.tell(f"The UKey {token.token_label} {who}.")
                        continue
                    done[member.id] = do(token, member)
                    self.tell(f"{member.name} ({member.role}): done, {len(done)} of {needed}.")
            except UKeyError as error:
                self.tell(f"{error}.")
            if len(done) == needed:
                return done
        raise CeremonyRefused(f"{needed} {role}s are due ({what}), {len(done)} of them were there")

    def approve(
        self,
        members: Sequence[Member],
        needed: int,
        purpose: Purpose,
        values: Mapping[str, object],
        words: str,
    ) -> tuple[Approval, ...]:
        """The signatures of so many administrators. Raises CeremonyRefused."""
        signed = ukey.statement(purpose, values)
        self.tell(f"To be approved: {words}")
        given = self.gather(
            ukeys.ADMINISTRATOR, members, needed, "to approve", lambda token, _: token.sign(signed)
        )
        approvals = tuple(Approval(who, text(signature)) for who, signature in given.items())
        check_approvals(approvals, members, needed, purpose, values)
        return approvals

    def open_seal(self, seal: Seal, role: str, what: str) -> dict[str, str]:
        """What is sealed, opened by as many holders as are needed. Raises CeremonyRefused."""
        members = [
            Member(
                id=each.holder.ukey_id,
                name=each.holder.name,
                role=role,
                serial="",
                fingerprint=ukey.fingerprint(each.holder.public_key),
                public_key=text(each.holder.public_key),
                opens=each.holder.box_kind,
            )
            for each in seal.shares
        ]

        def share(token: UKeyToken, member: Member) -> bytes:
            held = seal.share_of(member.id)
            if held is None:
                raise UKeyError("the UKey holds no share")
            found = ukey.open_box(token.public_key, held.box, seal.context(member.id), token)
            if not sealfile.is_share(seal, member.id, found):
                raise UKeyError(f"the share of {member.name} is not the one that was given")
            return found

        shares = self.gather(role, members, seal.threshold, what, share)
        try:
            return sealfile.unseal(seal, shares)
        except sealfile.SealRefused as error:
            raise CeremonyRefused(f"{error}: the file was changed") from error


def check_approvals(
    approvals: Sequence[Approval],
    members: Sequence[Member],
    needed: int,
    purpose: Purpose,
    values: Mapping[str, object],
) -> list[str]:
    """The names of those who approved. Raises CeremonyRefused unless so many of these administrators did."""
    signed = ukey.statement(purpose, values)
    by_id = {each.id: each for each in members if each.role == ukeys.ADMINISTRATOR}
    names = {
        each.ukey: by_id[each.ukey].name
        for each in approvals
        if each.ukey in by_id and ukey.verify(by_id[each.ukey].der, signed, data(each.signature))
    }
    if len(names) < max(needed, ukeys.LEAST):
        raise CeremonyRefused(f"{needed} administrators have to approve, {len(names)} of them did")
    return list(names.values())


def package_approvals(package: Package, members: Sequence[Member], needed: int) -> list[str]:
    """Who let these keys leave their HSM. Raises CeremonyRefused."""
    try:
        values = package.statement()
    except (ValueError, KeyError, TypeError) as error:
        raise CeremonyRefused("the package was changed") from error
    return check_approvals(package.approvals, members, needed, Purpose.CEREMONY, values)


def introduce(token: UKeyToken, seat: Seat, instance: str) -> Seat:
    """The UKey that takes this seat, once it has shown what it has and can. Raises UKeyError."""
    opens = token.opens()
    nonce = f"{now_millis()}-{secrets.token_hex(16)}"
    inside = secrets.token_bytes(_BOX_BYTES) if opens else b""
    context = ukey.possession_context(instance, nonce)
    opened_box = b""
    if opens:
        box = ukey.make_box(token.public_key, opens, inside, context)
        opened_box = ukey.open_box(token.public_key, box, context, token)
    candidate = Candidate(
        name=seat.name,
        role=seat.role,
        serial=token.serial,
        public_key=token.public_key,
        certificate=token.certificate,
        opens=opens,
        nonce=nonce,
        opened=opened_box,
    )
    signature = token.sign(candidate.statement(instance))
    if opened_box != inside or not ukey.verify(token.public_key, candidate.statement(instance), signature):
        raise UKeyError("the UKey does not do what it should")
    ukeys.check_candidate(candidate)
    return Seat(
        seat.name,
        seat.role,
        secrets.token_hex(16),
        token.serial,
        token.fingerprint,
        text(token.public_key),
        opens,
        text(token.certificate),
    )


def members_of(core: Core) -> list[Member]:
    """The UKeys that count, as the store has them. Raises SealBroken."""
    return [
        Member(
            each.id, each.name, each.role, each.serial, each.fingerprint, text(each.public_key), each.opens
        )
        for each in ukeys.registry(core).living()
    ]


@contextmanager
def opened(place: Place) -> Iterator[UKeyToken]:
    """The UKey there, until the block ends. Raises UKeyError."""
    with (
        _environment(place.softhsm_conf),
        ukey_token.open_ukey(place.uri, place.pin, ukey_token.lock_path()) as it,
    ):
        yield it


@contextmanager
def _environment(conf: Path | None) -> Iterator[None]:
    """SoftHSM2 reads its configuration where the environment says, when it is loaded."""
    if conf is None:
        yield
        return
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(conf)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
