"""Names that other libraries have for our settings, to suggest ours."""

from __future__ import annotations

from collections.abc import Iterable

from recbole_multdpo.settings.messages import nearest

# names of Hugging Face's, TRL's and other trainers by our name
_OTHERS: dict[str, str] = {
    name: setting
    for setting, names in {
        "learning_rate": "lr",
        "weight_decay": "wd l2",
        "train_batch_size": "bs batch_size batch per_device_train_batch_size train_bs",
        "eval_batch_size": "per_device_eval_batch_size test_batch_size",
        "rank_batch_users": "ranking_batch_size",
        "epochs": "epoch n_epochs num_epochs num_train_epochs max_epochs",
        "sft_epochs": "sft_epoch num_sft_epochs",
        "sft_learning_rate": "sft_lr",
        "gradient_accumulation_steps": "grad_accum accumulate_grad_batches",
        "clip_grad_norm": "max_grad_norm grad_clip gradient_clip_val",
        "warmup_ratio": "warmup warmup_steps",
        "lr_scheduler_type": "scheduler lr_scheduler",
        "learner": "optim optimizer",
        "dtype": "bf16 fp16 torch_dtype precision mixed_precision",
        "gradient_checkpointing": "grad_checkpointing activation_checkpointing",
        "attn_implementation": "flash_attention use_flash_attention attention",
        "backbone": "model_name_or_path model_name model_path base_model llm lm",
        "loss": "loss_type loss_name objective",
        "dpo_label_smoothing": "label_smoothing",
        "simpo_gamma": "gamma",
        "reference": "ref_model reference_free",
        "max_prompt_tokens": "max_length max_prompt_length max_seq_length cutoff_len",
        "max_item_tokens": "max_completion_length max_new_tokens",
        "finetune": "lora use_lora peft use_peft",
        "lora_r": "lora_rank rank r",
        "lora_target_modules": "target_modules",
        "num_negatives": "n_negatives num_neg neg_num neg_num_samples negative_num",
        "run_dir": "output_dir out_dir save_dir output log_dir logging_dir",
        "resume": "resume_from_checkpoint checkpoint",
        "config_files": "config config_file config_file_list",
        "save_steps": "save_step save_strategy",
        "save_total_limit": "save_limit",
        "eval_step": "eval_steps eval_every evaluation_strategy eval_strategy",
        "stopping_step": "patience early_stopping early_stopping_patience",
        "topk": "k top_k cutoffs",
        "valid_metric": "metric_for_best_model monitor",
        "device": "gpu accelerator",
        "dataset": "data dataset_name data_name",
        "data_path": "data_dir dataset_path data_root",
        "seed": "random_seed random_state",
        "state": "log_level logging_level verbose",
        "show_progress": "progress disable_tqdm progress_bar quiet",
        "log_wandb": "wandb report_to",
        "assistant": "assist",
        "sft_teacher": "teacher distill distillation",
    }.items()
    for name in names.split()
}


def nearest_setting(name: str, valid: Iterable[str]) -> str:
    """Like `nearest`, for a setting: it also knows the names that other libraries have for it."""
    valid = set(valid)
    meant = _OTHERS.get(name.lower().replace("-", "_"))
    return f"; did you mean {meant}?" if meant in valid else nearest(name, valid)
