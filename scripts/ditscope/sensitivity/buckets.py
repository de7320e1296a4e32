"""Timestep buckets: the parts of a sampling trajectory that sensitivity is told apart for."""

BUCKETS = ("early", "mid", "late")


def bucket_of_step(step: int, steps: int) -> str:
    """The bucket of step `step` of `steps`: thirds of the steps."""
    return BUCKETS[step * 3 // steps]


def bucket_of_sigma(sigma: float) -> str:
    """The bucket of a noise level: above 0.7, 0.3 to 0.7, below 0.3."""
    return BUCKETS[0 if sigma > 0.7 else 1 if sigma >= 0.3 else 2]
