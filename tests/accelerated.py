"""Train in several processes with Accelerate and with the Hugging Face Trainer; print the rates of rank 0 as JSON.

Run by tests/test_huggingface.py, once per process, with the variables of torch's distributed package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from lrbench_pl.policies import Polynomial
from lrbench_pl.scheduler import LRPolicyScheduler

POLICY = Polynomial(init_lr=1.0, decay_steps=20)


def watch(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rates with which the optimizer steps, filled as it does."""
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda optimizer, *_: rates.append(float(optimizer.param_groups[0]["lr"])))
    return rates


def tiny_model() -> transformers.GPT2LMHeadModel:
    """A language model of a few hundred weights, from its configuration."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=1, n_embd=4, vocab_size=8, n_positions=6, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def texts(n: int = 32) -> list[dict[str, torch.Tensor]]:
    """Sequences of six symbols."""
    tokens = torch.randint(0, 8, (n, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


def arguments(folder: Path | str, **given: Any) -> transformers.TrainingArguments:
    """Six quiet steps on the CPU with an evaluation every two."""
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **{**defaults, **given})


def with_accelerate(is_prepared: bool) -> list[float]:
    """The rates of a loop with gradient accumulation."""
    from accelerate import Accelerator  # when it is used: pytest collects the tests in every process

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = watch(optimizer)
    scheduler: Any = LRPolicyScheduler(optimizer, POLICY)
    loader = torch.utils.data.DataLoader(torch.ones(32, 3), batch_size=2)
    model, prepared, loader = accelerator.prepare(model, optimizer, loader)
    if is_prepared:
        scheduler = accelerator.prepare(scheduler)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).mean())
            prepared.step()
            scheduler.step()
            prepared.zero_grad()
    return rates


def with_trainer(folder: str) -> list[float]:
    """The rates of a Trainer."""
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = watch(optimizer)
    scheduler = LRPolicyScheduler(optimizer, POLICY)
    data = texts()
    transformers.Trainer(
        model, arguments(folder), train_dataset=data, eval_dataset=data[:4], optimizers=(optimizer, scheduler)
    ).train()
    return rates


if __name__ == "__main__":
    from accelerate import Accelerator

    found = {
        "prepared": with_accelerate(True),
        "not prepared": with_accelerate(False),
        "trainer": with_trainer(sys.argv[1]),
        "processes": Accelerator().num_processes,
    }
    if Accelerator().is_main_process:
        Path(sys.argv[1], "rates.json").write_text(json.dumps(found))
