"""Keys and values of DeepSpeed configurations that others publish, put together from their parts.

Sources, read on 2026-11-28 (repository, file):

- huggingface/transformers `tests/deepspeed/ds_config_zero2.json`, `ds_config_zero3.json`, and the
  ZeRO-3 example of `docs/source/en/deepspeed.md`;
- huggingface/accelerate `tests/deepspeed/ds_config_zero2.json`, `ds_config_zero3.json`,
  `examples/deepspeed_config_templates/zero_stage3_config.json`;
- hiyouga/LLaMA-Factory `examples/deepspeed/ds_z2_config.json`, `ds_z3_config.json`,
  `ds_z3_offload_config.json`;
- axolotl-ai-cloud/axolotl `deepspeed_configs/zero1.json`, `zero2.json`, `zero3.json`,
  `zero3_bf16.json`;
- huggingface/trl `examples/accelerate_configs/deepspeed_zero2.yaml`,
  `trl/accelerate_configs/zero3.yaml`;
- yaochenzhu/Rank-GRPO `configs/qwen25_0.5b_sft.yaml`.
"""

from __future__ import annotations

from typing import Any

AUTO = "auto"
_SCALE = {"loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1}
_FP16 = {"enabled": AUTO, "initial_scale_power": 16, **_SCALE}
_AXOLOTL_FP16 = {"enabled": AUTO, "auto_cast": False, "initial_scale_power": 32, **_SCALE}
_BF16 = {"enabled": AUTO}
_ADAMW = {
    "type": "AdamW",
    "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), AUTO),
}
_ACCELERATE_ADAMW = {
    "type": "AdamW",
    "params": {"lr": AUTO, "weight_decay": AUTO, "torch_adam": True, "adam_w_mode": True},
}
_WARMUP = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), AUTO)
_CONSTANT = {"type": "WarmupLR", "params": _WARMUP}
_LINEAR = {"type": "WarmupDecayLR", "params": {**_WARMUP, "total_num_steps": AUTO}}
_BATCHES = dict.fromkeys(
    ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), AUTO
)
_CLIPPED = {**_BATCHES, "gradient_clipping": AUTO}
_PRINTED = {"steps_per_print": 2000, "wall_clock_breakdown": False}
_TO_CPU = {"device": "cpu", "pin_memory": True}
_MONITOR = {
    "zero_allow_untested_optimizer": True,
    "comms_config": {"verbose": False},
    "monitor_config": {
        "enabled": True,
        "tag": "DeepSpeedMonitor",
        "csv_monitor": {"enabled": False},
    },
}


def _zero2(bucket: float, **more: Any) -> dict[str, Any]:
    return {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "contiguous_gradients": True,
        **more,
    }


def _zero3(live: float = 1e9, sub_group: float = 1e9, **more: Any) -> dict[str, Any]:
    return {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": sub_group,
        "reduce_bucket_size": AUTO,
        "stage3_prefetch_bucket_size": AUTO,
        "stage3_param_persistence_threshold": AUTO,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
        "stage3_gather_16bit_weights_on_model_save": True,
        **more,
    }


_OFFLOADED = {"offload_optimizer": _TO_CPU, "offload_param": _TO_CPU}
_HUGGING_FACE = {"fp16": _FP16, **_CLIPPED, **_PRINTED}
_ACCELERATE = {**_HUGGING_FACE, "bf16": _BF16, "gradient_accumulation_steps": 1}


def _launched(mixed_precision: str, **deepspeed_config: Any) -> dict[str, Any]:
    """A file of `accelerate config`."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "deepspeed_config": deepspeed_config,
        "distributed_type": "DEEPSPEED",
        "downcast_bf16": "no",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": mixed_precision,
        "num_machines": 1,
        "num_processes": 8,
        "rdzv_backend": "static",
        "same_network": True,
        "tpu_env": [],
        "tpu_use_cluster": False,
        "tpu_use_sudo": False,
        "use_cpu": False,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "transformers zero2": {
        **_HUGGING_FACE,
        "bf16": _BF16,
        "optimizer": _ADAMW,
        "scheduler": _CONSTANT,
        "zero_optimization": _zero2(2e8, offload_optimizer=_TO_CPU),
    },
    "transformers zero3": {
        **_HUGGING_FACE,
        "optimizer": _ADAMW,
        "scheduler": _CONSTANT,
        "zero_optimization": _zero3(**_OFFLOADED),
    },
    "transformers zero3, older": {
        **_HUGGING_FACE,
        "optimizer": _ADAMW,
        "scheduler": _LINEAR,
        "zero_optimization": {
            key.replace("16bit", "fp16"): value
            for key, value in _zero3(sub_group=1e14, **_OFFLOADED).items()
        },
    },
    "accelerate zero2": {
        **_ACCELERATE,
        "optimizer": _ACCELERATE_ADAMW,
        "scheduler": _CONSTANT,
        "zero_optimization": _zero2(2e8, reduce_bucket_size=AUTO, offload_optimizer=_TO_CPU),
    },
    "accelerate zero3": {
        **_ACCELERATE,
        "optimizer": _ACCELERATE_ADAMW,
        "scheduler": _CONSTANT,
        "steps_per_print": float("inf"),
        "zero_optimization": _zero3(
            offload_optimizer={**_TO_CPU, "nvme_path": "/nvme"},
            offload_param={**_TO_CPU, "nvme_path": "/nvme"},
            stage3_gather_16bit_weights_on_model_save=AUTO,
        ),
    },
    "LLaMA-Factory zero2": {
        **_MONITOR,
        **_CLIPPED,
        "fp16": _FP16,
        "bf16": _BF16,
        "zero_optimization": _zero2(5e8, overlap_comm=False, round_robin_gradients=True),
    },
    "LLaMA-Factory zero3": {
        **_MONITOR,
        **_CLIPPED,
        "fp16": _FP16,
        "bf16": _BF16,
        "zero_optimization": _zero3(overlap_comm=False),
    },
    "LLaMA-Factory zero3 offload": {
        **_MONITOR,
        **_CLIPPED,
        "fp16": _FP16,
        "bf16": _BF16,
        "zero_optimization": _zero3(overlap_comm=False, **_OFFLOADED),
    },
    "axolotl zero1": {
        **_BATCHES,
        "bf16": _BF16,
        "fp16": _AXOLOTL_FP16,
        "optimizer": _ADAMW,
        "wall_clock_breakdown": False,
        "zero_optimization": {"stage": 1, "overlap_comm": True},
    },
    "axolotl zero2": {
        **_CLIPPED,
        "bf16": _BF16,
        "fp16": _AXOLOTL_FP16,
        "wall_clock_breakdown": False,
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "cpu"},
            "contiguous_gradients": True,
            "overlap_comm": True,
        },
    },
    "axolotl zero3": {
        **_CLIPPED,
        "bf16": _BF16,
        "fp16": _AXOLOTL_FP16,
        "wall_clock_breakdown": False,
        "zero_optimization": _zero3(live=0, sub_group=0),
    },
    "TRL zero2": _launched(
        "no",
        gradient_accumulation_steps=1,
        offload_optimizer_device="none",
        offload_param_device="none",
        zero3_init_flag=False,
        zero_stage=2,
    ),
    "TRL zero3": _launched(
        "bf16",
        deepspeed_multinode_launcher="standard",
        offload_optimizer_device="none",
        offload_param_device="none",
        zero3_init_flag=True,
        zero3_save_16bit_model=True,
        zero_stage=3,
    ),
}

# refused, with what the message must say
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "accelerate's template": (
        {
            "fp16": {**_FP16, "enabled": True},
            "optimizer": {"type": "AdamW", "params": {"lr": AUTO, "weight_decay": AUTO}},
            "scheduler": _LINEAR,
            "zero_optimization": _zero3(),
            **_CLIPPED,
        },
        ("fp16.enabled: .*--dtype=bfloat16", "scheduler.type=WarmupDecayLR .*=linear"),
    ),
    "transformers zero3 of 2021": (
        {
            "fp16": {**_FP16, "enabled": True},
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": 3e-5, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
            },
            "scheduler": {
                "type": "WarmupLR",
                "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-5, "warmup_num_steps": 500},
            },
            "zero_optimization": _zero3(),
            **_PRINTED,
        },
        (
            "optimizer.params.lr=3e-05 is decided by learning_rate and sft_learning_rate",
            r"optimizer.params.betas=\[0.8, 0.999\] is decided by torch's defaults",
            "optimizer.params.weight_decay=3e-07 is decided by weight_decay",
            "scheduler.params.warmup_max_lr=3e-05",
            "scheduler.params.warmup_num_steps=500 is decided by warmup_ratio",
        ),
    ),
    "Rank-GRPO's, of accelerate": (
        _launched(
            "bf16",
            gradient_accumulation_steps=8,
            offload_optimizer_device="cpu",
            offload_param_device="cpu",
            zero3_init_flag=False,
            zero3_save_16bit_model=True,
            zero_stage=3,
        ),
        ("gradient_accumulation_steps=8 is decided by gradient_accumulation_steps, the run's own",),
    ),
}
