"""What a user did wrong, said in one sentence."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


class InputError(ValueError):
    """Wrong usage or bad input: the message names what was expected and what was found, and says what to do.

    The command line prints the message alone, without a traceback, and exits with 2. Messages quote untrusted names:
    what can't be printed in a line is escaped.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(one if one.isprintable() else ascii(one)[1:-1] for one in sentence))


def shown(value: object) -> str:
    """A value that a foreign file holds, for a message: not at its full length, which may be anything."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number of thousands of digits"


class BadDataError(InputError):
    """Several mistakes at once, a line each between a head and the way out."""

    def __init__(self, head: str, sentences: Iterable[str], way_out: str) -> None:
        lines = [f"  {InputError(sentence)}" for sentence in sentences]
        ValueError.__init__(self, "\n".join([head, *lines, way_out]))

    def __reduce__(self) -> tuple[type[InputError], tuple[str]]:
        """Travel between processes as one line."""
        return InputError, (str(self),)


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
