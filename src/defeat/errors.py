"""What a user did wrong, said in one sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Wrong usage or bad input: the message names what was expected and what was found, and says what to do.

    The command line prints the message alone, without a traceback, and exits with 2. Messages quote untrusted names:
    what can't be printed in a line is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in message))


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """Build the error for a name that is not one of `valid`, with the nearest valid name.

    Args:
        kind: what the name stands for, e.g. `detector`.
        name: what the user wrote.
        valid: every name that would have been accepted.
    """
    names = sorted(valid)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(f"Unknown {kind} {name!r}.{suggestion} Valid names: {', '.join(names)}.")
