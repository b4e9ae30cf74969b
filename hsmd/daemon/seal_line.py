"""The line from the warden to the supervising process: PINs are handed over, the seal is asked for.

A pair of sockets, made before the forks, that keeps messages whole. A question is its kind, a number that the
answer repeats, the id of the seal it is about, and what follows; an answer is that number and one byte. The
answer to a warden that is gone finds nobody who asked for it.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

UNSEAL, SEAL, RENEW = b"U", b"S", b"N"
DONE, PIN_REFUSED, FAILED, NOT_NOW = b"D", b"P", b"F", b"N"
_NUMBER_BYTES, _ID_BYTES = 8, 32
HEAD_BYTES = 1 + _NUMBER_BYTES + _ID_BYTES
_ANSWER_BYTES = _NUMBER_BYTES + 1
NO_SEAL = "0" * _ID_BYTES


@dataclass(frozen=True, slots=True)
class Question:
    """The head of what the warden asks: what follows it is not read here."""

    kind: bytes
    number: bytes
    seal_id: str


class SealLine:
    """Both ends; made in the supervising process, inherited by those that are forked."""

    def __init__(self) -> None:
        self.ours, self._wardens = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asking = threading.Lock()

    # In a process that is neither

    def leave(self) -> None:
        """Have nothing to do with it: workers talk to callers, and must not be able to ask for anything."""
        self.ours.close()
        self._wardens.close()

    # In the warden

    def enter(self) -> None:
        """Be the warden."""
        self.ours.close()

    def ask(self, kind: bytes, seal_id: str, content: bytes = b"", *, seconds: float) -> bytes:
        """Ask, and wait for the answer; FAILED when there is none in time. Safe for threads."""
        number = os.urandom(_NUMBER_BYTES)
        until = time.monotonic() + seconds
        if not self._asking.acquire(timeout=seconds):
            return NOT_NOW
        try:
            self._wardens.settimeout(seconds)
            self._wardens.sendmsg([kind, number, seal_id.encode(), content])
            while (left := until - time.monotonic()) > 0:
                self._wardens.settimeout(left)
                answer = self._wardens.recv(_ANSWER_BYTES)
                if answer[:_NUMBER_BYTES] == number:
                    return answer[_NUMBER_BYTES:]
                if not answer:
                    break
        except OSError:  # it takes too long, or the supervising process is gone
            pass
        finally:
            self._asking.release()
        return FAILED

    # In the supervising process

    def look(self) -> Question | None:
        """The head of the question that has come, which is still to be read; None for nonsense."""
        head = self.ours.recv(HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if len(head) != HEAD_BYTES:
            return None
        return Question(
            head[:1], head[1 : 1 + _NUMBER_BYTES], head[1 + _NUMBER_BYTES :].decode("ascii", "replace")
        )

    def answer(self, question: Question, answer: bytes) -> None:
        """Answer, if anybody is there to take it."""
        with suppress(OSError):
            self.ours.send(question.number + answer, socket.MSG_DONTWAIT)
