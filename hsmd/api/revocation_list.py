"""Revoked client certificates: the CA's list, from a file that may be replaced while we serve.

TLS has checked a certificate's chain when its connection was made; this is looked at with every call, so that
a certificate is out from the next call on. A file that is not right is not taken in: the list before counts
on, and the log says so. A certificate whose issuer has no list is refused, and so are all of an issuer whose
list has been out of date for too long, or that stands on the list of its own issuer.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from cryptography import x509

from hsmd.config import ConfigError
from hsmd.errors import IDENTITY_REFUSED, Error

_MOST_BYTES = 64 * 1024 * 1024
_CLOCK_SKEW = timedelta(minutes=5)
_ALERT_SECONDS = 3600.0
_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"

_Mark = tuple[int, int, int] | None

log = logging.getLogger(__name__)


class ListError(Exception):
    """The file can't be used; the text says why."""


@dataclass(frozen=True, slots=True)
class _List:
    """One issuer's list: serial numbers, and when it was made and is out of date (seconds since 1970).

    `void`: the issuer itself is revoked, and so is all that it has issued.
    """

    serials: frozenset[int]
    made: float
    due: float
    void: bool = False


_Lists = dict[str, _List]  # by the issuer's mark


class RevocationList:
    """The lists of one file. `authorities` is the file of the CAs that may have signed them."""

    def __init__(self, path: Path, authorities: Path, grace: timedelta) -> None:
        """Take the file in; while there has been none that was right, every certificate is refused."""
        self._path = path
        self._authorities = authorities
        self._grace = grace.total_seconds()
        self._lock = threading.Lock()
        self._mark: _Mark = (0, 0, 0)
        self._lists: _Lists = {}
        self._alerted = -_ALERT_SECONDS
        self._refresh()

    def check(self, certificate: bytes) -> None:
        """Raises Error(IDENTITY_REFUSED) for a certificate (PEM) that is revoked or can't be judged."""
        if not (mark := mark_of(certificate)):
            raise Error(IDENTITY_REFUSED, reason="this certificate can't be read")
        self.check_mark(mark)

    def check_mark(self, mark: str) -> None:
        """The same for a certificate of which no more than `mark_of` is known."""
        if self._mark != _mark(self._path):
            self._refresh()
        issuer, _, serial = mark.partition(".")
        found = self._lists.get(issuer)
        if found is None:
            raise Error(IDENTITY_REFUSED, reason="no revocation list is there for this certificate's issuer")
        if found.void:
            raise Error(IDENTITY_REFUSED, reason="the issuer of this certificate is revoked")
        late = time.time() - found.due
        if late > 0:
            self._alert(late)
        listed = int(serial, 16) in found.serials
        if listed or late > self._grace:
            reason = "is revoked" if listed else "can't be checked: the list is out of date"
            raise Error(IDENTITY_REFUSED, reason=f"this certificate {reason}")

    def _refresh(self) -> None:
        with self._lock:
            mark = _mark(self._path)
            if mark == self._mark:
                return
            try:
                self._lists = _newer(read(self._path, self._authorities), self._lists)
            except ListError as error:
                log.error("the revocation list is not taken in, the one before counts on: %s", error)  # noqa: TRY400  # its text says it all
            else:
                count = sum(len(each.serials) for each in self._lists.values())
                log.info("the revocation list is taken in: %d certificates are revoked", count)
            self._mark = mark

    def _alert(self, late: float) -> None:
        now = time.monotonic()
        if now - self._alerted >= _ALERT_SECONDS:
            self._alerted = now
            left = (self._grace - late) / 3600
            log.error("the revocation list is out of date; in %.1f hours it lets nobody in", max(left, 0.0))


def check_file(path: Path, authorities: Path) -> None:
    """Raises ConfigError for a file that would not be taken in."""
    try:
        read(path, authorities)
    except ListError as error:
        raise ConfigError(f"grpc.client_crl: {error}") from error


def read(path: Path, authorities: Path) -> _Lists:
    """The lists of a file, PEM (one or more) or DER, by their issuers. Raises ListError.

    Each must be signed by one of the authorities, complete, and not out of date.
    """
    try:
        known = x509.load_pem_x509_certificates(authorities.read_bytes())
        issuers = {each.subject.public_bytes(): each for each in known}
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ListError(f"{path} has more than {_MOST_BYTES} bytes")
        found = [_checked(each, issuers) for each in _parsed(content)]
    except OSError as error:
        raise ListError(f"{error.filename} can't be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ListError(f"{path} or {authorities} is not well formed: {error}") from error
    if len(dict(found)) != len(found):
        raise ListError(f"{path} has two lists of one issuer")
    lists = dict(found)
    void = _revoked(known, lists)
    return {mark: replace(each, void=mark in void) for mark, each in lists.items()}


def _revoked(authorities: list[x509.Certificate], lists: _Lists) -> set[str]:
    """Marks of the authorities that have no certificate which counts: each is revoked, or its issuer is."""
    void: set[str] = set()

    def counts(certificate: x509.Certificate) -> bool:
        issuer = _issuer_mark(certificate.issuer)
        if issuer == _issuer_mark(certificate.subject):  # a root: nobody else's to revoke
            return True
        above = lists.get(issuer)
        return issuer not in void and (above is None or certificate.serial_number not in above.serials)

    while True:
        standing = {_issuer_mark(each.subject) for each in authorities if counts(each)}
        more = {_issuer_mark(each.subject) for each in authorities} - standing - void
        if not more:
            return void
        void |= more


def _parsed(content: bytes) -> Iterator[x509.CertificateRevocationList]:
    if _BEGIN not in content:
        yield x509.load_der_x509_crl(content)
        return
    for part in content.split(_BEGIN)[1:]:
        yield x509.load_pem_x509_crl(_BEGIN + part.partition(_END)[0] + _END + b"\n")


def _checked(
    crl: x509.CertificateRevocationList, issuers: dict[bytes, x509.Certificate]
) -> tuple[str, _List]:
    name = crl.issuer.rfc4514_string()
    issuer = issuers.get(crl.issuer.public_bytes())
    if issuer is None or not _may_sign(issuer):
        raise ListError(f"{name} is no authority that may sign the list")
    if not crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]  # it raises TypeError for keys that sign none
        raise ListError(f"the list's signature is not by {name}")
    if any(each.critical for each in crl.extensions):
        raise ListError(f"the list of {name} is a part of one only (it has a critical extension)")
    now, due = datetime.now(UTC), crl.next_update_utc
    if crl.last_update_utc > now + _CLOCK_SKEW:
        raise ListError(f"the list of {name} is of a time to come: {crl.last_update_utc:%Y-%m-%d %H:%M} UTC")
    if due is None or due <= now:
        raise ListError(f"the list of {name} is out of date: the next one was due {due}")
    serials = frozenset(each.serial_number for each in crl)
    return _issuer_mark(crl.issuer), _List(serials, crl.last_update_utc.timestamp(), due.timestamp())


def _may_sign(issuer: x509.Certificate) -> bool:
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return usage.crl_sign


def _newer(found: _Lists, known: _Lists) -> _Lists:
    """What was found. Raises ListError when a list is older than the one before: a copy was put back."""
    for issuer, each in found.items():
        if issuer in known and each.made < known[issuer].made:
            made = datetime.fromtimestamp(each.made, UTC)
            raise ListError(f"it is older than the one before: of {made:%Y-%m-%d %H:%M:%S} UTC")
    return found


def _mark(path: Path) -> _Mark:
    """What changes when the file is replaced; None while there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # half the time of Path's own, at every call
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=4096)
def mark_of(certificate: bytes) -> str:
    """How a list knows a certificate (PEM) that TLS has verified: "ISSUER.SERIAL", short and without a "/".

    "" for one that can't be read.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate)
        return f"{_issuer_mark(found.issuer)}.{found.serial_number:x}"
    except ValueError:  # what TLS took is not always to the liking of others
        return ""


def _issuer_mark(issuer: x509.Name) -> str:
    return hashlib.sha256(issuer.public_bytes()).hexdigest()
