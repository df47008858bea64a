"""The cost of a detector."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defeat.detector import build
from defeat.detector.base import DetectorSpec
from defeat.evaluation.profile import count_flops, profile_model
from defeat.types import Detections


class _OneConvolution(nn.Module):
    """Replaces a detector: `predict` runs a convolution with 3 channels in, 4 out and a 3 x 3 kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.register_buffer("offset", torch.zeros(2))
        self.predictions = 0
        self.threads: set[int] = set()

    def predict(self, images: list[Tensor]) -> list[Detections]:
        assert all(image.dtype == torch.uint8 for image in images)
        self.predictions += 1
        self.threads.add(torch.get_num_threads())
        with torch.no_grad():
            for image in images:
                self.convolution(image[None].float())
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return [nothing for _ in images]


def test_the_cost_of_one_convolution() -> None:
    # Each of 10 x 20 pixels and 4 output channels takes 3 * 3 * 3 multiply-adds, which count as two operations.
    model = _OneConvolution()
    profile = profile_model(model, (10, 20), repeats=5, warmup=2)
    assert profile.parameters == 3 * 4 * 9
    assert profile.gflops == pytest.approx(2 * 10 * 20 * 4 * 27 / 1e9)
    assert profile.model_bytes == 4 * (3 * 4 * 9 + 2)
    assert profile.latency_ms > 0
    assert profile.device == "cpu"
    assert model.predictions == 2 + 5 + 1  # warm-up, timed, counted
    assert profile.to_dict()["size"] == (10, 20)


def test_the_number_of_threads_is_set_and_restored() -> None:
    before = torch.get_num_threads()
    model = _OneConvolution()
    assert profile_model(model, (4, 4), threads=2, repeats=1).threads == 2
    assert model.threads == {2}
    assert torch.get_num_threads() == before


def test_the_size_of_the_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"12345")
    assert profile_model(_OneConvolution(), (4, 4), weights=path, repeats=1).model_bytes == 5


def test_a_given_image_is_used() -> None:
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    assert profile_model(_OneConvolution(), (4, 6), image=image, repeats=1).size == (4, 6)
    assert count_flops(_OneConvolution(), image) == 2 * 4 * 6 * 4 * 27
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), found \(3, 4, 6\)"):
        profile_model(_OneConvolution(), (8, 8), image=image)


def test_invalid_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 repeat"):
        profile_model(_OneConvolution(), (4, 4), repeats=0)


@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
def test_operations_inside_a_real_detector_are_counted(family: str) -> None:
    # The first convolution of a ResNet only: 64 channels, 7 x 7 x 3 weights, stride 2 on 64 x 64 pixels.
    detector = build(DetectorSpec(family, "resnet18", ("cat",), size=64), weights="none")
    profile = profile_model(detector, (64, 64), repeats=1, warmup=0)
    assert profile.gflops > 2 * 32 * 32 * 64 * 147 / 1e9
    assert profile.parameters == sum(parameter.numel() for parameter in detector.parameters())
    assert detector.training
