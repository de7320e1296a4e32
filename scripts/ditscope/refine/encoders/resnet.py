"""A ResNet of torchvision (He et al. 2016) by the file of its weights: the maps of its four stages."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.refine.encoder import Normalise
from ditscope.refine.encoder_weights import fits, read_weights

SEES = "pictures"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights want
STAGES: dict[tuple[tuple[int, ...], bool], str] = {  # blocks of each stage, and whether they are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


class ResNetMaps(nn.Module):
    """The maps after each stage of a ResNet."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.normalise = Normalise(MEAN, STD)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Maps (batch, channels, height, width), finest first, of pictures (batch, 3, height, width) in [0, 1]."""
        n = self.network
        x = n.maxpool(n.relu(n.bn1(n.conv1(self.normalise(pictures)))))
        maps = []
        for stage in (n.layer1, n.layer2, n.layer3, n.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def load(weights: str) -> nn.Module:
    """The network whose state dict the file `weights` (safetensors or .pth) holds; its depth is read from the names."""
    import torchvision

    if not weights:
        raise InputError("refine.encoder_weights: name a file with the weights of a ResNet (safetensors or .pth)")
    state = read_weights(Path(weights))
    stages = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4))
    name = STAGES.get((stages, "layer1.0.conv3.weight" in state))
    if name is None:
        raise InputError(f"{weights}: no ResNet of torchvision has stages of {stages} blocks")
    with torch.random.fork_rng():  # the weights that are drawn first are not kept
        network = getattr(torchvision.models, name)(num_classes=len(state.get("fc.weight", range(1000))))
    fits(network, state, Path(weights), missing=("fc.",))
    return ResNetMaps(network)
