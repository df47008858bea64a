"""The distillation methods, for `import defeat.methods`."""

from defeat.distillation import (
    FGFI,
    METHODS,
    TADF,
    Classification,
    DeFeat,
    Imitation,
    Method,
    build_method,
    find_method,
    method_defaults,
)

__all__ = [
    "FGFI",
    "METHODS",
    "TADF",
    "Classification",
    "DeFeat",
    "Imitation",
    "Method",
    "build_method",
    "find_method",
    "method_defaults",
]
