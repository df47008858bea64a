"""The distillation methods, for `import defeat.methods`."""

from defeat.distillation import (
    DETR,
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
    "DETR",
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
