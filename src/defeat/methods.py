"""The distillation methods, for `import defeat.methods`."""

from defeat.distillation import (
    CWD,
    DETR,
    FGD,
    FGFI,
    METHODS,
    MGD,
    PKD,
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
    "CWD",
    "DETR",
    "FGD",
    "FGFI",
    "METHODS",
    "MGD",
    "PKD",
    "TADF",
    "Classification",
    "DeFeat",
    "Imitation",
    "Method",
    "build_method",
    "find_method",
    "method_defaults",
]
