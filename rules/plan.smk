# Bit plans. Needs: a model's tables `sensitivity`. Leaves: <results>/plans/<model>/<budget>.json: bits of every linear layer.


rule plan:
    input:
        bit_plans(*CONFIG.sensitivity.models),


rule bit_plan:
    input:
        sensitivity=lambda w: sensitivity_layers(w.model),
    output:
        plan="<results>/plans/{model}/{budget}.json",
    log:
        "<logs>/plan/{model}/{budget}.log",
    conda:
        "../envs/analysis.yaml"
    params:
        code=code("plan.stage"),
        budget=lambda w: plain(CONFIG.plan.budgets[w.budget]),
        settings=stage("plan"),
    script:
        "../scripts/bit_plan.py"
