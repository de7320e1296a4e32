"""Tables of the stage `calibrate`."""

from ditscope.core.schema import Column, Table

PERCENTILES = {"channel_p99": 0.99, "channel_p999": 0.999}  # of the magnitude over tokens
CHANNELS = ("channel_min", "channel_max", *PERCENTILES, "channel_shift")
LAYER = {
    "model": Column("String", "the model's name in the config"),
    "layer": Column("String", "fully qualified name in the transformer"),
}
STEP = {
    "step_index": Column("Int64", "number of the step, from 0"),
    "sigma": Column("Float64", "noise level before the step"),
}
N = Column("Int64", "samples: images times calls of the layer in one step")

ACTIVATIONS = Table(
    "calibration.activations",
    "calibration/*/activations.parquet",
    "layer, in network order, and step",
    key=("model", "layer", "step_index"),
    columns={
        **LAYER,
        "kind": Column("String", "kind of the layer, as in the table `sensitivity`"),
        **STEP,
        "channels": Column("Int64", "input channels of the layer"),
        "n": N,
        "absmax": Column("Float64", "largest magnitude of any channel"),
        "outlier_ratio": Column(
            "Float64",
            "`absmax` over the median channel's largest magnitude; null where that is 0",
            nullable=True,
        ),
        "outliers": Column("Int64", "how many channels have a largest magnitude above 10 times the median channel's"),
        "outlier_channels": Column("List(Int64)", "which these are"),
        **dict.fromkeys(
            ("channel_min", "channel_max"),
            Column("List(Float32)", "least and largest value of each channel, over images and tokens"),
        ),
        **dict.fromkeys(
            PERCENTILES,
            Column(
                "List(Float32)",
                "99 % and 99.9 % quantile (nearest rank) of the magnitude over an image's tokens, averaged over images",
            ),
        ),
        "channel_shift": Column(
            "List(Float32)",
            "moving average over images of the midpoint (min + max) / 2, decay 0.95, normalised weights",
        ),
    },
)
PART = Table(
    "calibration.activations.part",
    "calibration/*/shards/*/activations/*.parquet",
    "layer and step, of one slice of images",
    key=("model", "layer", "step_index"),
    joined="calibration.activations",
    columns={
        **LAYER,
        **STEP,
        "n": N,
        **dict.fromkeys(
            CHANNELS,
            Column("List(Float32)", "extremes, and sums over images, that merge to those of the whole set"),
        ),
    },
)
