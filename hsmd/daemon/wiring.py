"""Puts the parts of one process together: PIN, token, store, keyring, audit log."""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from hsmd.audit import Log
from hsmd.config import ConfigError, Hsm, Settings, UnixListener
from hsmd.daemon import notary
from hsmd.domain.board import Board
from hsmd.domain.core import SEALING_KEY_LABEL, Core
from hsmd.domain.lines import Line
from hsmd.domain.rates import Buckets
from hsmd.hsm import AddressError, Refusal, Token, parse_address
from hsmd.idp import open_providers
from hsmd.keyring import Keyring, with_token_key
from hsmd.store import SealBroken, Store, Tx, identity, roots

PIN_CREDENTIAL = "hsm-pin"
_WIDEST_SOCKET_MODE = 0o660
WORKER_MARK = "{worker}"  # in a socket's path: each worker has its own
SPARE_ADMINISTRATORS = 16  # threads of the administrators' door for those that are held


@dataclass(frozen=True, slots=True)
class Shared:
    """Memory that processes share, made before they are forked."""

    rates: Buckets = field(default_factory=Buckets)
    board: Board = field(default_factory=Board)


@dataclass(frozen=True, slots=True, repr=False)
class Pin:
    """The token's user PIN, where it came from, and whether it was refused; never shown.

    Made before the processes are forked, so that a refusal counts for all of them. `keystores` are the PINs
    of the dedicated keystores' tokens, by cluster id.
    """

    value: str
    source: str
    refusal: Refusal = field(default_factory=Refusal)
    keystores: Mapping[str, "Pin"] = field(default_factory=dict)


def read_pins(settings: Settings) -> Pin:
    """The PIN, and those of the keystores. Raises ConfigError."""
    keystores = {
        each.cluster_id: read_keystore_pin(settings, index, Refusal())
        for index, each in enumerate(settings.keystores)
    }
    return replace(read_pin(settings.hsm), keystores=keystores)


def read_keystore_pin(settings: Settings, index: int, refusal: Refusal) -> Pin:
    """The PIN of one keystore's token. Raises ConfigError."""
    each = settings.keystores[index]
    found = _read_pin(each.pin_file, f"keystores[{index}].pin_file", f"{PIN_CREDENTIAL}-{each.cluster_id}")
    return replace(found, refusal=refusal)


def no_pins(settings: Settings) -> Pin:
    """What a process is given that has no business with any token."""
    return Pin("", "none", keystores={each.cluster_id: Pin("", "none") for each in settings.keystores})


def read_pin(settings: Hsm) -> Pin:
    """The PIN from its file or the systemd credential. Raises ConfigError."""
    return _read_pin(settings.pin_file, "hsm.pin_file", PIN_CREDENTIAL)


def _read_pin(file: Path | None, option: str, credential: str) -> Pin:
    if file is not None:
        path, source = file, "file"
    elif folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        path, source = Path(folder) / credential, "systemd credential"
    else:
        raise ConfigError(f"{option}: not set, and there is no systemd credential {credential}")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        pin = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the PIN in {path} can't be read: {type(error).__name__}") from error
    if mode & 0o007 or (source == "file" and mode & 0o070):
        raise ConfigError(f"the PIN in {path} is readable by others (mode {mode:04o}): chmod 600 is due")
    if not pin:
        raise ConfigError(f"the PIN in {path} is empty")
    return Pin(pin, source)


def open_token(
    settings: Hsm,
    pin: Pin,
    on_lost: Callable[[], None] = lambda: None,
    on_stuck: Callable[[int], None] = lambda _: None,
) -> Token:
    """The configured token, not yet connected. Raises ConfigError for an address that is none."""
    try:
        address = parse_address(settings.token)
    except AddressError as error:
        raise ConfigError(f"hsm.token: {error}") from error
    return Token(
        address,
        pin.value,
        lock_file=settings.lock_file,
        softhsm_conf=settings.softhsm_conf,
        deadline_seconds=settings.deadline_seconds,
        on_lost=on_lost,
        on_stuck=on_stuck,
        oaep_fallback=settings.oaep_fallback,
        refusal=pin.refusal,
    )


def open_store(settings: Settings, token: Token) -> Store:
    """The store, its rows sealed and checked by the token's sealing key."""

    def seal(content: bytes) -> bytes:
        return with_token_key(token, SEALING_KEY_LABEL, lambda key: token.hmac(key, content))

    return Store(settings.store.url, seal)


def check_seals(settings: Settings, token: Token) -> None:
    """Raises ConfigError when the store belongs to another token, StoreError when it can't be used."""
    store = open_store(settings, token)
    try:
        store.check()
        with store.read() as tx:
            if identity.is_foreign(tx):
                raise ConfigError("the store was sealed by another token: a wrong token, or a wrong store")
            root = _root_label(tx)
        if root and root not in token.labels():
            raise ConfigError(f"the token lacks {root}: a wrong token, or `hsmd init` is due")
    finally:
        store.close()


def _root_label(tx: Tx) -> str:
    """The current root key's; "" when its row is broken, which hurts those alone who make keys."""
    try:
        return next(each.label for each in roots.root_keys(tx) if each.state == roots.CURRENT)
    except SealBroken:
        return ""


def open_core(
    settings: Settings,
    pin: Pin,
    on_stuck: Callable[[int], None] = lambda _: None,
    shared: "Shared | None" = None,
    pause: float = 0.0,
) -> Core:
    """All parts of a serving process; the token is not yet connected. `shared`: with the others.

    A peer that did not answer in time is not asked again for `pause` seconds.
    """
    shared = shared or Shared()
    token = open_token(settings.hsm, pin, lambda: keyring.clear(), on_stuck)
    keyring = Keyring(token, settings.hsm.loaded_keys)
    store = open_store(settings, token)
    return Core(
        store,
        token,
        keyring,
        now_millis,
        settings.limits,
        settings.region,
        peers=_lines(settings, pause),
        providers=open_providers(settings),
        rates=shared.rates,
        board=shared.board,
        pin_source=pin.source,
    )


def _lines(settings: Settings, pause: float) -> Mapping[str, Line]:
    if not settings.peers:
        return {}
    from hsmd.daemon import lines  # gRPC: not for `hsmd init` and the like

    return lines.open_lines(settings.peers, pause)


def open_audit(settings: Settings, process: str) -> Log:
    """Open the process's own audit file."""
    own = settings.audit
    return Log(
        own.directory / f"{process}.jsonl",
        durable=own.durable,
        rotation=notary.rotation(own),
        forgiving=own.on_failure == "continue",
    )


def socket_mode(listener: UnixListener) -> int:
    """The listener's file mode. Raises ConfigError for one that is wider than 0660."""
    try:
        mode = int(listener.mode, 8)
    except ValueError as error:
        raise ConfigError(f"grpc.unix: mode {listener.mode!r} is no octal number") from error
    if mode & ~_WIDEST_SOCKET_MODE:
        raise ConfigError(f"grpc.unix: mode {listener.mode} is wider than 0660")
    return mode


def socket_path(listener: UnixListener, index: int) -> Path:
    """Where the worker of this index listens. Raises ConfigError for braces that mean nothing."""
    path = listener.path.replace(WORKER_MARK, str(index))
    if "{" in path or "}" in path:
        raise ConfigError(f"grpc.unix: path {listener.path!r}: {WORKER_MARK} is all that may stand in braces")
    return Path(path)


@contextmanager
def socket_at(listener: UnixListener, index: int) -> Iterator[str]:
    """The address to listen at, while which the socket gets its mode. Raises ConfigError."""
    path, mode = socket_path(listener, index), socket_mode(listener)
    make_room(path)
    mask = os.umask(0o777 & ~mode)  # never wider, not even for a moment
    try:
        yield f"unix:{path}"
    except RuntimeError as error:
        raise ConfigError(f"grpc.unix: can't listen on {path}: {error}") from error
    finally:
        os.umask(mask)


def make_room(path: Path) -> None:
    """Remove the socket that an earlier process left. Raises ConfigError when anything else is there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"grpc.unix: {path} is there already and is no socket")
        path.unlink()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"grpc.unix: can't listen on {path}: {error}") from error


def now_millis() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000
