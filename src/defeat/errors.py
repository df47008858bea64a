"""Errors for wrong usage and bad input, with readable messages."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

DISTRIBUTION = "defeat-detection"  # name on the package index, where `defeat` is another package

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


class InputError(ValueError):
    """Wrong usage or bad input: the message names the expected and the actual value, and says what to do.

    The command line prints the message alone, without a traceback, and exits with 2. Messages quote untrusted names:
    characters that can't be printed on one line are escaped.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(char if char.isprintable() else ascii(char)[1:-1] for char in sentence))


def first_line(error: Exception) -> str:
    """First line of another library's message, without its last punctuation; the type of an error without message."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":. ")


def quoted(value: object) -> str:
    """Quote an untrusted value for a message, shortened where it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return "a number with thousands of digits"


class BadDataError(InputError):
    """Several problems: a heading, one line per problem, and advice."""

    def __init__(self, heading: str, sentences: Iterable[str], advice: str) -> None:
        lines = [f"  {InputError(sentence)}" for sentence in sentences]
        ValueError.__init__(self, "\n".join([f"{InputError(heading)}", *lines, advice]))

    def __reduce__(self) -> tuple[type[InputError], tuple[str]]:
        """Pickle as an InputError of one line."""
        return InputError, (str(self),)


def missing_package(user: str, packages: str, extra: str) -> InputError:
    """Build the error for packages of an extra that are not installed.

    Args:
        user: what needs them, such as an option.
        packages: their names.
        extra: the extra that has them.
    """
    return InputError(f"{user} needs {packages}: {install_command(extra)}.")


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """Build the error for a name that is not in `valid`; it suggests the nearest valid name.

    Args:
        kind: what the name refers to, e.g. `detector`.
        name: the unknown name.
        valid: all accepted names.
    """
    names = sorted(valid)
    nearest = get_close_matches(name, names, n=1, cutoff=0.5)
    suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(f"Unknown {kind} {name!r}.{suggestion} Valid names: {', '.join(names)}.")
