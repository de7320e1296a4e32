"""Views of the catalog: one per question, over the tables that answer it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """A view: its name, the question that it answers, the tables that it reads, and its query."""

    name: str
    question: str
    tables: tuple[str, ...]
    query: str


VIEWS = (
    View(
        "runs",
        "Which runs were asked for, and of how many pictures do I have each model's?",
        ("prompts", "images"),
        """
SELECT prompts.prompt_id, prompts.seed, prompts.prompt, images.model, images.request_hash, images.key, images.png_sha256
FROM prompts LEFT JOIN images USING (prompt_id, seed)""",
    ),
    View(
        "captions",
        "What does each trajectory say, caption after caption?",
        ("trajectories",),
        """
SELECT network, run_id, prompt_id, sequence_number, output_text AS caption, stop_reason, loop_length
FROM trajectories WHERE type = 'TEXT'""",
    ),
    View(
        "distinct_captions",
        "How many different captions does each trajectory have, and why did it end?",
        ("trajectories",),
        """
SELECT network, run_id, any_value(prompt_id) AS prompt_id, count(*) AS captions,
    count(DISTINCT output_key) AS distinct_captions, any_value(stop_reason) AS stop_reason
FROM trajectories WHERE type = 'TEXT' AND sequence_number >= 0 GROUP BY network, run_id""",
    ),
    View(
        "final_drift",
        "How far is each run from its start at its last state?",
        ("drift",),
        """
SELECT embedder, network, run_id, prompt_id, seed, sequence_number, continued, euclidean, cosine_distance, angle_rad
FROM drift WHERE control = 'observed'
QUALIFY sequence_number = max(sequence_number) OVER (PARTITION BY embedder, network, run_id)""",
    ),
    View(
        "drift_beside_nulls",
        "How far do runs go, and is that more than nothing gives?",
        ("drift", "drift_nulls"),
        """
WITH last AS (
    SELECT embedder, network, count(*) AS runs, median(cosine_distance) AS median_cosine_distance FROM (
        SELECT * FROM drift WHERE control = 'observed'
        QUALIFY sequence_number = max(sequence_number) OVER (PARTITION BY embedder, network, run_id))
    GROUP BY embedder, network)
SELECT last.*, claim, statistic, null_low, null_median, null_high, p_holm, reason
FROM last LEFT JOIN drift_nulls AS nulls USING (embedder, network)""",
    ),
    View(
        "claims_beside_nulls",
        "What do groups of runs do (memory, plateau or walk, divergence), and is that more than nothing gives?",
        ("drift_claims",),
        """
SELECT embedder, network, seeds, claim, runs, prompts, statistic, low, high, null_low, null_median, null_high, p_holm,
    reason
FROM drift_claims""",
    ),
    View(
        "what_lasts",
        "How long does what runs began with last under quantization, beside the base?",
        ("drift_quantized",),
        """
SELECT network, base, seeds, reader, what, pairs, prompts, horizon, base_lasted, lasted, difference, low, high,
    null_low, null_high, p_holm, reason
FROM (SELECT *, "by" AS reader FROM drift_quantized)""",
    ),
    View(
        "cluster_names",
        "What is each cluster about, how large is it, and how many runs go there?",
        ("clusters",),
        """
SELECT embedder, label, any_value(medoid_text) AS medoid, count(*) AS states,
    count(DISTINCT (network, run_id)) AS runs
FROM clusters WHERE label IS NOT NULL GROUP BY embedder, label""",
    ),
    View(
        "where_runs_end",
        "In which clusters do runs end?",
        ("clusters",),
        """
SELECT embedder, network, label, medoid_text AS medoid, count(*) AS runs,
    count(*) / sum(count(*)) OVER (PARTITION BY embedder, network) AS share
FROM (SELECT * FROM clusters
    QUALIFY sequence_number = max(sequence_number) OVER (PARTITION BY embedder, network, run_id))
WHERE label IS NOT NULL GROUP BY embedder, network, label, medoid_text""",
    ),
    View(
        "stable_runs",
        "Which runs stay longest in one cluster?",
        ("clusters_longest_runs",),
        """
SELECT embedder, network, rank, run_id, prompt_id, seed, label, start_sequence_number, length, exit_seen
FROM clusters_longest_runs WHERE scope = 'anytime'""",
    ),
    View(
        "sensitive_layers",
        "Which layers change the finished picture most when they are quantized?",
        ("sensitivity",),
        """
SELECT model, bits, layer, kind, depth, value AS image_rms, value_low, value_high, parameters,
    rank() OVER (PARTITION BY model, bits ORDER BY value DESC) AS rank
FROM sensitivity WHERE metric = 'image_rms' AND bucket = 'all'""",
    ),
    View(
        "schemes",
        "What does each scheme cost and gain: size, time, quality?",
        ("benchmark", "benchmark_timing"),
        """
SELECT model, hardware, scheme, compile, batch, nominal_bytes, stored_bytes, latency_median_ms, speedup, speedup_low,
    speedup_high, speedup_verdict, quality_loss, quality_loss_low, quality_loss_high, quality_verdict, n_prompts
FROM benchmark LEFT JOIN benchmark_timing USING (model, hardware, scheme, compile)""",
    ),
    View(
        "block_roles",
        "What does each block do to the tokens, on average over captured generations?",
        ("blocks_residual",),
        """
SELECT model, depth, block, stream, half, count(DISTINCT generation_id) AS generations,
    avg(relative_update) AS relative_update, avg(update_cosine) AS update_cosine
FROM blocks_residual GROUP BY model, depth, block, stream, half""",
    ),
)
