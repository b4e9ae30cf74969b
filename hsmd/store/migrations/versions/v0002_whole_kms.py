"""Key pairs, rotation, import, and what belongs to a key. As it was when it was released."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.String(64)


def upgrade() -> None:
    """Add the columns (nullable: the seals of old rows hold) and the tables."""
    for column in (
        sa.Column("rotation_days", sa.Integer),
        sa.Column("rotation_due", sa.BigInteger),
        sa.Column("expires", sa.BigInteger),
        sa.Column("keystore_id", _ID),
        sa.Column("primary_region", sa.Text),
    ):
        op.add_column("keys", column)
    for name in ("public_key", "material_check"):
        op.add_column("key_versions", sa.Column(name, sa.LargeBinary))
    for name, indexed in (("rotation", "rotation_due"), ("expiry", "expires"), ("keystore", "keystore_id")):
        there = sa.text(f"{indexed} IS NOT NULL")
        op.create_index(f"ix_keys_{name}", "keys", [indexed], sqlite_where=there, postgresql_where=there)
    _of_keys()


def _seal() -> sa.Column[bytes]:
    return sa.Column("seal", sa.LargeBinary, nullable=False)


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _ids(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _ID, nullable=False) for name in names]


def _millis(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _of_keys() -> None:
    op.create_table(
        "aliases",
        *_ids("project_id"),
        *_text("alias"),
        *_ids("domain_id", "key_id"),
        *_millis("created", "updated"),
        _seal(),
        sa.PrimaryKeyConstraint("project_id", "alias", name="pk_aliases"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_aliases_keys"),
    )
    op.create_index("ix_aliases_key_id", "aliases", ["key_id"])
    op.create_table(
        "tags",
        *_ids("key_id"),
        *_text("name", "value"),
        *_ids("project_id"),
        _seal(),
        sa.PrimaryKeyConstraint("key_id", "name", name="pk_tags"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_tags_keys"),
    )
    op.create_index("ix_tags_find", "tags", ["project_id", "name", "value"])
    op.create_table(
        "grants",
        *_ids("id", "key_id", "project_id"),
        *_text("name"),
        *_ids("grantee"),
        *_text("grantee_type"),
        *_ids("retiring", "issuing"),
        *_text("operations"),
        *_millis("created"),
        _seal(),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_grants_keys"),
    )
    op.create_index("ix_grants_grantee", "grants", ["grantee"])
    op.create_index("ix_grants_retiring", "grants", ["retiring"])
    op.create_index("ix_grants_issuing", "grants", ["issuing"])
    op.create_index("ix_grants_list", "grants", ["key_id", "created", "id"])
