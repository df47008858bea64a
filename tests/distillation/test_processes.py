"""Two processes with two images each compute the terms and gradients of one process with all four."""

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from defeat.distillation import METHODS, build_method
from defeat.distillation.losses import masked_mean, region_mean
from defeat.distillation.processes import average_count, process_count, sum_over_processes
from tests.detector.tiny import COMPOSED as FAMILIES
from tests.detector.tiny import images, target, tiny_detector, tiny_options
from tests.distillation.test_methods import LATE, OPTIONS, weights

SIZES = [(64, 96)] * 4
# The halves have different numbers of objects, so that a mean of means would differ from the mean over all.
TARGETS = [
    target([[8, 8, 40, 40], [30, 20, 60, 60], [50, 2, 90, 40]], [0, 1, 2], SIZES[0]),
    target([[20, 4, 90, 60]], [2], SIZES[1]),
    target([], [], SIZES[2]),
    target([[2, 2, 20, 30]], [1], SIZES[3]),
]

NAMES = [name for name in METHODS if "queries" not in METHODS[name].reads]
# Methods that compare only some kinds of heads.
ONLY = {"bckd": ("retinanet", "fcos", "gfl"), "crosskd": ("retinanet", "fcos", "gfl"), "ld": ("gfl",)}
PAIRS = [(family, name) for family in FAMILIES for name in NAMES if family in ONLY.get(name, FAMILIES)]
ROUNDING = 5e-5  # of the largest gradient: smaller ones are zero except for rounding


def terms_and_gradients(family, name, indices):
    """Loss terms on some of the four images, and the gradients of the sum, of student and adaptation layers."""
    # Every proposal counts, so that none is sampled.
    options = tiny_options(family, box_batch_size_per_image=512, rpn_post_nms_top_n_test=20)
    student = tiny_detector(family, norm="frozen", options=options).train()
    teacher = tiny_detector(family, norm="frozen", seed=1, options=options).eval().requires_grad_(False)
    torch.manual_seed(0)
    method = build_method(name, student.info, teacher.info, weights(name, 1.0) | OPTIONS.get(name, {}))
    batch = student.prepare([images(*SIZES)[index] for index in indices], [TARGETS[index] for index in indices])
    output = student.forward_train(batch)
    losses = method(output, teacher.forward_teacher(teacher.adopt(batch)), batch.targets, LATE)
    if family == "retinanet":  # others sample, or average over the positives of a process
        losses |= output.losses
    parameters = [weight for module in (student, method) for weight in module.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return {
        "terms": {name: loss.detach() for name, loss in losses.items()},
        "gradients": [torch.zeros_like(weight) if gradient is None else gradient for weight, gradient in pairs],
    }


def run_process(rank, folder):
    """Run one of the two processes: all pairs of family and method, averaged over both processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    averages = {}
    for family, name in PAIRS:
        values = terms_and_gradients(family, name, [2 * rank, 2 * rank + 1])
        for value in [*values["terms"].values(), *values["gradients"]]:
            torch.distributed.all_reduce(value)
            value /= 2
        averages[family, name] = values
    if rank == 0:
        torch.save(averages, f"{folder}/averages.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(run_process, args=(str(folder),), nprocs=2)
    return torch.load(folder / "averages.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_two_processes_equal_one_with_the_whole_batch(family, name, averaged):
    whole, average = terms_and_gradients(family, name, [0, 1, 2, 3]), averaged[family, name]
    assert average["terms"].keys() == whole["terms"].keys()
    for term, value in whole["terms"].items():
        assert average["terms"][term].item() == pytest.approx(value.item(), rel=1e-4), term
        assert value.item() > 0
    largest = max(gradient.abs().max().item() for gradient in whole["gradients"])
    for gradient, expected in zip(average["gradients"], whole["gradients"], strict=True):
        if expected.abs().max() < ROUNDING * largest:  # such as that of a bias, which standardising removes
            assert gradient.abs().max() < ROUNDING * largest
        else:
            assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * largest)


def test_a_single_process_changes_no_sum():
    values = torch.tensor([1.0, 2.0])
    assert process_count() == 1
    assert sum_over_processes(values) is values
    assert average_count(torch.tensor(0.0)).item() == 1
    # And a mean over everything stays a mean.
    assert masked_mean(values, torch.tensor([True, True])).item() == pytest.approx(1.5)
    assert region_mean(values.view(1, 1, 2), torch.ones(1, 1, 2), 1).item() == pytest.approx(0.75)
