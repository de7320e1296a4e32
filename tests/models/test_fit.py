"""Whether a machine can hold a model, and how: by hand for machines of several sizes."""

import pytest

from ditscope.models.fit import Machine, Way, needs, ways, working_mb
from ditscope.models.settings import Model

MILLIONS = {"transformer": 12000.0, "text_encoder": 100.0, "text_encoder_2": 5000.0, "vae": 100.0}
PICTURE = Model("flux", dtype="bfloat16", width=1000, height=1000)  # beside the weights: 4,000 MB
VIDEO = Model("dit", dtype="bfloat16", width=1000, height=1000, frames=81)  # 21 latent frames: 2.1 times as much


def fitting(entry: Model, gpus: tuple[int, ...], host: int, shared: bool = False) -> list[str]:
    """Names of the ways that fit: weights of 24,000 + 10,200 + 200 MB in two bytes, 12,000 + 10,200 + 200 in one."""
    found = ways(needs(MILLIONS, entry), Machine(gpus, host, 0, shared))
    return [way.name for way in found if way.fits]


def test_what_is_taken_beside_the_weights_grows_with_the_picture_and_the_film():
    assert working_mb(PICTURE) == 4000 and working_mb(VIDEO) == 8400
    assert working_mb(Model("flux", width=2000, height=1000)) == 8000
    assert working_mb(Model("flux", width=64, height=64)) == 500


@pytest.mark.parametrize(
    ("gpus", "host", "expected"),
    [
        ((), 16_000, []),
        ((), 64_000, ["on the CPU"]),  # 38,400 of 57,600
        ((), 42_000, []),  # 38,400 of 37,800: the system needs some
        ((80_000,), 64_000, [
            "on one GPU", "int8 weights, on one GPU", "--offload", "--offload, int8 weights", "on the CPU",
        ]),
        ((37_000,), 64_000, ["int8 weights, on one GPU", "--offload", "--offload, int8 weights", "on the CPU"]),
        ((32_000,), 64_000, ["--offload", "--offload, int8 weights", "on the CPU"]),  # 28,200
        ((27_000,), 64_000, ["--offload, int8 weights", "on the CPU"]),  # loading takes 24,200, sampling 16,200
        ((24_000,), 64_000, ["on the CPU"]),
        ((32_000,), 32_000, []),  # all weights pass through host memory: 34,400
        ((32_000, 32_000), 64_000, ["--multi_gpu", "--offload", "--offload, int8 weights", "on the CPU"]),
        ((29_000, 29_000), 64_000, ["--offload, int8 weights", "on the CPU"]),  # 28,000 of 27,550, with the transformer
        ((30_000, 30_000), 20_000, ["--multi_gpu"]),
    ],
)  # fmt: skip
def test_ways_by_machine(gpus, host, expected):
    assert fitting(PICTURE, gpus, host) == [name for name in expected if name != "--offload" or max(gpus) != 29_000]


def test_a_film_takes_more_and_a_mac_shares_its_memory():
    assert fitting(VIDEO, (37_000,), 64_000) == [
        "int8 weights, on one GPU",
        "--offload",
        "--offload, int8 weights",
        "on the CPU",
    ]
    assert fitting(VIDEO, (34_000,), 64_000) == ["--offload, int8 weights", "on the CPU"]
    assert fitting(PICTURE, (64_000,), 64_000, shared=True) == ["on one GPU", "int8 weights, on one GPU", "on the CPU"]


def test_eight_gpus_have_the_published_layout():
    found = {way.name: way for way in ways(needs(MILLIONS, PICTURE), Machine((40_000,) * 8, 64_000, 0))}
    assert found["--multi_gpu"] == Way("--multi_gpu", True, "8 GPUs, the fullest 28.0 GB of 40.0 GB")


def test_several_transformers_and_a_model_without_text_encoders():
    two = needs({"transformer": 14_000.0, "transformer_2": 14_000.0, "vae": 100.0}, PICTURE)
    assert two.weights == 56_200
    names = [way.name for way in ways(two, Machine((64_000,), 64_000, 0)) if way.fits]
    assert names == ["on one GPU", "int8 weights, on one GPU"]  # nothing to offload, and 60,200 of 57,600 for the CPU


def test_each_way_says_what_it_takes():
    texts = {way.name: way.text for way in ways(needs(MILLIONS, PICTURE), Machine((24_000,), 64_000, 0))}
    assert texts["on one GPU"] == "38.4 GB of 24.0 GB GPU memory"
    assert texts["--offload"] == "28.2 GB of 24.0 GB GPU memory, 34.4 GB of 64.0 GB host memory"
    alone = {way.name: way.text for way in ways(needs(MILLIONS, PICTURE), Machine((), 64_000, 0))}
    assert alone["on one GPU"] == "38.4 GB of GPU memory; there is no GPU"
