"""What ``sample.py experiment=tune_sampler`` does: find the fastest sampler settings within a loss of accuracy."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from . import checks, lifecycle
from .checks_tune import TUNE_LOG, local_samplers, run_of_model
from .data import DataModule, EvaluationItem
from .data.items import Split
from .evaluation import Decoding, HeldOut, ModelBench, TuneLog, Tuner, Tuning, machine_stamp
from .evaluation.compare import progress_bars
from .evaluation.tune_bench import settings_of, weights_digest
from .evaluation.tune_space import impossible_values, reference_of
from .models import RecurrentDepthForCausalLM, load_tokenizer
from .nodes import override
from .reporting import print_tuning, sampler_yaml, write_tuning
from .reporting.tuning import conclusion
from .run import described_loggers, reported
from .sampling import Sampler
from .settings import ConfigError
from .sources import data_of_run, load, run_folder
from .training.loggers import log_image, log_table

log = logging.getLogger(__name__)


def tune(cfg: DictConfig) -> float | None:
    """Tune as configured: print what was found, and write it into the run folder and as ``sampler=local/<name>``.

    ``tune.jsonl`` has every measurement as it comes, ``tune.json``, ``tune.png`` and ``report.html`` what was found,
    also after Ctrl-C.

    Returns:
        how many times as fast as the paper's default the winner is; None without one.

    Raises:
        ConfigError: naming every setting that is wrong, before any work.
        KeyboardInterrupt: after Ctrl-C, when what is known is written.
    """
    lifecycle.quiet()
    checks.check_sample(cfg)
    tuning: Tuning = checks.build(cfg, "tune")
    sampler: Sampler = checks.build(cfg, "sampler")
    given, model, data = _model_and_data(cfg)
    if problems := sampler.unsupported(model.config):
        raise ConfigError([f"sampler: {problem}" for problem in problems])
    searched, fresh = _prompts(tuning, data)
    search, check = _held_out(cfg, model, data, searched, fresh)
    decoding = Decoding(model, reference_of(sampler), cfg.batch_size, cfg.seed, machine_stamp(model))
    folder, facts = Path(cfg.paths.run_dir), lifecycle.provenance()
    if cfg.allocator and model.device.type == "cpu":
        lifecycle.keep_large_buffers()
    folder.mkdir(parents=True, exist_ok=True)
    kept = _log(tuning, folder, decoding, search)
    lifecycle.prepare_run_folder(cfg, folder, facts)
    for value in impossible_values(sampler, tuning.space[sampler.name]):
        log.info("Left out: tune.space.%s.%s", sampler.name, value)
    tuner = Tuner(
        tuning,
        sampler,
        ModelBench(decoding, search, "search", kept),
        ModelBench(decoding, check, "fresh", kept, compile=tuning.compile),
        cfg.seed,
        model.config,
    )
    head = {"command": facts["command"], "model": given, "started": facts["started"], "machine": decoding.machine}
    head["measurements_taken_over"] = kept.taken_over
    with reported(folder, cfg.report), lifecycle.closing():
        _run(tuner, head, folder, described_loggers(cfg, folder, facts))
        if tuner.winner is None:
            return None
        prompt = [f"prompt={fresh[0].prompt}"] if cfg.model_path is not None else []
        _write_winner(tuner, folder, [f"model: {given}", f"command: {shlex.join(facts['command'])}"], [given, *prompt])
    return float(tuner.facts()["final"][-1]["speedup_paper"])


def _run(tuner: Tuner, head: dict[str, Any], folder: Path, loggers: list[Logger]) -> None:
    """Search and check; whatever ends it, what is known is printed, written and logged."""
    console, done = Console(), False
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        with progress_bars(console) as progress:
            tuner.run(_announcer(progress))
        done = True
    finally:
        facts = tuner.facts()
        print_tuning(facts, console)
        head |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        numbers, picture = write_tuning(facts, head, folder)
        log.info("Numbers: %s%s", numbers, f"\nPicture: {picture}" if picture else "")
        _hand_over(facts, picture, loggers)
        if done:
            log.info("\n%s", "\n".join(conclusion(facts)))
        else:
            log.info("Stopped; to go on: the same command with %s", shlex.quote(override("tune.resume", str(folder))))


def _hand_over(facts: Mapping[str, Any], picture: Path | None, loggers: list[Logger]) -> None:
    """Log the tables and the picture, and the winner's numbers as metrics."""
    for table in ("tried", "checked", "final"):
        if facts[table]:
            log_table(loggers, f"tune/{table}", facts[table])
    if picture is not None:
        log_image(loggers, "tune/picture", picture)
    for logger in loggers:
        if facts["final"]:
            numbers = {**facts["final"][-1], "accuracy": facts["checked"][-1]["accuracy"]}.items()
            logger.log_metrics({f"tune/{k}": v for k, v in numbers if isinstance(v, (int, float))}, step=0)
        logger.save()


def _announcer(progress: Progress) -> Callable[[str, int], Callable[[], None]]:
    def announce(what: str, steps: int) -> Callable[[], None]:
        task = progress.add_task(what, total=steps)
        return lambda: progress.advance(task)

    return announce


def _write_winner(tuner: Tuner, folder: Path, comments: list[str], source: list[str]) -> None:
    """Write the winner beside its measurements and as ``sampler=local/<name>``; print the command that takes it."""
    assert tuner.winner is not None
    name, found = tuner.tuning.name, conclusion(tuner.facts())
    when = time.strftime("%Y-%m-%d", time.localtime())
    text = sampler_yaml(tuner.winner.tried.sampler, [f"Found by tuning on {when}.", *found, *comments])
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    path = local_samplers() / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("w" if tuner.tuning.overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:  # made meanwhile by another tuning
        log.info("%s exists by now, and is left alone; the winner is %s", path, folder / path.name)
        return
    log.info("Sampler: %s\n\n    %s\n", path, shlex.join(["python", "sample.py", *source, f"sampler=local/{name}"]))


# --------------------------------------------------------------------------------------------------------- the subject


def _model_and_data(cfg: DictConfig) -> tuple[str, RecurrentDepthForCausalLM, DataModule]:
    """The model, with the override that names it, and the data whose prompts it is tuned on."""
    if cfg.model_path is not None:
        given, folder, run = override("model_path", cfg.model_path), cfg.model_path, run_of_model(cfg.model_path)
        model = load(folder, "model_path", cfg.device, cfg.dtype)
    else:
        run = run_folder(cfg.run_dir, Path(cfg.paths.outputs))
        given, folder = override("run_dir", str(run)), run / "model"
        model = load(folder, "run_dir", cfg.device, cfg.dtype)
    if cfg.get("data") is None:
        assert run is not None
        return given, model, data_of_run(run)
    if "tokenizer" not in cfg.data or cfg.data.tokenizer is not None:
        return given, model, checks.build(cfg, "data")
    try:
        tokenizer = load_tokenizer(folder)
    except (ValueError, OSError) as error:
        raise ConfigError([f"{given}: {error}"]) from error
    return given, model, checks.build(cfg, "data", tokenizer=tokenizer)


def _prompts(tuning: Tuning, data: DataModule) -> tuple[list[EvaluationItem], list[EvaluationItem]]:
    """Held-out prompts for the search, and fresh ones that are not among them.

    Raises:
        ConfigError: where there are too few.
    """
    counts = {name: getattr(tuning.check, name) for name in ("accuracy_prompts", "speed_prompts")}
    most = max(counts, key=lambda name: counts[name])
    wanted, problems = counts[most], []

    def drawn(count: int, split: Split, key: str) -> list[EvaluationItem]:
        try:
            return data.evaluation_items(count, split=split)
        except ValueError as error:
            problems.append(f"{key}: {error}")
            return []

    search = drawn(tuning.search.rungs[-1], "validation", f"tune.search.rungs={list(tuning.search.rungs)}")
    seen = {tuple(item.prompt_ids) for item in search}
    key, fresh, asked = f"tune.check.{most}={wanted}", [], wanted
    while not problems:
        items = drawn(asked, "test", key)
        fresh = [item for item in items if tuple(item.prompt_ids) not in seen]
        if len(fresh) >= wanted or problems:
            break
        if asked > 4 * wanted:
            problems.append(f"{key}: only {len(fresh)} of the first {asked} test prompts are new to the search")
        asked += wanted - len(fresh)  # as many as turned out to be known
    if problems:
        raise ConfigError(problems)
    return search, fresh[:wanted]


def _held_out(
    cfg: DictConfig,
    model: RecurrentDepthForCausalLM,
    data: DataModule,
    search: list[EvaluationItem],
    fresh: list[EvaluationItem],
) -> tuple[HeldOut, HeldOut]:
    """Both lists of prompts, to be continued alike.

    Raises:
        ConfigError: where prompts do not fit the model.
    """
    items = [*search, *fresh]
    vocabulary, context = model.config.vocab_size, model.config.max_position_embeddings
    longest = max(len(item.prompt_ids) for item in items)
    new = cfg.max_new_tokens or max(1, min(data.max_new_tokens, context - longest))
    problems = []
    if longest + new > context:
        problems.append(f"max_new_tokens={new} after a prompt of {longest} tokens exceeds the context of {context}")
    if max(max(item.prompt_ids) for item in items) >= vocabulary:
        problems.append(
            f"data: it has tokens outside the model's vocabulary of {vocabulary}; take the model's own task"
        )
    if problems:
        raise ConfigError(problems)
    end = new, data.stop_tokens
    return HeldOut(search, data.score, *end), HeldOut(fresh, data.score, *end)


def _log(tuning: Tuning, folder: Path, decoding: Decoding, held_out: HeldOut) -> TuneLog:
    """The file of measurements, with those of an earlier tuning if that is wanted.

    Raises:
        ConfigError: where those are of something else.
    """
    head = {
        "weights": weights_digest(decoding.model),
        "dtype": str(decoding.model.dtype),
        "reference": settings_of(decoding.reference),
        "seed": decoding.seed,
        "max_new_tokens": held_out.max_new_tokens,
        "stop_tokens": list(held_out.stop_tokens),
    }
    earlier = Path(tuning.resume) / TUNE_LOG if tuning.resume is not None else None
    try:
        kept = TuneLog(folder / TUNE_LOG, head, earlier)
    except ValueError as error:
        raise ConfigError([f"tune.resume={tuning.resume}: {error}"]) from error
    if kept.taken_over:
        log.info("%d measurements taken over from %s", kept.taken_over, earlier)
    return kept
