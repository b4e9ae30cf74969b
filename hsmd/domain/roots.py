"""Root keys: one wraps what is new; another one can take its place, and in the end the old one is destroyed.

- `rotate` puts a new root key in its place. From then on it wraps what is new; the old one unwraps.
- A job of the warden's moves what the old one has wrapped, row by row, inside the HSM, and proves of each
  that it is the same key before the row changes. Who has a key loaded or its row in memory has the same key:
  nobody notices.
- What is kept nowhere (import tokens, temporary access keys) ends within a day. PINs of the first format
  don't: where there may be some, who destroys the root key has to say that they may be lost.
- `destroy` writes down that the root key is ending: nothing that it has wrapped can be stored any more, and
  all processes forget the rows that they have in memory. When the calls that were on their way have ended the
  warden destroys it in the HSM, and then writes that down.

All of it can be repeated: each step looks at what stands.
"""

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsmd.algorithms import ACCESS_KEY, AES_256, BY_NAME, KEY_SPECS, SIGNATURE_ALGORITHMS, KeyAlgorithm
from hsmd.domain import publickeys
from hsmd.domain.core import DAY_MILLIS, Call, Core
from hsmd.errors import FORMAT_INVALID, ROOT_KEY_REFUSED, Error
from hsmd.hsm import BadData, Handle, Token
from hsmd.keyring import with_token_key
from hsmd.store import Tx, rewraps, roots
from hsmd.store.access_keys import AccessKey
from hsmd.store.keys import KeyVersion
from hsmd.store.rewraps import Wrapped
from hsmd.store.roots import CURRENT, DESTROYED, ENDING, OLD, RootKey

_MINUTE_MILLIS = 60 * 1000
# Import tokens and temporary keys live for a day at most; one is made by who began just before the change.
STATELESS_MILLIS = DAY_MILLIS + 60 * _MINUTE_MILLIS
ENDING_MILLIS = 5 * _MINUTE_MILLIS  # longer than any call that read a row before it was moved
_ROWS = 500  # moved in one round of the warden's
_OLDEST = 100  # how far behind the current one a root key's number may be
_POINT = KEY_SPECS["EC_P256"]  # what access points have
_PROVE = b"hsmd moved key"


@dataclass(frozen=True, slots=True)
class Progress:
    """A root key, how many rows it wraps, by kind, and why it can't be destroyed yet, in words."""

    root: RootKey
    rows: dict[str, int]
    needed: list[str]


def progress(call: Call) -> list[Progress]:
    """All root keys, the first one first."""
    with call.read() as tx:
        counts = rewraps.counts(tx)
        return [
            Progress(
                each,
                {kind: found[each.label] for kind, found in counts.items() if found[each.label]},
                _needs(call, tx, each, lose_pins=False),
            )
            for each in roots.root_keys(tx)
        ]


def next_label(found: tuple[RootKey, ...]) -> str:
    """The label of the root key to come."""
    return f"hsmd-root-{1 + max(roots.number(each.label) for each in found)}"


def rotate(call: Call, label: str) -> RootKey:
    """The root key of that label wraps what is new from now on; it is made unless the HSM holds it already.

    One that is there already was brought there: by the ceremony, so that it is in its backup, or from another
    region. Once more for the current one is well. Raises Error(ROOT_KEY_REFUSED).
    """
    core, token = call.core, call.core.token
    with call.read() as tx:
        found = roots.root_keys(tx)
    if any(each.label == label and each.state == CURRENT for each in found):
        return next(each for each in found if each.label == label)
    check_next(found, label)
    if label not in token.labels():
        _check_peers(core, label)
        _made(token, label)
    check_value = with_token_key(token, label, partial(_tried, core))
    with call.change() as tx:
        found = roots.root_keys(tx)
        check_next(found, label)
        if any(each.check_value == check_value for each in found):
            raise Error(ROOT_KEY_REFUSED, label=label, reason="it is one of the old ones")
        now = core.clock()
        kept = [replace(each, state=OLD, replaced=now) if each.state == CURRENT else each for each in found]
        made = RootKey(label, CURRENT, check_value, now)
        roots.put_root_keys(tx, [*kept, made])
        call.resource = f"root-key/{label}"
    return made


def needs(call: Call, label: str, *, lose_pins: bool) -> list[str]:
    """Why the old root key can't be destroyed yet, in words; nothing: it can be."""
    with call.read() as tx:
        return _needs(call, tx, _known(roots.root_keys(tx), label), lose_pins=lose_pins)


def destroy(call: Call, label: str, *, lose_pins: bool = False) -> RootKey:
    """Have an old root key destroyed that nothing needs: the warden does it, five minutes from now.

    Once more is well. Raises Error(ROOT_KEY_REFUSED).
    """
    with call.change() as tx:
        return end(call, tx, label, lose_pins=lose_pins)


def end(call: Call, tx: Tx, label: str, *, lose_pins: bool) -> RootKey:
    """The same inside a change."""
    call.resource = f"root-key/{label}"
    root = _known(roots.root_keys(tx), label)
    if reasons := _needs(call, tx, root, lose_pins=lose_pins):
        raise Error(ROOT_KEY_REFUSED, label=label, reason="; ".join(reasons))
    if root.state == OLD:
        root = replace(root, state=ENDING, ending=call.core.clock())
        _put(tx, root)
    return root


# The warden's jobs


def due(call: Call) -> list[str]:
    """Names of rows that an old root key has wrapped."""
    with call.read() as tx:
        labels = _older(roots.root_keys(tx))
        return rewraps.wrapped_by(tx, labels, _ROWS) if labels else []


def move(call: Call, name: str) -> bool:
    """Have the current root key wrap what is in that row. False when there is nothing to move (any more)."""
    core = call.core
    with call.read() as tx:
        before, label = rewraps.row(tx, name), _current(tx).label
    if before is None or before.wrapped is None or before.root_label in (None, "", label):
        return False
    moved = replace(before, wrapped=_moved(core, before, label), root_label=label)
    # Not `call.change`: what another call did meanwhile is no change, and leaves no record.
    with core.store.write() as tx:
        if rewraps.row(tx, name) != before or _current(tx).label != label:
            return False
        rewraps.put_row(tx, moved)
        call.resource = name
        call.before_commit()
    return True


def settling(call: Call) -> list[str]:
    """Labels of old root keys that no row needs any more, which is not written down; and of ending ones."""
    with call.read() as tx:
        found = [each for each in roots.root_keys(tx) if _has_ended(call, each) or _unmarked(each)]
        return [
            each.label
            for each in found
            if each.state == ENDING or not rewraps.wrapped_by(tx, [each.label], 1)
        ]


def settle(call: Call, label: str) -> bool:
    """Write down that no row needs it; or complete its end."""
    call.resource = f"root-key/{label}"
    with call.read() as tx:
        root = _known(roots.root_keys(tx), label)
    if root.state == ENDING:
        return _has_ended(call, root) and _end(call, root)
    with call.core.store.write() as tx:
        root = _known(roots.root_keys(tx), label)
        if not _unmarked(root) or rewraps.wrapped_by(tx, [label], 1):
            return False
        _put(tx, replace(root, moved=call.core.clock()))
        tx.scrub = True
        call.before_commit()
    return True


# Behind it


def _current(tx: Tx) -> RootKey:
    return next(each for each in roots.root_keys(tx) if each.state == CURRENT)


def _known(found: tuple[RootKey, ...], label: str) -> RootKey:
    for each in found:
        if each.label == label:
            return each
    raise Error(ROOT_KEY_REFUSED, label=label, reason="there is none of this label")


def _put(tx: Tx, root: RootKey) -> None:
    found = roots.root_keys(tx)
    roots.put_root_keys(tx, [root if each.label == root.label else each for each in found])


def _unmarked(root: RootKey) -> bool:
    return root.state == OLD and not root.moved


def _older(found: tuple[RootKey, ...]) -> list[str]:
    """Labels that older root keys have: ours, and those that another region's keys may have come with."""
    newest = max(roots.number(each.label) for each in found)
    gone = {each.label for each in found if each.state in (CURRENT, ENDING, DESTROYED)}
    labels = (f"hsmd-root-{number}" for number in range(max(1, newest - _OLDEST), newest))
    return [each for each in labels if each not in gone]


def check_next(found: tuple[RootKey, ...], label: str) -> None:
    """Raises Error(ROOT_KEY_REFUSED) for a label that no root key to come can have."""
    due_label = next_label(found)
    if not roots.number(label) or roots.number(label) < roots.number(due_label):
        raise Error(ROOT_KEY_REFUSED, label=label, reason=f"{due_label} is the next one")


def _check_peers(core: Core, label: str) -> None:
    """One that is made here can't be in other regions' HSMs, and those would refuse what it wraps."""
    if core.peers:
        reason = "it is to be brought into the HSMs of this region and its peers first"
        raise Error(ROOT_KEY_REFUSED, label=label, reason=reason)


def _made(token: Token, label: str) -> None:
    try:
        token.make_root_key(label)
    except Error as error:  # another call was faster
        if error.fault is not FORMAT_INVALID or label not in token.labels():
            raise


def _tried(core: Core, root: Handle) -> str:
    """The root key's check value, once it has wrapped and unwrapped a key."""
    token = core.token
    handle = token.unwrap(AES_256, token.generate(AES_256, root), root)
    token.destroy(handle)
    return token.check_value(root)


def _needs(call: Call, tx: Tx, root: RootKey, *, lose_pins: bool) -> list[str]:
    if root.state in (ENDING, DESTROYED):
        return []
    if root.state == CURRENT:
        return ["it wraps what is new"]
    now, found = call.core.clock(), []
    for kind, counts in rewraps.counts(tx).items():
        if counts[root.label]:
            found.append(f"{counts[root.label]} {kind} have yet to be moved")
    if now - root.replaced < STATELESS_MILLIS:
        hours = -(-(root.replaced + STATELESS_MILLIS - now) // (60 * _MINUTE_MILLIS))
        found.append(f"import tokens and temporary access keys may need it for {hours} hours more")
    if root.pins and not lose_pins:
        found.append("PINs of the first format may need it")
    return found


def _has_ended(call: Call, root: RootKey) -> bool:
    return root.state == ENDING and call.core.clock() - root.ending >= ENDING_MILLIS


def _end(call: Call, root: RootKey) -> bool:
    """Destroy it. False when another node has."""
    call.core.token.destroy_labelled([root.label])
    with call.core.store.write() as tx:
        root = _known(roots.root_keys(tx), root.label)
        if root.state != ENDING:
            return False
        _put(tx, replace(root, state=DESTROYED, destroyed=call.core.clock(), pins=False))
        call.before_commit()
    return True


def _moved(core: Core, before: Wrapped, label: str) -> bytes:
    """What is in the row, wrapped by the root key of that label, and proven to be the same key.

    Raises LookupError when the row's own root key can't unwrap it, or the proof fails.
    """
    token, row = core.token, _algorithm(before)
    old_label, wrapped = before.root_label or "", before.wrapped or b""

    def moved(old: Handle) -> bytes:
        return with_token_key(token, label, lambda new: token.rewrap(row, wrapped, old, new))

    try:
        made = with_token_key(token, old_label, moved)
        public = None if isinstance(before, AccessKey) else before.public_key
        same = _signs(core, row, made, label, public) if public else _agree(core, row, before, made, label)
    except BadData as error:
        raise LookupError(f"it is not wrapped by {old_label}") from error
    if not same:
        raise LookupError("it was another key after it was moved")
    return made


def _algorithm(before: Wrapped) -> KeyAlgorithm:
    if isinstance(before, KeyVersion):
        return BY_NAME[before.algorithm]
    return ACCESS_KEY if isinstance(before, AccessKey) else _POINT


def _used(core: Core, row: KeyAlgorithm, wrapped: bytes, label: str, use: Callable[[Handle], bytes]) -> bytes:
    token = core.token
    handle = with_token_key(token, label, lambda root: token.unwrap(row, wrapped, root))
    try:
        return use(handle)
    finally:
        token.destroy(handle)


def _agree(core: Core, row: KeyAlgorithm, before: Wrapped, made: bytes, label: str) -> bool:
    """Whether a secret does as before: what one encrypts the other decrypts, or their HMACs are the same."""
    token = core.token
    old = partial(_used, core, row, before.wrapped or b"", before.root_label or "")
    new = partial(_used, core, row, made, label)
    if row.kind == "aes":
        iv, data = core.ivs.take(token), os.urandom(32)
        sealed = old(lambda key: token.encrypt(key, iv, data, _PROVE))
        return hmac.compare_digest(new(lambda key: token.decrypt(key, iv, sealed, _PROVE)), data)
    macs = [each(lambda key: token.hmac(key, _PROVE)) for each in (old, new)]
    return hmac.compare_digest(*macs)


def _signs(core: Core, row: KeyAlgorithm, made: bytes, label: str, public: bytes) -> bool:
    """Whether the public key that stands in the row verifies what the moved private key signs."""
    token, message = core.token, os.urandom(32)
    algorithm = next(each for each in SIGNATURE_ALGORITHMS.values() if each.kind == row.kind)
    signature = _used(
        core, row, made, label, lambda key: token.sign(key, row, algorithm, message, digest=False)
    )
    key = load_der_public_key(public)
    return publickeys.verifies(key, algorithm, message, signature, digest=False)  # type: ignore[arg-type]  # one of ours
