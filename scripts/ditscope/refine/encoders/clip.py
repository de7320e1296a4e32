"""The image tower of a CLIP: the tokens of its layers as maps, without the class token."""

import torch.nn.functional as F
from torch import Tensor, nn

from ditscope.core.errors import InputError
from ditscope.refine.encoder import Normalise

SEES = "pictures"
SHIPPED = "models/shapes-clip"


class CLIPMaps(nn.Module):
    """The hidden states of a CLIP's image tower after each layer."""

    def __init__(self, tower: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.tower, self.normalise = tower, Normalise(mean, std)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Maps (batch, width, rows, columns) of pictures (batch, 3, height, width) in [0, 1], brought to its size."""
        config = self.tower.config
        side = config.image_size // config.patch_size
        if pictures.shape[-2:] != (config.image_size,) * 2:
            pictures = F.interpolate(pictures, (config.image_size,) * 2, mode="bilinear", antialias=True)
        states = self.tower(pixel_values=self.normalise(pictures), output_hidden_states=True).hidden_states
        return [state[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for state in states[1:]]


def load(weights: str) -> nn.Module:
    """The tower of the CLIP in the folder `weights`; of the shapes world where none is named."""
    from transformers import CLIPImageProcessor, CLIPModel

    folder = weights or SHIPPED
    try:
        tower = CLIPModel.from_pretrained(folder, local_files_only=True).float().vision_model
        told = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except OSError as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{folder}: no CLIP ({why}); name its folder in refine.encoder_weights") from None
    return CLIPMaps(tower, told.image_mean, told.image_std)
