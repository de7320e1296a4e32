"""Tables of the stage `ablate`."""

from ditscope.core.schema import Column, Table

ABLATION = Table(
    "ablation",
    "ablation/*.parquet",
    "run, ablated block and kind of ablation",
    key=("model", "prompt_id", "seed", "block", "kind"),
    columns={
        "request_hash": Column("String", "128-bit key of the picture without ablation, as in the table `images`"),
        "model": Column("String", "the model's name in the config"),
        "prompt_id": Column("String", "the run's prompt, as in the table `prompts`"),
        "seed": Column("Int64", "the run's seed"),
        "block": Column("String", "the ablated block, as `double_block_3`"),
        "block_type": Column("String", "kind of the block, as `double`"),
        "block_index": Column("Int64", "number of the block among those of its kind, from 0"),
        "depth": Column("Int64", "place of the block in the whole network, from 0"),
        "kind": Column("String", "`skip` or `mean`"),
        "ablated_steps": Column("String", "at which steps, as the pattern that was given"),
        "latent_relative_l2": Column("Float64", "norm of the change of the final latents over their norm"),
        "psnr_db": Column("Float64", "peak signal-to-noise ratio of the picture to the unchanged one, dB"),
        "ssim": Column("Float64", "structural similarity of the picture to the unchanged one"),
        "feature_cosine_distance": Column(
            "Float64",
            "1 - cosine of their image features under the embedder `ablate.features`; null without one",
            nullable=True,
        ),
    },
)
