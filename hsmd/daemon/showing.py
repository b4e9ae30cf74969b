"""What a process that holds a core writes on the board, a few times a second."""

from hsmd.domain.core import Core
from hsmd.domain.readiness import bits_of
from hsmd.hsm import STATES


def show(core: Core, failing: frozenset[str], **more: int) -> None:
    """How its token is, what fails, how many keys are loaded, and what else it has to say."""
    state = STATES.index(core.token.status().state)
    core.board.write(token=state, failing=bits_of(failing), loaded_keys=len(core.keyring), **more)
