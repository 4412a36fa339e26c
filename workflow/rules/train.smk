# Training: a smoke run per recipe, then one rule for every lineage, from scratch or from its parent; the BEV line has the
# same rule under another name, because its best checkpoint bears another.


def training_inputs(wildcards):
    """What depends on the lineage: parent, teacher, search, recipe, family. What does not go together is said at once."""
    lineage = graph.Lineage.parse(wildcards.lineage)
    parent = graph.checkpoint(lineage.parent.name, wildcards.seed) if lineage.parent else None
    try:
        recipes = [read_recipe(recipe) for recipe in lineage.parts]
        if len({recipe.family for recipe in recipes}) > 1:
            resolved(lineage.name, 0, EXPERIMENT.scale, smoke=True)  # says that they do not go together
        teacher = teacher_of(lineage, int(wildcards.seed))
    except UserError as error:
        raise WorkflowError(f"lineage {lineage.name}: {error}")
    taken = recipes[-1].from_search
    return {
        "parent": [parent] if parent else [],
        "search": [graph.search_csv(taken.name)] if taken else [],
        "teacher": [teacher] if teacher and teacher != parent else [],
        "smoke": graph.smoke_tsv(lineage.recipe),
        "recipe": graph.recipe_file(lineage.recipe),
        **data_inputs(recipes[-1].family),
        "code": code_files("train", recipes[-1].family),
    }


def data_inputs(family):
    """What a family is trained on."""
    line = graph.line_of(family)
    depth = [graph.depth_report("train")] if line == "bev" else []
    return {"manifest": graph.data_manifest(line), "depth": depth}


def smoke_inputs(wildcards):
    """What depends on the recipe's family."""
    try:
        family = read_recipe(wildcards.recipe).family
    except UserError as error:
        raise WorkflowError(str(error))
    return {**data_inputs(family), "code": code_files("smoke", family)}


rule smoke:
    message:
        "smoke: a few iterations of recipe {wildcards.recipe}"
    input:
        unpack(smoke_inputs),
        recipe=graph.recipe_file("{recipe}"),
        scale=graph.scale_file(EXPERIMENT.scale),
    output:
        tsv=graph.smoke_tsv("{recipe}"),
    params:
        scale=EXPERIMENT.scale,
    log:
        graph.log_file("smoke", "{recipe}"),
    benchmark:
        "logs/benchmarks/smoke/{recipe}.tsv"
    threads: threads_of
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
        cpus_per_task=cpus_of,
    shell:
        "noisebox smoke {wildcards.recipe}"


rule train:
    message:
        "train: {wildcards.lineage}, seed {wildcards.seed}"
    input:
        unpack(training_inputs),
        scale=graph.scale_file(EXPERIMENT.scale),
    wildcard_constraints:
        lineage=rf"(?!{LINEAGES['bev']}/){graph.LINEAGE_PATTERN}",
    output:
        graph.run_outputs("{lineage}", "{seed}"),
    params:
        scale=EXPERIMENT.scale,
    log:
        graph.log_file("train", "{lineage}", "seed{seed}"),
    benchmark:
        "logs/benchmarks/train/{lineage}/seed{seed}.tsv"
    threads: shared_threads
    resources:
        mem_mb=SCALE.resources.mem_mb,
        runtime=SCALE.resources.runtime,
        gpu=SCALE.resources.gpu,
        cpus_per_task=shared_cpus,
    shell:
        "noisebox train {wildcards.lineage} --seed {wildcards.seed} --if-changed fresh"


use rule train as train_bev with:
    wildcard_constraints:
        lineage=LINEAGES["bev"],
    output:
        graph.run_outputs("{lineage}", "{seed}", "bev"),
