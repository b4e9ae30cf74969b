"""The tables of the store as this program uses them; the migrations build the same, and a test compares.

Times are milliseconds since 1970 UTC. Tables with a `seal` column decide security: see `seals.py`.
Rules that a query shares with a partial index (`LIVING`, `PENDING_DELETION`) are spelled as literals,
since a planner can't match a bound value with an index's condition.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.engine.interfaces import Dialect

REVISION = "0005"  # the migration that makes this schema; a test compares it with the scripts


class Flag(TypeDecorator[bool]):
    """A truth value, stored as 0 or 1. Anything else that stands there comes back raw and fails its seal."""

    impl = SmallInteger
    cache_ok = True

    def process_bind_param(self, value: bool | None, dialect: Dialect) -> Any:  # noqa: ARG002 # SQLAlchemy's signature
        """From a bool to what is stored."""
        return None if value is None else int(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002 # SQLAlchemy's signature
        """From what is stored to a bool."""
        return bool(value) if value in (0, 1) else value


class Blob(LargeBinary):
    """Bytes as the driver gives them: converting what isn't bytes could hide a change from the seal."""

    def result_processor(self, dialect: Dialect, coltype: object) -> None:  # SQLAlchemy's signature
        """No conversion."""


ID = String(64)
TEXT = Text()
MILLIS = BigInteger()
FLAG = Flag()
BLOB = Blob()

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _seal() -> Column[bytes]:
    return Column("seal", BLOB, nullable=False)


# Identity

DOMAINS = Table(
    "domains",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("name", TEXT, nullable=False, unique=True),
    Column("description", TEXT),
    Column("enabled", FLAG),  # NULL: it is
    Column("owner_id", ID),  # the user whom it was made for; no foreign key: each would need the other first
    Column("created", MILLIS),
    _seal(),
)

PROJECTS = Table(
    "projects",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("domain_id", ID, ForeignKey("domains.id"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("description", TEXT),
    Column("enabled", FLAG),  # NULL: it is
    Column("parent_id", ID),  # NULL: the domain itself
    _seal(),
    UniqueConstraint("domain_id", "name"),
)

USERS = Table(
    "users",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("domain_id", ID, ForeignKey("domains.id"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("password_hash", TEXT, nullable=False),
    Column("enabled", FLAG, nullable=False),
    Column("description", TEXT),
    Column("email", TEXT),
    Column("areacode", TEXT),
    Column("phone", TEXT),
    Column("access_mode", TEXT),
    Column("xuser_id", TEXT),
    Column("xuser_type", TEXT),
    Column("created", MILLIS),
    Column("updated", MILLIS),
    Column("password_changed", MILLIS),
    Column("password_reset", FLAG),  # whether the user shall choose another one
    Column("password_history", TEXT),  # hashes of those before, the latest first, one a line
    Column("tokens_not_before", MILLIS),  # tokens issued before this are void
    _seal(),
    UniqueConstraint("domain_id", "name"),
)

GROUPS = Table(
    "groups",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("domain_id", ID, ForeignKey("domains.id"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("description", TEXT, nullable=False),
    Column("created", MILLIS, nullable=False),
    _seal(),
    UniqueConstraint("domain_id", "name"),
)

MEMBERSHIPS = Table(
    "memberships",
    METADATA,
    Column("group_id", ID, ForeignKey("groups.id"), primary_key=True),
    Column("user_id", ID, ForeignKey("users.id"), primary_key=True, index=True),
    _seal(),
)

SETTINGS = Table(
    "domain_settings",
    METADATA,
    Column("domain_id", ID, ForeignKey("domains.id"), primary_key=True),
    Column("name", TEXT, primary_key=True),
    Column("document", TEXT, nullable=False),  # JSON
    _seal(),
)

# The project is no foreign key, as that of keys is none.
PROJECT_LIMITS = Table(
    "project_limits",
    METADATA,
    Column("project_id", ID, primary_key=True),
    Column("name", TEXT, primary_key=True),
    Column("value", BigInteger, nullable=False),
    _seal(),
)

ROLES = Table(
    "roles",
    METADATA,
    Column("user_id", ID, ForeignKey("users.id"), primary_key=True),
    Column("project_id", ID, ForeignKey("projects.id"), primary_key=True),
    Column("role", TEXT, primary_key=True),
    _seal(),
)

ACCESS_KEYS = Table(
    "access_keys",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("user_id", ID, ForeignKey("users.id"), nullable=False, index=True),
    Column("wrapped", BLOB, nullable=False),
    Column("root_label", TEXT, nullable=False),
    Column("enabled", FLAG, nullable=False),
    Column("created", MILLIS, nullable=False),
    Column("description", TEXT),
    _seal(),
)

ACCESS_KEY_USES = Table(  # not sealed: nothing is decided by it
    "access_key_uses",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("used", MILLIS, nullable=False),
)

BINDINGS = Table(
    "certificate_bindings",
    METADATA,
    Column("name", TEXT, primary_key=True),
    Column("user_id", ID, ForeignKey("users.id"), nullable=False),
    Column("project_id", ID, ForeignKey("projects.id"), nullable=False),
    _seal(),
)

CERTIFICATE_PATTERNS = Table(
    "certificate_patterns",
    METADATA,
    Column("pattern", TEXT, primary_key=True),
    Column("user_id", ID, ForeignKey("users.id"), nullable=False),
    Column("project_id", ID, ForeignKey("projects.id"), nullable=False),
    _seal(),
)

AGENCIES = Table(
    "agencies",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("domain_id", ID, ForeignKey("domains.id"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("trust_domain_id", ID, nullable=False),
    Column("trust_domain_name", TEXT, nullable=False),
    Column("description", TEXT, nullable=False),
    Column("duration", TEXT, nullable=False),
    Column("created", MILLIS, nullable=False),
    Column("expires", MILLIS),  # NULL: never
    _seal(),
    UniqueConstraint("domain_id", "name"),
)

REVOCATIONS = Table(
    "revoked_tokens",
    METADATA,
    Column("token_id", ID, primary_key=True),
    Column("expires", MILLIS, nullable=False, index=True),
    _seal(),
)

# Permissions. A role is a built-in one or a row of POLICIES; SUBJECT and SCOPE are of several kinds, so no
# foreign keys: what removes a user, group, agency or project removes its assignments.

POLICIES = Table(
    "policies",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("domain_id", ID, ForeignKey("domains.id"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("display_name", TEXT, nullable=False),
    Column("description", TEXT, nullable=False),
    Column("description_cn", TEXT, nullable=False),
    Column("type", TEXT, nullable=False),
    Column("document", TEXT, nullable=False),
    Column("created", MILLIS, nullable=False),
    Column("updated", MILLIS, nullable=False),
    _seal(),
    UniqueConstraint("domain_id", "display_name"),
)

ASSIGNMENTS = Table(
    "assignments",
    METADATA,
    Column("subject_kind", TEXT, primary_key=True),
    Column("subject_id", ID, primary_key=True),
    Column("scope_kind", TEXT, primary_key=True),
    Column("scope_id", ID, primary_key=True),
    Column("role_id", ID, primary_key=True, index=True),
    _seal(),
    Index("ix_assignments_scope", "scope_id", "scope_kind"),
)

# Keys. Their project is no foreign key: identity may come to live in another service.

KEYS = Table(
    "keys",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("project_id", ID, nullable=False),
    Column("domain_id", ID, nullable=False),
    Column("alias", TEXT, nullable=False),
    Column("description", TEXT, nullable=False),
    Column("spec", TEXT, nullable=False),
    Column("usage", TEXT, nullable=False),
    Column("origin", TEXT, nullable=False),
    Column("state", Integer, nullable=False),
    Column("is_default", FLAG, nullable=False),
    Column("created", MILLIS, nullable=False),
    Column("deletion_date", MILLIS),
    Column("enterprise_project_id", TEXT, nullable=False),
    Column("current_version", Integer, nullable=False),
    Column("rotation_days", Integer),  # NULL: it doesn't rotate by itself
    Column("rotation_due", MILLIS),
    Column("expires", MILLIS),  # of imported material
    Column("keystore_id", ID),  # NULL: the default one
    Column("primary_region", TEXT),  # NULL: it was never replicated
    Column("frozen_from", Integer),  # the state before it was frozen; NULL: it is not
    _seal(),
)

LIVING: ColumnElement[bool] = KEYS.c.state != literal_column("0")  # 0: destroyed, the record is a tombstone
PENDING_DELETION: ColumnElement[bool] = KEYS.c.state == literal_column("4")
ENABLED: ColumnElement[bool] = KEYS.c.state == literal_column("2")


def _partial(name: str, *columns: Column[Any], where: ColumnElement[bool], unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


ALIAS_INDEX = _partial("uq_keys_alias", KEYS.c.project_id, KEYS.c.alias, where=LIVING, unique=True)
LIST_INDEX = _partial("ix_keys_list", KEYS.c.project_id, KEYS.c.created, KEYS.c.id, where=LIVING)
COUNT_INDEX = _partial(
    "ix_keys_count", KEYS.c.project_id, KEYS.c.is_default, KEYS.c.state, KEYS.c.spec, where=LIVING
)
DUE_INDEX = _partial("ix_keys_due", KEYS.c.deletion_date, where=PENDING_DELETION)
ROTATION_INDEX = _partial("ix_keys_rotation", KEYS.c.rotation_due, where=KEYS.c.rotation_due.is_not(None))
EXPIRY_INDEX = _partial("ix_keys_expiry", KEYS.c.expires, where=KEYS.c.expires.is_not(None))
KEYSTORE_INDEX = _partial("ix_keys_keystore", KEYS.c.keystore_id, where=KEYS.c.keystore_id.is_not(None))

VERSIONS = Table(
    "key_versions",
    METADATA,
    Column("key_id", ID, ForeignKey("keys.id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("algorithm", TEXT, nullable=False),
    Column("wrapped", BLOB),  # NULL: destroyed
    Column("root_label", TEXT, nullable=False, index=True),
    Column("created", MILLIS, nullable=False),
    Column("destroyed", MILLIS),
    Column("public_key", BLOB),  # DER SubjectPublicKeyInfo of a key pair
    Column("material_check", BLOB),  # keyed check value of imported material, to know it again
    Column("keystore_id", ID),  # whose token holds it, `wrapped` being empty; NULL: it is wrapped
    _seal(),
)

USAGE = Table(
    "key_usage",
    METADATA,
    Column("key_id", ID, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("used", BigInteger, nullable=False),
    _seal(),
    ForeignKeyConstraint(["key_id", "version"], ["key_versions.key_id", "key_versions.version"]),
)

# Dedicated keystores

KEYSTORES = Table(
    "keystores",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("domain_id", ID, nullable=False),
    Column("alias", TEXT, nullable=False),
    Column("cluster_id", TEXT, nullable=False, unique=True),
    Column("enabled", FLAG, nullable=False),
    Column("created", MILLIS, nullable=False),
    _seal(),
    UniqueConstraint("domain_id", "alias"),
)

KEYSTORE_DRAFTS = Table(
    "keystore_drafts",
    METADATA,
    Column("key_id", ID, primary_key=True),
    Column("keystore_id", ID, ForeignKey("keystores.id"), nullable=False, index=True),
    Column("created", MILLIS, nullable=False),
    _seal(),
)

# What belongs to a key

ALIASES = Table(
    "aliases",
    METADATA,
    Column("project_id", ID, primary_key=True),
    Column("alias", TEXT, primary_key=True),
    Column("domain_id", ID, nullable=False),
    Column("key_id", ID, ForeignKey("keys.id"), nullable=False, index=True),
    Column("created", MILLIS, nullable=False),
    Column("updated", MILLIS, nullable=False),
    _seal(),
)

TAGS = Table(
    "tags",
    METADATA,
    Column("key_id", ID, ForeignKey("keys.id"), primary_key=True),
    Column("name", TEXT, primary_key=True),
    Column("value", TEXT, nullable=False),
    Column("project_id", ID, nullable=False),
    _seal(),
    Index("ix_tags_find", "project_id", "name", "value"),
)

GRANTS = Table(
    "grants",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("key_id", ID, ForeignKey("keys.id"), nullable=False),
    Column("project_id", ID, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("grantee", ID, nullable=False, index=True),
    Column("grantee_type", TEXT, nullable=False),
    Column("retiring", ID, nullable=False, index=True),
    Column("issuing", ID, nullable=False, index=True),
    Column("operations", TEXT, nullable=False),  # sorted, separated by a space
    Column("created", MILLIS, nullable=False),
    _seal(),
    Index("ix_grants_list", "key_id", "created", "id"),
)

# Where else a key is, kept in its primary region only

REPLICAS = Table(
    "replicas",
    METADATA,
    Column("key_id", ID, ForeignKey("keys.id"), primary_key=True),
    Column("region", TEXT, primary_key=True),
    Column("state", TEXT, nullable=False),
    Column("told", Integer, nullable=False),  # the newest version that it was told to encrypt with
    Column("share", BigInteger, nullable=False),  # messages that it may encrypt with the version below
    Column("share_version", Integer, nullable=False),
    Column("created", MILLIS, nullable=False),
    _seal(),
)

# Trusted keyspaces: no table of their own, a keyspace is the id that these share

ACCESS_POINTS = Table(
    "access_points",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("project_id", ID, nullable=False),
    Column("domain_id", ID, nullable=False),
    Column("keyspace_id", ID, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("identity", TEXT, nullable=False),
    Column("cluster_id", TEXT, nullable=False),
    Column("description", TEXT, nullable=False),
    Column("enabled", FLAG, nullable=False),
    Column("created_by", ID, nullable=False),
    Column("created", MILLIS, nullable=False),
    Column("updated", MILLIS, nullable=False),
    Column("wrapped", BLOB),  # the private key of a Custom one, and so the next three
    Column("root_label", TEXT),
    Column("public_key", BLOB),  # DER SubjectPublicKeyInfo
    Column("fingerprint", ID, unique=True),  # SHA-256 of it, in hex
    _seal(),
    UniqueConstraint("project_id", "keyspace_id", "name"),
)

KEY_POLICIES = Table(
    "key_policies",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("project_id", ID, nullable=False),
    Column("domain_id", ID, nullable=False),
    Column("keyspace_id", ID, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("terms", TEXT, nullable=False),  # JSON
    Column("description", TEXT, nullable=False),
    Column("created_by", ID, nullable=False),
    Column("created", MILLIS, nullable=False),
    Column("updated", MILLIS, nullable=False),
    Column("accessed", MILLIS),
    _seal(),
    UniqueConstraint("project_id", "keyspace_id", "name"),
)

# Administration. Neither has a domain: they are about the whole service.

SERVICE_SETTINGS = Table(
    "service_settings",
    METADATA,
    Column("name", TEXT, primary_key=True),
    Column("document", TEXT, nullable=False),  # JSON
    _seal(),
)

UKEYS = Table(
    "ukeys",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("name", TEXT, nullable=False),
    Column("role", TEXT, nullable=False),
    Column("serial", TEXT, nullable=False),
    Column("fingerprint", ID, nullable=False, unique=True),  # SHA-256 of the public key, in hex
    Column("public_key", BLOB, nullable=False),  # DER SubjectPublicKeyInfo
    Column("certificate", BLOB, nullable=False),  # DER; empty: it has none
    Column("opens", TEXT, nullable=False),  # the kind of boxes that it can open; empty: none
    Column("created", MILLIS, nullable=False),
    Column("created_by", TEXT, nullable=False),  # who enrolled it: UKeys' names, or "ceremony"
    Column("revoked", MILLIS),  # NULL: it counts
    Column("revoked_by", TEXT),
    _seal(),
)

PROPOSALS = Table(
    "proposals",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("operation", TEXT, nullable=False),
    Column("parameters", TEXT, nullable=False),  # JSON
    Column("facts", TEXT, nullable=False),  # JSON: what its object was like
    Column("proposed_by", ID, nullable=False),  # a UKey
    Column("created", MILLIS, nullable=False, index=True),
    Column("expires", MILLIS, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("ended", MILLIS),
    Column("ended_by", ID),
    Column("result", TEXT),  # JSON
    _seal(),
)

APPROVALS = Table(
    "approvals",
    METADATA,
    Column("proposal_id", ID, ForeignKey("proposals.id"), primary_key=True),
    Column("ukey_id", ID, ForeignKey("ukeys.id"), primary_key=True),
    Column("signature", BLOB, nullable=False),
    Column("created", MILLIS, nullable=False),
    _seal(),
)

# What keeps processes and retries in step; no seal: what counts is that a row is there

CHANGES = Table(
    "changes",
    METADATA,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("subject", TEXT, nullable=False),
    Column("id", TEXT, nullable=False),
    sqlite_autoincrement=True,  # a number is never given twice, even when old rows go
)

SEQUENCES = Table(
    "sequences",
    METADATA,
    Column("project_id", ID, primary_key=True),
    Column("method", TEXT, primary_key=True),
    Column("sequence", TEXT, primary_key=True),
    Column("digest", BLOB, nullable=False),
    Column("result_id", TEXT, nullable=False),
    Column("created", MILLIS, nullable=False, index=True),
)

ATTESTATIONS = Table(
    "attestations",
    METADATA,
    Column("id", ID, primary_key=True),  # SHA-256, in hex, of what was signed and what tells signatures apart
    Column("expires", MILLIS, nullable=False, index=True),
)

LOGINS = Table(
    "logins",
    METADATA,
    Column("claim", ID, primary_key=True),  # a hash: people type passwords into name fields
    Column("since", MILLIS, nullable=False),  # the first failure in a row
    Column("last", MILLIS, nullable=False, index=True),  # the latest one
    Column("failures", Integer, nullable=False),
    Column("until", MILLIS, nullable=False),  # refused until then
    Column("succeeded", MILLIS),
)

LEASES = Table(
    "leases",
    METADATA,
    Column("name", TEXT, primary_key=True),
    Column("holder", TEXT, nullable=False),
    Column("until", MILLIS, nullable=False),
)
