"""Every metric there is, by the room that counts it. docs/metrics.md is this file as a table.

Label values come from fixed sets: methods and routes of our descriptors, codes of hsmd/errors.py, kinds of
identity, algorithm rows, the configuration's own names (jobs, keystore clusters). Never an id, a name or
anything else that a caller chooses.
"""

import resource
import time
from pathlib import Path

from hsmd.counting import Counter, Gauge, Histogram, Reading

_CALL_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WORK_BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_STATM = Path("/proc/self/statm")
OTHER = "other"  # of a method or route that there is not

# Calls (api/)
CALLS = Counter(
    "hsmd_calls_total",
    'Calls answered, by method, DEW code ("OK"), gRPC status and kind of identity. INTERNAL, UNAVAILABLE and'
    " DEADLINE_EXCEEDED are the service's fault, all else the callers'. Method other: there is none of that"
    " name.",
    "method",
    "code",
    "status",
    "caller",
)
CALL_SECONDS = Histogram(
    "hsmd_call_seconds",
    "How long calls took in the daemon, audit record included. When it grows, look at the HSM, the store and"
    " the audit log for the cause.",
    "method",
    bounds=_CALL_BOUNDS,
)
CALLS_RUNNING = Gauge("hsmd_calls_running", "Calls being served now; near [grpc] threads, others wait.")
CALLS_QUEUED = Gauge(
    "hsmd_calls_queued", "Calls that wait for a thread; at [grpc] waiting_calls, more are refused."
)
CALLS_LIMITED = Counter(
    "hsmd_calls_limited_total",
    "Calls refused by a limit: requests of a source or project, calls of a project at once (see [limits]).",
    "limit",
)

# The HSM (hsm/)
HSM_SECONDS = Histogram(
    "hsmd_hsm_operation_seconds",
    "How long operations took inside the PKCS#11 module, by what they are and the algorithm; its count is how"
    " many there were, failed ones included.",
    "operation",
    "mechanism",
    bounds=_WORK_BOUNDS,
)
HSM_ERRORS = Counter(
    "hsmd_hsm_errors_total",
    "PKCS#11 faults by whose they are: data (the caller's), use (ours: the token takes no such mechanism or"
    " template), object, session, token, unclear, unknown, pin; late: the deadline was over.",
    "operation",
    "mechanism",
    "fault",
)
TOKEN_STATE = Gauge(
    "hsmd_token_state",
    "1 for the state that the token is in, as each process sees it: connected, away, unresponsive. Token"
    ' "main" is that of [hsm]. Away: look at the HSM and the way to it.',
    "token",
    "state",
)
TOKEN_CONNECTIONS = Counter(
    "hsmd_token_connections_total",
    "Connections made to the token; one a process is its start, each further one followed a loss.",
    "token",
)
HSM_SESSIONS = Gauge("hsmd_hsm_sessions", "PKCS#11 sessions open: one a thread that used the token.", "token")
HSM_INSIDE = Gauge("hsmd_hsm_threads_inside", "Threads inside the PKCS#11 module now.", "token")
HSM_STUCK = Gauge(
    "hsmd_hsm_threads_stuck",
    "Threads inside the module past the deadline; nobody can free them, the process is replaced in a minute.",
    "token",
)

# Loaded keys (keyring.py)
KEYRING_USES = Counter(
    "hsmd_keyring_uses_total",
    "Uses of keys: a hit was loaded in the HSM, a miss was unwrapped first. Many misses: raise loaded_keys.",
    "result",
)
KEYRING_UNLOADED = Counter(
    "hsmd_keyring_unloaded_total",
    "Keys unloaded: full (another one needed the place), changed (its key or credential did), lost (the token"
    " was).",
    "reason",
)
KEYRING_KEYS = Gauge("hsmd_keyring_keys", "Key versions loaded in the HSM; [hsm] loaded_keys is the most.")

# The store (store/)
STORE_SECONDS = Histogram(
    "hsmd_store_transaction_seconds",
    "How long transactions took, waiting for other writers and the audit record of a change included.",
    "transaction",
    bounds=_CALL_BOUNDS,
)
STORE_ERRORS = Counter(
    "hsmd_store_errors_total",
    "Faults of the store: busy (other writers hold it), away, failed (full, read-only, damaged), misused (a"
    " fault of hsmd's).",
    "fault",
)

# The audit log (audit/, and the notary)
AUDIT_SECONDS = Histogram(
    "hsmd_audit_append_seconds",
    "How long calls waited for their audit record to be on disk; its count is the number of records.",
    bounds=_WORK_BOUNDS,
)
AUDIT_REFUSED = Counter(
    "hsmd_audit_refused_total", "Records that could not be written in time; their calls were refused."
)
AUDIT_LOST = Counter(
    "hsmd_audit_lost_total", 'Calls that went unrecorded, with audit.on_failure = "continue" only.'
)
AUDIT_WAITING = Gauge(
    "hsmd_audit_records_waiting", "Records that wait to be written; many: the disk is slow."
)
AUDIT_FAILING = Gauge(
    "hsmd_audit_failing", "1 while the log can't be written: see the disk and its directory."
)
AUDIT_UNSIGNED = Gauge(
    "hsmd_audit_unsigned_records", "Records that no signed checkpoint counts yet; a cut tail can't be proved."
)
AUDIT_LAG = Gauge(
    "hsmd_audit_lag_seconds",
    "Age of the oldest record without a signed checkpoint; above [audit] checkpoint_seconds, the notary can't"
    " sign or read.",
)
AUDIT_CHANGED = Counter(
    "hsmd_audit_changes_found_total",
    "Places at which somebody changed the log under the running daemon: run `hsmctl audit verify`, find who.",
)

# Jobs (the warden's). Not by a label `job`, which is Prometheus' own
JOB_BACKLOG = Gauge(
    "hsmd_job_backlog",
    "What is due and not done yet, by job; it falls to 0 each round when all is well.",
    "task",
)
JOB_DONE = Counter("hsmd_job_done_total", "What was done to keys that were due, by job.", "task")
JOB_FAILURES = Counter(
    "hsmd_job_failures_total", "What was due and could not be done, at each attempt; the log has why.", "task"
)
JOB_SUCCESS = Gauge(
    "hsmd_job_success_timestamp_seconds",
    "When the job was last through with all that was due, on the node that has its lease.",
    "task",
)

# The daemon (daemon/)
SEALED = Gauge(
    "hsmd_sealed", "1 while the daemon is sealed and refuses every call: operators are due to unseal it."
)
PROCESS_MEMORY = Gauge("hsmd_process_resident_memory_bytes", "Memory of the process that is in RAM.")
PROCESS_CPU = Reading("hsmd_process_cpu_seconds_total", "Processor time of the process.")

# The gateway
REQUESTS = Counter(
    "hsmd_gateway_requests_total",
    'HTTP requests by route, HTTP status and code ("OK"). 5xx with KMS.0104: the daemon can\'t be reached or'
    ' refuses. Route "other": there is none, or it is a page or a probe.',
    "route",
    "status",
    "code",
)
REQUEST_SECONDS = Histogram(
    "hsmd_gateway_request_seconds",
    "How long requests took, from their headers to their answer; compare with hsmd_call_seconds.",
    "route",
    bounds=_CALL_BOUNDS,
)
GATEWAY_CONNECTIONS = Gauge("hsmd_gateway_connections", "HTTP connections open now, after TLS.")
GATEWAY_LINES = Gauge(
    "hsmd_gateway_daemon_connections", "Connections to the daemon that are up, of [gateway] channels."
)


def measure_process() -> None:
    """Say what this process uses."""
    pages = int(_STATM.read_text(encoding="ascii").split()[1])
    PROCESS_MEMORY.set(pages * resource.getpagesize())
    PROCESS_CPU.set(time.process_time())
