"""What the entry points do: ``train(cfg)`` and ``sample(cfg)``."""

from __future__ import annotations

import logging
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from . import checks, lifecycle
from .console import append_jsonl, show, show_sample, show_stats
from .data import DataModule
from .models import RecurrentDepthConfig, RecurrentDepthForCausalLM, can_compile, load_tokenizer
from .nodes import callback_nodes
from .reporting import WavefrontGrid, plot_wavefront, write_report
from .sampling import SampleStats, Trace
from .settings import ConfigError
from .sources import Source, load, run_folder, source_of_model, source_of_run
from .starting import start_weights
from .training import Export, MetricsFile, StopOnCtrlC, Throughput, TrainingModule
from .training.callbacks.export import export_model
from .training.loggers import log_image, log_model

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train a model as configured; everything about the run ends up in its folder. With ``frontier``, only draw.

    Returns:
        the metric named by ``optimized_metric``, or None when that is null, or nothing is trained.

    Raises:
        ConfigError: before any work, naming every setting that is wrong.
        KeyboardInterrupt: after Ctrl-C, when the run folder is in order.
    """
    lifecycle.quiet()
    data = checks.check_train(cfg)
    if cfg.frontier is not None:
        _draw(cfg)
        return None
    _check_resume(cfg)
    config = _model_config(cfg, data)
    weights = start_weights(cfg.init_from, config, data.tokenizer) if cfg.init_from else None
    if cfg.allocator and checks.on_cpu(cfg):
        lifecycle.keep_large_buffers()
    lifecycle.seed_everything(cfg.seed)
    folder = Path(cfg.paths.run_dir)
    facts = lifecycle.provenance()
    lifecycle.prepare_run_folder(cfg, folder, facts)
    with lifecycle.closing():
        module = _module(cfg, config)
        if weights is not None:
            module.model.load_state_dict(weights)
        trainer = _trainer(cfg, data, folder)
        _describe(cfg, facts, module, trainer)
        _fit(cfg, trainer, module, data, folder)
        if not trainer.is_global_zero:
            return None  # the first process has the metrics, writes the report and gives the result
        _after_training(cfg, trainer, module, data, folder)
        metrics = next(logger for logger in trainer.loggers if isinstance(logger, MetricsFile))
        return checks.optimized_metric(cfg, metrics.latest)


def _draw(cfg: DictConfig) -> None:
    """Draw the runs of a study into the run folder."""
    folder = Path(cfg.paths.run_dir)
    lifecycle.prepare_run_folder(cfg, folder, lifecycle.provenance())
    show(f"Frontier: {checks.build(cfg, 'frontier')(folder)}")


def _check_resume(cfg: DictConfig) -> None:
    """Raise ConfigError for a checkpoint that cannot be read, or that has all of the steps already."""
    if cfg.resume is None:
        return
    path = checks.checkpoint_path(cfg.resume)
    try:
        step = int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["global_step"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError) as error:
        raise ConfigError([f"resume={cfg.resume}: {path} is not a checkpoint of a run; give another"]) from error
    if 0 < cfg.trainer.max_steps <= step:
        raise ConfigError([f"resume={cfg.resume} is at step {step}; raise trainer.max_steps above {step}"])


def _model_config(cfg: DictConfig, data: DataModule) -> RecurrentDepthConfig:
    ids = {name: getattr(data.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return checks.build(cfg, "model", vocab_size=len(data.tokenizer), **ids)


def _module(cfg: DictConfig, config: RecurrentDepthConfig) -> TrainingModule:
    model = RecurrentDepthForCausalLM(config)
    if cfg.compile:
        able, why = can_compile("cpu" if checks.on_cpu(cfg) else "cuda")
        if able:
            model.compile_seams()
            log.info("compile=true: the first steps take about a minute")
        else:
            log.info("compile=true: %s", why)
    objective, schedule = checks.build(cfg, "objective"), checks.build(cfg, "scheduler")
    return TrainingModule(model, objective, checks.build(cfg, "optimizer"), schedule, seed=cfg.seed)


def _trainer(cfg: DictConfig, data: DataModule, folder: Path) -> lightning.Trainer:
    callbacks: list[lightning.Callback] = [Throughput(), StopOnCtrlC()]
    callbacks += [checks.build(cfg, f"callbacks.{name}") for name in callback_nodes(cfg)]
    callbacks.append(Export(folder / "model", data.tokenizer))
    loggers: list[Logger] = [checks.build(cfg, "logger")] if cfg.get("logger") else []
    loggers.append(MetricsFile(folder / "metrics.jsonl"))
    progress = "progress" in callback_nodes(cfg)
    return checks.build(cfg, "trainer", callbacks=callbacks, logger=loggers, enable_progress_bar=progress)


def _describe(cfg: DictConfig, facts: dict[str, Any], module: TrainingModule, trainer: lightning.Trainer) -> None:
    """Log the resolved configuration and the run's facts; say what is going to be trained."""
    sizes = {"parameters": sum(p.numel() for p in module.model.parameters())}
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams({**settings, "run": {**facts, **sizes}})
    log.info(
        "%.2f M parameters, %s, %s, seed %s",
        sizes["parameters"] / 1e6,
        trainer.strategy.root_device,
        cfg.trainer.precision,
        cfg.seed,
    )


def _fit(cfg: DictConfig, trainer: lightning.Trainer, module: TrainingModule, data: DataModule, folder: Path) -> None:
    """Train, validate the final model and export it. On Ctrl-C: say what is there and how to go on."""
    checkpoint = checks.checkpoint_path(cfg.resume) if cfg.resume else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if not (folder / "model").is_dir():  # nothing was left to train: a resumed run whose time was over
            export_model(module.model, data.tokenizer, folder / "model")
        if cfg.trainer.limit_val_batches:
            trainer.validate(module, datamodule=data, verbose=False)
    except SystemExit as stopped:  # how Lightning leaves after Ctrl-C
        if not trainer.interrupted:
            raise
        log.info("Stopped at step %d; the model as it is: %s", trainer.global_step, folder / "model")
        if (folder / "checkpoints").is_dir():
            log.info("To go on: the same command with resume=%s", folder)
        raise KeyboardInterrupt from stopped


def _after_training(
    cfg: DictConfig, trainer: lightning.Trainer, module: TrainingModule, data: DataModule, folder: Path
) -> None:
    """Compare the samplers if asked to, write the report, hand model and pictures to the loggers."""
    if cfg.compare:
        module.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
        checks.build(cfg, "comparison")(module.model, data, folder, trainer.loggers, cfg.seed)
    log_model(trainer.loggers, folder / "model")
    if cfg.report:
        page = write_report(folder)
        for name in ("curves", "depth_loss"):
            if (folder / f"{name}.png").exists():
                log_image(trainer.loggers, name, folder / f"{name}.png")
        log.info("Report: %s", page)
    log.info("Run folder: %s", folder)


# ---------------------------------------------------------------------------------------------------------- sampling


def sample(cfg: DictConfig) -> list[str]:
    """Sample as configured: print texts and statistics, and append them to ``samples.jsonl``.

    Returns:
        the texts.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    lifecycle.quiet()
    checks.check_sample(cfg)
    source = _source(cfg)
    if cfg.allocator and source.model.device.type == "cpu":
        lifecycle.keep_large_buffers()
    folder = Path(cfg.paths.run_dir)
    lifecycle.prepare_run_folder(cfg, folder, lifecycle.provenance())
    sampler = checks.build(cfg, "sampler")
    longest = max(len(prompt.ids) for prompt in source.prompts)
    room = source.model.config.max_position_embeddings - longest
    new_tokens = cfg.max_new_tokens or max(1, min(source.max_new_tokens, room))
    show(f"{source.path} · {sampler.name} · {source.model.device}")
    texts, total, trace = [], SampleStats(), Trace() if cfg.trace else None
    for begin in range(0, len(source.prompts), cfg.batch_size):
        prompts = source.prompts[begin : begin + cfg.batch_size]
        try:
            result = sampler(
                source.model,
                [prompt.ids for prompt in prompts],
                max_new_tokens=new_tokens,
                stop_tokens=source.stop_tokens,
                **{name: cfg[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")},
                batch_size=len(prompts),
                rows=range(begin, begin + len(prompts)),
                trace=trace if begin == 0 else None,
            )
        except ValueError as error:
            raise ConfigError(_problems(error)) from error
        for prompt, tokens in zip(prompts, result.tokens, strict=True):
            texts.append(source.decode(tokens))
            score = prompt.score(tokens) if prompt.score is not None else None
            show_sample(prompt, texts[-1], score)
            record = {
                "sampler": sampler.name,
                **asdict(sampler),
                **{name: cfg[name] for name in ("seed", "temperature", "top_k", "top_p", "min_p")},
                "max_new_tokens": new_tokens,
                "model": str(source.path),
            }
            record |= {"prompt": prompt.text, "text": texts[-1], "answer": prompt.answer, "score": score}
            append_jsonl([folder, source.run_folder], record)
        total = total.add(result.stats)
    show_stats(total)
    if trace is not None and not WavefrontGrid.possible(trace):
        show("No wavefront: the first token ended the text")
    elif trace is not None:
        show(f"Wavefront: {plot_wavefront(trace, folder / 'wavefront.png', source.decode)}")
    return texts


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
    return source_of_run(folder, model, _data_of(folder), texts, cfg.num_prompts)


def _data_of(folder: Path) -> DataModule:
    """The data that a run was trained on, from its own configuration, with the tokenizer beside its model."""
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ConfigError([f"run_dir={folder} has no .hydra/config.yaml; give model_path={folder / 'model'}"])
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    given = {}
    try:
        if "tokenizer" in config.data:
            config.data.tokenizer, given = None, {"tokenizer": load_tokenizer(folder / "model")}
        return checks.build(config, "data", **given)
    except (ValueError, OSError) as error:
        remedy = f"give model_path={folder / 'model'} and prompt='…'"
        raise ConfigError([f"run_dir={folder}: its data cannot be built ({error}); {remedy}"]) from error
