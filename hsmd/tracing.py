"""Stations of a call's way, marked by any room; nothing happens there until a process has traces exported.

Where they go is no concern of the rooms, as with logging: so what takes the spans is set once a process,
after the fork, by daemon/traces.py, which alone knows OpenTelemetry. Names and attributes are for people who
may see no secret: methods, mechanisms, codes and numbers, never contents, and never an exception's text.
"""

from types import TracebackType
from typing import Literal, Protocol

Kind = Literal["server", "client", "internal"]


class Span:
    """What the `with` statement of a station gives. This one, of processes without traces, does nothing."""

    __slots__ = ()

    def __enter__(self) -> "Span":
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; an error that passes by marks it, by its code or class."""

    def note(self, **attributes: object) -> None:
        """Add what is known by now."""


class Tracer(Protocol):
    """What takes spans."""

    def entry(self, name: str, parent: str) -> Span:
        """See the function `entry`."""

    def span(self, name: str, kind: Kind, attributes: dict[str, object]) -> Span:
        """See the function `span`."""

    def parent(self) -> str:
        """See the function `parent`."""


NOTHING = Span()
_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """From now on spans go there, of all threads of this process; None: nowhere."""
    global _tracer
    _tracer = tracer


def on() -> bool:
    """Whether spans go anywhere."""
    return _tracer is not None


def entry(name: str, parent: str = "") -> Span:
    """The span of a whole call that came in. `parent`: a W3C traceparent that may be trusted, "" for none."""
    return NOTHING if _tracer is None else _tracer.entry(name, parent)


def span(name: str, kind: Kind = "internal", /, **attributes: object) -> Span:
    """The span of a station of the call that this thread, or task, carries out; nothing outside of calls."""
    return NOTHING if _tracer is None else _tracer.span(name, kind, attributes)


def parent() -> str:
    """The W3C traceparent for who is called from here; "" for none."""
    return "" if _tracer is None else _tracer.parent()
