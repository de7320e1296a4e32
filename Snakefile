# ditscope: prompts -> images -> captures, calibration, sensitivity, plans, benchmarks, trajectories and what they
# mean, refiner -> videos and figures. `snakemake --profile local` runs the demo; docs/ tells the rest.
from snakemake.utils import min_version

min_version("9.19")


configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/outputs.smk"


from ditscope.workflow.progress import write_plan, write_progress


pathvars:
    results=RESULTS,
    logs=f"{RESULTS}/logs",
    benchmarks=f"{RESULTS}/.benchmarks",


report: caption_of("workflow")


include: "rules/models.smk"
include: "rules/prompts.smk"
include: "rules/generate.smk"
include: "rules/capture.smk"
include: "rules/calibrate.smk"
include: "rules/sensitivity.smk"
include: "rules/plan.smk"
include: "rules/benchmark.smk"
include: "rules/trajectories.smk"
include: "rules/embed.smk"
include: "rules/drift.smk"
include: "rules/cluster.smk"
include: "rules/topology.smk"
include: "rules/refine.smk"
include: "rules/video.smk"
include: "rules/analyse.smk"
include: "rules/publish.smk"


for name in set(STAGES) - set(CONFIG.asked()):
    workflow.get_rule(name).set_input(refuse_stage(name))


rule all:
    default_target: True
    input:
        targets().values(),


# The half of a study that one machine makes; docs/environments.md tells how halves are joined.
rule cuda:
    input:
        lambda w: half("torch"),


rule mlx:
    input:
        lambda w: half("mlx"),


onstart:
    write_plan(RESULTS, targets(), rule_patterns(), plain(CONFIG), workflow.overwrite_configfiles, upstream())
    start_worker(workflow, CONFIG.warm_starts)


onsuccess:
    write_progress(RESULTS)


onerror:
    write_progress(RESULTS, failed=log)
