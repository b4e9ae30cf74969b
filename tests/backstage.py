"""What only an operator could do, for tests: in a process of its own, since a PKCS#11 module loads once.

CONFIG role USER_ID PROJECT_ID ROLE     the user gets the role there
CONFIG group DOMAIN_ID PROJECT_ID ROLE  a group that has the role there; its id
CONFIG user USER_ID JSON                these fields of the user's row change
CONFIG setting DOMAIN_ID NAME JSON      the domain's setting
CONFIG due KEY_ID...                    the scheduled deletions are due now
CONFIG alter KEY_ID JSON                these fields of the key's row change
CONFIG away USER_ID DAYS                the user's last login was so many days ago
CONFIG rotations DAYS                   the due rotations as of so many days ahead
CONFIG expired-token KEY_ID             an import token past its time, in hex
CONFIG security-token USER_ID           a temporary key past its time: three words
CONFIG expirations DAYS                 the same for expired material
CONFIG abandoned DAYS CLUSTER           the same for keys begun in that keystore
CONFIG cut CLUSTER record|object        its due deletions, stopped before that
CONFIG versions KEY_ID COUNT            the key gets so many versions more
CONFIG operators COUNT JSON...          these UKeys are operators, so many are due
CONFIG revoked UKEY_ID                  the UKey is revoked
"""

import json
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from hsmd import config, ukey
from hsmd.algorithms import AES_256
from hsmd.caller import Caller
from hsmd.daemon import jobs, keystores, wiring
from hsmd.domain import access_keys, bearers, builtin, import_tokens, kept
from hsmd.domain import logins as passwords_shown
from hsmd.domain.bearers import Bearer
from hsmd.domain.core import Call, Core
from hsmd.errors import UNAVAILABLE, Error
from hsmd.store import groups, identity, keys, logins, policies, rotation, service_settings, ukeys
from hsmd.store import settings as domain_settings
from hsmd.store.core import Tx
from hsmd.store.identity import RoleAssignment
from hsmd.store.ukeys import UKey
from tests.forked import output_of
from tests.stand import Stand, eventually


def backstage(stand: Stand, *words: str) -> str:
    """Do it to the stand's store; what that printed."""
    return output_of(main, str(stand.dev.config), *words, settings=stand.settings).strip()


def _role(tx: Tx, user_id: str, project_id: str, role: str) -> None:
    identity.insert_role(tx, RoleAssignment(user_id, project_id, role))


def _group(tx: Tx, domain_id: str, project_id: str, role: str) -> None:
    group = groups.Group(uuid.uuid4().hex, domain_id, f"group-{uuid.uuid4().hex}", "", 0)
    groups.insert_group(tx, group)
    role_id = builtin.BY_NAME[role].id
    policies.assign(tx, policies.Assignment(policies.GROUP, group.id, policies.PROJECT, project_id, role_id))
    sys.stdout.write(group.id)


def _user(tx: Tx, user_id: str, fields: str) -> None:
    user = identity.get_user(tx, user_id)
    assert user is not None
    identity.update_user(tx, replace(user, **json.loads(fields)))


def _setting(tx: Tx, domain_id: str, name: str, document: str) -> None:
    domain_settings.put_setting(tx, domain_id, name, document)


def _due(tx: Tx, *key_ids: str) -> None:
    for key_id in key_ids:
        key = keys.get_key(tx, key_id)
        assert key is not None
        assert key.deletion_date is not None
        keys.update_key(tx, replace(key, deletion_date=1))


def _alter(tx: Tx, key_id: str, fields: str) -> None:
    key = keys.get_key(tx, key_id)
    assert key is not None
    keys.update_key(tx, replace(key, **json.loads(fields)))


def _abandoned(core: Core, settings: config.Settings, days: str, cluster: str) -> None:
    """Rounds until nothing is left: what has no object is believed to have none after a reconnection only."""
    keystores.connect(core)

    def cleared() -> bool:
        _another_day(jobs.of_keystore(cluster)[1], core, settings, days)
        return not kept.abandoned(Call(core, Caller("system"), lambda: None), cluster)

    try:
        eventually(cleared)
    finally:
        keystores.close(core)


def _cut(core: Core, settings: config.Settings, cluster: str, where: str) -> None:
    """The due deletions in a keystore, which end at the record that can't be written, or at the object."""
    keystores.connect(core)
    audit = wiring.open_audit(settings, "warden-that-is-cut")

    def refuse(*_: object, **__: object) -> NoReturn:
        raise Error(UNAVAILABLE, reason="it is cut here")

    if where == "record":
        audit.append = refuse  # type: ignore[method-assign]  # what fails here is not the rules' to choose
    else:
        core.keystores[cluster].token.destroy_kept = refuse  # type: ignore[method-assign]  # nor this
    trouble: dict[str, str] = {}
    try:
        jobs.Jobs(core, audit, "test").carry_out(jobs.of_keystore(cluster)[0], trouble)
    finally:
        audit.close()
        keystores.close(core)
    assert any("it is cut here" in each or "HSM is away" in each for each in trouble.values()), trouble


def _away(tx: Tx, user_id: str, days: str) -> None:
    user = identity.get_user(tx, user_id)
    assert user is not None
    known = logins.get_logins(tx, passwords_shown.subject(user))
    assert known is not None
    then = wiring.now_millis() - int(days) * 24 * 60 * 60 * 1000
    logins.put_logins(tx, replace(known, succeeded=then))


def _another_day(job: jobs.Job, core: Core, settings: config.Settings, days: str) -> None:
    """A job of the warden's own, with a clock of another day."""
    core.clock = lambda: wiring.now_millis() + int(days) * 24 * 60 * 60 * 1000
    audit = wiring.open_audit(settings, "warden-of-another-day")
    try:
        jobs.Jobs(core, audit, "test").carry_out(job, {})
    finally:
        audit.close()


def _expired_token(core: Core, key_id: str) -> None:
    with core.store.read() as tx:
        key = keys.get_key(tx, key_id)
    assert key is not None
    call = Call(core, Caller("system"), lambda: None)
    wrapping = import_tokens.WrappingKey(bytes(1800), "hsmd-root-1")
    sys.stdout.write(import_tokens.seal(call, key, wrapping, wiring.now_millis()).hex())


def _versions(core: Core, key_id: str, count: str) -> None:
    """More than a day's rotations may make, and faster."""
    token, row = core.token, AES_256
    made = [token.generate(row, token.find("hsmd-root-1")) for _ in range(int(count))]
    with core.store.write() as tx:
        for wrapped in made:
            key = keys.get_key(tx, key_id)
            assert key is not None
            key = replace(key, current_version=key.current_version + 1)
            version = keys.KeyVersion(key_id, key.current_version, row.name, wrapped, "hsmd-root-1", 1, None)
            rotation.rotate(tx, key, version)


def _security_token(core: Core, user_id: str) -> None:
    secret = access_keys.new_secret(core)
    hour = 60 * 60 * 1000
    bearer = Bearer(
        id="0" * 32,
        method="token",
        user_id=user_id,
        issued=wiring.now_millis() - 2 * hour,
        expires=wiring.now_millis() - hour,
        access_key=access_keys.new_id("HST"),
        wrapped=secret.wrapped.hex(),
        root_label=secret.root_label,
    )
    text = bearers.sign(core, bearers.SECURITY_TOKEN, bearer)
    sys.stdout.write(f"{bearer.access_key} {secret.text} {text}")


def _operators(tx: Tx, count: str, *rows: str) -> None:
    for number, text in enumerate(rows, 1):
        given = json.loads(text)
        public_key = bytes.fromhex(given.pop("public_key"))
        ukeys.insert_ukey(
            tx,
            UKey(
                **given,
                role="operator",
                serial="",
                fingerprint=ukey.fingerprint(public_key),
                public_key=public_key,
                certificate=b"",
                created=number,
                created_by="test",
            ),
        )
    document = {"administrators": 2, "operators": int(count)}
    service_settings.put_setting(tx, service_settings.QUORUM, json.dumps(document))


def _revoked(tx: Tx, ukey_id: str) -> None:
    (row,) = [each for each in ukeys.registry(tx) if each.id == ukey_id]
    ukeys.update_ukey(tx, replace(row, revoked=1, revoked_by="test"))


_JOBS: dict[str, jobs.Job] = {
    "rotations": jobs.ROTATIONS,
    "expirations": jobs.EXPIRATIONS,
}
_ACTIONS: dict[str, Callable[..., None]] = {
    "role": _role,
    "group": _group,
    "user": _user,
    "away": _away,
    "setting": _setting,
    "due": _due,
    "alter": _alter,
    "operators": _operators,
    "revoked": _revoked,
}


def main(path: str, action: str, *words: str) -> None:
    settings = config.load(Path(path), os.environ)
    pin = wiring.read_pins(settings)
    core = wiring.open_core(settings, pin)
    core.keystores = keystores.backings(settings, pin)
    core.token.connect()
    try:
        if action in _JOBS:
            _another_day(_JOBS[action], core, settings, *words)
        elif action == "abandoned":
            _abandoned(core, settings, *words)
        elif action == "cut":
            _cut(core, settings, *words)
        elif action == "expired-token":
            _expired_token(core, *words)
        elif action == "versions":
            _versions(core, *words)
        elif action == "security-token":
            _security_token(core, *words)
        else:
            with core.store.write() as tx:
                _ACTIONS[action](tx, *words)
    finally:
        core.store.close()
        core.token.close()
