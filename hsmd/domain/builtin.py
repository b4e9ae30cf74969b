"""The roles that every domain has: DEW's own, IAM's for those who administer, and the daemon's operators'.

Those of DEW are as its permission pages describe them. They are policies like custom ones; nobody changes
them, and they are named by id (32 hex digits, the same everywhere) or by display name.
"""

import json
import uuid
from dataclasses import dataclass
from functools import cached_property

_IDS = uuid.UUID("6f1c9c5a-52f4-4c57-9a38-5c3a4f0d8e11")  # a namespace of our own

ON_PROJECTS, ON_DOMAINS, ANYWHERE = "XA", "AX", "AA"


@dataclass(frozen=True)
class Role:
    """A built-in role. `type` tells where it is meant: `ON_PROJECTS`, `ON_DOMAINS` or `ANYWHERE`."""

    name: str
    display_name: str
    catalog: str
    type: str
    description: str
    actions: tuple[str, ...]

    @cached_property
    def id(self) -> str:
        """32 hex digits."""
        return uuid.uuid5(_IDS, self.name).hex

    @cached_property
    def document(self) -> str:
        """The policy as JSON."""
        statement = {"Effect": "Allow", "Action": list(self.actions)}
        return json.dumps({"Version": "1.1", "Statement": [statement]}, separators=(",", ":"))


# At keystores and trusted keyspaces; to change those is the KMS Administrator's.
_KMS_LOOKS = (
    "kms:keystore:get*",
    "kms:keystore:list*",
    "kms:accessPoint:list*",
    "kms:policy:get*",
    "kms:policy:list*",
)

KMS_ADMINISTRATOR = Role(
    "kms_adm", "KMS Administrator", "KMS", ON_PROJECTS, "All permissions on keys.", ("kms:*:*",)
)
SECURITY_ADMINISTRATOR = Role(
    "secu_admin",
    "Security Administrator",
    "BASE",
    ON_DOMAINS,
    "All permissions on users, groups, projects, agencies, credentials and policies of the domain.",
    ("iam:*:*", "cts:trace:list"),
)
OPERATOR = Role(
    "hsmd_operator",
    "hsmd Operator",
    "BASE",
    ON_DOMAINS,
    "All permissions on the daemon's own settings: limits and quotas of projects.",
    ("hsmd:*:*",),
)

ROLES: tuple[Role, ...] = (
    KMS_ADMINISTRATOR,
    Role(
        "kms_cmk_full",
        "KMS CMKFullAccess",
        "KMS",
        ON_PROJECTS,
        "All permissions on keys, their aliases, tags and grants, and on data keys.",
        ("kms:cmk:*", "kms:dek:*", "kms:grant:*", "kms:cmkTag:*", "kms:alias:*", *_KMS_LOOKS),
    ),
    Role(
        "kms_cmk_readonly",
        "KMS CMKReadOnlyAccess",
        "KMS",
        ON_PROJECTS,
        "Look at keys, their aliases, tags and grants.",
        (
            "kms:cmk:get*",
            "kms:cmk:list*",
            "kms:grant:list*",
            "kms:cmkTag:list*",
            "kms:alias:list*",
            *_KMS_LOOKS,
        ),
    ),
    Role(
        "csms_full",
        "CSMS FullAccess",
        "CSMS",
        ON_PROJECTS,
        "All permissions on secrets.",
        ("csms:*:*",),
    ),
    Role(
        "csms_readonly",
        "CSMS ReadOnlyAccess",
        "CSMS",
        ON_PROJECTS,
        "Look at secrets and their values.",
        ("csms:*:list*", "csms:*:get*"),
    ),
    Role(
        "dew_keypair_full",
        "DEW KeypairFullAccess",
        "DEW",
        ON_PROJECTS,
        "All permissions on key pairs.",
        ("kps:*:*",),
    ),
    Role(
        "dew_keypair_readonly",
        "DEW KeypairReadOnlyAccess",
        "DEW",
        ON_PROJECTS,
        "Look at key pairs.",
        ("kps:*:list*", "kps:*:get*"),
    ),
    Role(
        "cts_readonly",
        "CTS ReadOnlyAccess",
        "CTS",
        ANYWHERE,
        "Look at what happened in the project, or on the domain outside of projects.",
        ("cts:*:get*", "cts:*:list*"),
    ),
    Role(
        "te_admin",
        "Tenant Administrator",
        "BASE",
        ANYWHERE,
        "All permissions on all services except IAM and the daemon's own settings.",
        ("kms:*:*", "csms:*:*", "kps:*:*", "cts:*:*"),
    ),
    Role(
        "readonly",
        "Tenant Guest",
        "BASE",
        ANYWHERE,
        "Look at what all services have, except IAM.",
        tuple(f"{each}:*:{verb}*" for each in ("kms", "csms", "kps", "cts") for verb in ("get", "list")),
    ),
    SECURITY_ADMINISTRATOR,
    Role(
        "iam_readonly",
        "IAM ReadOnlyAccess",
        "IAM",
        ON_DOMAINS,
        "Look at users, groups, projects, agencies, credentials and policies of the domain.",
        ("iam:*:get*", "iam:*:list*", "iam:*:check*", "iam:*:show*"),
    ),
    Role(
        "te_agency",
        "Agent Operator",
        "BASE",
        ON_DOMAINS,
        "Act as agencies of domains that trust this one.",
        ("iam:agencies:assume",),
    ),
    OPERATOR,
)

BY_ID: dict[str, Role] = {role.id: role for role in ROLES}
BY_NAME: dict[str, Role] = {role.display_name: role for role in ROLES}
