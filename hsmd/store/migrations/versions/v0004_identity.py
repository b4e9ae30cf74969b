"""Groups, policies, agencies, settings of domains and limits of projects. As it was when it was released."""

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns (nullable: the seals of old rows hold) and the tables."""
