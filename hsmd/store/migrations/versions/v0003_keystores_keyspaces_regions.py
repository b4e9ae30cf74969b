"""Dedicated keystores, trusted keyspaces and replicas. As it was when it was released."""

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
