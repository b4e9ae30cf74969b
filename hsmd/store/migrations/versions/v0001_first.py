"""The first schema. As it was when it was released: it doesn't follow schema.py."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.String(64)
_LIVING = sa.text("state != 0")
_PENDING_DELETION = sa.text("state = 4")


def upgrade() -> None:
    """Make all tables."""
    _identity()
    _keys()
    _rest()


def _identity() -> None:
    op.create_table(
        "domains",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_domains"),
        sa.UniqueConstraint("name", name="uq_domains_name"),
    )
    op.create_table(
        "projects",
        sa.Column("id", _ID, nullable=False),
        sa.Column("domain_id", _ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name="fk_projects_domains"),
        sa.UniqueConstraint("domain_id", "name", name="uq_projects_domain_id_name"),
    )
    op.create_table(
        "users",
        sa.Column("id", _ID, nullable=False),
        sa.Column("domain_id", _ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("enabled", sa.SmallInteger, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name="fk_users_domains"),
        sa.UniqueConstraint("domain_id", "name", name="uq_users_domain_id_name"),
    )
    op.create_table(
        "roles",
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "project_id", "role", name="pk_roles"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_roles_users"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_roles_projects"),
    )
    op.create_table(
        "access_keys",
        sa.Column("id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("root_label", sa.Text, nullable=False),
        sa.Column("enabled", sa.SmallInteger, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_keys"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_access_keys_users"),
    )
    op.create_table(
        "certificate_bindings",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_certificate_bindings"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_certificate_bindings_users"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_certificate_bindings_projects"),
    )


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("domain_id", _ID, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("usage", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("is_default", sa.SmallInteger, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("deletion_date", sa.BigInteger),
        sa.Column("enterprise_project_id", sa.Text, nullable=False),
        sa.Column("current_version", sa.Integer, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    _partial("uq_keys_alias", ["project_id", "alias"], _LIVING, unique=True)
    _partial("ix_keys_list", ["project_id", "created", "id"], _LIVING)
    _partial("ix_keys_count", ["project_id", "is_default", "state", "spec"], _LIVING)
    _partial("ix_keys_due", ["deletion_date"], _PENDING_DELETION)
    op.create_table(
        "key_versions",
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("algorithm", sa.Text, nullable=False),
        sa.Column("wrapped", sa.LargeBinary),
        sa.Column("root_label", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("destroyed", sa.BigInteger),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "version", name="pk_key_versions"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_key_versions_keys"),
    )
    op.create_table(
        "key_usage",
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "version", name="pk_key_usage"),
        sa.ForeignKeyConstraint(
            ["key_id", "version"],
            ["key_versions.key_id", "key_versions.version"],
            name="fk_key_usage_key_versions",
        ),
    )


def _partial(name: str, columns: list[str], where: sa.TextClause, *, unique: bool = False) -> None:
    op.create_index(name, "keys", columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _rest() -> None:
    op.create_table(
        "changes",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_changes"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sequences",
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("sequence", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("result_id", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "method", "sequence", name="pk_sequences"),
    )
    op.create_index("ix_sequences_created", "sequences", ["created"])
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
