# Budget searches: short trainings of a recipe that differ in a few keys, and a page for each with its plots.


def search_inputs(wildcards):
    """What depends on the recipe that is tuned, and its family."""
    recipe = EXPERIMENT.every_search()[wildcards.search]
    family = load_recipe(recipe).family
    return {
        "recipe": graph.recipe_file(recipe),
        "smoke": graph.smoke_tsv(recipe),
        **data_inputs(family),
        "code": graph.code_files("search", family),
    }


rule search:
    message:
        "search: {wildcards.search}"
    input:
        unpack(search_inputs),
        search=graph.search_file("{search}"),
        scale=graph.scale_file(EXPERIMENT.scale),
    wildcard_constraints:
        search="|".join(EXPERIMENT.every_search()) or "(?!)",
    output:
        graph.search_csv("{search}"),
    params:
        scale=EXPERIMENT.scale,
    log:
        graph.log_file("search", "{search}"),
    benchmark:
        "logs/benchmarks/search/{search}.tsv"
    threads: threads_of
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
        cpus_per_task=cpus_of,
    shell:
        "noisebox search {input.search}"


rule search_report:
    message:
        "report: reports/searches/{wildcards.search}.md"
    input:
        csv=graph.search_csv("{search}"),
        search=graph.search_file("{search}"),
        code=graph.code_files("report"),
    wildcard_constraints:
        search="|".join(EXPERIMENT.every_search()) or "(?!)",
    output:
        graph.search_report_outputs("{search}"),
    log:
        graph.log_file("report", "{search}"),
    benchmark:
        "logs/benchmarks/report/{search}.tsv"
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "noisebox report --search {wildcards.search}"
