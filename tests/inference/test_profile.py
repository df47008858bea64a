"""`defeat profile`."""

import pytest
from PIL import Image

import defeat
from defeat.cli import main
from defeat.errors import InputError
from tests.exporting.tiny_exports import exported


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A run directory, and its exported file."""
    folder = tmp_path_factory.mktemp("profile")
    _, path = exported(folder)
    return folder / "run", path


@pytest.mark.slow
def test_each_source_batch_and_number_of_threads_has_a_row(sources):
    costs = defeat.profile([str(source) for source in sources], batch=[1, 2], threads=[1, 2], repeats=2)
    assert [(cost.source, cost.batch, cost.threads) for cost in costs] == [
        (str(source), batch, threads) for source in sources for threads in (1, 2) for batch in (1, 2)
    ]
    for cost in costs:
        assert 0 < cost.median_ms <= cost.p95_ms
        assert cost.images_per_second == pytest.approx(1000 * cost.batch / cost.median_ms)
        assert cost.size == (64, 85)
        assert cost.file_bytes > 10_000
    run, file = costs[0], costs[4]
    detector = defeat.load(sources[0])
    assert run.parameters == sum(weight.numel() for weight in detector.parameters())
    assert run.gflops > 0
    assert (file.parameters, file.gflops) == (None, None)
    assert file.file_bytes == sources[1].stat().st_size


def test_the_command_prints_the_costs_of_an_image(sources, tmp_path, capsys):
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    arguments = ["profile", str(sources[1]), "--repeats", "1", "--image", str(tmp_path / "photo.png")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "images/s" in printed
    assert "Images of 50 x 40 pixels on cpu" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": [0]}, "--batch must be 1 or more"),
        ({"threads": [1, 0]}, "--threads must be 1 or more"),
        ({"repeats": 0}, "--repeats must be 1 or more"),
        ({"image": "missing.png"}, "--image missing.png does not exist"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_bad_input_is_refused(options, message, sources):
    with pytest.raises(InputError, match=message):
        defeat.profile([str(sources[0])], **options)
