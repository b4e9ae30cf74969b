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
