"""Invocations: what a place of a network is asked, and how generators and captioners answer."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ditscope.calibrate.files import CalibrationSet
from ditscope.calibrate.load import calibration_id, calibration_of_scheme, measure_on
from ditscope.core.errors import InputError
from ditscope.core.identity import BASE, digest, scheme_id, weights_id
from ditscope.core.picture_file import pixels
from ditscope.core.shards import Sample
from ditscope.models.captioners import caption, load_captioner
from ditscope.models.loading import load_generator
from ditscope.models.registry import has_weights
from ditscope.models.requests import prompt_tokens, request_key, request_of
from ditscope.models.sampling import decode, sample, still
from ditscope.models.settings import Scheme
from ditscope.trajectories.networks import Entry
from ditscope.trajectories.settings import Trajectories

State = str | np.ndarray  # a text, or an image (height, width, 3) uint8


@dataclass(frozen=True)
class Request:
    """One invocation to compute; equal hashes ask for the same thing."""

    hash: str
    state: State
    seed: int
    negative_prompt: str


@dataclass(frozen=True)
class Answer:
    """What a model made of a request, and whether its text encoder had to cut the input (None: it read an image)."""

    state: State
    input_truncated: bool | None = None


@dataclass(frozen=True)
class Node:
    """One place of a network's cycle: what it is called, and two functions.

    `ask(state, seed, negative_prompt)` gives the request's hash; `load()` gives the function that answers a batch.
    """

    label: str
    model: str
    scheme: str
    makes: str  # IMAGE or TEXT
    ask: Callable[[State, int, str], str]
    load: Callable[[], Callable[[list[Request]], list[Answer]]]


def node_of(entry: Entry, plan: Path | None, settings: Trajectories = Trajectories()) -> Node:
    """The node of a network's entry; its model loads when it is first asked."""
    image = entry.makes == "IMAGE"
    solved_from = calibration_id(entry.scheme) if entry.scheme else ""
    scheme = scheme_id(asdict(entry.scheme) if entry.scheme else None, plan, settings.compile, solved_from)
    ask, load = (
        (partial(ask_generator, scheme=scheme), answer_by_generator) if image else (ask_captioner, answer_by_captioner)
    )
    return Node(
        label=entry.label,
        model=entry.name,
        scheme=entry.variant,
        makes=entry.makes,
        ask=lambda state, seed, negative: ask(entry, state, seed, negative),
        load=lambda: load(entry, plan, settings),
    )


def check_calibration(entry: Entry) -> CalibrationSet | None:
    """The set that an entry's scheme is solved from, looked through before its model loads; None: it needs none."""
    return calibration_of_scheme(entry.scheme, entry.name, entry.model) if entry.scheme else None


def ask_generator(entry: Entry, text: State, seed: int, negative_prompt: str, scheme: str = BASE) -> str:
    """The request hash of one image; `scheme` is what `identity.scheme_id` makes of the entry's quantization."""
    run = {"prompt": str(text), "negative_prompt": negative_prompt, "seed": seed}
    return request_key(request_of(entry.name, entry.model, run), scheme)


def ask_captioner(entry: Entry, image: State, seed: int, negative_prompt: str) -> str:
    """The request hash of one caption; the seed is part of it where tokens are drawn, at a temperature above 0."""
    model = entry.model
    request = {"model": entry.name, "revision": model.revision, "backend": "torch", "dtype": model.dtype}
    request["weights"] = weights_id(model.source, model.revision)
    search = {k: getattr(model, k) for k in ("max_new_tokens", "num_beams", "caption_task")}
    search |= {"caption_prompt": model.caption_prompt} if model.caption_prompt else {}
    search |= {"code_revisions": model.code_revisions} if model.code_revisions else {}
    if model.temperature:
        search |= {"temperature": model.temperature, "top_p": model.top_p, "seed": seed}
    return digest(request | search | {"image": state_key(image)})


def answer_by_generator(
    entry: Entry, plan: Path | None, settings: Trajectories
) -> Callable[[list[Request]], list[Answer]]:
    """Load a generator, quantize it as the entry says, compile it as the stage does, and answer with its images.

    A compiled one is given batches of one size, filled up by repetition: it would be compiled anew for each other size.
    """
    model = load_generator(entry.name, entry.model)
    compiled = settings.compile != "eager" and has_weights(entry.model)
    if entry.scheme is not None or compiled:
        from ditscope.models.prepare import prepare  # brings torchao with it

        measure = measure_on(model, check_calibration(entry))
        if reason := prepare(model, entry.scheme or Scheme(BASE), settings.compile, plan, measure):
            raise InputError(f"trajectories: `{entry.label}` ({settings.compile}) cannot run here: {reason}")

    def answer(requests: list[Request]) -> list[Answer]:
        asked = [*requests, *requests[-1:] * (settings.batch_size - len(requests))] if compiled else requests
        texts = [str(request.state) for request in asked]
        negatives, seeds = [request.negative_prompt for request in asked], [request.seed for request in asked]
        images = decode(model, sample(model, texts, negatives, seeds)).numpy()
        return [
            Answer(still(image), prompt_tokens(model, text)[1])
            for image, text, _ in zip(images, texts, requests, strict=False)
        ]

    return answer


def answer_by_captioner(
    entry: Entry, plan: Path | None, settings: Trajectories
) -> Callable[[list[Request]], list[Answer]]:
    """Load a captioner and answer requests with its captions."""
    captioner = load_captioner(entry.name, entry.model)

    def answer(requests: list[Request]) -> list[Answer]:
        images = [Image.fromarray(np.asarray(request.state)) for request in requests]
        seeds = [request.seed for request in requests]
        return [Answer(text) for text in caption(captioner, images, seeds)]

    return answer


def state_key(state: State) -> str:
    """128-bit hex key of a text, or of an image's size and exact pixels."""
    if isinstance(state, str):
        return hashlib.sha256(b"text\0" + state.encode()).hexdigest()[:32]
    size = "x".join(map(str, state.shape)).encode()
    return hashlib.sha256(b"image\0" + size + b"\0" + np.ascontiguousarray(state).tobytes()).hexdigest()[:32]


def state_of(sample: Sample) -> State:
    """The text or the image of a kept answer."""
    if "txt" in sample:
        return sample["txt"].decode()
    return pixels(sample["png"])
