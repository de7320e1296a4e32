"""Encoders of the drifting loss: their maps against other ways to get them, and the gradient that goes through them."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.feature_extraction import create_feature_extractor

from ditscope.core.errors import InputError
from ditscope.core.settings import decode
from ditscope.refine.encoder import Encoder, load_encoder
from ditscope.refine.encoders import efficientnet_lite0
from ditscope.refine.features import FEATURES, extract, vectors
from ditscope.refine.networks import LatentMAE, LatentMAEConfig, save_network
from ditscope.refine.settings import ENCODERS, Refine

ROOT = Path(__file__).resolve().parents[2]
ALL = ["locations", "global", "patches", "input_rms"]
PIXELS = {"kind": "pixels"}
CLIP = replace(Refine(), encoder="clip", encoder_weights=str(ROOT / "models/shapes-clip"))


def load(settings, adapter=PIXELS, channels=3) -> Encoder:
    return load_encoder(settings, adapter, np.zeros(channels), np.ones(channels), torch.device("cpu"))


def pictures(count=2, side=64) -> torch.Tensor:
    """Values of the adapter `pixels`, in [-1, 1]."""
    return 2 * torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) - 1


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A ResNet-18 with random weights, and its file."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def test_maps_of_a_resnet_are_those_that_torchvision_taps(resnet):
    network, path = resnet
    encoder = load(replace(Refine(), encoder="resnet", encoder_weights=str(path)))
    nodes = create_feature_extractor(network, [f"layer{i}" for i in (1, 2, 3, 4)])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = nodes(((pictures() + 1) / 2 - mean) / std)
    for mine, theirs in zip(encoder.maps(pictures()), expected.values(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("depth", [34, 50])
def test_the_depth_of_a_resnet_is_read_from_its_weights(tmp_path, depth):
    torch.save(getattr(torchvision.models, f"resnet{depth}")(num_classes=7).state_dict(), tmp_path / "weights.pth")
    encoder = load(replace(Refine(), encoder="resnet", encoder_weights=str(tmp_path / "weights.pth")))
    assert [m.shape[1] for m in encoder.maps(pictures(1))][-1] == (512 if depth == 34 else 2048)


def test_maps_of_clip_are_the_tokens_of_its_layers():
    from transformers import CLIPModel

    expected = CLIPModel.from_pretrained(ROOT / "models/shapes-clip").float().vision_model
    states = expected(pictures(), output_hidden_states=True).hidden_states[1:]  # its mean and deviation are 0.5
    maps = load(CLIP).maps(pictures())
    assert len(maps) == 4
    for mine, theirs in zip(maps, states, strict=True):
        torch.testing.assert_close(mine.flatten(2).transpose(1, 2), theirs[:, 1:])


def test_efficientnet_pads_as_tensorflow_does():
    """One more at the end where the sum is odd, so that a stride of 2 halves even sides: against explicit padding."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for kernel, before, after in ((3, 0, 1), (5, 1, 2)):
        same = efficientnet_lite0.Same(3, 4, kernel, 2)
        padded = torch.nn.functional.pad(x, (before, after, before, after))
        torch.testing.assert_close(same(x), torch.nn.functional.conv2d(padded, same.weight, stride=2))
    maps = efficientnet_lite0.EfficientNetLite0().eval().maps(pictures(1))
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]


@pytest.mark.skipif(importlib.util.find_spec(efficientnet_lite0.PACKAGE) is None, reason="package is not installed")
def test_efficientnet_of_the_package_knows_a_flower_and_a_temple():
    from sklearn.datasets import load_sample_images

    network = efficientnet_lite0.load("").eval()
    photos = torch.from_numpy(np.stack(load_sample_images().images)).movedim(-1, 1)[..., 200:] / 255
    with torch.no_grad():
        best = network(torch.nn.functional.interpolate(photos, (224, 224), mode="area")).argmax(1)
    assert best.tolist() == [698, 985]  # china.jpg: a palace; flower.jpg: a daisy


@pytest.fixture(scope="module")
def every(tmp_path_factory, resnet) -> dict[str, Encoder]:
    """Each encoder of the registry, of pictures of 64 px or of their latents of 16."""
    folder = tmp_path_factory.mktemp("encoders")
    mae = LatentMAE(LatentMAEConfig(3, 2, 2, 8, 3))
    save_network(mae, torch.zeros(3), torch.ones(3), folder / "mae.safetensors")
    save_file(efficientnet_lite0.EfficientNetLite0().state_dict(), folder / "lite0.safetensors")
    weights = {
        "latent_mae": folder / "mae.safetensors",
        "resnet": resnet[1],
        "efficientnet_lite0": folder / "lite0.safetensors",
        "clip": CLIP.encoder_weights,
    }
    return {name: load(replace(Refine(), encoder=name, encoder_weights=str(weights[name]))) for name in ENCODERS}


@pytest.mark.parametrize("name", list(ENCODERS))
def test_every_encoder_gives_groups_of_at_least_125_vectors_at_64_pixels(every, name):
    values = pictures(2, 16) if name == "latent_mae" else pictures()
    features = extract(every[name], values, ALL)
    assert vectors(features) >= 125
    groups = {key.partition(".")[2] for key in features}
    assert {"location", "mean", "std", "patch2.mean", "patch2.std", "patch4.mean", "patch4.std", "rms"} <= groups
    assert all(value.isfinite().all() for value in features.values())


def test_of_a_resnet_with_16_locations_of_each_feature_121_vectors_are_left(every):
    features = extract(every["resnet"], pictures(), ["global", "patches", "input_rms"], most=16)
    assert vectors(features) == 121  # windows as large as the map repeat the whole map's mean and deviation
    assert vectors(extract(every["resnet"], pictures(), ["global", "input_rms"])) == 9
    whole = extract(every["resnet"], pictures(), ["patches"])["map0.patch2.mean"]
    kept = features["map0.patch2.mean"]
    torch.testing.assert_close(kept, whole[:, np.linspace(0, 63, 16).round().astype(int)])


def test_the_gradient_goes_through_the_decoder_of_latents():
    """Latents of the shapes world's VAE under CLIP: the slope along a direction is that of two evaluations."""
    entry = {"family": "flux", "source": str(ROOT / "models/shapes-flux")}
    about = {"kind": "vae", "model": "shapes-flux", "entry": entry}
    encoder = load(CLIP, about, channels=8)
    random = torch.Generator().manual_seed(0)
    latents, direction = torch.randn(2, 2, 8, 16, 16, generator=random, dtype=torch.float32)
    latents.requires_grad_()

    def score(values):
        return encoder.maps(values)[-1].square().mean()

    score(latents).backward()
    slope = float((latents.grad * direction).sum())
    with torch.no_grad():
        step = 1e-2
        measured = float(score(latents + step * direction) - score(latents - step * direction)) / (2 * step)
    assert abs(slope) > 1e-4
    assert slope == pytest.approx(measured, rel=0.05)
    assert not any(p.requires_grad for p in encoder.network.parameters())


def test_frames_of_a_film_are_pictures(every):
    film = torch.stack([pictures(2), pictures(2).flip(0), -pictures(2)], 2)  # (batch, channels, frames, height, width)
    maps = every["resnet"].maps(film)
    assert maps[0].shape == (2, 64, 3, 16, 16)
    torch.testing.assert_close(maps[1][:, :, 2], every["resnet"].maps(-pictures(2))[1])


def test_a_module_of_ones_own_is_an_encoder(tmp_path, monkeypatch):
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "__init__.py").touch()
    (tmp_path / "my" / "halves.py").write_text(
        "import torch\nSEES = 'values'\nclass Halves(torch.nn.Module):\n    def maps(self, values):\n"
        "        return [values, values[..., ::2, ::2]]\ndef load(weights):\n    return Halves()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = decode(Refine, {"encoder": "my.halves"}, "refine")
    assert [m.shape[-1] for m in load(settings).maps(pictures())] == [64, 32]


def test_bad_encoders_get_one_line(tmp_path, resnet):
    def refused(match, adapter=PIXELS, **settings):
        with pytest.raises(InputError, match=match):
            load(replace(Refine(), **settings), adapter)

    refused("name a file with the weights of a ResNet", encoder="resnet")
    refused("no such file", encoder="resnet", encoder_weights=str(tmp_path / "none.pth"))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    refused("no readable weights", encoder="resnet", encoder_weights=str(tmp_path / "torn.safetensors"))
    (tmp_path / "torn.pth").write_bytes(b"torn")
    refused("no readable weights", encoder="resnet", encoder_weights=str(tmp_path / "torn.pth"))
    refused(r"`_conv_stem.weight` has the shape None", encoder="efficientnet_lite0", encoder_weights=str(resnet[1]))
    refused("no CLIP", encoder="clip", encoder_weights=str(tmp_path))
    sees = "sees pictures, which these values have no decoder for"
    refused(sees, {"kind": "maze"}, encoder="clip", encoder_weights=CLIP.encoder_weights)
    with pytest.raises(InputError, match="did you mean `resnet`"):
        decode(Refine, {"encoder": "resnets"}, "refine")
    assert set(FEATURES) > set(ALL)
