"""What an operator has set for single projects instead of the configuration's limits."""

from dataclasses import dataclass

from sqlalchemy import and_, bindparam, delete

from hsmd.store.core import Tx
from hsmd.store.schema import PROJECT_LIMITS
from hsmd.store.seals import Sealed

SUBJECT = "limits"  # in the change feed, with the project's id


@dataclass(frozen=True, slots=True)
class ProjectLimit:
    """One project's value of one limit."""

    project_id: str
    name: str
    value: int


_LIMITS = Sealed(PROJECT_LIMITS, ProjectLimit)

_of_project = _LIMITS.where(PROJECT_LIMITS.c.project_id == bindparam("project")).order_by(
    PROJECT_LIMITS.c.name
)
_this = and_(
    PROJECT_LIMITS.c.project_id == bindparam("project"), PROJECT_LIMITS.c.name == bindparam("wanted")
)
_one = _LIMITS.where(_this)
_delete = delete(PROJECT_LIMITS).where(_this)


def limits_of(tx: Tx, project_id: str) -> list[ProjectLimit]:
    """What is set for the project, by name. Raises SealBroken."""
    return _LIMITS.many(tx, _of_project, project=project_id)


def put_limit(tx: Tx, limit: ProjectLimit) -> None:
    """Set it instead of what was set before. Raises SealBroken."""
    if _LIMITS.one(tx, _one, project=limit.project_id, wanted=limit.name) is None:
        _LIMITS.insert(tx, limit)
    else:
        _LIMITS.update(tx, limit)
    tx.changed(SUBJECT, limit.project_id)


def delete_limit(tx: Tx, project_id: str, name: str) -> None:
    """The configuration's value counts again."""
    tx.connection.execute(_delete, {"project": project_id, "wanted": name})
    tx.changed(SUBJECT, project_id)
