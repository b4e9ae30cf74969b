"""One error class and one table: each fault with its DEW code, HTTP status, gRPC status and text.

Sources: the DEW error code tables (KMS, APIGW), the IAM API's error bodies. A fault's text is a
template; the values it names are given where it is raised and never hold a secret:

    raise Error(KEY_DISABLED, key=key_id)

Two faults may share a code where DEW has one code for both; they then share its HTTP status.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """What can go wrong: `grpc` is the name of a gRPC status code, `http` a status number."""

    code: str
    http: int
    grpc: str
    text: str


class Error(Exception):
    """A fault that happened. Its text is for the caller; the cause (`from`) is for the log.

    `retry_after`: seconds after which the same call may go well; 0 where that is not known.
    """

    def __init__(self, fault: Fault, *, retry_after: float = 0.0, **values: object) -> None:
        self.fault = fault
        self.retry_after = retry_after
        self.message = fault.text.format(**values)
        super().__init__(f"{fault.code}: {self.message}")


# The request itself
BODY_NOT_JSON = Fault("KMS.0202", 400, "INVALID_ARGUMENT", "The request body is not valid JSON: {reason}.")
PARAMETER_MISSING = Fault("KMS.0204", 400, "INVALID_ARGUMENT", "The parameter {name} is missing.")
PARAMETER_INVALID = Fault("KMS.0308", 400, "INVALID_ARGUMENT", "The parameter {name} is not valid: {reason}.")
SEQUENCE_INVALID = Fault("KMS.0206", 400, "INVALID_ARGUMENT", "The sequence is not valid: {reason}.")
CONTEXT_INVALID = Fault(
    "KMS.0208", 400, "INVALID_ARGUMENT", "The additional authenticated data is not valid: {reason}."
)
FORMAT_INVALID = Fault("KMS.0214", 400, "INVALID_ARGUMENT", "The request is not valid: {reason}.")
METHOD_NOT_SUPPORTED = Fault("KMS.0215", 405, "UNIMPLEMENTED", "{verb} is not supported here, {allowed} is.")
BODY_TOO_LARGE = Fault("APIGW.0201", 413, "INVALID_ARGUMENT", "The request is larger than {limit} bytes.")
NO_SUCH_API = Fault("APIGW.0101", 404, "UNIMPLEMENTED", "No such API: {verb} {path}.")

# The caller
IDENTITY_REFUSED = Fault(
    "APIGW.0301", 401, "UNAUTHENTICATED", "Incorrect IAM authentication information: {reason}."
)
TOKEN_INVALID = Fault("KMS.0302", 403, "UNAUTHENTICATED", "X-Auth-Token is not valid.")
TOKEN_EXPIRED = Fault("KMS.0303", 403, "UNAUTHENTICATED", "X-Auth-Token has expired.")
TOKEN_WITHOUT_PROJECT = Fault("KMS.0305", 403, "PERMISSION_DENIED", "X-Auth-Token has no valid project.")
PROJECT_REFUSED = Fault("KMS.0307", 403, "PERMISSION_DENIED", "You have no access to project {project}.")
PROJECT_DIFFERS = Fault(
    "KMS.0321", 403, "PERMISSION_DENIED", "The project in the URL is not the one of the token."
)
ACTION_REFUSED = Fault("KMS.0330", 403, "PERMISSION_DENIED", "You lack the permission {action}.")
IAM_ACTION_REFUSED = Fault(
    "IAM.0003", 403, "PERMISSION_DENIED", "Policy doesn't allow {action} to be performed."
)
TOKEN_REQUEST_REFUSED = Fault("IAM.0001", 401, "UNAUTHENTICATED", "The username or password is wrong.")
TOKEN_REQUEST_INVALID = Fault("IAM.0011", 400, "INVALID_ARGUMENT", "Request body is invalid: {reason}.")
RATE_EXCEEDED = Fault("APIGW.0308", 429, "RESOURCE_EXHAUSTED", "Too many requests: {reason}.")

# Domains, projects, users and groups
IAM_NOT_FOUND = Fault("IAM.0004", 404, "NOT_FOUND", "Could not find {kind}: {id}.")
IAM_EXISTS = Fault("IAM.0005", 409, "ALREADY_EXISTS", "There is a {kind} of that name already.")
IAM_INPUT_INVALID = Fault("IAM.0073", 400, "INVALID_ARGUMENT", "Invalid input for field {name}: {reason}.")
IAM_IN_USE = Fault("IAM.0101", 409, "FAILED_PRECONDITION", "The {kind} {id} is in use: {reason}.")
PASSWORD_REFUSED = Fault("IAM.0102", 400, "INVALID_ARGUMENT", "The password is not accepted: {reason}.")
IAM_QUOTA_EXCEEDED = Fault("IAM.0103", 403, "RESOURCE_EXHAUSTED", "The quota of {quota} {kind} is used up.")
IAM_PROTECTED = Fault("IAM.0104", 403, "FAILED_PRECONDITION", "This is refused: {reason}.")
PASSWORD_EXPIRED = Fault("IAM.0105", 401, "UNAUTHENTICATED", "The password is no longer good: {reason}.")
ACCOUNT_LOCKED = Fault(
    "IAM.0061", 401, "UNAUTHENTICATED", "Account locked: too many wrong passwords; try again in {seconds} s."
)
USER_IDLE = Fault(
    "IAM.0082", 403, "PERMISSION_DENIED", "The user {user} is disabled: away for more than {days} days."
)

# Credentials
AGENCY_REFUSED = Fault(
    "IAM.0002", 403, "PERMISSION_DENIED", "You are not authorized to act as this agency, or there is none."
)
ACCESS_KEYS_EXCEEDED = Fault(
    "IAM.0201", 400, "RESOURCE_EXHAUSTED", "akSkNumExceed: a user has at most {quota} access keys."
)

# Keys and their states
KEY_ID_INVALID = Fault(
    "KMS.0205", 400, "INVALID_ARGUMENT", "The key_id is not valid: a UUID, alias/NAME or an alias URN is due."
)
KEY_NOT_FOUND = Fault("KMS.0207", 404, "NOT_FOUND", "The key does not exist.")
KEY_DISABLED = Fault("KMS.0209", 400, "FAILED_PRECONDITION", "The key {key} is disabled.")
KEY_PENDING_DELETION = Fault("KMS.0210", 400, "FAILED_PRECONDITION", "The key {key} is pending deletion.")
KEY_STATE_REFUSED = Fault("KMS.0209", 400, "FAILED_PRECONDITION", "The key {key} is not enabled: {state}.")
KEY_IS_DEFAULT = Fault("KMS.0211", 400, "FAILED_PRECONDITION", "{key} is a default key: this is refused.")
KEY_NOT_DISABLED = Fault("KMS.1201", 400, "FAILED_PRECONDITION", "The key {key} is not disabled.")
KEY_NOT_ENABLED = Fault("KMS.1301", 400, "FAILED_PRECONDITION", "The key {key} is not enabled.")
KEY_USED_UP = Fault(
    "KMS.0308",
    400,
    "FAILED_PRECONDITION",
    "The key {key} is used up: version {version} has encrypted its 2^32 messages. Rotate it or use another.",
)

# Imported material
EXTERNAL_KEY_DUE = Fault(
    "KMS.0309", 400, "FAILED_PRECONDITION", "The key {key} does not support this: its origin is not external."
)
NOT_PENDING_IMPORT = Fault(
    "KMS.0310", 400, "FAILED_PRECONDITION", "The key {key} is not in the state pending import."
)
MATERIAL_NOT_DECRYPTED = Fault(
    "KMS.0311",
    400,
    "INVALID_ARGUMENT",
    "encrypted_key_material is not encrypted by RSAES_OAEP_SHA_256 for the import token's public key.",
)
IMPORT_TOKEN_EXPIRED = Fault("KMS.2601", 400, "FAILED_PRECONDITION", "The import token has expired.")
EXPIRATION_INVALID = Fault(
    "KMS.2602", 400, "INVALID_ARGUMENT", "expiration_time is not valid: it must lie in the future."
)
IMPORT_TOKEN_OF_OTHER_KEY = Fault(
    "KMS.2603", 400, "INVALID_ARGUMENT", "The import token was issued for another key."
)
MATERIAL_SIZE_INVALID = Fault(
    "KMS.2604", 400, "INVALID_ARGUMENT", "The material is not valid: {spec} has {length} bytes."
)
IMPORT_TOKEN_INVALID = Fault(
    "KMS.2605", 400, "INVALID_ARGUMENT", "The import token is not valid: none that was issued here."
)
MATERIAL_DIFFERS = Fault(
    "KMS.2606", 400, "FAILED_PRECONDITION", "The material is not that which the key {key} had at first."
)
PRIVATE_KEY_MISSING = Fault(
    "KMS.2608", 400, "INVALID_ARGUMENT", "encrypted_privatekey is missing: the key is a key pair."
)
PRIVATE_KEY_INVALID = Fault(
    "KMS.2609",
    400,
    "INVALID_ARGUMENT",
    "encrypted_privatekey is not valid: PKCS#8 of the key_spec is due, under the temporary key by AES-KWP.",
)
TEMPORARY_KEY_INVALID = Fault(
    "KMS.2610", 400, "INVALID_ARGUMENT", "The temporary key is not valid: 16 or 32 bytes are due."
)
MATERIAL_NOT_DELETED = Fault(
    "KMS.2701",
    400,
    "FAILED_PRECONDITION",
    "The material of the key {key} is not deleted: only that of an enabled or disabled key is.",
)
PRIVATE_KEY_NOT_DELETED = Fault(
    "KMS.2702",
    400,
    "FAILED_PRECONDITION",
    "The private key of {key} is not deleted: schedule the deletion of the key instead.",
)

# Rotation
EXTERNAL_NOT_ROTATED = Fault(
    "KMS.0312", 400, "FAILED_PRECONDITION", "The key {key} is not rotated: its material was imported."
)
ROTATION_IS_OFF = Fault("KMS.0313", 400, "FAILED_PRECONDITION", "Rotation is not enabled for the key {key}.")
ASYMMETRIC_NOT_ROTATED = Fault(
    "KMS.0324", 400, "FAILED_PRECONDITION", "The key {key} is not rotated: it is asymmetric."
)
KEYSTORE_NOT_ROTATED = Fault(
    "KMS.0338", 400, "FAILED_PRECONDITION", "The key {key} is not rotated: it is in a custom keystore."
)
HMAC_KEY_REFUSED = Fault("KMS.0341", 400, "FAILED_PRECONDITION", "The HMAC key {key} does not support this.")
ROTATION_IS_ON = Fault(
    "KMS.2901", 400, "FAILED_PRECONDITION", "Rotation is already enabled for the key {key}."
)
INTERVAL_INVALID = Fault(
    "KMS.3001", 400, "INVALID_ARGUMENT", "rotation_interval is not valid: 30 to 365 days are due."
)

# Regions
REPLICA_REFUSED = Fault(
    "KMS.0308",
    400,
    "INVALID_ARGUMENT",
    "The key {key} is a replica: that is done in its primary region {region}.",
)
REPLICAS_PRESENT = Fault(
    "KMS.0308",
    400,
    "INVALID_ARGUMENT",
    "The key {key} has replicas in {regions}: delete them before, or make one of them the primary.",
)
NOT_A_REPLICA = Fault("KMS.0207", 404, "NOT_FOUND", "The key is not a replica of the caller's.")
ROOT_KEY_DIFFERS = Fault(
    "KMS.0308",
    400,
    "INVALID_ARGUMENT",
    "Region {region} has another root key {label}: keys can't be replicated there.",
)
REGION_OFFSET_INVALID = Fault(
    "KMS.1603", 400, "INVALID_ARGUMENT", "The offset is not valid: a number from 0 is due."
)
REGION_UNAVAILABLE = Fault("KMS.0104", 503, "UNAVAILABLE", "Region {region} is not available now: {reason}.")

# Keys of another kind or usage
ASYMMETRIC_KEY_REFUSED = Fault(
    "KMS.0325", 400, "FAILED_PRECONDITION", "The asymmetric key {key} does not support this."
)
SYMMETRIC_KEY_REFUSED = Fault(
    "KMS.0331", 400, "FAILED_PRECONDITION", "The symmetric key {key} does not support this."
)
SIGNING_ALGORITHM_REFUSED = Fault(
    "KMS.0332", 400, "FAILED_PRECONDITION", "The key {key} does not support {algorithm}: it is {spec}."
)
USAGE_IS_ENCRYPTION = Fault(
    "KMS.0334", 400, "FAILED_PRECONDITION", "The key {key} does not support this: it is for ENCRYPT_DECRYPT."
)
USAGE_IS_SIGNING = Fault(
    "KMS.0335", 400, "FAILED_PRECONDITION", "The key {key} does not support this: it is for SIGN_VERIFY."
)
USAGE_IS_AGREEMENT = Fault(
    "KMS.0308", 400, "INVALID_ARGUMENT", "The key {key} does not support this: it is for KEY_AGREEMENT."
)
EC_KEY_REFUSED = Fault(
    "KMS.1114", 400, "FAILED_PRECONDITION", "The EC key {key} does not encrypt or decrypt."
)
SYMMETRIC_DOES_NOT_SIGN = Fault(
    "KMS.1115", 400, "FAILED_PRECONDITION", "The symmetric key {key} does not sign or verify."
)

# Grants
GRANT_REFUSED = Fault("KMS.0306", 403, "PERMISSION_DENIED", "You have no right to this grant: {reason}.")
GRANT_ALONE = Fault("KMS.2401", 400, "INVALID_ARGUMENT", "The operations can't be create-grant alone.")
PRINCIPAL_INVALID = Fault("KMS.2402", 400, "INVALID_ARGUMENT", "The {name} is not valid: {reason}.")
GRANTS_EXCEEDED = Fault(
    "KMS.2404", 400, "RESOURCE_EXHAUSTED", "The quota of {quota} grants of a key is used up."
)
GRANT_ID_INVALID = Fault("KMS.2501", 400, "INVALID_ARGUMENT", "The grant_id is not valid: {reason}.")
GRANT_NOT_FOUND = Fault("KMS.2502", 400, "NOT_FOUND", "The key {key} has no such grant.")

# Names and limits of keys
ALIAS_INVALID = Fault("KMS.1101", 400, "INVALID_ARGUMENT", "The key_alias is not valid: {reason}.")
DESCRIPTION_INVALID = Fault(
    "KMS.1103", 400, "INVALID_ARGUMENT", "The key_description is not valid: {reason}."
)
ALIAS_IN_USE = Fault("KMS.1104", 400, "ALREADY_EXISTS", "The key_alias {alias} is in use.")
QUOTA_EXCEEDED = Fault("KMS.1105", 400, "RESOURCE_EXHAUSTED", "The quota of {quota} keys is used up.")
ALIAS_NOT_FOUND = Fault(
    "KMS.0207",
    404,
    "NOT_FOUND",
    "There is no alias {alias} here; a key's own key_alias is changed by update-key-alias.",
)
ALIAS_QUOTA_EXCEEDED = Fault(
    "KMS.1105", 400, "RESOURCE_EXHAUSTED", "The quota of {quota} aliases a key is used up."
)
SPEC_INVALID = Fault("KMS.1110", 400, "INVALID_ARGUMENT", "The key_spec is not valid: {reason}.")
KEYSTORE_REFUSED = Fault("KMS.0340", 400, "INVALID_ARGUMENT", "The keystore is not supported: {reason}.")
# KMS.0340 is DEW's one code for keystores; what else it knows of keys is said of them in the same words.
KEYSTORE_NOT_IMPORTED = Fault(
    "KMS.0339", 400, "FAILED_PRECONDITION", "Material is not imported into a dedicated keystore: {reason}."
)
KEYSTORE_ALIAS_INVALID = Fault(
    "KMS.1101",
    400,
    "INVALID_ARGUMENT",
    "The keystore_alias is not valid: 1 to 255 of letters, digits and :/_- are due.",
)
KEYSTORE_ALIAS_IN_USE = Fault("KMS.1104", 400, "ALREADY_EXISTS", "The keystore_alias {alias} is in use.")
KEYSTORES_EXCEEDED = Fault(
    "KMS.1105", 400, "RESOURCE_EXHAUSTED", "The quota of {quota} keystores of a domain is used up."
)
KEYSTORE_NOT_DISABLED = Fault(
    "KMS.1201", 400, "FAILED_PRECONDITION", "The keystore {keystore} is not disabled."
)
KEYSTORE_NOT_ENABLED = Fault(
    "KMS.1301", 400, "FAILED_PRECONDITION", "The keystore {keystore} is not enabled."
)
KEYSTORE_OFFSET_INVALID = Fault(
    "KMS.1603", 400, "INVALID_ARGUMENT", "The offset into the keystores is not valid: a number from 0 is due."
)
KEYSTORE_UNAVAILABLE = Fault(
    "KMS.0104", 503, "UNAVAILABLE", "The keystore {keystore} is not available now: {reason}."
)
DAYS_INVALID = Fault("KMS.1401", 400, "INVALID_ARGUMENT", "pending_days is not valid: 7 to 1096 is due.")
ALREADY_PENDING_DELETION = Fault(
    "KMS.1402", 400, "FAILED_PRECONDITION", "The key {key} is already pending deletion."
)
NOT_FROZEN = Fault("KMS.0209", 400, "FAILED_PRECONDITION", "The key {key} is not frozen.")
NOT_PENDING_DELETION = Fault("KMS.1501", 400, "FAILED_PRECONDITION", "The key {key} is not pending deletion.")
LIMIT_INVALID = Fault("KMS.1601", 400, "INVALID_ARGUMENT", "The limit is not valid: 1 to 1000 is due.")
MARKER_INVALID = Fault(
    "KMS.1602", 400, "INVALID_ARGUMENT", "The marker is not valid: a number from 0 is due."
)

# Trusted keyspaces; DEW names no codes of their own
KEYSPACE_THING_NOT_FOUND = Fault("KMS.0207", 404, "NOT_FOUND", "There is no {what} {id} here.")
KEYSPACE_NAME_IN_USE = Fault(
    "KMS.1104", 400, "ALREADY_EXISTS", "The name {name} is in use: the keyspace has such {what}."
)
KEYSPACE_QUOTA_EXCEEDED = Fault(
    "KMS.1105", 400, "RESOURCE_EXHAUSTED", "The quota of {quota} {what} of a project is used up."
)
ACCESS_POINT_NOT_DISABLED = Fault(
    "KMS.1201", 400, "FAILED_PRECONDITION", "The access point {id} is not disabled."
)
ACCESS_POINT_NOT_ENABLED = Fault(
    "KMS.1301", 400, "FAILED_PRECONDITION", "The access point {id} is not enabled."
)
KEYSPACE_LIMIT_INVALID = Fault(
    "KMS.1601", 400, "INVALID_ARGUMENT", "The limit is not valid: 1 to 100 is due."
)
KEYSPACE_MARKER_INVALID = Fault(
    "KMS.1602", 400, "INVALID_ARGUMENT", "The marker is not valid: the next_marker of a page is due."
)
CAPSULE_REFUSED = Fault("KMS.0306", 403, "PERMISSION_DENIED", "The capsule is not opened: {reason}.")

# Tags
RESOURCE_TYPE_INVALID = Fault(
    "KMS.0212", 400, "INVALID_ARGUMENT", "The resource type is not valid: {due} is due."
)
TAGS_MISSING = Fault("KMS.0401", 400, "INVALID_ARGUMENT", "The list of tags is empty.")
MATCH_VALUE_INVALID = Fault(
    "KMS.0402", 400, "INVALID_ARGUMENT", "The value of a match is not valid: {reason}."
)
MATCH_KEY_INVALID = Fault(
    "KMS.0403", 400, "INVALID_ARGUMENT", "The key of a match is not valid: resource_name is due."
)
TAG_ACTION_INVALID = Fault("KMS.0404", 400, "INVALID_ARGUMENT", "The action is not valid: {reason}.")
TAG_VALUE_INVALID = Fault("KMS.0405", 400, "INVALID_ARGUMENT", "A tag's value is not valid: {reason}.")
TAG_KEY_INVALID = Fault("KMS.0406", 400, "INVALID_ARGUMENT", "A tag's key is not valid: {reason}.")
TAG_COUNT_INVALID = Fault(
    "KMS.0407", 400, "INVALID_ARGUMENT", "The size of the list of tags is not valid: {reason}."
)
TAGS_EXCEEDED = Fault("KMS.0409", 400, "RESOURCE_EXHAUSTED", "A key has at most {quota} tags.")
TAG_VALUE_TOO_LONG = Fault("KMS.0410", 400, "INVALID_ARGUMENT", "A tag's value has more than 43 characters.")
TAG_KEY_TOO_LONG = Fault("KMS.0411", 400, "INVALID_ARGUMENT", "A tag's key has more than 36 characters.")
TAG_LIST_INVALID = Fault("KMS.0412", 400, "INVALID_ARGUMENT", "The list of tags is not valid: {reason}.")
TAG_VALUES_EXCEEDED = Fault(
    "KMS.0413", 400, "INVALID_ARGUMENT", "The values of a tag are not valid: {reason}."
)
TAGS_INVALID = Fault("KMS.0414", 400, "INVALID_ARGUMENT", "The tag is not valid: {reason}.")
MATCHES_INVALID = Fault("KMS.0415", 400, "INVALID_ARGUMENT", "The matches are not valid: {reason}.")
TAG_NOT_FOUND = Fault("KMS.0416", 404, "NOT_FOUND", "The key has no such tag: {key}.")
OFFSET_INVALID = Fault(
    "KMS.0417", 400, "INVALID_ARGUMENT", "The offset is not valid: a number from 0 is due."
)
OFFSET_REFUSED = Fault("KMS.0418", 400, "INVALID_ARGUMENT", "Counting takes no offset.")

# Data and data keys
RANDOM_LENGTH_INVALID = Fault(
    "KMS.1801", 400, "INVALID_ARGUMENT", "random_data_length is not valid: 8 to 8192 bits are due."
)
RANDOM_LENGTH_UNEVEN = Fault(
    "KMS.1802", 400, "INVALID_ARGUMENT", "random_data_length is not valid: a multiple of 8 bits is due."
)
DATAKEY_LENGTH_INVALID = Fault(
    "KMS.1901", 400, "INVALID_ARGUMENT", "datakey_length is not valid: 8 to 8192 bits are due."
)
DATAKEY_SPEC_INVALID = Fault("KMS.1902", 400, "INVALID_ARGUMENT", "The data key's key_spec is not valid.")
DATAKEY_LENGTH_UNEVEN = Fault(
    "KMS.1903", 400, "INVALID_ARGUMENT", "datakey_length is not valid: a multiple of 8 bits is due."
)
PLAINTEXT_INVALID = Fault("KMS.2101", 400, "INVALID_ARGUMENT", "The plain_text is not valid: {reason}.")
PLAIN_LENGTH_INVALID = Fault(
    "KMS.2102", 400, "INVALID_ARGUMENT", "datakey_plain_length is not valid: 1 to 1024 bytes are due."
)
PLAIN_DIGEST_DIFFERS = Fault(
    "KMS.2103", 400, "INVALID_ARGUMENT", "The SHA-256 behind the data key is not its own."
)
PLAIN_LENGTH_DIFFERS = Fault(
    "KMS.2104", 400, "INVALID_ARGUMENT", "The plain_text is not datakey_plain_length bytes and their SHA-256."
)
ALGORITHM_REFUSED = Fault(
    "KMS.2105", 400, "INVALID_ARGUMENT", "A symmetric key does not support this encryption_algorithm."
)
RSA_ALGORITHM_REFUSED = Fault(
    "KMS.2106",
    400,
    "INVALID_ARGUMENT",
    "An RSA key does not support this encryption_algorithm: RSAES_OAEP_SHA_256 is due.",
)
PLAINTEXT_TOO_LONG = Fault(
    "KMS.2108", 400, "INVALID_ARGUMENT", "The plain_text is too long: {spec} encrypts up to {limit} bytes."
)
CIPHERTEXT_INVALID = Fault("KMS.2201", 400, "INVALID_ARGUMENT", "The cipher_text is not valid.")
CIPHER_LENGTH_INVALID = Fault(
    "KMS.2202", 400, "INVALID_ARGUMENT", "datakey_cipher_length is not valid: 1 to 4096 bytes are due."
)
CIPHER_LENGTH_DIFFERS = Fault(
    "KMS.2204", 400, "INVALID_ARGUMENT", "The cipher_text does not have datakey_cipher_length."
)

# Signatures
DIGEST_INVALID = Fault(
    "KMS.0329", 400, "INVALID_ARGUMENT", "The digest is not valid: {algorithm} takes {length} bytes."
)

# The seal; DEW names no codes of its own
SEALED = Fault(
    "KMS.0104",
    503,
    "UNAVAILABLE",
    "The service is sealed: it is not available until its operators unseal it.",
)
NOT_SEALED = Fault("KMS.0308", 400, "FAILED_PRECONDITION", "The service is not sealed.")
SEAL_MISSING = Fault("KMS.0308", 400, "FAILED_PRECONDITION", "There is no seal here: {reason}.")
SEAL_REFUSED = Fault("KMS.0308", 400, "FAILED_PRECONDITION", "The seal can't be made anew: {reason}.")
SHARE_REFUSED = Fault("KMS.0306", 403, "PERMISSION_DENIED", "The share is not taken: {reason}.")
UNSEAL_FAILED = Fault("KMS.0308", 400, "FAILED_PRECONDITION", "It stays as it is: {reason}.")

# What a quorum decides; DEW names no codes of its own
PROPOSAL_REFUSED = Fault("IAM.0104", 403, "FAILED_PRECONDITION", "The proposal {id}: {reason}.")
PROPOSALS_EXCEEDED = Fault(
    "KMS.1105", 400, "RESOURCE_EXHAUSTED", "The quota of {quota} open proposals {whose} is used up."
)
LIMIT_NEEDS_QUORUM = Fault(
    "KMS.0306",
    403,
    "PERMISSION_DENIED",
    "Operators don't set {name} above {bound}: the administrators' UKeys do, by raise-limit.",
)
QUORUM_MISSING = Fault(
    "KMS.0306",
    403,
    "PERMISSION_DENIED",
    "The proposal {id} is not carried out: {given} of the {needed} approvals that are needed count.",
)

# The service
# Root keys and backups
ROOT_KEY_REFUSED = Fault("KMS.0308", 400, "FAILED_PRECONDITION", "The root key {label}: {reason}.")
BACKUP_REFUSED = Fault("KMS.0308", 400, "FAILED_PRECONDITION", "The backup: {reason}.")

INTERNAL = Fault("KMS.0101", 500, "INTERNAL", "Internal error.")
STORAGE_FAILED = Fault("KMS.0102", 500, "INTERNAL", "Storage failed; nothing was changed.")
UNAVAILABLE = Fault("KMS.0104", 503, "UNAVAILABLE", "The service is not available now: {reason}.")
DEADLINE = Fault("KMS.0104", 503, "DEADLINE_EXCEEDED", "No answer in time: {reason}.")

NAMES: dict[Fault, str] = {value: name for name, value in list(globals().items()) if isinstance(value, Fault)}
FAULTS: tuple[Fault, ...] = tuple(NAMES)
BY_CODE: dict[str, Fault] = {fault.code: fault for fault in reversed(FAULTS)}
