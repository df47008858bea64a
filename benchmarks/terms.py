"""Measure the effect of each part of DeFeat on a student that inherits: one run per change, on held-out images.

    python benchmarks/terms.py demo RUNS [--seed 101]
    python benchmarks/terms.py bccd|voc15|neu RUNS --data DATA [--seed 0]

Drawn scenes are those of another seed than the demo's. The other data are evaluated on their split `val`, with the
teacher that `benchmarks/accuracy/NAME.sh` trains into RUNS; DATA is what that script trains on: `BCCD`,
`RUNS/held_out`, `RUNS/held_out_neu`. The schedule is `step` unless a variant names another. Finished runs are not
trained again. Prints a line per run.
"""

import argparse
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import defeat
from defeat.assembly.recipes import find_recipe, read_recipe
from defeat.demo import SHARED, STUDENT
from defeat.report.runs import read_run

OLD = {"object_weight": 4.0, "background_weight": 16.0, "initialisation": "default", "adaptation_kernel": 3}
HEADS = {"positive_weight": 1.0, "negative_weight": 1.0}
EVEN = {"object_weight": 16.0, "background_weight": 16.0}
# Changes of the settings of `distill`, and of the method's options.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "inherited, not distilled": ({"method": "none"}, {}),
    "weights 4 and 16, random 3 x 3 adaptation": ({}, OLD),
    "the same, identity 3 x 3": ({}, OLD | {"initialisation": "identity"}),
    "the same, identity 1 x 1": ({}, OLD | {"initialisation": "identity", "adaptation_kernel": 1}),
    "weights 16 and 16": ({}, EVEN),
    "weights 16 and 4": ({}, {"object_weight": 16.0, "background_weight": 4.0}),
    "weights 16 and 64": ({}, {"object_weight": 16.0, "background_weight": 64.0}),
    "weights 32 and 16 (default)": ({}, {}),
    "weights 32 and 32": ({}, {"object_weight": 32.0, "background_weight": 32.0}),
    "weights 64 and 16": ({}, {"object_weight": 64.0, "background_weight": 16.0}),
    "weights 64 and 64": ({}, {"object_weight": 64.0, "background_weight": 64.0}),
    "imitation, whole map": ({"method": "imitation"}, {}),
    "16 and 16, objects on scaled levels": ({}, EVEN | {"object_levels": "scaled"}),
    "16 and 16, objects on all levels": ({}, EVEN | {"object_levels": "all"}),
    "16 and 16, heads, KL": ({}, EVEN | {"positive_weight": 1.0, "negative_weight": 1.0}),
    "16 and 16, backbone": ({}, EVEN | {"backbone_object_weight": 4.0, "backbone_background_weight": 4.0}),
    "16 and 16, identity 3 x 3": ({}, EVEN | {"adaptation_kernel": 3}),
    "16 and 16, cosine": ({"schedule": "cosine"}, EVEN),
    "default, cosine": ({"schedule": "cosine"}, {}),
    "default, not inherited": ({"inherit": "none"}, {}),
    "default, flat cosine": ({"schedule": "flat_cosine"}, {}),
    "default, EMA": ({"ema": 0.998}, {}),
    "default, augmentation standard": ({"augment": "standard"}, {}),
    "default, terms decay": ({}, {"decay": "cosine"}),
    "default, objects on scaled levels": ({}, {"object_levels": "scaled"}),
    "default, objects on all levels": ({}, {"object_levels": "all"}),
    "default, heads, KL": ({}, HEADS),
    "default, heads, balanced": ({}, HEADS | {"head_comparison": "balanced"}),
    "weights 8 and 4": ({}, {"object_weight": 8.0, "background_weight": 4.0}),
    "weights 32 and 48": ({}, {"background_weight": 48.0}),
}
BASELINES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "baseline, cosine": {"schedule": "cosine"},
    "baseline, flat cosine": {"schedule": "flat_cosine"},
}
EPOCHS = {"bccd": {"epochs": 8}}  # where they differ from the recipe's
RECIPES = {"bccd": "small/retinanet", "voc15": "small/photographs", "neu": "small/surfaces"}


def shared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of all runs."""
    if arguments.name == "demo":
        teacher = str(files("defeat").joinpath("demo_teacher"))
        return {
            **SHARED,
            **STUDENT,
            "schedule": "step",
            "data": f"demo:{arguments.seed}",
            "seed": arguments.seed,
            "teacher": teacher,
        }
    return (
        read_recipe(find_recipe(RECIPES[arguments.name]))
        | EPOCHS.get(arguments.name, {})
        | {
            "data": arguments.data,
            "teacher": str(arguments.runs / f"teacher_{arguments.name}"),
            "seed": arguments.seed,
            "backbone": "tf_efficientnet_lite0",
            "neck_channels": 64,
            "schedule": "step",
            "eval_every": 0,
            "eval_split": "val",
            "workers": 0,
        }
    )


def accuracy(folder: Path, settings: Mapping[str, Any]) -> float:
    """AP of a run, which is trained if it is missing."""
    if not (folder / "results.json").is_file():
        train = defeat.distill if "teacher" in settings else defeat.train
        train(**settings, out=str(folder), resume=(folder / "checkpoints" / "last.ckpt").is_file())
    return read_run(folder).metrics["AP"] or 0.0


def main() -> None:
    """Train, and print AP."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("demo", *RECIPES))
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", help="the folder of the data")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = 101 if arguments.name == "demo" else 0
    given = shared(arguments)
    folder = arguments.runs / f"terms_{arguments.name}_{arguments.seed}"
    baseline = {name: value for name, value in given.items() if name != "teacher"}
    for name, changes in BASELINES.items():
        print(f"{name} {accuracy(folder / name.replace(', ', '_'), baseline | changes):.1f}", flush=True)
    for number, (name, (changes, options)) in enumerate(VARIANTS.items()):
        settings = given | changes | {"method_options": options}
        print(f"{name} {accuracy(folder / str(number), settings):.1f}", flush=True)


if __name__ == "__main__":
    main()
