"""Dedicated keystores, trusted keyspaces and replicas. As it was when it was released."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    _replicas()
    _keyspaces()


def _keyspaces() -> None:
    def ids(*names: str) -> list[sa.Column[str]]:
        return [sa.Column(name, sa.String(64), nullable=False) for name in names]

    def texts(*names: str) -> list[sa.Column[str]]:
        return [sa.Column(name, sa.Text, nullable=False) for name in names]

    def millis(*names: str) -> list[sa.Column[int]]:
        return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]

    op.create_table(
        "access_points",
        *ids("id", "project_id", "domain_id", "keyspace_id"),
        *texts("name"),
        sa.Column("kind", sa.Integer, nullable=False),
        *texts("identity", "cluster_id", "description"),
        sa.Column("enabled", sa.SmallInteger, nullable=False),
        *ids("created_by"),
        *millis("created", "updated"),
        sa.Column("wrapped", sa.LargeBinary),
        sa.Column("root_label", sa.Text),
        sa.Column("public_key", sa.LargeBinary),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_points"),
        sa.UniqueConstraint("fingerprint", name="uq_access_points_fingerprint"),
        sa.UniqueConstraint(
            "project_id", "keyspace_id", "name", name="uq_access_points_project_id_keyspace_id_name"
        ),
    )
    op.create_table(
        "key_policies",
        *ids("id", "project_id", "domain_id", "keyspace_id"),
        *texts("name", "terms", "description"),
        *ids("created_by"),
        *millis("created", "updated"),
        sa.Column("accessed", sa.BigInteger),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_key_policies"),
        sa.UniqueConstraint(
            "project_id", "keyspace_id", "name", name="uq_key_policies_project_id_keyspace_id_name"
        ),
    )
    op.create_table(
        "attestations",
        *ids("id"),
        *millis("expires"),
        sa.PrimaryKeyConstraint("id", name="pk_attestations"),
    )
    op.create_index("ix_attestations_expires", "attestations", ["expires"])


def _replicas() -> None:
    op.create_table(
        "replicas",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("told", sa.Integer, nullable=False),
        sa.Column("share", sa.BigInteger, nullable=False),
        sa.Column("share_version", sa.Integer, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "region", name="pk_replicas"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_replicas_keys"),
    )
