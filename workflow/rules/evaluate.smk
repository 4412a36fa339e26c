# Evaluation: one job and one results.tsv per checkpoint, for all that the experiment asks of it; a rule for each section
# of the experiment, because what is asked and what is written differ.


def evaluation_inputs(wildcards):
    """What depends on the lineage: its run, and the data and code of its family."""
    family = read_recipe(graph.Lineage.parse(wildcards.lineage).recipe).family
    line = graph.line_of(family)
    return {
        "run": graph.evaluation_inputs(wildcards.lineage, wildcards.seed),
        "manifest": graph.data_manifest(line),
        "depth": [graph.depth_report("val")] if line == "bev" else [],
        "code": code_files("evaluate", family),
    }


rule evaluate:
    message:
        "evaluate: {wildcards.lineage}, seed {wildcards.seed}"
    input:
        unpack(evaluation_inputs),
        scale=graph.scale_file(EXPERIMENT.scale),
    wildcard_constraints:
        lineage=LINEAGES["detection"],
    output:
        shown(graph.evaluation_outputs("{lineage}", "{seed}")),
    params:
        scale=EXPERIMENT.scale,
        protocols=config["protocols"],
        asked=lambda wildcards: config["asked"].get(wildcards.lineage),
        pictures=config["pictures"]["images"],
    log:
        graph.log_file("evaluate", "{lineage}", "seed{seed}"),
    benchmark:
        "logs/benchmarks/evaluate/{lineage}/seed{seed}.tsv"
    threads: shared_threads
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
        cpus_per_task=shared_cpus,
    shell:
        "noisebox evaluate {wildcards.lineage} --seed {wildcards.seed}"


rule evaluate_detr:
    message:
        "evaluate: {wildcards.lineage}, seed {wildcards.seed}"
    input:
        unpack(evaluation_inputs),
        scale=graph.scale_file(EXPERIMENT.scale),
    wildcard_constraints:
        lineage=LINEAGES["detr"],
    output:
        shown(graph.evaluation_outputs("{lineage}", "{seed}", "detr")),
    params:
        scale=EXPERIMENT.scale,
        pictures=config["pictures"]["images"],
    log:
        graph.log_file("evaluate", "{lineage}", "seed{seed}"),
    benchmark:
        "logs/benchmarks/evaluate/{lineage}/seed{seed}.tsv"
    threads: shared_threads
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
        cpus_per_task=shared_cpus,
    shell:
        "noisebox evaluate {wildcards.lineage} --seed {wildcards.seed}"


rule evaluate_aerial:
    message:
        "evaluate: {wildcards.lineage}, seed {wildcards.seed}"
    input:
        unpack(evaluation_inputs),
        scale=graph.scale_file(EXPERIMENT.scale),
    wildcard_constraints:
        lineage=LINEAGES["aerial"],
    output:
        shown(graph.evaluation_outputs("{lineage}", "{seed}", "aerial")),
    params:
        scale=EXPERIMENT.scale,
        crops=config["aerial"]["crops"],
        pictures=config["aerial"]["pictures"],
    log:
        graph.log_file("evaluate", "{lineage}", "seed{seed}"),
    benchmark:
        "logs/benchmarks/evaluate/{lineage}/seed{seed}.tsv"
    threads: shared_threads
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
        cpus_per_task=shared_cpus,
    shell:
        "noisebox evaluate {wildcards.lineage} --seed {wildcards.seed}"


rule evaluate_bev:
    message:
        "evaluate: {wildcards.lineage}, seed {wildcards.seed}"
    input:
        unpack(evaluation_inputs),
        scale=graph.scale_file(EXPERIMENT.scale),
    wildcard_constraints:
        lineage=LINEAGES["bev"],
    output:
        shown(graph.evaluation_outputs("{lineage}", "{seed}", "bev")),
    params:
        scale=EXPERIMENT.scale,
        protocol=config["bev"]["protocol"],
        pictures=config["bev"]["pictures"],
    log:
        graph.log_file("evaluate", "{lineage}", "seed{seed}"),
    benchmark:
        "logs/benchmarks/evaluate/{lineage}/seed{seed}.tsv"
    threads: shared_threads
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
        cpus_per_task=shared_cpus,
    shell:
        "noisebox evaluate {wildcards.lineage} --seed {wildcards.seed}"
