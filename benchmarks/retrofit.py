"""A pretrained decoder made recurrent: is it the original before training, and what does a training step cost?

    python benchmarks/retrofit.py BASE --prelude 10 --coda 10        # a hub id, a folder or a GGUF file
    python benchmarks/retrofit.py BASE --rows 2 8 --depths 1 4 8 --skip agreement

Agreement: the largest difference of any logit on 20 sentences at r = 1, 4 and 16, in float64 and float32, and that of
the original in float32 from itself in float64, where its norms stay in float32. Steps: forward, backward and AdamW,
each row of the table in a process of its own, for its peak memory; the second of two steps counts.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

import recdepth
from recdepth.evaluation.speed import machine_stamp
from recdepth.models.loading import is_gguf

SENTENCES = """The quick brown fox jumps over the lazy dog.
Water boils at a lower temperature on a high mountain than at the sea.
In 1969, two people walked on the Moon for the first time.
She opened the letter slowly, afraid of what it might say.
If a train leaves at noon and travels for three hours, when does it arrive?
The committee postponed its decision until the next meeting.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
"Where did you put the keys?" he asked, looking under the sofa.
A triangle whose sides are 3, 4 and 5 has a right angle.
The old library smelled of dust, leather and rain.
Most of the bread that we eat is made of wheat.
def add(a, b): return a + b
My grandmother was born in a village that no longer exists.
Shares fell sharply after the company lowered its forecast.
Birds that migrate find their way by the stars and by the Sun.
Please turn off the light when you leave the room.
The bridge, which was built in 1883, is still in use today.
Not all who wander are lost.
Ice floats because it is less dense than liquid water.
He bought six apples, ate two of them, and gave one to his sister.""".splitlines()


def load_original(base: str) -> Any:
    """The base by its own implementation in transformers, float32."""
    if is_gguf(base):
        path = Path(base)
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def agreement(original: Any, model: Any, tokenizer: PreTrainedTokenizerBase, depths: list[int]) -> dict[str, float]:
    """Largest absolute differences of logits over all sentences, by what is compared."""
    ids = [torch.tensor([tokenizer.encode(sentence)]) for sentence in SENTENCES]

    def logits(of: Any, **call: Any) -> list[Tensor]:
        with torch.inference_mode():
            return [of(x, **call).logits for x in ids]

    def furthest(some: list[Tensor], others: list[Tensor]) -> float:
        return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))

    found: dict[str, float] = {}
    exact = logits(copy.deepcopy(original).double())
    plain = logits(original)
    found["largest logit"] = max(x.abs().max().item() for x in plain)
    found["original float32 - original float64"] = furthest(plain, exact)
    for r in depths:
        found[f"float32, r = {r}"] = furthest(logits(model, num_steps=r, seed=0), plain)
    double = copy.deepcopy(model).double()
    for r in depths:
        found[f"float64, r = {r}"] = furthest(logits(double, num_steps=r, seed=0), exact)
    return found


def step(folder: str, rows: int, tokens: int, r: int, checkpointed: bool, answer: Any) -> None:
    """Seconds of a training step and the process's peak memory in GB."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = recdepth.load_model(folder, dtype="float32", device=device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(0, model.config.vocab_size, (rows, tokens), device=device)
    for _ in range(2):
        began = time.perf_counter()
        out = model(ids, num_steps=r, labels=ids, backprop_depth=4, checkpoint_recurrences=checkpointed)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.put((seconds, (torch.cuda.max_memory_allocated() if device == "cuda" else memory) / 1e9))


def steps(folder: str, rows: list[int], tokens: int, depths: list[int]) -> None:
    """Print a table of training steps."""
    print(f"\n{tokens} tokens a row, gradients through the last 4 recurrences\n")
    print("| rows | r | checkpointed recurrences | seconds | memory, GB |\n|--:|--:|---|--:|--:|")
    spawn = multiprocessing.get_context("spawn")
    for count in rows:
        for r in depths:
            for checkpointed in (False, True):
                answer = spawn.SimpleQueue()
                process = spawn.Process(target=step, args=(folder, count, tokens, r, checkpointed, answer))
                process.start()
                process.join()
                if process.exitcode:
                    print(f"| {count} | {r} | {'yes' if checkpointed else 'no'} | failed, exit {process.exitcode} | |")
                    continue
                seconds, memory = answer.get()
                print(
                    f"| {count} | {r} | {'yes' if checkpointed else 'no'} | {seconds:.1f} | {memory:.1f} |", flush=True
                )


def main() -> int:
    """Run the parts that are wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--prelude", type=int, default=4)
    parser.add_argument("--coda", type=int, default=4)
    parser.add_argument("--rows", type=int, nargs="+", default=[2])
    parser.add_argument("--tokens", type=int, default=320)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--skip", choices=["agreement", "steps"])
    chosen = parser.parse_args()
    model = recdepth.retrofit(chosen.base, prelude_layers=chosen.prelude, coda_layers=chosen.coda).float()
    print(", ".join(f"{name}: {value}" for name, value in machine_stamp(model).items()), "\n")
    if chosen.skip != "agreement":
        found = agreement(load_original(chosen.base), model, recdepth.load_tokenizer(chosen.base), [1, 4, 16])
        print("| logits on 20 sentences | largest difference |\n|---|--:|")
        for name, value in found.items():
            print(f"| {name} | {value:.2g} |")
    if chosen.skip != "steps":
        with tempfile.TemporaryDirectory() as folder:
            recdepth.export_model(model, folder)
            del model
            steps(folder, chosen.rows, chosen.tokens, chosen.depths)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
