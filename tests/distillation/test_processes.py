"""Two processes with two images each compute the terms and gradients of one process with all four."""

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from defeat.detector import FAMILIES
from defeat.distillation import METHODS, build_method
from defeat.distillation.losses import masked_mean, region_mean
from defeat.distillation.processes import added, average_count, processes
from tests.detector.tiny import images, target, tiny_detector, tiny_options
from tests.distillation.test_methods import LATE, weights

SIZES = [(64, 96)] * 4
# The halves have unlike numbers of objects, so that a mean of means would differ from the mean over all.
TARGETS = [
    target([[8, 8, 40, 40], [30, 20, 60, 60], [50, 2, 90, 40]], [0, 1, 2], SIZES[0]),
    target([[20, 4, 90, 60]], [2], SIZES[1]),
    target([], [], SIZES[2]),
    target([[2, 2, 20, 30]], [1], SIZES[3]),
]

ROUNDING = 5e-5  # of the largest gradient: what is below it is zero but for rounding


def terms_and_gradients(family, name, mine):
    """Loss terms on some of the four images, and the gradients of the sum, of student and adaptation layers."""
    # Every proposal counts, so that none is drawn.
    options = tiny_options(family, box_batch_size_per_image=512, rpn_post_nms_top_n_test=20)
    student = tiny_detector(family, norm="frozen", options=options).train()
    teacher = tiny_detector(family, norm="frozen", seed=1, options=options).eval().requires_grad_(False)
    torch.manual_seed(0)
    method = build_method(name, student.info, teacher.info, weights(name, 1.0))
    batch = student.prepare([images(*SIZES)[index] for index in mine], [TARGETS[index] for index in mine])
    output = student.forward_train(batch)
    losses = method(output, teacher.forward_teacher(teacher.adopt(batch)), batch.targets, LATE)
    if family == "retinanet":  # Faster R-CNN's own losses are computed on anchors that are drawn
        losses |= output.losses
    parameters = [one for module in (student, method) for one in module.parameters() if one.requires_grad]
    gradients = torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)
    return {
        "terms": {name: loss.detach() for name, loss in losses.items()},
        "gradients": [torch.zeros_like(one) if g is None else g for one, g in zip(parameters, gradients, strict=True)],
    }


def half(rank, folder):
    """What one of the two processes does: all pairs of family and method, and the average over both processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for family in FAMILIES:
        for name in METHODS:
            given = terms_and_gradients(family, name, [2 * rank, 2 * rank + 1])
            for value in [*given["terms"].values(), *given["gradients"]]:
                torch.distributed.all_reduce(value)
                value /= 2
            found[family, name] = given
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(half, args=(str(folder),), nprocs=2)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one_with_the_whole_batch(family, name, averaged):
    expected, found = terms_and_gradients(family, name, [0, 1, 2, 3]), averaged[family, name]
    assert found["terms"].keys() == expected["terms"].keys()
    for term, value in expected["terms"].items():
        assert found["terms"][term].item() == pytest.approx(value.item(), rel=1e-4), term
        assert value.item() > 0
    largest = max(wanted.abs().max().item() for wanted in expected["gradients"])
    for gradient, wanted in zip(found["gradients"], expected["gradients"], strict=True):
        if wanted.abs().max() < ROUNDING * largest:  # such as that of a bias, which standardising takes out
            assert gradient.abs().max() < ROUNDING * largest
        else:
            assert torch.allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * largest)


def test_a_single_process_has_nothing_to_add():
    values = torch.tensor([1.0, 2.0])
    assert processes() == 1
    assert added(values) is values
    assert average_count(torch.tensor(0.0)).item() == 1
    # And a mean over everything stays a mean.
    assert masked_mean(values, torch.tensor([True, True])).item() == pytest.approx(1.5)
    assert region_mean(values.view(1, 1, 2), torch.ones(1, 1, 2), 1).item() == pytest.approx(0.75)
