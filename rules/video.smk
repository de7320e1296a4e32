# Films. Needs: capture sets with decoded pictures; the trajectories of every network, and their jumps where
# the study has them. Leaves:
# <results>/videos/captures/<model>/<capture>.gif|mp4 (every block of every step), .html (the same in H.264, for the
# report), -denoising.gif|mp4 (the model's own estimate at every step), -sheets/<generation_id>.png (steps down, blocks
# across); <results>/videos/trajectories.gif|mp4 (prompts down, networks across, a frame per invocation) and .html;
# <results>/videos/timelines/<network>.png|jpg (a row per run), <results>/videos/strips/<network>.png|jpg (the first run).


rule video:
    input:
        capture_videos(*CONFIG.capture.models),
        trajectory_videos(),


rule capture_video:
    input:
        captures="<results>/captures/{model}/{capture}",
    output:
        video=f"<results>/videos/captures/{{model}}/{{capture}}{FILM}",
        page=report(
            "<results>/videos/captures/{model}/{capture}.html",
            caption="../report/capture-video.rst",
            category=category("video"),
            labels={"film": "{model}: {capture}"},
        ),
        denoising=f"<results>/videos/captures/{{model}}/{{capture}}-denoising{FILM}",
        sheets=directory("<results>/videos/captures/{model}/{capture}-sheets"),
    log:
        "<logs>/video/{model}-{capture}.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=code("video.stage"),
        settings=stage("video"),
    script:
        "../scripts/capture_video.py"


rule trajectory_video:
    input:
        tables=trajectory_shards(*CONFIG.trajectories.networks),
        images=trajectory_shards(*CONFIG.trajectories.networks, suffix="tar"),
        jumps=jump_tables(),
    output:
        video=f"<results>/videos/trajectories{FILM}",
        page=report(
            "<results>/videos/trajectories.html",
            caption="../report/trajectory-video.rst",
            category=category("video"),
            labels={"film": "trajectories"},
        ),
    log:
        "<logs>/video/trajectories.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=code("video.mosaic"),
        settings=stage("video"),
    script:
        "../scripts/trajectory_video.py"


rule timelines:
    input:
        tables=trajectory_shards(*CONFIG.trajectories.networks),
        images=trajectory_shards(*CONFIG.trajectories.networks, suffix="tar"),
    output:
        sheets=report(
            directory("<results>/videos/timelines"),
            patterns=[f"{{network}}.{CONFIG.video.sheet_format}"],
            caption="../report/timelines.rst",
            category=category("video"),
            labels={"film": "{network}: timeline"},
        ),
        strips=directory("<results>/videos/strips"),
    log:
        "<logs>/video/timelines.log",
    conda:
        "../envs/figures.yaml"
    params:
        code=code("video.timeline"),
        settings=stage("video"),
    script:
        "../scripts/timelines.py"
