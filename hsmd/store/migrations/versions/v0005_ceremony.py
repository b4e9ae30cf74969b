"""UKeys and what is done by them. As it was when it was released."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ID = sa.String(64)


def upgrade() -> None:
    """Add the tables."""
    _ukeys()
    _proposals()
    _roots()


def _seal() -> sa.Column[bytes]:
    return sa.Column("seal", sa.LargeBinary, nullable=False)


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _ids(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _ID, nullable=False) for name in names]


def _millis(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]


def _ukeys() -> None:
    op.create_table(
        "service_settings",
        *_text("name", "document"),
        _seal(),
        sa.PrimaryKeyConstraint("name", name="pk_service_settings"),
    )
    op.create_table(
        "ukeys",
        *_ids("id"),
        *_text("name", "role", "serial"),
        *_ids("fingerprint"),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        *_text("opens"),
        *_millis("created"),
        *_text("created_by"),
        sa.Column("revoked", sa.BigInteger),
        sa.Column("revoked_by", sa.Text),
        _seal(),
        sa.PrimaryKeyConstraint("id", name="pk_ukeys"),
        sa.UniqueConstraint("fingerprint", name="uq_ukeys_fingerprint"),
    )


def _proposals() -> None:
    op.add_column("keys", sa.Column("frozen_from", sa.Integer))
    op.create_table(
        "proposals",
        *_ids("id"),
        *_text("operation", "parameters", "facts"),
        *_ids("proposed_by"),
        *_millis("created", "expires"),
        *_text("state"),
        sa.Column("ended", sa.BigInteger),
        sa.Column("ended_by", _ID),
        sa.Column("result", sa.Text),
        _seal(),
        sa.PrimaryKeyConstraint("id", name="pk_proposals"),
    )
    op.create_index("ix_proposals_created", "proposals", ["created"])
    op.create_table(
        "approvals",
        *_ids("proposal_id", "ukey_id"),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        *_millis("created"),
        _seal(),
        sa.PrimaryKeyConstraint("proposal_id", "ukey_id", name="pk_approvals"),
        sa.ForeignKeyConstraint(["proposal_id"], ["proposals.id"], name="fk_approvals_proposals"),
        sa.ForeignKeyConstraint(["ukey_id"], ["ukeys.id"], name="fk_approvals_ukeys"),
    )


def _roots() -> None:
    """The keys that an older root key has wrapped are found by its label."""
    op.create_index("ix_key_versions_root_label", "key_versions", ["root_label"])
