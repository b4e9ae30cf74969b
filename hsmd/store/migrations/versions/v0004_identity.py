"""Groups, policies, agencies, settings of domains and limits of projects. As it was when it was released."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.String(64)


def upgrade() -> None:
    """Add the columns (nullable: the seals of old rows hold) and the tables."""
    _people()
    _permissions()
    _credentials()
    _limits()


def _seal() -> sa.Column[bytes]:
    return sa.Column("seal", sa.LargeBinary, nullable=False)


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _ids(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _ID, nullable=False) for name in names]


def _millis(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _people() -> None:
    added: dict[str, tuple[sa.Column[Any], ...]] = {
        "domains": (
            sa.Column("description", sa.Text),
            sa.Column("enabled", sa.SmallInteger),
            sa.Column("owner_id", _ID),
            sa.Column("created", sa.BigInteger),
        ),
        "projects": (
            sa.Column("description", sa.Text),
            sa.Column("enabled", sa.SmallInteger),
            sa.Column("parent_id", _ID),
        ),
        "users": (
            *(sa.Column(name, sa.Text) for name in ("description", "email", "areacode", "phone")),
            *(sa.Column(name, sa.Text) for name in ("access_mode", "xuser_id", "xuser_type")),
            *(sa.Column(name, sa.BigInteger) for name in ("created", "updated", "password_changed")),
            sa.Column("password_reset", sa.SmallInteger),
            sa.Column("password_history", sa.Text),
            sa.Column("tokens_not_before", sa.BigInteger),
        ),
    }
    for table, columns in added.items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "groups",
        *_ids("id", "domain_id"),
        *_text("name", "description"),
        *_millis("created"),
        _seal(),
        sa.PrimaryKeyConstraint("id", name="pk_groups"),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name="fk_groups_domains"),
        sa.UniqueConstraint("domain_id", "name", name="uq_groups_domain_id_name"),
    )
    op.create_table(
        "memberships",
        *_ids("group_id", "user_id"),
        _seal(),
        sa.PrimaryKeyConstraint("group_id", "user_id", name="pk_memberships"),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name="fk_memberships_groups"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_memberships_users"),
    )
    op.create_index("ix_memberships_user_id", "memberships", ["user_id"])
    op.create_table(
        "domain_settings",
        *_ids("domain_id"),
        *_text("name", "document"),
        _seal(),
        sa.PrimaryKeyConstraint("domain_id", "name", name="pk_domain_settings"),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name="fk_domain_settings_domains"),
    )
    op.create_table(
        "logins",
        *_ids("claim"),
        *_millis("since", "last"),
        sa.Column("failures", sa.Integer, nullable=False),
        *_millis("until"),
        sa.Column("succeeded", sa.BigInteger),
        sa.PrimaryKeyConstraint("claim", name="pk_logins"),
    )
    op.create_index("ix_logins_last", "logins", ["last"])


def _permissions() -> None:
    op.create_table(
        "policies",
        *_ids("id", "domain_id"),
        *_text("name", "display_name", "description", "description_cn", "type", "document"),
        *_millis("created", "updated"),
        _seal(),
        sa.PrimaryKeyConstraint("id", name="pk_policies"),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name="fk_policies_domains"),
        sa.UniqueConstraint("domain_id", "display_name", name="uq_policies_domain_id_display_name"),
    )
    op.create_table(
        "assignments",
        *_text("subject_kind"),
        *_ids("subject_id"),
        *_text("scope_kind"),
        *_ids("scope_id", "role_id"),
        _seal(),
        sa.PrimaryKeyConstraint(
            "subject_kind", "subject_id", "scope_kind", "scope_id", "role_id", name="pk_assignments"
        ),
    )
    op.create_index("ix_assignments_role_id", "assignments", ["role_id"])
    op.create_index("ix_assignments_scope", "assignments", ["scope_id", "scope_kind"])


def _credentials() -> None:
    op.add_column("access_keys", sa.Column("description", sa.Text))
    op.create_index("ix_access_keys_user_id", "access_keys", ["user_id"])
    op.create_table(
        "access_key_uses",
        *_ids("id"),
        *_millis("used"),
        sa.PrimaryKeyConstraint("id", name="pk_access_key_uses"),
    )
    op.create_table(
        "certificate_patterns",
        *_text("pattern"),
        *_ids("user_id", "project_id"),
        _seal(),
        sa.PrimaryKeyConstraint("pattern", name="pk_certificate_patterns"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_certificate_patterns_users"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_certificate_patterns_projects"),
    )
    op.create_table(
        "agencies",
        *_ids("id", "domain_id"),
        *_text("name"),
        *_ids("trust_domain_id"),
        *_text("trust_domain_name", "description", "duration"),
        *_millis("created"),
        sa.Column("expires", sa.BigInteger),
        _seal(),
        sa.PrimaryKeyConstraint("id", name="pk_agencies"),
        sa.ForeignKeyConstraint(["domain_id"], ["domains.id"], name="fk_agencies_domains"),
        sa.UniqueConstraint("domain_id", "name", name="uq_agencies_domain_id_name"),
    )
    op.create_table(
        "revoked_tokens",
        *_ids("token_id"),
        *_millis("expires"),
        _seal(),
        sa.PrimaryKeyConstraint("token_id", name="pk_revoked_tokens"),
    )
    op.create_index("ix_revoked_tokens_expires", "revoked_tokens", ["expires"])


def _limits() -> None:
    op.create_table(
        "project_limits",
        *_ids("project_id"),
        *_text("name"),
        sa.Column("value", sa.BigInteger, nullable=False),
        _seal(),
        sa.PrimaryKeyConstraint("project_id", "name", name="pk_project_limits"),
    )
