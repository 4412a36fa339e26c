# The datasets of the chosen scale: made or checked, each described by one manifest that its line depends on; and the
# depth ground truth of the BEV line.


rule data:
    message:
        "data: make or check the {wildcards.line} dataset of scale {params.scale}"
    input:
        scale=graph.scale_file(EXPERIMENT.scale),
        datasets=[str(path) for path in shown_files("params/datasets")],
        code=code_files("data"),
    output:
        manifest=graph.data_manifest("{line}"),
    params:
        scale=EXPERIMENT.scale,
    log:
        graph.log_file("data", "{line}"),
    benchmark:
        "logs/benchmarks/data/{line}.tsv"
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
    shell:
        "noisebox data {wildcards.line}"


rule depth_gt:
    message:
        "depth_gt: depth ground truth of split {wildcards.split}"
    input:
        manifest=graph.data_manifest("bev"),
        scale=graph.scale_file(EXPERIMENT.scale),
        code=code_files("depth_gt"),
    output:
        directory(graph.depth_folder("{split}")),
        graph.depth_report("{split}"),
    params:
        scale=EXPERIMENT.scale,
    log:
        graph.log_file("depth_gt", "{split}"),
    benchmark:
        "logs/benchmarks/depth_gt/{split}.tsv"
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
    shell:
        "noisebox depth-gt --split {wildcards.split}"
