# Evaluation: one job and one results.tsv per checkpoint, for all that the protocols naming it ask for.


rule evaluate:
    message:
        "evaluate: {wildcards.lineage}, seed {wildcards.seed}"
    input:
        run=graph.evaluation_inputs("{lineage}", "{seed}"),
        manifest=graph.DATA_MANIFEST,
        scale=graph.scale_file(EXPERIMENT.scale),
        code=graph.code_files("evaluate"),
    output:
        graph.evaluation_outputs("{lineage}", "{seed}"),
    params:
        scale=EXPERIMENT.scale,
        protocols=config["protocols"],
        asked=lambda wildcards: config["asked"].get(wildcards.lineage),
        pictures=config["pictures"]["images"],
    log:
        graph.log_file("evaluate", "{lineage}", "seed{seed}"),
    benchmark:
        "logs/benchmarks/evaluate/{lineage}/seed{seed}.tsv"
    threads: SCALE.threads
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
    shell:
        "noisebox evaluate {wildcards.lineage} --seed {wildcards.seed}"
