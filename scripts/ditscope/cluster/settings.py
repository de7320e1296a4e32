"""Settings of the stage `cluster`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Cluster:
    """Cluster the embedded states (HDBSCAN) and describe how trajectories move between clusters."""

    min_cluster_size: int = setting(0, "Smallest cluster; 0: max(2, n / 1000) for n states of an embedder")
    min_samples: int = setting(0, "Neighbours that make a dense place; 0: as min_cluster_size")
    epsilon: float = setting(0.4, "Clusters closer than this Euclidean distance of unit vectors are not split")
    allow_single_cluster: bool = setting(True, "Let all states be one cluster")
    max_points: int = setting(10_000, "Cluster a fixed sample of this many states and label the rest by it; 0: all")
    max_map_points: int = setting(10_000, "Map (t-SNE) a fixed sample of this many states of an embedder; 0: all")
    max_compared: int = setting(
        20_000, "Adjusted mutual information of two labellings from a fixed sample of this many states; 0: all"
    )
    drop_outliers: bool = setting(False, "Glue run lengths across outliers instead of breaking at them")
