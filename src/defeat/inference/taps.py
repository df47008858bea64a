"""The command that lists where a network has maps."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from defeat.assembly.foreign import own_network
from defeat.detector import candidate_taps
from defeat.settings import at_least

STRIDES = (4, 8, 16, 32, 64, 128)


def print_taps(network: str, size: int = 256) -> None:
    """Print the outputs of a network that look like maps, in the order in which they are computed.

    Args:
        network: package.module:factory or file.py:factory, a function without arguments that gives the network; this
            runs that code.
        size: height of the image that the network is tried with, in pixels; it is a quarter wider.

    Raises:
        InputError: there is no such function, or the network does not run.
    """
    at_least("size", size, 32, 8192)
    found = candidate_taps(own_network(network), (size, size + size // 4))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("tap", "shape", "stride", "layout"):
        table.add_column(title, overflow="fold")
    for one in found:
        layout = one.layout if one.layout != "tokens" else f"tokens, {one.prefix_tokens} before the first cell"
        table.add_row(Text(one.name), " x ".join(map(str, one.shape)), str(one.stride), layout)
    console = Console()
    console.print(table)
    if found:
        named = [one for one in found if one.name and one.layout == "maps" and one.stride in STRIDES]
        last = {one.stride: one.name for one in named}
        taps = ", ".join(f"{stride}: {name}" for stride, name in sorted(last.items()))
        console.print(Text(f"\nThe last map of each stride, for --teacher-taps:\nneck: {{{taps}}}"))
