"""Lists the feature maps of a network."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from defeat.assembly.foreign import own_network
from defeat.detector import candidate_taps
from defeat.settings import at_least

STRIDES = (4, 8, 16, 32, 64, 128)


def print_taps(network: str, size: int = 256) -> None:
    """Print the outputs of a network that have the shape of feature maps, in the order of computation.

    Args:
        network: package.module:factory or file.py:factory, a function without arguments that returns the network; its
            code is run.
        size: height of the test image in pixels; the width is 1.25 times the height.

    Raises:
        InputError: there is no such function, or the network does not run.
    """
    at_least("size", size, 32, 8192)
    candidates = candidate_taps(own_network(network), (size, size + size // 4))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("tap", "shape", "stride", "layout"):
        table.add_column(title, overflow="fold")
    for tap in candidates:
        layout = tap.layout if tap.layout != "tokens" else f"tokens, {tap.prefix_tokens} before the first cell"
        table.add_row(Text(tap.name), " x ".join(map(str, tap.shape)), str(tap.stride), layout)
    console = Console()
    console.print(table)
    if candidates:
        named = [tap for tap in candidates if tap.name and tap.layout == "maps" and tap.stride in STRIDES]
        last = {tap.stride: tap.name for tap in named}
        taps = ", ".join(f"{stride}: {name}" for stride, name in sorted(last.items()))
        console.print(Text(f"\nThe last feature map of each stride, for --teacher-taps:\nneck: {{{taps}}}"))
