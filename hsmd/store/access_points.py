"""Access points in the store. Nobody keeps them in memory, so they write nothing to the change feed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, delete, func, select

from hsmd.store import roots
from hsmd.store.core import Tx
from hsmd.store.schema import ACCESS_POINTS
from hsmd.store.seals import Sealed


@dataclass(frozen=True, slots=True)
class AccessPoint:
    """Who may open capsules that allow it. `created` and `updated` are in milliseconds since 1970 UTC.

    `kind` is DEW's type. What a Custom one has besides: its private key under the root key of that label, its
    public key (DER SubjectPublicKeyInfo) and that one's SHA-256 in hex.
    """

    id: str
    project_id: str
    domain_id: str
    keyspace_id: str
    name: str
    kind: int
    identity: str
    cluster_id: str
    description: str
    enabled: bool
    created_by: str
    created: int
    updated: int
    wrapped: bytes | None = field(default=None, repr=False)
    root_label: str | None = None
    public_key: bytes | None = None
    fingerprint: str | None = None


_POINTS = Sealed(ACCESS_POINTS, AccessPoint)

_of_project = ACCESS_POINTS.c.project_id == bindparam("project")
_of_keyspace = (_of_project, ACCESS_POINTS.c.keyspace_id == bindparam("keyspace"))
_by_id = _POINTS.where(_of_project, ACCESS_POINTS.c.id == bindparam("point"))
_some = _POINTS.where(_of_project, ACCESS_POINTS.c.id.in_(bindparam("points", expanding=True)))
_by_name = _POINTS.where(*_of_keyspace, ACCESS_POINTS.c.name == bindparam("called"))
_by_fingerprint = _POINTS.where(_of_project, ACCESS_POINTS.c.fingerprint == bindparam("print"))
_page = _POINTS.where(*_of_keyspace, ACCESS_POINTS.c.id > bindparam("after")).order_by(ACCESS_POINTS.c.id)
_count = select(func.count()).select_from(ACCESS_POINTS).where(_of_project)
_delete = delete(ACCESS_POINTS).where(ACCESS_POINTS.c.id == bindparam("point"))


def insert(tx: Tx, point: AccessPoint) -> None:
    """Add an access point."""
    roots.check_usable(tx, point.root_label)
    _POINTS.insert(tx, point)


def get(tx: Tx, project_id: str, point_id: str) -> AccessPoint | None:
    """The project's access point of that id. Raises SealBroken."""
    return _POINTS.one(tx, _by_id, project=project_id, point=point_id)


def some(tx: Tx, project_id: str, point_ids: Sequence[str]) -> dict[str, AccessPoint]:
    """Those of the ids that are access points of the project, by id. Raises SealBroken."""
    found = _POINTS.many(tx, _some, project=project_id, points=list(point_ids))
    return {each.id: each for each in found}


def by_name(tx: Tx, project_id: str, keyspace_id: str, name: str) -> AccessPoint | None:
    """The keyspace's access point of that name. Raises SealBroken."""
    return _POINTS.one(tx, _by_name, project=project_id, keyspace=keyspace_id, called=name)


def by_fingerprint(tx: Tx, project_id: str, fingerprint: str) -> AccessPoint | None:
    """The project's access point that has this public key. Raises SealBroken."""
    return _POINTS.one(tx, _by_fingerprint, project=project_id, print=fingerprint)


def page(tx: Tx, project_id: str, keyspace_id: str, *, after: str, limit: int) -> list[AccessPoint]:
    """The keyspace's access points behind that id, by id. Raises SealBroken."""
    return _POINTS.many(tx, _page.limit(limit), project=project_id, keyspace=keyspace_id, after=after)


def count(tx: Tx, project_id: str) -> int:
    """How many access points the project has, in all its keyspaces."""
    return tx.connection.execute(_count, {"project": project_id}).scalar_one()


def update(tx: Tx, point: AccessPoint) -> None:
    """Replace the access point of this id. Raises SealBroken when it is gone."""
    _POINTS.update(tx, point)


def remove(tx: Tx, point: AccessPoint) -> None:
    """Take it out, and what was its private key is overwritten."""
    tx.connection.execute(_delete, {"point": point.id})
    tx.scrub = True
