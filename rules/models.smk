# Models. Needs: a registry entry with a hub id and a pinned revision. Leaves: resources/models/<id>@<revision>/,
# safetensors only. Shipped models and local folders need nothing.


rule download_model:
    output:
        index="resources/models/{hub_id}@{revision}/{index}",
    wildcard_constraints:
        index=r"(model_index|config)\.json",
    log:
        "<logs>/models/{hub_id}@{revision}/{index}.log",
    conda:
        "../envs/torch.yaml"
    localrule: True
    script:
        "../scripts/download_model.py"
