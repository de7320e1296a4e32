"""Step files of a capture, written tensor by tensor on a thread of its own while the model computes on."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Thread
from typing import IO, Any

import torch
from torch import Tensor

ADVISE = getattr(os, "posix_fadvise", None)  # not on macOS
SAFETENSORS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # the format's names of types


class Background:
    """Runs tasks in order on one thread; at most `limit` bytes wait for it (a larger task waits alone).

    What a task raises is raised again by the next `submit`, or by `close`; tasks after it are dropped.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.waiting = limit, 0
        self.error: BaseException | None = None
        self.room = Condition()
        self.tasks: SimpleQueue[tuple[int, Callable[..., Any], tuple] | None] = SimpleQueue()
        self.thread = Thread(target=self.run, name="capture writer", daemon=True)
        self.thread.start()

    def submit(self, size: int, task: Callable[..., Any], *arguments: Any) -> None:
        """Queue `task(*arguments)`, which keeps `size` bytes alive until it is done; waits until there is room."""
        with self.room:
            self.room.wait_for(lambda: self.error or not self.waiting or self.waiting + size <= self.limit)
            if self.error:
                raise self.error
            self.waiting += size
        self.tasks.put((size, task, arguments))

    def run(self) -> None:
        """The thread: run tasks until `close`."""
        while (item := self.tasks.get()) is not None:
            size, task, arguments = item
            try:
                if not self.error:
                    task(*arguments)
            except BaseException as error:  # handed to the thread that samples
                self.error = error
            del item, task, arguments
            with self.room:
                self.waiting -= size
                self.room.notify_all()

    def close(self) -> None:
        """Wait for every task, end the thread, raise what a task raised."""
        self.tasks.put(None)
        self.thread.join()
        if self.error:
            raise self.error


class StepFile:
    """A safetensors file whose tensors, all of one type, arrive one after the other, their shapes known before.

    It has its name once `finish` has written every byte; its sha256 is taken on the way.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        self.layout, self.dtype = dict(layout), dtype
        self.expected = iter(self.layout)
        self.hash = hashlib.sha256()
        self.file: IO[bytes] | None = None
        self.bytes = 0

    def write(self, tensors: Mapping[str, tuple[Tensor, Any]]) -> None:
        """Append the next tensors of the layout, each with the event of its copy to the host."""
        for name, (tensor, copied) in tensors.items():
            expected = next(self.expected, None)
            if (name, tensor.shape, tensor.dtype) != (expected, self.layout.get(name), self.dtype):
                raise RuntimeError(f"{self.path}: got {name} {tuple(tensor.shape)} {tensor.dtype}, expected {expected}")
            copied.synchronize()
        if self.file is None:
            self.file = open(self.partial, "wb", buffering=0)  # noqa: SIM115 (closed by finish or abandon)
            self.append([memoryview(header(tuple(self.layout.items()), self.dtype))])
        self.append([raw(tensor) for tensor, _ in tensors.values()])

    def append(self, parts: Sequence[memoryview]) -> None:
        """Write bytes, all of them, have the disk begin with them, and hash them meanwhile."""
        assert self.file
        begin, left = self.bytes, os.writev(self.file.fileno(), parts[: os.sysconf("SC_IOV_MAX")])
        for part in parts:
            rest = part[left:]  # what one call did not take
            while rest:
                rest = rest[self.file.write(rest) :]
            left = max(0, left - len(part))
            self.bytes += len(part)
        if ADVISE:  # Linux begins to write back what it may forget, so that `flush` has little to wait for
            ADVISE(self.file.fileno(), begin, self.bytes - begin, os.POSIX_FADV_DONTNEED)
        for part in parts:
            self.hash.update(part)

    def finish(self) -> dict[str, Any]:
        """Give the file its name; what metadata.json says of it: its sha256 and bytes."""
        if (missing := next(self.expected, None)) is not None or self.file is None:
            raise RuntimeError(f"{self.path}: ended before {missing}")
        self.file.close()
        os.replace(self.partial, self.path)
        return {"sha256": self.hash.hexdigest(), "bytes": self.bytes}

    def abandon(self) -> None:
        """Remove an unfinished file."""
        if self.file is not None and not self.file.closed:
            self.file.close()
            self.partial.unlink(missing_ok=True)


@lru_cache(maxsize=4)  # all steps of a run have the same
def header(layout: tuple[tuple[str, tuple[int, ...]], ...], dtype: torch.dtype) -> bytes:
    """The header of the format: its length, then names, types, shapes and places as JSON in whole 8 bytes."""
    entries, begin = {}, 0
    for name, shape in layout:
        end = begin + layout_bytes({name: shape}, dtype)
        entries[name] = {"dtype": SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk; network file systems report a full one only here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def join(text: Tensor, image: Tensor) -> Tensor:
    """Text tokens, then image tokens, in one tensor; without a copy where they are parts of one already."""
    one = text.untyped_storage().data_ptr() == image.untyped_storage().data_ptr() and text.stride() == image.stride()
    if one and image.storage_offset() == text.storage_offset() + text.shape[1] * text.stride(1):
        batch, length, width = text.shape
        return text.as_strided((batch, length + image.shape[1], width), text.stride())
    return torch.cat([text, image], dim=1)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, copied only where it is not contiguous. NumPy, on the way, has no bfloat16."""
    known = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
    return known.contiguous().numpy().data.cast("B")


def layout_bytes(layout: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    """Bytes of tensors of these shapes."""
    return sum(torch.Size(shape).numel() for shape in layout.values()) * dtype.itemsize


class Unchanged:
    """Stands for the copy of a tensor that is on the host already: `synchronize` makes sure that it is as it was."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def synchronize(self) -> None:
        """Refuse a tensor that was changed in place after it was handed over."""
        if self.tensor._version != self.version:
            raise RuntimeError("a tensor was changed in place before it was written: its capture would be wrong")


class Copied:
    """Stands for a copy that is made already."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def to_host(tensor: Tensor, stream: Any = None) -> tuple[Tensor, Any]:
    """A tensor in host memory, and the event to wait for before it is read.

    From the GPU of `stream` it is copied into pinned memory on that stream, so that the GPU goes on computing.
    """
    if stream is None or tensor.device != stream.device:
        if tensor.device.type == "cpu" and not tensor.is_inference():  # inference tensors have no version to compare
            return tensor, Unchanged(tensor)
        return tensor.to("cpu", copy=True), Copied()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event(blocking=True)  # the writer sleeps, and does not spin on a core
        copied.record(stream)
    tensor.record_stream(stream)
    return host, copied
