"""A training of Noisebox's baseline on the embedded street world, as a configuration of MMEngine; see mmengine.md."""

custom_imports = {"imports": ["noisebox.interop.mmengine"]}
default_scope = "mmengine"

iterations, batch_size, warmup = 2000, 2, 30
noisebox = {
    "recipe": "baseline",
    "scale": "demo",
    "seed": 0,
    "overrides": {"solver.max_iter": iterations, "solver.batch_size": batch_size},
}

model = {"type": "NoiseboxDetector", "num_classes": 3, "sampling": {"steps": 1}, "eval_seed": 0, **noisebox}

train_dataloader = {
    "batch_size": batch_size,
    "num_workers": 0,
    "sampler": {"type": "DefaultSampler", "shuffle": False},  # the stream is shuffled already
    "dataset": {"type": "NoiseboxDataset", "split": "train", **noisebox},
}
train_cfg = {"by_epoch": False, "max_iters": iterations, "val_interval": 500}
optim_wrapper = {
    "optimizer": {"type": "AdamW", "lr": 2.5e-4, "weight_decay": 1e-4, "fused": True},
    "clip_grad": {"max_norm": 1.0},
}
param_scheduler = [
    {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warmup + 1},
    {"type": "MultiStepLR", "milestones": [round(0.85 * iterations)], "gamma": 0.1, "by_epoch": False},
]

val_dataloader = {
    "batch_size": 1,
    "num_workers": 0,
    "sampler": {"type": "DefaultSampler", "shuffle": False},
    "dataset": {"type": "NoiseboxDataset", "split": "val", **noisebox},
}
val_cfg = {}
val_evaluator = {"type": "NoiseboxAP", **noisebox}

default_hooks = {
    "logger": {"type": "LoggerHook", "interval": 20},
    "checkpoint": {
        "type": "CheckpointHook",
        "interval": 250,
        "by_epoch": False,
        "save_best": "noisebox/AP",
        "rule": "greater",
    },
}
log_processor = {"by_epoch": False}
work_dir = "work_dirs/street"
