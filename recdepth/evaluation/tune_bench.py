"""Measuring settings on a model, every measurement kept as it comes, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from recdepth.models import RecurrentDepthForCausalLM
from recdepth.sampling import Sampler, SampleStats

from .evaluate import evaluate
from .held_out import HeldOut, Prompt
from .speed import Timings, time_in_turn
from .tune_halving import Scored

Record = dict[str, Any]
Part = Literal["search", "fresh"]

_REFERENCE = "reference"


def settings_of(sampler: Sampler) -> Record:
    """A sampler as plain values."""
    return {"name": sampler.name} | asdict(sampler)


def weights_digest(model: RecurrentDepthForCausalLM) -> str:
    """A short name of a model's weights, from the shape and the first 64 numbers of every tensor."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        few = tensor.flatten()[:64].to("cpu", torch.float64).tolist()
        digest.update(repr((name, tuple(tensor.shape), few)).encode())
    return digest.hexdigest()


def prompts_digest(items: Sequence[Prompt]) -> str:
    """A short name of prompts."""
    digest = hashlib.blake2b(digest_size=8)
    for item in items:
        digest.update(repr(item.prompt_ids).encode())
    return digest.hexdigest()


class TuneLog:
    """Measurements in a file, one JSON object a line; the first line says what all others depend on.

    Args:
        path: of the new file, ``tune.jsonl``.
        head: what a measurement depends on besides its own key, such as the model.
        earlier: a file whose measurements are taken over.

    Raises:
        ValueError: naming what differs, where the earlier file was made with another head, or is none of ours.
    """

    def __init__(self, path: Path, head: Record, earlier: Path | None = None):
        self.path, self.head = path, json.loads(json.dumps(head))
        self._known: dict[str, Record] = {}
        lines = list(_lines(earlier)) if earlier is not None else []
        if earlier is not None:
            self._fit(lines[0] if lines else {}, earlier)
        self._known |= {json.dumps(line["key"]): line["value"] for line in lines[1:]}
        self.taken_over = len(self._known)
        part = path.with_suffix(".part")  # an earlier file may be this one: it is whole at any time
        part.write_text(
            "".join(json.dumps(line) + "\n" for line in [{"head": self.head}, *lines[1:]]), encoding="utf-8"
        )
        part.replace(path)

    def of(self, key: Sequence[Any], measure: Callable[[], Record]) -> Record:
        """The measurement with this key: the kept one, or a new one, kept before it is returned."""
        name = json.dumps(key)
        if name not in self._known:
            value = measure()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
            self._known[name] = value
        return self._known[name]

    def _fit(self, first: Record, earlier: Path) -> None:
        theirs = first.get("head")
        if not isinstance(theirs, dict):
            raise ValueError(f"{earlier} does not begin like a file of measurements")
        differing = [name for name in {**theirs, **self.head} if theirs.get(name) != self.head.get(name)]
        if differing:
            what = ", ".join(f"{name} ({theirs.get(name)}, now {self.head.get(name)})" for name in differing)
            raise ValueError(f"{earlier} was measured with another {what}")


def _lines(path: Path) -> Iterator[Record]:
    """The lines of a file; a last one that was cut short by a kill is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


@dataclass
class Decoding:
    """How everything is sampled: one model, one reference, greedy.

    Attributes:
        model: any recurrent-depth model.
        reference: what all settings are compared with.
        batch_size: of the scored prompts.
        seed: of the states' noise.
        machine: what a speed depends on; see :func:`recdepth.evaluation.machine_stamp`.
    """

    model: RecurrentDepthForCausalLM
    reference: Sampler
    batch_size: int
    seed: int
    machine: Mapping[str, Any]


class ModelBench:
    """A :class:`recdepth.evaluation.tune_halving.Bench` of a model.

    Args:
        decoding: how to sample.
        held_out: the prompts of this part.
        part: its name in the log.
        log: where measurements are kept, and looked up first.
        compile: the reference is timed in compiled graphs (its texts are always those of the eager one).
    """

    def __init__(self, decoding: Decoding, held_out: HeldOut, part: Part, log: TuneLog, *, compile: bool = False):
        self.decoding, self.held_out, self.part, self.log = decoding, held_out, part, log
        self._clock = replace(decoding.reference, compile=compile)
        self._warm: set[Sampler] = set()

    def score(self, sampler: Sampler, begin: int, end: int) -> Scored:
        """See :class:`recdepth.evaluation.tune_halving.Bench`."""
        theirs = self._sampled(self.decoding.reference, begin, end)
        ours = self._sampled(sampler, begin, end)
        same = [a == b for a, b in zip(ours["tokens"], theirs["tokens"], strict=True)]
        return Scored(list(ours["scores"]), list(theirs["scores"]), same)

    def time(self, samplers: Mapping[str, Sampler], begin: int, end: int) -> tuple[Timings, dict[str, Timings]]:
        """See :class:`recdepth.evaluation.tune_halving.Bench`."""
        turn = {_REFERENCE: self._clock, **samplers}
        key = ["time", *self._where(begin, end), [settings_of(s) for s in turn.values()], dict(self.decoding.machine)]
        found = self.log.of(key, lambda: {"timings": [asdict(t) for t in self._timed(turn, begin, end).values()]})
        timings = [Timings(**{**t, "stats": SampleStats(**t["stats"])}) for t in found["timings"]]
        named = dict(zip(turn, timings, strict=True))
        return named.pop(_REFERENCE), named

    def _sampled(self, sampler: Sampler, begin: int, end: int) -> Record:
        def measure() -> Record:
            decoding, some = self.decoding, self.held_out.part(begin, end)
            found = evaluate(sampler, decoding.model, some, batch_size=decoding.batch_size, seed=decoding.seed)
            return {"scores": found.scores, "tokens": found.tokens, "seconds": found.seconds}

        return self.log.of(["score", *self._where(begin, end), settings_of(sampler)], measure)

    def _where(self, begin: int, end: int) -> list[Any]:
        """Which prompts: where they are, and what they are."""
        return [self.part, begin, end, prompts_digest(self.held_out.items[begin:end])]

    def _timed(self, turn: Mapping[str, Sampler], begin: int, end: int) -> dict[str, Timings]:
        cold = {name: sampler for name, sampler in turn.items() if sampler not in self._warm}
        if cold:
            self._time_now(cold, begin, begin + 1)  # warms up
            self._warm |= set(cold.values())
        return self._time_now(turn, begin, end)

    def _time_now(self, turn: Mapping[str, Sampler], begin: int, end: int) -> dict[str, Timings]:
        some = self.held_out.part(begin, end)
        return time_in_turn(turn, self.decoding.model, some, seed=self.decoding.seed, warmup=0)
