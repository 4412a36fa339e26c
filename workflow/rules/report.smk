# The report: tables, plots, pictures and the summary, from the evaluations and from what lies in imported/.


rule report:
    message:
        "report: reports/summary.md"
    input:
        evaluations=EVALUATIONS,
        imported=list(graph.imported_results()),
        code=code_files("report"),
    output:
        shown(graph.report_outputs()),
        metrics=directory(graph.METRICS),
    params:
        scale=EXPERIMENT.scale,
        train_seeds=EXPERIMENT.train_seeds,
        lineages=EXPERIMENT.lineages,
        asked=config["asked"],
        protocols=config["protocols"],
        ablations=config["ablations"],
        pictures=config["pictures"],
        detr=config["detr"],
        aerial=config["aerial"],
        bev=config["bev"],
        searches=config["searches"],
    log:
        graph.log_file("report"),
    benchmark:
        "logs/benchmarks/report.tsv"
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "noisebox report"
