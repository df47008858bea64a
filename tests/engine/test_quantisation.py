"""Training with the rounding of 8-bit integers."""

import pytest
import torch
from torch import nn

import defeat
from defeat.detector import load
from defeat.engine.module import DetectionModule
from defeat.engine.quantisation import SimulatedInt8, rounded_activation, rounded_weight
from defeat.errors import InputError
from tests.detector.tiny import FAMILIES, tiny_batch, tiny_detector
from tests.engine.test_resume import stop_after
from tests.engine.tiny_runs import results, save_teacher, settings, tiny_run, weights

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_weights_are_rounded_to_255_values_per_output_channel():
    # Row by row, the step is the largest absolute value over 127.
    weight = torch.tensor([[12.7, -0.04, 0.06, 3.02], [0.0127, 0.00004, -0.0127, 0.0]])
    expected = torch.tensor([[12.7, 0.0, 0.1, 3.0], [0.0127, 0.0, -0.0127, 0.0]])
    assert torch.allclose(rounded_weight(weight), expected, atol=1e-7)
    assert torch.equal(rounded_weight(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_activations_are_rounded_to_256_values_of_their_range():
    # The step is (20.4 + 5.1) / 255 = 0.1.
    activation = torch.tensor([-5.1, -0.04, 0.0, 0.06, 19.98, 20.4, 30.0, -9.0])
    rounded = rounded_activation(activation, torch.tensor(-5.1), torch.tensor(20.4))
    assert torch.allclose(rounded, torch.tensor([-5.1, 0.0, 0.0, 0.1, 20.0, 20.4, 20.4, -5.1]), atol=1e-5)


def test_gradients_pass_the_rounding_but_not_the_clipping():
    activation = torch.tensor([-1.0, 0.23, 5.0], requires_grad=True)
    rounded_activation(activation, torch.tensor(0.0), torch.tensor(2.55)).sum().backward()
    assert activation.grad.tolist() == [0.0, 1.0, 0.0]
    weight = torch.tensor([[1.0, -0.3]], requires_grad=True)
    rounded_weight(weight).sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0]]


class Layer(nn.Module):
    """A convolution with a bias as a student; its training pass is the convolution."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 1)

    def forward_train(self, batch, negative_weight):
        return self.convolution(batch)


def test_a_layer_computes_with_rounded_weights_input_and_output():
    layer = Layer()
    with torch.no_grad():
        layer.convolution.weight.fill_(0.5)
        layer.convolution.bias.fill_(1.0)
    image = torch.tensor([0.0, 2.55, 1.014]).reshape(1, 1, 1, 3)
    rounded = SimulatedInt8(layer)(image)
    # Steps of 0.01 in the input, and of 2.275 / 255 in the output.
    step = 2.275 / 255
    assert torch.allclose(rounded.flatten(), torch.tensor([112.0, 255.0, 169.0]) * step, atol=1e-5)
    assert torch.equal(layer.forward_train(image, 1.0), layer.convolution(image))  # as before


def test_ranges_follow_the_activations_slowly_and_contain_zero():
    layer = Layer()
    simulated = SimulatedInt8(layer)
    simulated(torch.full((1, 1, 2, 2), 4.0))
    assert (simulated.low[0], simulated.high[0]) == (0, 4)
    simulated(torch.full((1, 1, 2, 2), -2.0))
    assert torch.allclose(torch.stack([simulated.low[0], simulated.high[0]]), torch.tensor([-0.02, 3.96]))
    simulated(torch.zeros(0, 1, 2, 2))  # an empty activation changes no range
    assert torch.allclose(simulated.high[0], torch.tensor(3.96))


def hooks(detector):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in detector.modules()]


def correlation(first, second):
    return float(torch.corrcoef(torch.stack([first.detach().flatten(), second.detach().flatten()]))[0, 1])


@every_family
def test_every_family_learns_with_rounding_and_predicts_without(family):
    detector = tiny_detector(family).train()
    hooks_before = hooks(detector)
    batch = tiny_batch(detector)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    torch.manual_seed(0)
    plain = detector.forward_train(batch)
    detector.load_state_dict(before)
    torch.manual_seed(0)
    simulated = SimulatedInt8(detector)
    rounded = simulated(batch)
    assert rounded.losses.keys() == plain.losses.keys()
    assert not torch.equal(torch.stack([*rounded.losses.values()]), torch.stack([*plain.losses.values()]))
    stride = min(plain.neck)  # deeper layers of random networks amplify any difference
    assert 0.6 < correlation(rounded.neck[stride], plain.neck[stride]) < 1 - 1e-6
    sum(rounded.losses.values()).backward()
    assert sum(parameter.grad is not None for parameter in detector.parameters()) > 10
    assert detector.state_dict().keys() == before.keys()
    assert hooks(detector) == hooks_before


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_a_quantised_run_is_resumed_bit_for_bit_and_saves_a_plain_student(tmp_path, monkeypatch):
    teacher = save_teacher(tmp_path / "teacher", neck_channels=16)
    start = tiny_run(tmp_path / "start", teacher=teacher, max_steps=2)
    given = {"weights": str(start.folder), "quantise": "int8", "epochs": 2, "ema": 0.9}
    whole = tiny_run(tmp_path / "whole", teacher=teacher, **given)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        tiny_run(tmp_path / "stopped", teacher=teacher, **given)
    resumed = tiny_run(tmp_path / "stopped", teacher=teacher, resume=True, **given)
    assert weights(resumed.folder) == weights(whole.folder)
    assert results(resumed.folder)["metrics"] == results(whole.folder)["metrics"]
    plain = tiny_run(tmp_path / "plain", teacher=teacher, **given | {"quantise": "none"})
    assert weights(plain.folder) != weights(whole.folder)
    assert load(plain.folder).state_dict().keys() == load(whole.folder).state_dict().keys()
    # A run that continues another one keeps all of its weights.
    assert results(whole.folder)["inherited"]["parts"] == []


@pytest.mark.usefixtures("small_demo")
def test_a_failed_step_with_rounding_can_be_replayed(tmp_path, monkeypatch):
    original = DetectionModule.training_step

    def training_step(self, batch, index):
        if self.global_step == 2:
            with torch.no_grad():
                next(self.student.parameters()).fill_(float("nan"))
        return original(self, batch, index)

    monkeypatch.setattr(DetectionModule, "training_step", training_step)
    with pytest.raises(InputError, match=r"defeat\.replay computes it"):
        tiny_run(tmp_path / "run", quantise="int8")
    losses = defeat.replay(tmp_path / "run")
    assert any(not loss.isfinite() for loss in losses.values())


def test_the_learning_rate_is_a_tenth_by_default(tmp_path):
    from defeat.assembly.automatic import choose
    from defeat.data import open_dataset

    training = open_dataset("demo", "train")
    given = {"lr": "auto", "batch_size": 8}
    plain = choose(settings(tmp_path / "a", **given), training).numbers["lr"]
    rounded = choose(settings(tmp_path / "b", **given, quantise="int8"), training).numbers["lr"]
    assert rounded == pytest.approx(plain / 10)
