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
    _keystores()


def _keystores() -> None:
    op.add_column("key_versions", sa.Column("keystore_id", sa.String(64)))
    op.create_table(
        "keystores",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("domain_id", sa.String(64), nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("cluster_id", sa.Text, nullable=False),
        sa.Column("enabled", sa.SmallInteger, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keystores"),
        sa.UniqueConstraint("cluster_id", name="uq_keystores_cluster_id"),
        sa.UniqueConstraint("domain_id", "alias", name="uq_keystores_domain_id_alias"),
    )
    op.create_table(
        "keystore_drafts",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("keystore_id", sa.String(64), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_keystore_drafts"),
        sa.ForeignKeyConstraint(["keystore_id"], ["keystores.id"], name="fk_keystore_drafts_keystores"),
    )
    op.create_index("ix_keystore_drafts_keystore_id", "keystore_drafts", ["keystore_id"])


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
