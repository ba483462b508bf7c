"""Time our DPO step against TRL's `DPOTrainer`: the same model, the same pairs, the same loss.

`pip install -e '.[benchmarks]'`, then `python -m benchmarks.trl_dpo`. Both sides run the same PEFT
model. Every prompt has one chosen item and `--rejected` others; TRL gets a pair for each of them,
our scorer packs the prompt once with all of its items.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import DTYPES, Row, Timer, arguments, faster, peak_mebibytes, report
from benchmarks.training_step import MODELS, TOLERANCE, make_lm
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.model.backbone import merge_lora, reference_context
from recbole_multdpo.model.tiny import fit_tokenizer
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.packed import packed_logps

BETA = 0.1
WORDS = ("night", "river", "moon", "stone", "winter", "the", "of", "story", "red", "last")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = arguments(__doc__ or "")
    made.add_argument("--model", default="slim", choices=tuple(MODELS))
    made.add_argument("--prompts", type=int, default=2, help="per step")
    made.add_argument("--titles", type=int, default=20, help="in a prompt")
    made.add_argument("--padding-free", action="store_true", help="TRL's, where TRL has it")
    return made


def main() -> None:
    """Run the command."""
    options = parser().parse_args()
    timer = Timer(options.device, options.threads)
    rows: list[Row] = []
    for n_rejected in (1, 8):
        rows += compare(n_rejected, timer, options)
    report(rows, options)


def compare(n_rejected: int, timer: Timer, options: Any) -> list[Row]:
    """Rows for one number of rejected items per prompt."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(n_rejected, folder, options)
        inputs = next(iter(trainer.get_train_dataloader()))
        inputs = {key: value.to(options.device) for key, value in inputs.items()}
        lm = trainer.model.train()
        examples = packed_inputs(trainer.train_dataset, options.prompts, n_rejected, options.device)
        trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]

        def ours() -> Tensor:
            with reference_context(lm):
                reference_logps = packed_logps(lm, *examples)
            rewards = BETA * (packed_logps(lm, *examples) - reference_logps)
            return -F.logsigmoid(rewards[:, :1] - rewards[:, 1:]).mean()

        def theirs() -> Tensor:
            loss: Tensor = trainer.compute_loss(lm, inputs)
            return loss

        losses = [ours(), theirs()]
        gradients = [torch.autograd.grad(loss, trained) for loss in losses]
        tolerance = TOLERANCE[options.dtype]
        assert abs(losses[0] - losses[1]) < tolerance, f"losses differ: {losses}"
        assert abs(losses[0] - 0.6931) > 1e-4, "the adapter is zero: every loss would be log 2"
        for one, other in zip(*gradients, strict=True):
            assert (one - other).norm() < 10 * tolerance * one.norm() + 1e-6, "gradients differ"
        steps = {
            "ours": lambda: torch.autograd.grad(ours(), trained),
            "trl": lambda: torch.autograd.grad(theirs(), trained),
        }
        seconds = timer.alternate(steps, options.repeats)
        ours_held, trl_held = (peak_mebibytes(step, options.device) for step in steps.values())
    n_pairs = options.prompts * n_rejected
    name = f"DPO, {options.prompts} prompts of {int(examples[1].max())} tokens, {n_pairs} pairs"
    if trainer.padding_free:
        name += ", TRL padding-free"
    row = faster(f"{name}: packed vs TRL", seconds["ours"], seconds["trl"])
    n_tokens = int(inputs["attention_mask"].sum())
    return [
        row,
        Row(f"{name}: rate", n_pairs / row.ours, n_pairs / row.other, "pairs/s", row.ratio),
        Row(f"{name}: rate", n_tokens / row.ours, n_tokens / row.other, "tokens/s", row.ratio),
        Row(f"{name}: memory", ours_held, trl_held, "MiB", trl_held / ours_held),
    ]


def make_trainer(n_rejected: int, folder: str, options: Any) -> Any:
    """TRL's trainer on random titles, its adapter away from zero."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    generator = torch.Generator().manual_seed(0)

    def title() -> str:
        n_words = int(torch.randint(2, 5, (1,), generator=generator))
        chosen = torch.randint(len(WORDS), (n_words,), generator=generator)
        year = int(torch.randint(1930, 2010, (1,), generator=generator))
        return f" {' '.join(WORDS[word] for word in chosen)} ({year})"

    pairs = []
    for _ in range(options.prompts):
        history = "".join(f"\n-{title()}" for _ in range(options.titles))
        prompt = f"A user liked these movies:{history}\nAnother movie for this user:"
        chosen = title()
        pairs += [
            {"prompt": prompt, "chosen": chosen, "rejected": title()} for _ in range(n_rejected)
        ]
    tokenizer = fit_tokenizer(
        [pair["prompt"] for pair in pairs], vocab_size=400, max_positions=4096
    )
    tokenizer.split_special_tokens = False  # TRL appends the end token as a string
    adapted: Any = make_lm(options.model, options.device, DTYPES[options.dtype])
    peft_config = adapted.peft_config["default"]
    trainer = DPOTrainer(
        model=merge_lora(adapted),
        args=DPOConfig(
            output_dir=folder,
            beta=BETA,
            per_device_train_batch_size=len(pairs),
            max_length=None,
            gradient_checkpointing=False,
            padding_free=options.padding_free,
            bf16=False,
            use_cpu=options.device == "cpu",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.02 * noise.to(parameter)
    return trainer


def packed_inputs(
    dataset: Any, n_prompts: int, n_rejected: int, device: str
) -> tuple[Prompts, Tensor, ItemCatalogue]:
    """Arguments of `packed_logps` from the token ids that TRL made of the pairs."""
    firsts = [dataset[index * n_rejected] for index in range(n_prompts)]
    lengths = torch.tensor([len(pair["prompt_ids"]) for pair in firsts])
    prompt_ids = torch.zeros(n_prompts, int(lengths.max()), dtype=torch.long)
    texts: list[list[int]] = [[]]
    for number, first in enumerate(firsts):
        prompt_ids[number, : lengths[number]] = torch.tensor(first["prompt_ids"])
        texts.append(first["chosen_ids"])
        for offset in range(n_rejected):
            texts.append(dataset[number * n_rejected + offset]["rejected_ids"])
    candidates = 1 + torch.arange(n_prompts * (1 + n_rejected)).view(n_prompts, -1)
    return (
        Prompts(prompt_ids, lengths).to(device),
        candidates.to(device),
        ItemCatalogue.build(ItemTokens.from_lists(texts)).to(device),
    )


if __name__ == "__main__":
    main()
