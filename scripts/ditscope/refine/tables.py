"""Tables of the stage `refine`."""

from ditscope.core.schema import Column, Table

KEY = Column("String", "the image: its request hash")
PROMPT_ID = Column("String", "the run's prompt, as in the table `prompts`")
CODE = Column("Int64", "its pseudo-class, from 0")
NETWORK = Column("String", "`latent_mae` or `refiner`")
STEP = Column("Int64", "optimizer step, from 1")

ASSIGNMENTS = Table(
    "refine.assignments",
    "refine/*/assignments.parquet",
    "sample",
    key=("key", "prompt_id"),
    places=("model",),
    columns={
        "key": KEY,
        "prompt_id": PROMPT_ID,
        "prompt": Column("String", "the run's prompt"),
        "seed": Column("Int64", "the run's seed"),
        "code": CODE,
        "distance": Column("Float64", "Euclidean distance of its condition embedding to the centroid"),
    },
)
TRAINING = Table(
    "refine.training",
    "refine/*/training.parquet",
    "network, step and metric",
    key=("network", "step", "metric"),
    places=("model",),
    columns={
        "network": NETWORK,
        "step": STEP,
        "metric": Column("String", "see below"),
        "value": Column("Float64", "its value"),
    },
)
TIMING = Table(
    "refine.training.timing",
    "refine/*/training.timing.parquet",
    "network and step",
    key=("network", "step"),
    places=("model",),
    columns={
        "network": NETWORK,
        "step": STEP,
        "seconds": Column("Float64", "seconds of the step"),
        "world_size": Column("Int64", "processes"),
        "device": Column("String", "what the first process computed on, as `hardware` in `benchmark`"),
        "peak_memory_bytes": Column("Int64", "most that this process held of its GPU, or else of the host's memory"),
    },
)
DIAGNOSTICS = Table(
    "refine.diagnostics",
    "refine/*/diagnostics.parquet",
    "group and metric",
    key=("group", "metric"),
    places=("model",),
    columns={
        "group": Column("String", "see below"),
        "metric": Column("String", "see below"),
        "value": Column(
            "Float64", "null where the metric is not defined (no class with two samples, say)", nullable=True
        ),
    },
)
NEIGHBOURS = Table(
    "refine.neighbours",
    "refine/*/neighbours.parquet",
    "sample and rank; runs that share a picture are samples of one key",
    key=(),
    places=("model",),
    columns={
        "key": KEY,
        "rank": Column("Int64", "1: the nearest other sample"),
        "neighbour_key": Column("String", "the image of that rank"),
        "distance": Column("Float64", "Euclidean, in pooled `latent_mae` features"),
        "code": CODE,
        "neighbour_code": Column("Int64", "the neighbour's pseudo-class"),
        "same_code": Column("Boolean", "whether both are the same"),
        "text_cosine": Column("Float64", "cosine of the centred vectors of both texts"),
        "keyframe_cosine": Column("Float64", "cosine of the centred mean key patches"),
    },
)
TSNE = Table(
    "refine.tsne",
    "refine/*/tsne.parquet",
    "sample",
    key=("key", "prompt_id"),
    places=("model",),
    columns={
        "key": KEY,
        "prompt_id": PROMPT_ID,
        "code": CODE,
        **dict.fromkeys("xy", Column("Float64", "openTSNE coordinate of the pooled `latent_mae` features, no unit")),
        **dict.fromkeys(
            ("umap_x", "umap_y"),
            Column("Float64", "UMAP coordinate of the same; null where umap-learn is not installed", nullable=True),
        ),
    },
)
SAMPLES = Table(
    "refine.samples",
    "refine/*/samples.parquet",
    "sample",
    key=("row",),
    places=("refiner",),
    columns={
        "row": Column("Int64", "its number, from 0"),
        "key": Column("String", "what it is known by: of a generated image its request hash"),
        "prompt_id": Column("String", "the run's prompt, as in the table `prompts`; else the key"),
        "prompt": Column("String", "its prompt"),
        "seed": Column("Int64", "the run's seed, or that of what was made"),
        "split": Column("String", "`train` or `held-out`"),
        "label": Column(
            "String", "what it is: a combination of attributes, a class folder; empty where nothing is said"
        ),
        "shard": Column("String", "the shard that holds it, below the folder of data.json"),
        "values_offset": Column("Int64", "byte of the shard at which its values begin"),
        "values_bytes": Column("Int64", "their size"),
        "text_offset": Column("Int64", "byte at which its text tokens begin; 0 without"),
        "text_bytes": Column("Int64", "their size; 0 without"),
    },
)

OPTIONAL = "null for fewer than 8 units"
EVALUATION = Table(
    "refine.evaluation",
    "refine/*/evaluation.parquet",
    "level, method and metric, over held-out samples",
    key=("level", "method", "metric"),
    places=("refiner",),
    columns={
        "level": Column("Int64", "corruption level, from 1, the one with the most keys"),
        "keys": Column("Int64", "known patches, frames or steps"),
        "method": Column("String", "see below"),
        "metric": Column("String", "see below"),
        "value": Column("Float64", "mean over units; of `kid` and `fid` that of all samples"),
        "low": Column("Float64", f"its 95 % interval over units; {OPTIONAL}", nullable=True),
        "high": Column("Float64", "its upper end", nullable=True),
        "gain": Column(
            "Float64", "how much better than the interpolation of the same samples; null for itself", nullable=True
        ),
        "gain_low": Column("Float64", f"the 95 % interval of the paired gain; {OPTIONAL}", nullable=True),
        "gain_high": Column("Float64", "its upper end", nullable=True),
        "samples": Column("Int64", "held-out samples"),
        "units": Column("Int64", "combinations, prompts or samples that these were drawn as"),
    },
)
GALLERY = Table(
    "refine.gallery",
    "refine/*/gallery.parquet",
    "picture",
    key=("picture",),
    places=("refiner",),
    columns={
        "picture": Column("String", "its file, below the refiner's folder"),
        "key": Column("String", "the sample, as in `refine.samples`"),
        "prompt": Column("String", "its prompt"),
        "level": Column("Int64", "corruption level"),
        "keys": Column("Int64", "known patches, frames or steps"),
        "method": Column(
            "String",
            "`keys` (what is given, the rest grey), a method of `refine.evaluation`, `truth`, or `film` of these",
        ),
        "label": Column("String", "what to write beside it"),
    },
)
