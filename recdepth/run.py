"""What ``train.py`` does."""

from __future__ import annotations

import logging
import os
import pickle
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from . import checks, lifecycle
from .checks_support import unsupported_samplers
from .console import show
from .data import DataModule
from .likeness import other_model, other_optimizer, other_weights
from .models import RecurrentDepthForCausalLM, can_compile, load_config
from .nodes import callback_nodes, override
from .reporting import (
    WandbRun,
    recorded,
    wandb_run_of,
    write_model_card,
    write_pictures,
    write_report,
)
from .settings import ConfigError
from .starting import Pretrained, model_maker, start_path
from .training import (
    Export,
    KeepWandbRun,
    MetricsFile,
    StepAxis,
    StopOnCtrlC,
    Throughput,
    TrainingModule,
    wandb_run_of_checkpoint,
    without_adapters,
)
from .training.callbacks.export import save_model_folder
from .training.callbacks.interrupt import stop_if_asked
from .training.loggers import log_image, log_model

log = logging.getLogger(__name__)

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, ValueError)  # of a checkpoint


def train(cfg: DictConfig) -> float | list[float | None] | None:
    """Train a model as configured; everything about the run ends up in its folder. With ``frontier``, only draw.

    Returns:
        the metric named by ``optimized_metric``, a list for a list of names, or None when that is null, or nothing is
        trained.

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
    _go_on(cfg)
    folder = Path(cfg.paths.run_dir)
    _check_folder(cfg, folder)
    make_model = _start(cfg, data)
    if cfg.allocator and checks.on_cpu(cfg):
        lifecycle.keep_large_buffers()
    lifecycle.seed_everything(cfg.seed)
    facts = lifecycle.provenance()
    lifecycle.prepare_run_folder(cfg, folder, facts)
    with reported(folder, cfg.report) as status, lifecycle.closing():
        module = _module(cfg, make_model())
        if cfg.resume is not None and (other := other_weights(cfg, module)):
            raise ConfigError(other)
        trainer = _trainer(cfg, data, folder)
        _describe(cfg, facts, module, trainer)
        _fit(cfg, trainer, module, data, folder)
        if not trainer.is_global_zero:
            return None  # the first process has the metrics, writes the report and gives the result
        _after_training(cfg, trainer, module, data, folder)
        metrics = next(logger for logger in trainer.loggers if isinstance(logger, MetricsFile))
        wanted = checks.listed(cfg.optimized_metric)
        status["metric"] = {name: metrics.latest[name] for name in wanted if name in metrics.latest}
        return checks.optimized_metric(cfg, metrics.latest)


@contextmanager
def reported(folder: Path, report: bool) -> Iterator[dict[str, Any]]:
    """Keep the run's status while the block runs and, whatever ended it, write the report in the end."""
    if lifecycle.rank():  # the first process keeps both
        yield {}
        return
    try:
        with recorded(folder) as status:
            yield status
    finally:
        _write_card(folder)
        if report:
            try:
                log.info("Report: %s", write_report(folder))
            except OSError as error:  # a full disk must not hide how the run ended
                log.error("The report could not be written to %s: %s", folder, error)


def _write_card(folder: Path) -> None:
    """The model's README.md, where the run has made a model."""
    if not (folder / "model" / "config.json").is_file():
        return
    try:
        write_model_card(folder / "model", folder)
    except (OSError, ValueError) as error:  # a full disk must not hide how the run ended
        log.error("The model's card could not be written to %s: %s", folder / "model", error)


def _draw(cfg: DictConfig) -> None:
    """Draw the runs of a study into the run folder."""
    folder = Path(cfg.paths.run_dir)
    lifecycle.prepare_run_folder(cfg, folder, lifecycle.provenance())
    show(f"Frontier: {checks.build(cfg, 'frontier')(folder)}")


def _check_resume(cfg: DictConfig) -> None:
    """Raise ConfigError for a checkpoint that cannot be read, has all of the steps already, or is of another optimizer.

    With ``compare``, one that has just as many steps as are wanted is welcome: its samplers are compared again.
    """
    if cfg.resume is None:
        return
    path = checks.checkpoint_path(cfg.resume)
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        step, other = int(checkpoint["global_step"]), other_optimizer(cfg, checkpoint)
    except _UNREADABLE as error:
        raise ConfigError([f"resume={cfg.resume}: {path} is not a checkpoint of a run; give another"]) from error
    if 0 < cfg.trainer.max_steps <= step and not (cfg.compare and step == cfg.trainer.max_steps):
        again = f", or set compare=true with trainer.max_steps={step} to compare its samplers again"
        raise ConfigError([f"resume={cfg.resume} is at step {step}; raise trainer.max_steps above {step}{again}"])
    if other:
        raise ConfigError(other)


def _check_folder(cfg: DictConfig, folder: Path) -> None:
    """Raise ConfigError for a folder with another run's model or checkpoints, which would be mixed with this one's."""
    if lifecycle.rank() or lifecycle.sweep_folder() is not None:
        return
    resumed = checks.checkpoint_path(cfg.resume).resolve() if cfg.resume is not None else None
    if resumed is not None and folder.resolve() in resumed.parents:
        return
    kept = list((folder / "checkpoints").glob("*.ckpt"))  # none of a run that was killed early: nothing is lost
    if kept or (folder / "model").exists():
        go_on = f", or go on by resume={folder}" if kept else ""
        raise ConfigError([f"paths.run_dir={folder} holds a run; take another folder{go_on}"])


def _go_on(cfg: DictConfig) -> None:
    """A job of a sweep that is started again in its folder goes on from its own last checkpoint."""
    folder = Path(cfg.paths.run_dir)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if lifecycle.sweep_folder() is None or not checkpoint.is_file():
        return
    try:
        step = int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"])
    except _UNREADABLE:  # killed while it was written
        log.warning("%s cannot be read: the job starts from the beginning", checkpoint)
        return
    cfg.resume = str(folder)
    log.info("Goes on from its checkpoint at step %d", step)


def _start(cfg: DictConfig, data: DataModule) -> Callable[[], RecurrentDepthForCausalLM]:
    """What makes the model; weights to start from are loaded and checked already."""
    ids = {name: getattr(data.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = checks.build(cfg, "model", vocab_size=len(data.tokenizer), **ids)
    pretrained = load_config(start_path(cfg.init_from)) if isinstance(shape, Pretrained) else None
    if pretrained is not None:
        shallow = checks.too_few_recurrences(cfg, pretrained.mean_recurrence)
        if problems := [*unsupported_samplers(cfg, pretrained), *shallow]:
            raise ConfigError(problems)
    if cfg.resume is not None and pretrained is None and cfg.lora is None and (other := other_model(cfg, shape)):
        raise ConfigError(other)
    init_from = cfg.init_from if checks.starts_from(cfg) else None
    if init_from != cfg.init_from:
        log.info("A resumed run has its own weights: init_from=%s is not read", cfg.init_from)
    return model_maker(
        shape, init_from, data, checks.build(cfg, "lora"), str(cfg.trainer.precision), cfg.resume is not None
    )


def _module(cfg: DictConfig, model: RecurrentDepthForCausalLM) -> TrainingModule:
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
    callbacks: list[lightning.Callback] = [Throughput(), StepAxis(), StopOnCtrlC()]
    callbacks += [checks.build(cfg, f"callbacks.{name}") for name in callback_nodes(cfg)]
    callbacks.append(Export(folder / "model", data.tokenizer))
    continued = _continued(cfg, folder)
    callbacks.append(KeepWandbRun(folder, continued))
    loggers = _loggers(cfg, folder, **({"id": continued.id} if continued is not None else {}))
    progress = "progress" in callback_nodes(cfg)
    return checks.build(cfg, "trainer", callbacks=callbacks, logger=loggers, enable_progress_bar=progress)


def _continued(cfg: DictConfig, folder: Path) -> WandbRun | None:
    """The W&B run that goes on when a run is resumed; None for one of its own.

    Jobs of a sweep that start from the same checkpoint are branches, each a run of its own; only a job that goes on in
    its own folder is the run it was.
    """
    logger: Any = cfg.get("logger") or {}
    if cfg.resume is None or not logger.get("continue_run") or "WANDB_RUN_ID" in os.environ:
        return None
    checkpoint = checks.checkpoint_path(cfg.resume).absolute()
    if lifecycle.sweep_folder() is not None and folder.absolute() not in checkpoint.parents:
        return None
    known = wandb_run_of_checkpoint(checkpoint)
    if known is None:
        return None
    if (known.project, known.entity) != (logger.project, logger.entity or known.entity):
        where = f"{known.entity or 'your own'}/{known.project}"
        log.info("The resumed W&B run %s is in %s: this one, elsewhere, is a new one", known.id, where)
        return None
    log.info("Continues the W&B run %s", known.id)
    return known


def _loggers(cfg: DictConfig, folder: Path, **settings: Any) -> list[Logger]:
    """The chosen logger and ``metrics.jsonl``, last; jobs of a sweep are a group of its name, unless one is given."""
    sweep = lifecycle.sweep_folder()
    group = {"group": sweep.name} if sweep is not None and (cfg.get("logger") or {}).get("group", "") is None else {}
    chosen: list[Logger] = [checks.build(cfg, "logger", **group, **settings)] if cfg.get("logger") else []
    return [*chosen, MetricsFile(folder / "metrics.jsonl")]


def described_loggers(cfg: DictConfig, folder: Path, facts: dict[str, Any]) -> list[Logger]:
    """The loggers of a run without training, which have been told its settings and circumstances."""
    loggers = _loggers(cfg, folder)
    for logger in loggers:
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
        logger.log_hyperparams({**settings, "run": facts})
    return loggers


def _describe(cfg: DictConfig, facts: dict[str, Any], module: TrainingModule, trainer: lightning.Trainer) -> None:
    """Log the resolved configuration and the run's facts; say what is going to be trained."""
    weights = list(module.model.parameters())
    sizes = {"parameters": sum(p.numel() for p in weights)}
    sizes["trained"] = sum(p.numel() for p in weights if p.requires_grad)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams({**settings, "run": {**facts, **sizes}})
    log.info(
        "%.2f M parameters%s, %s, %s, seed %s",
        sizes["parameters"] / 1e6,
        f" ({sizes['trained'] / 1e6:.2f} M trained)" if sizes["trained"] < sizes["parameters"] else "",
        trainer.strategy.root_device,
        cfg.trainer.precision,
        cfg.seed,
    )


def _fit(cfg: DictConfig, trainer: lightning.Trainer, module: TrainingModule, data: DataModule, folder: Path) -> None:
    """Train, validate the final model and export it. On Ctrl-C: say what is there and how to go on."""
    checkpoint = checks.checkpoint_path(cfg.resume) if cfg.resume else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        stop_if_asked(trainer)
        if not (folder / "model").is_dir():  # nothing was left to train: a resumed run whose time was over
            save_model_folder(module.model, data.tokenizer, folder / "model")
        if cfg.trainer.limit_val_batches:
            trainer.validate(module, datamodule=data, verbose=False)
            stop_if_asked(trainer)
    except (SystemExit, KeyboardInterrupt) as stopped:  # the former is how Lightning leaves after Ctrl-C
        if isinstance(stopped, SystemExit) and not trainer.interrupted:
            raise
        log.info("Stopped at step %d; the model as it is: %s", trainer.global_step, folder / "model")
        if (folder / "checkpoints").is_dir():
            log.info("To go on: the same command with %s", shlex.quote(override("resume", str(folder))))
        _say_how_to_sync(folder)
        raise KeyboardInterrupt from stopped


def _after_training(
    cfg: DictConfig, trainer: lightning.Trainer, module: TrainingModule, data: DataModule, folder: Path
) -> None:
    """Compare the samplers if asked to, draw the pictures, hand them and the model to the loggers."""
    if cfg.compare:
        model = without_adapters(module.model)
        model.to(trainer.strategy.root_device)  # type: ignore[arg-type]  # Lightning leaves it on the CPU
        checks.build(cfg, "comparison")(model, data, folder, trainer.loggers, cfg.seed)
    _write_card(folder)
    log_model(trainer.loggers, folder / "model")
    if cfg.report:
        for path in write_pictures(folder):
            log_image(trainer.loggers, path.stem, path)
    _say_how_to_sync(folder)
    log.info("Run folder: %s", folder)


def _say_how_to_sync(folder: Path) -> None:
    known = wandb_run_of(folder)
    if known is not None and known.folders:
        log.info("W&B run %s is offline; to upload it: %s", known.id, known.sync_command())
