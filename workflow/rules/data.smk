# The dataset of the chosen scale: made or checked, and described by one manifest that everything else depends on.


rule data:
    message:
        "data: make or check the dataset of scale {params.scale}"
    input:
        scale=graph.scale_file(EXPERIMENT.scale),
        datasets=sorted(str(path) for path in Path("params/datasets").glob("*.yaml")),
        code=graph.code_files("data"),
    output:
        manifest=graph.DATA_MANIFEST,
    params:
        scale=EXPERIMENT.scale,
    log:
        graph.log_file("data"),
    benchmark:
        "logs/benchmarks/data.tsv"
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
    shell:
        "noisebox data"
