# Films. Needs: capture sets with decoded pictures; the trajectories of every network. Leaves:
# <results>/videos/captures/<model>/<capture>.gif|mp4 (every block of every step), <capture>-denoising.gif|mp4 (the
# model's own estimate at every step), <capture>-sheets/<generation_id>.png (steps down, blocks across) and
# <results>/videos/trajectories.gif|mp4 (prompts down, networks across, a frame an invocation).


rule video:
    input:
        capture_videos(*CONFIG.capture.models),
        trajectory_videos(),


rule capture_video:
    input:
        captures="<results>/captures/{model}/{capture}",
    output:
        video=report(
            f"<results>/videos/captures/{{model}}/{{capture}}.{CONFIG.video.output_format}",
            caption="../report/capture-video.rst",
            category="Films",
            labels={"film": "{model}: {capture}"},
        ),
        denoising=f"<results>/videos/captures/{{model}}/{{capture}}-denoising.{CONFIG.video.output_format}",
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
    output:
        video=report(
            f"<results>/videos/trajectories.{CONFIG.video.output_format}",
            caption="../report/trajectory-video.rst",
            category="Films",
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
