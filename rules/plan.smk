# Plans. Needs: a model's tables `sensitivity`, or `sensitivity.formats` for a budget that names formats. Leaves:
# <results>/plans/<model>/<budget>.json: bits, or the format, of every linear layer.


rule plan:
    input:
        bit_plans(*CONFIG.sensitivity.models),


rule bit_plan:
    input:
        sensitivity=lambda w: plan_tables(w.model, w.budget),
        timing=lambda w: plan_timings(w.model, w.budget),
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
        formats=lambda w: {name: scheme_params(name, w.model) for name in CONFIG.plan.budgets[w.budget].formats},
    script:
        "../scripts/bit_plan.py"
