"""Methods that compare whole levels: values derived by hand, and their limits."""

import math

import pytest
import torch

from defeat.distillation import build_method
from defeat.distillation.methods.fgd import GlobalContext
from defeat.distillation.regions import inverse_area_regions
from defeat.errors import InputError
from tests.distillation.made_up import START, boxed, info, output, random_output

CHANNELS = {8: 3, 16: 3}


def built(method, neck=None, kinds=(), **options):
    described = info(neck or CHANNELS, offers=frozenset(kinds))
    torch.manual_seed(0)
    return build_method(method, described, described, options)


def one_level(level, **fields):
    return output({8: level}, **fields)


def losses(method, student, teacher, targets=None):
    given = [boxed(), boxed()] if targets is None else targets
    return {name: loss.item() for name, loss in method(student, teacher, given, START).items()}


# PKD


def test_pkd_is_one_minus_the_correlation():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 3, 4, generator=generator), torch.randn(2, 1, 3, 4, generator=generator)
    correlation = float(torch.corrcoef(torch.stack([student.flatten(), teacher.flatten()]))[0, 1])
    method = built("pkd", {8: 1}, correlation_weight=1.0)
    expected = 23 / 24 * (1 - correlation)
    assert losses(method, one_level(student), one_level(teacher))["neck_correlation"] == pytest.approx(expected)


def test_pkd_ignores_scale_and_offset_and_is_largest_for_opposite_maps():
    teacher = random_output(3, 1)
    method = built("pkd", correlation_weight=1.0)
    stretched = output({stride: 3 * level + 7 for stride, level in teacher.neck.items()})
    opposite = output({stride: -level for stride, level in teacher.neck.items()})
    assert losses(method, stretched, teacher)["neck_correlation"] == pytest.approx(0, abs=1e-5)
    counts = [level.shape[0] * level.shape[2] * level.shape[3] for level in teacher.neck.values()]
    expected = sum(2 * (count - 1) / count for count in counts)  # levels are added
    assert losses(method, opposite, teacher)["neck_correlation"] == pytest.approx(expected, rel=1e-4)


def test_pkd_compares_the_finest_levels_with_the_published_weights():
    neck = {4: 2, 8: 2, 16: 2, 32: 2, 64: 2}
    one_stage, two_stage = built("pkd", neck), built("pkd", neck, ["proposals"])
    assert (one_stage.weights, two_stage.weights) == ({"correlation_weight": 10.0}, {"correlation_weight": 6.0})
    assert [level.stride for level in one_stage.levels] == [4, 8, 16, 32]
    assert [level.stride for level in built("pkd", neck, finest_levels=2).levels] == [4, 8]


# CWD


def test_cwd_of_two_cells():
    # The teacher's distribution is (3/4, 1/4), the student's (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812.
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([math.log(3), 0.0]).reshape(1, 1, 1, 2)
    method = built("cwd", {8: 1}, channel_weight=1.0)
    assert losses(method, one_level(student), one_level(teacher))["neck_channel"] == pytest.approx(0.130812, abs=1e-6)
    # At temperature 2 the teacher has sqrt(3) : 1.
    share = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share)))
    method = built("cwd", {8: 1}, channel_weight=1.0, temperature=2.0)
    assert losses(method, one_level(student), one_level(teacher))["neck_channel"] == pytest.approx(expected, abs=1e-6)


def test_cwd_averages_channels_and_images_and_ignores_an_offset():
    student, teacher = torch.zeros(2, 2, 1, 2), torch.zeros(2, 2, 1, 2)
    teacher[0, 0, 0, 0] = math.log(3)  # one of four distributions differs
    method = built("cwd", {8: 2}, channel_weight=1.0)
    loss = losses(method, one_level(student), one_level(teacher))["neck_channel"]
    assert loss == pytest.approx(0.130812 / 4, abs=1e-6)
    shifted = losses(method, one_level(student + 5), one_level(teacher - 9))["neck_channel"]
    assert shifted == pytest.approx(loss, abs=1e-6)


# MGD


def test_mgd_without_masks_and_with_an_identity_is_the_squared_difference():
    method = built("mgd", {8: 2}, generation_weight=1.0, masked_share=0.0)
    first, _, last = method.generators["8"]
    for layer in (first, last):
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    student, teacher = torch.rand(2, 2, 3, 4), torch.rand(2, 2, 3, 4)  # not negative, so that the ReLU changes nothing
    expected = float((student - teacher).square().sum() / 2)
    assert losses(method, one_level(student), one_level(teacher))["neck_generation"] == pytest.approx(expected)


def test_mgd_masks_whole_cells_with_the_given_probability():
    method = built("mgd", {8: 2}, generation_weight=1.0, masked_share=0.25)
    seen = []
    method.generators["8"] = torch.nn.Identity()
    method.generators["8"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    losses(method, one_level(torch.ones(2, 2, 100, 100)), one_level(torch.zeros(2, 2, 100, 100)))
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(seen[0][:, 0], seen[0][:, 1])
    assert float(seen[0].mean()) == pytest.approx(0.75, abs=0.02)


def test_mgd_has_published_weights():
    assert built("mgd").weights == {"generation_weight": 2e-5}
    assert built("mgd", kinds=["proposals"]).weights == {"generation_weight": 5e-7}


# FGD


def test_fgd_with_uniform_attention():
    # The teacher's map is constant, so both of its attentions are one everywhere, and the student differs by d in each
    # of C channels. The weights of a box add up to one, and so do those of the background: both terms are C d^2.
    teacher, student = torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8) + 0.5
    method = built("fgd", {8: 3}, object_weight=1.0, background_weight=1.0, attention_weight=1.0, relation_weight=0.0)
    given = losses(method, one_level(student), one_level(teacher), [boxed([8, 8, 24, 24])])
    assert given["neck_object"] == pytest.approx(3 * 0.25)
    assert given["neck_background"] == pytest.approx(3 * 0.25)
    assert given["neck_attention"] == pytest.approx(0, abs=1e-5)
    alone = losses(method, one_level(student), one_level(teacher), [boxed()])
    assert (alone["neck_object"], alone["neck_background"]) == (0, pytest.approx(3 * 0.25))


def test_fgd_attends_where_the_teacher_is_active():
    # At temperature 0.5 with one channel: |F| is ln(2) / 2 in one of two cells, so A_s = 2 (2/3, 1/3); A_c is 1.
    teacher = torch.tensor([math.log(2) / 2, 0.0]).reshape(1, 1, 1, 2)
    student = teacher + torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)
    method = built("fgd", {8: 1}, object_weight=0.0, background_weight=1.0, attention_weight=1.0, relation_weight=0.0)
    given = losses(method, one_level(student), one_level(teacher), [boxed(size=(8, 16))])
    assert given.keys() == {"neck_background", "neck_attention"}
    assert given["neck_background"] == pytest.approx((4 / 3 * 1 + 2 / 3 * 4) / 2)
    cells = torch.softmax(student.abs().flatten() / 0.5, dim=0) * 2
    expected = (cells - torch.tensor([4 / 3, 2 / 3])).abs().sum()
    assert given["neck_attention"] == pytest.approx(float(expected), rel=1e-5)


def test_fgd_relations_of_equal_maps_begin_at_zero_and_learn():
    method = built("fgd", {8: 4}, object_weight=0.0, background_weight=0.0, attention_weight=0.0, relation_weight=1.0)
    level = torch.randn(2, 4, 5, 6)
    assert losses(method, one_level(level), one_level(level)) == {"neck_relation": 0.0}
    loss = method(one_level(level), one_level(level + 1), [boxed(), boxed()], START)["neck_relation"]
    assert loss.item() == pytest.approx(level.numel() / 2, rel=1e-4)
    loss.backward()
    assert all(weight.grad is not None for weight in method.parameters())


def test_a_global_context_adds_the_same_vector_to_every_cell():
    torch.manual_seed(0)
    block = GlobalContext(4)
    torch.nn.init.normal_(block.transform[-1].weight)
    level, valid = torch.randn(1, 4, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool)
    added = block(level, valid) - level
    assert added.abs().max() > 0.01
    assert torch.allclose(added, added[..., :1, :1].expand_as(added), atol=1e-5)
    valid[..., -1] = False
    changed = level.clone()
    changed[..., -1] = 100.0  # padding
    inside = (block(changed, valid) - block(level, valid))[..., :-1]
    assert torch.allclose(inside, torch.zeros_like(inside), atol=1e-5)


def test_cells_weigh_one_over_the_area_of_the_smallest_box():
    boxes = [torch.tensor([[0.0, 0.0, 23.0, 7.0], [0.0, 0.0, 7.0, 7.0]]), torch.zeros(0, 4)]
    region = inverse_area_regions(boxes, {8: (3, 5)})[8]
    # Cells 0..3 x 0..1 and 0..1 x 0..1, ends included.
    expected = torch.tensor([[1 / 4, 1 / 4, 1 / 8, 1 / 8, 0], [1 / 4, 1 / 4, 1 / 8, 1 / 8, 0], [0, 0, 0, 0, 0]])
    assert torch.allclose(region[0], expected)
    assert not region[1].any()


# All of them


EVERY = ("cwd", "fgd", "mgd", "pkd")


@pytest.mark.parametrize("name", EVERY)
def test_padding_has_no_influence(name):
    student, teacher = random_output(3, 0), random_output(3, 1)
    for stride, valid in student.valid.items():
        valid[:, :, 64 // stride // 2 :] = False
    method = built(name)

    def seeded(*outputs):
        torch.manual_seed(3)
        boxes = [boxed([8, 8, 24, 24]), boxed()]
        return losses(method, *outputs, targets=boxes)

    before = seeded(student, teacher)
    for side in (student, teacher):
        for stride, level in side.neck.items():
            # The generator of MGD reads the neighbouring cells, which are zero on padding in both cases.
            level[..., 64 // stride // 2 :] = 0.0 if name == "mgd" and side is student else 50.0
    if name == "mgd":
        padded = {stride: level.clone() for stride, level in student.neck.items()}
        before = seeded(output(padded, student.valid), teacher)
    assert seeded(student, teacher) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_layers_are_trained_only_where_channels_differ(name):
    own = {"mgd": "generators", "fgd": "contexts"}.get(name, "nothing")
    equal, different = info(CHANNELS), info({8: 5, 16: 3})
    torch.manual_seed(0)
    assert not [weight for weight, _ in build_method(name, equal, equal, {}).named_parameters() if own not in weight]
    method = build_method(name, equal, different, {})
    adapted = [weight for weight, _ in method.named_parameters() if own not in weight]
    assert adapted == ["maps.adaptation.layers.8.weight", "maps.adaptation.layers.8.bias"]
    assert [level.kernel for level in method.levels] == [1, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cwd", {"temperature": 0.0}, "temperature must be above 0"),
        ("fgd", {"temperature": -1.0}, "temperature must be above 0"),
        ("mgd", {"masked_share": 1.5}, "masked_share must be between 0 and 1"),
        ("pkd", {"finest_levels": 0}, "finest_levels must be 1 or more"),
        ("pkd", {"correlation_weight": -1.0}, "correlation_weight must be 0 or more"),
        ("cwd", {"adaptation_kernel": 2}, "adaptation_kernel must be 0, 1 or 3"),
        ("mgd", {"missing_levels": "none"}, "missing_levels"),
    ],
)
def test_invalid_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        built(name, **options)
