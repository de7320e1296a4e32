# Models. Needs: a registry entry with a hub id and a pinned revision. Leaves: resources/models/<id>@<revision>/,
# safetensors only. Shipped models and local folders need nothing.


rule download_model:
    output:
        index="resources/models/{hub_id}@{revision}/{index}",
    log:
        "<logs>/models/{hub_id}@{revision}/{index}.log",
    wildcard_constraints:
        index=r"(model_index|config)\.json",
    localrule: True
    conda:
        "../envs/torch.yaml"
    script:
        "../scripts/download_model.py"
