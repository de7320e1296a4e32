"""Train the shipped models again: snakemake -s models/train.smk --cores 2 (about two hours), then make install-models.

Every rule resumes from results/training/.partial/<stage>, which is kept when a job is stopped. A trial of the whole
chain in minutes: add `--config steps=2`.
"""

import sys

TRAIN = f"{sys.executable} tools/train.py" + (f" --steps {config['steps']}" if "steps" in config else "")

OUT = "results/training"
CLIP_TEXT = f"{OUT}/cliptext/model.safetensors"
T5 = f"{OUT}/text/model.safetensors"
VAE = f"{OUT}/vae/diffusion_pytorch_model.safetensors"
DECODER = f"{OUT}/decoder/diffusion_pytorch_model.safetensors"
BASE = f"{OUT}/base"  # models before their fine-tuning
MODELS = f"{OUT}/models"


rule all:
    input:
        f"{OUT}/acceptance.json",


rule vae:
    """The autoencoder of both generators."""
    output:
        VAE,
    log:
        f"{OUT}/logs/vae.log",
    shell:
        "{TRAIN} vae --out {OUT} > {log} 2>&1"


rule decoder:
    """The autoencoder with its decoder trained on, its encoder kept."""
    input:
        VAE,
    output:
        DECODER,
    log:
        f"{OUT}/logs/decoder.log",
    shell:
        "{TRAIN} decoder --out {OUT} > {log} 2>&1"


rule text:
    """The T5 encoder."""
    output:
        T5,
    log:
        f"{OUT}/logs/text.log",
    shell:
        "{TRAIN} text --out {OUT} > {log} 2>&1"


rule cliptext:
    """The text tower of shapes-clip."""
    output:
        CLIP_TEXT,
    log:
        f"{OUT}/logs/cliptext.log",
    shell:
        "{TRAIN} cliptext --out {OUT} > {log} 2>&1"


rule clip:
    """The image tower of shapes-clip."""
    input:
        CLIP_TEXT,
    output:
        f"{MODELS}/shapes-clip/model.safetensors",
    log:
        f"{OUT}/logs/clip.log",
    shell:
        "{TRAIN} clip --out {OUT} > {log} 2>&1"


rule generator:
    """shapes-flux or shapes-sd3."""
    input:
        DECODER,
        T5,
        CLIP_TEXT,
    output:
        f"{BASE}/shapes-{{stage}}/model_index.json",
    log:
        f"{OUT}/logs/{{stage}}.log",
    wildcard_constraints:
        stage="flux|sd3",
    shell:
        "{TRAIN} {wildcards.stage} --out {OUT} > {log} 2>&1"


rule blip:
    """The captioner."""
    input:
        DECODER,
    output:
        f"{BASE}/shapes-blip/model.safetensors",
    log:
        f"{OUT}/logs/blip.log",
    shell:
        "{TRAIN} blip --out {OUT} > {log} 2>&1"


rule tune_generator:
    """A generator that fills in what a prompt leaves out, at any text length."""
    input:
        f"{BASE}/shapes-{{stage}}/model_index.json",
    output:
        f"{MODELS}/shapes-{{stage}}/model_index.json",
    log:
        f"{OUT}/logs/tune-{{stage}}.log",
    wildcard_constraints:
        stage="flux|sd3",
    shell:
        "{TRAIN} tune-{wildcards.stage} --out {OUT} > {log} 2>&1"


rule tune_blip:
    """The captioner with a second task: captions that leave attributes out."""
    input:
        f"{BASE}/shapes-blip/model.safetensors",
        f"{BASE}/shapes-flux/model_index.json",
    output:
        f"{MODELS}/shapes-blip/model.safetensors",
    log:
        f"{OUT}/logs/tune-blip.log",
    shell:
        "{TRAIN} tune-blip --out {OUT} > {log} 2>&1"


rule refiners:
    """The refiners, in latents of the generator that is shipped: ask for this rule alone, after `make install-models`.

    The overlay is one that anyone can run; see experiments/shapes-refiners.yaml.
    """
    output:
        expand(f"{MODELS}/shapes-refiners/{{name}}.safetensors", name=["pictures", "films", "mazes"]),
    log:
        f"{OUT}/logs/refiners.log",
    shell:
        "snakemake --profile local --configfile experiments/shapes-refiners.yaml refine > {log} 2>&1"
        " && for file in {output}; do"
        " cp results/shapes-refiners/refine/$(basename $file .safetensors)/refiner.safetensors $file; done"


rule acceptance:
    """Measure all four on held-out combinations and write their READMEs."""
    input:
        f"{MODELS}/shapes-clip/model.safetensors",
        f"{MODELS}/shapes-blip/model.safetensors",
        expand(f"{MODELS}/shapes-{{stage}}/model_index.json", stage=["flux", "sd3"]),
    output:
        f"{OUT}/acceptance.json",
    log:
        f"{OUT}/logs/acceptance.log",
    shell:
        "{TRAIN} acceptance --out {OUT} > {log} 2>&1"
