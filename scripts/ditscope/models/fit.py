"""Whether a machine can hold a model, and how: pure functions of what is known of both. Megabytes are 10^6 bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from ditscope.models.places import COMPONENTS, place
from ditscope.models.settings import Model

USABLE, USABLE_HOST = 0.95, 0.9  # of a GPU's memory: the rest is CUDA's own context; of the host's, the system's
# What sampling takes beside the weights, as an estimate: activations and the VAE's decode grow with the picture, and in
# a video with the frames that are computed at once.
WORKING_MB_PER_MEGAPIXEL = 4000
LEAST_WORKING_MB = 500
FRAMES_OF_A_PICTURE = (
    10  # latent frames that take about as much as one picture of their size, which the VAE decodes whole
)
NETWORKS = ("transformer", "unet")  # the components that schemes quantize, by the beginning of their names


@dataclass(frozen=True)
class Machine:
    """What a machine has."""

    gpus_mb: tuple[int, ...]  # memory of each GPU
    host_mb: int
    disk_mb: int  # free
    shared: bool = False  # the GPU's memory is the host's, as on a Mac


@dataclass(frozen=True)
class Needs:
    """What a model takes."""

    parts: Mapping[str, int]  # megabytes of each component's weights, in the type that it is loaded as
    half: Mapping[str, int]  # the same at a byte per weight
    working: int  # megabytes beside them while it samples one picture
    disk: int = 0  # megabytes that are still to be downloaded

    @property
    def weights(self) -> int:
        """Megabytes of all weights."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Way:
    """One way to hold a model."""

    name: str
    fits: bool
    text: str


def needs(millions: Mapping[str, float], entry: Model, disk: int = 0) -> Needs:
    """What a model takes, from the millions of parameters of its components and its entry's type, size and frames."""
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[entry.dtype]
    return Needs(
        {part: ceil(count * itemsize) for part, count in millions.items()},
        {part: ceil(count) for part, count in millions.items()},
        working_mb(entry),
        disk,
    )


def working_mb(entry: Model) -> int:
    """Megabytes beside the weights while one picture or video is sampled and decoded: an estimate."""
    megapixels = entry.width * entry.height / 1e6
    latent_frames = (entry.frames - 1) // 4 + 1
    return max(
        ceil(WORKING_MB_PER_MEGAPIXEL * megapixels * max(1.0, latent_frames / FRAMES_OF_A_PICTURE)), LEAST_WORKING_MB
    )


def ways(model: Needs, machine: Machine) -> list[Way]:
    """The ways to hold a model on a machine, the simplest first, each with whether it fits and what it takes."""
    quantized = sum(model.half[part] if is_network(part) else size for part, size in model.parts.items())
    on_gpu = sum(size for part, size in model.parts.items() if not part.startswith("text_encoder"))
    off = model.weights - on_gpu
    small = quantized - off
    found = [
        one_gpu("on one GPU", model.weights + model.working, machine),
        one_gpu("int8 weights, on one GPU", max(model.weights, quantized + model.working), machine),  # loaded before
        *spread(model, machine),
    ]
    if off and not machine.shared:
        found += [
            one_gpu("--offload", on_gpu + model.working, machine, host=model.weights),
            one_gpu("--offload, int8 weights", max(on_gpu, small + model.working), machine, host=model.weights),
        ]
    room = model.weights + model.working <= machine.host_mb * USABLE_HOST
    cpu = f"{gb(model.weights + model.working)} of {gb(machine.host_mb)} host memory; minutes to hours per picture"
    return [*found, Way("on the CPU", room, cpu)]


def one_gpu(name: str, wanted: int, machine: Machine, host: int = 0) -> Way:
    """A way that takes one GPU, the largest, and host memory for what does not lie there."""
    largest = max(machine.gpus_mb, default=0)
    text = f"{gb(wanted)} of {gb(largest)} GPU memory" if largest else f"{gb(wanted)} of GPU memory; there is no GPU"
    if host:
        text += f", {gb(host)} of {gb(machine.host_mb)} host memory"
    return Way(name, wanted <= largest * USABLE and host <= machine.host_mb * USABLE_HOST, text)


def spread(model: Needs, machine: Machine) -> list[Way]:
    """A component per GPU, where there are several; the fullest one decides."""
    count = len(machine.gpus_mb)
    if count < 2:
        return []
    places = place(COMPONENTS, count)
    full = [0] * count
    for part, size in model.parts.items():
        for component, share in shares(part, model).items():
            full[places[component]] += ceil(size * share)
    for component in ("transformer", "vae_decoder"):
        full[places[component]] += model.working
    if places["transformer"] == places["vae_decoder"]:
        full[places["transformer"]] -= model.working
    worst = max(range(count), key=lambda i: full[i] / machine.gpus_mb[i])
    text = f"{count} GPUs, the fullest {gb(full[worst])} of {gb(machine.gpus_mb[worst])}"
    return [Way("--multi_gpu", all(f <= m * USABLE for f, m in zip(full, machine.gpus_mb, strict=True)), text)]


def shares(part: str, model: Needs) -> dict[str, float]:
    """The components of a placement that a part of a pipeline is, each with its share: the largest encoder is T5's."""
    if is_network(part):
        return {"transformer": 1.0}
    if part.startswith("text_encoder"):
        largest = max((p for p in model.parts if p.startswith("text_encoder")), key=lambda p: model.parts[p])
        return {"t5" if part == largest else "clip": 1.0}
    return {"vae_encoder": 0.5, "vae_decoder": 0.5}


def is_network(part: str) -> bool:
    """Whether a component is the network that denoises."""
    return part.startswith(NETWORKS)


def gb(megabytes: float) -> str:
    """`23.8 GB`, or `9 MB` of what is small."""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 100 or not megabytes else f"{megabytes:.0f} MB"
