"""The distillation methods, for `import defeat.methods`."""

from defeat.distillation import (
    BCKD,
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
    "BCKD",
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
