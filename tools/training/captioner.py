"""shapes-blip: a BlipForConditionalGeneration that writes the canonical caption of a picture."""

import string
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

from ditscope.refine.loop import LoopSettings
from ditscope.shapes.world import caption, train_scenes
from training.data import Readout, attribute_targets, base_folder, cached_pictures, to_tensor
from training.loop import load_average, train
from training.text import vocabulary_texts
from training.vae import reconstruct

SETTINGS = {"blip": LoopSettings(steps=1600, batch=48, lr=1.5e-3, warmup=60, decay=0.4, ema=0.99, seed=17, muon=True)}
WIDTH, MAX_TEXT = 128, 32


def bert_tokenizer() -> BertTokenizer:
    """A WordPiece tokenizer (Wu et al., arXiv:1609.08144): the world's words and single characters."""
    words = sorted({word.strip(",.").lower() for text in vocabulary_texts() for word in text.split()})
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *characters, *(f"##{c}" for c in characters)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocab, model_max_length=MAX_TEXT)


def processor() -> BlipProcessor:
    """64 x 64 pictures scaled to [-1, 1], and the tokenizer."""
    images = BlipImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return BlipProcessor(image_processor=images, tokenizer=bert_tokenizer())


def build() -> BlipForConditionalGeneration:
    """The untrained captioner (Li et al., arXiv:2201.12086)."""
    torch.manual_seed(SETTINGS["blip"].seed)
    tokenizer = bert_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "encoder_hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TEXT,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, image_text_hidden_size=WIDTH)
    model = BlipForConditionalGeneration(config)
    for part in (model, model.text_decoder):
        part.generation_config.update(
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_length=MAX_TEXT,
        )
    return model


def training_pictures(out: Path, vae: AutoencoderKL) -> np.ndarray:
    """Augmented renders and autoencoder reconstructions of the training scenes, (1632 * 12, 64, 64, 3) by scene."""
    path = out / "data" / "captioner.npy"
    if not path.exists():
        augmented = cached_pictures(out / "data", 10, 102, True)
        plain = cached_pictures(out / "data", 2, 103)
        scenes = len(train_scenes())
        parts = [x.reshape(scenes, -1, *x.shape[1:]) for x in (augmented, reconstruct(vae, plain))]
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(parts, 1).reshape(-1, *augmented.shape[1:]), allow_pickle=False)
        temporary.replace(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


class Trainee(torch.nn.Module):
    """The captioner and a read-out of its image tower's class token."""

    def __init__(self) -> None:
        super().__init__()
        self.blip = build()
        self.readout = Readout(WIDTH)


def loss_function(model: Trainee, pictures: np.ndarray, settings: LoopSettings):
    """Next-token cross-entropy of the canonical caption, plus the attributes read from the class token."""
    scenes = train_scenes()
    tokens = bert_tokenizer()([caption(scene) for scene in scenes], padding="longest", return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    per_scene = len(pictures) // len(scenes)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (settings.batch,), generator=generator)
        scene = rows // per_scene
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model.blip(
                pixel_values=to_tensor(pictures[rows.numpy()]),
                input_ids=ids[scene],
                attention_mask=mask[scene],
                labels=labels[scene],
            )
        guess = output.logits[:, :-1].argmax(-1)
        right = (guess.eq(labels[scene][:, 1:]) | labels[scene][:, 1:].eq(-100)).all(1)
        read = model.readout.loss(output.image_embeds[:, 0].float(), attribute_targets(scene.tolist()))
        return output.loss.float() + read, {"exact": right.float().mean().item(), "read": read.item()}

    return loss


def finish(model: BlipForConditionalGeneration, folder: Path) -> None:
    """Save the captioner in bfloat16 and its processor."""
    model.to(torch.bfloat16).save_pretrained(folder)
    processor().save_pretrained(folder)


def run(stage: str, out: Path, settings: LoopSettings) -> dict:
    """Train the captioner on pictures of the training scenes and save it to out/base/shapes-blip."""
    pictures = training_pictures(out, AutoencoderKL.from_pretrained(out / "decoder", torch_dtype=torch.float32))
    model = Trainee()
    summary = train(model, loss_function(model, pictures, settings), settings, out / ".partial" / stage)
    finish(model.blip, base_folder(out, stage))
    return summary


def export(stage: str, out: Path) -> dict:
    """Save the captioner of the last checkpoint to out/base/shapes-blip, without training on."""
    model = Trainee()
    state = load_average(model, out / ".partial" / stage)
    finish(model.blip, base_folder(out, stage))
    return state
