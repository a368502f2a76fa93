"""What ``sample.py`` does, but for tuning."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from . import lifecycle
from .checks_sample import check_sample
from .console import append_jsonl, show, show_stats
from .nodes import build
from .reporting import read_metrics
from .run import described_loggers, reported
from .sampling import SampleStats
from .settings import ConfigError
from .sources import Source, data_of_run, load, run_folder, source_of_model, source_of_run
from .watching import Watch, log_samples


def sample(cfg: DictConfig) -> list[str]:
    """Sample as configured: print texts and statistics, and append them to ``samples.jsonl``.

    Returns:
        the texts; what ``optimized_metric`` names: :func:`sample_metric`.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    lifecycle.quiet()
    check_sample(cfg)
    source = _source(cfg)
    if cfg.allocator and source.model.device.type == "cpu":
        lifecycle.keep_large_buffers()
    folder, facts = Path(cfg.paths.run_dir), lifecycle.provenance()
    lifecycle.prepare_run_folder(cfg, folder, facts)
    sampler = build(cfg, "sampler")
    longest = max(len(prompt.ids) for prompt in source.prompts)
    room = source.model.config.max_position_embeddings - longest
    call = {name: cfg[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
    call["max_new_tokens"] = cfg.max_new_tokens or max(1, min(source.max_new_tokens, room))
    record = {"sampler": sampler.name, **asdict(sampler), **call, "model": str(source.path)}
    call["stop_tokens"] = source.stop_tokens
    show(f"{source.path} · {sampler.name} · {source.model.device}")
    watch = Watch(sampler, source, cfg.trace, cfg.stream, call)
    with reported(folder, cfg.report), lifecycle.closing():
        loggers = described_loggers(cfg, folder, facts)
        samples, total = _sample_all(
            watch, cfg.batch_size, [folder, None if lifecycle.sweep_folder() else source.run_folder], record
        )
        show_stats(total)
        (folder / "stats.json").write_text(json.dumps(asdict(total), indent=2) + "\n", encoding="utf-8")
        log_samples(loggers, total, samples, watch.draw(folder))
    return [sample["text"] for sample in samples]


def _sample_all(
    watch: Watch, batch_size: int, folders: list[Path | None], record: dict[str, Any]
) -> tuple[list[dict[str, Any]], SampleStats]:
    """Sample every prompt of the source; each batch is on screen and on disk before the next one begins."""
    source, samples, total = watch.source, [], SampleStats()
    for begin in range(0, len(source.prompts), batch_size):
        prompts = source.prompts[begin : begin + batch_size]
        try:
            result, scores = watch.sample(prompts, range(begin, begin + len(prompts)))
        except ValueError as error:
            raise ConfigError(_problems(error)) from error
        for prompt, tokens, score in zip(prompts, result.tokens, scores, strict=True):
            text = source.decode(tokens)
            samples.append({**record, "prompt": prompt.text, "text": text, "answer": prompt.answer, "score": score})
            append_jsonl(folders, samples[-1])
        total = total.add(result.stats)
    return samples, total


def sample_metric(cfg: DictConfig) -> float | list[float | None] | None:
    """What ``optimized_metric`` names, of what this run has sampled or tuned; None for what it has not measured."""
    file, wanted = Path(cfg.paths.run_dir) / "metrics.jsonl", cfg.optimized_metric
    records = read_metrics(file) if file.is_file() else []
    metrics = records[-1] if records else {}  # a tuning without a winner logs none
    if wanted is None or isinstance(wanted, str):
        return None if wanted is None else metrics.get(wanted)
    return [metrics.get(name) for name in wanted]


def _problems(error: ValueError) -> list[str]:
    """What a sampler objects to at its call; its own arguments are top-level settings here."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return [line.removeprefix("- ") for line in lines if line.startswith("- ")] or [" ".join(lines)]


def _source(cfg: DictConfig) -> Source:
    """The model and the prompts that ``cfg`` asks for."""
    texts = None
    if cfg.prompt is not None:
        texts = [cfg.prompt] if isinstance(cfg.prompt, str) else list(cfg.prompt)
    if cfg.model_path is not None:
        model = load(cfg.model_path, "model_path", cfg.device, cfg.dtype)
        return source_of_model(cfg.model_path, model, texts)
    folder = run_folder(cfg.run_dir, Path(cfg.paths.outputs))
    model = load(folder / "model", "run_dir", cfg.device, cfg.dtype)
    return source_of_run(folder, model, data_of_run(folder), texts, cfg.num_prompts)
