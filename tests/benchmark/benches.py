"""Comparisons of tiny runs."""

import json

from rich.console import Console

from defeat.benchmark import bench
from defeat.report.variants import baseline_of
from tests.engine.tiny_runs import settings, shared_settings


def options(folder, teacher, **changes):
    return shared_settings(settings(folder, teacher=teacher, **changes))


def outcome(folder, teacher, methods="defeat", seeds=2, **changes):
    names = ("cells", "plan", "ablate", "method_options", "ray")
    comparison = {name: changes.pop(name) for name in names if name in changes}
    given = options(folder, teacher, **changes)
    return bench(methods=methods, seeds=seeds, console=Console(quiet=True), **comparison, **given)


def run_bench(folder, teacher, **changes):
    return outcome(folder, teacher, **changes).result


def figures(folder):
    content = json.loads((folder / "bench.json").read_text())
    for variant in (baseline_of(content), *content["others"]):
        del variant["time_ratio"]
    return {name: content[name] for name in ("baseline", "others", "teacher", "images", "missing")}
