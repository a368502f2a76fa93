"""A run that is resumed stays the W&B run that it was: real offline runs, read back from W&B's own files."""

import json
import logging
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from wandb.proto.wandb_internal_pb2 import Record

from recdepth import run
from recdepth.reporting import wandb_run_of
from recdepth.reporting.wandb_run import FILE
from recdepth.training import wandb_run_of_checkpoint

STEPS = ["logger=wandb", "callbacks=checkpoint", "trainer.limit_val_batches=1", "data.validation_items=16"]
STEPS += ["trainer.log_every_n_steps=1"]


def wandb_records(path: Path) -> Iterator[Record]:
    """The records of a ``.wandb`` file: LevelDB's log format (blocks of 32 KiB) behind a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # too little for a record's header: padding
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def offline_runs(folder: Path) -> list[tuple[str, list[int], list[int]]]:
    """Of every offline folder: the run's id, W&B's steps, and our own ones, of the records with a training loss."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        name, internal, own = "", [], []
        for _ in range(100):  # W&B's own process may still be writing
            records = list(wandb_records(path))
            if records and records[-1].WhichOneof("record_type") in ("exit", "footer"):
                break
            time.sleep(0.05)
        for record in records:
            name = record.run.run_id or name
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            if "train/loss" in row:
                own.append(row["trainer/global_step"])
                internal.append(row.get("_step", record.history.step.num))
        found.append((name, internal, own))
    return found


@pytest.fixture
def first(tiny, tmp_path) -> Path:
    run.train(tiny(*STEPS, "trainer.max_steps=2", folder="first"))
    return tmp_path / "first"


def test_a_resumed_run_is_the_same_wandb_run_on_our_own_step_axis(tiny, first, tmp_path, caplog) -> None:
    ((name, internal, own),) = offline_runs(first)
    assert (internal[0], own) == (0, [0, 1])
    known = wandb_run_of(first)
    assert (known.id, known.project, len(known.folders)) == (name, "recdepth", 1)
    kept = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["KeepWandbRun"]
    assert kept["id"] == name

    with caplog.at_level(logging.INFO):
        run.train(tiny(*STEPS, "trainer.max_steps=4", f"resume={first}", folder="second"))
    ((again, internal, own),) = offline_runs(tmp_path / "second")
    assert (again, internal[0], own) == (name, 0, [2, 3])  # W&B counts from 0 again; our axis goes on
    command = caplog.messages[-2].split("to upload it: ")[1].split()
    assert command[:2] == ["wandb", "sync"]
    assert [Path(p).resolve().parents[1].name for p in command[2:]] == ["first", "second"]

    third = tiny(*STEPS, "trainer.max_steps=5", f"resume={tmp_path / 'second'}", folder="third")
    run.train(third)
    folders = [tmp_path / part for part in ("first", "second", "third")]
    assert {name for folder in folders for name, _, _ in offline_runs(folder)} == {name}
    assert len(wandb_run_of(tmp_path / "third").folders) == 3


def test_the_id_goes_with_a_checkpoint_and_with_outputs_that_move(tiny, first, tmp_path) -> None:
    known = wandb_run_of(first)
    alone = tmp_path / "elsewhere" / "step_2.ckpt"
    alone.parent.mkdir()
    shutil.copy(first / "checkpoints" / "last.ckpt", alone)
    assert wandb_run_of_checkpoint(alone) == known
    first.rename(tmp_path / "moved")
    moved = wandb_run_of_checkpoint(tmp_path / "moved" / "checkpoints" / "last.ckpt")
    assert (moved.id, moved.folders[0].is_dir()) == (known.id, True)
    (tmp_path / "moved" / FILE).unlink()
    assert wandb_run_of_checkpoint(tmp_path / "moved" / "checkpoints" / "last.ckpt").id == known.id


def test_a_branch_is_a_run_of_its_own(tiny, first, tmp_path, monkeypatch) -> None:
    name, resumed = wandb_run_of(first).id, [*STEPS, "trainer.max_steps=3", f"resume={first}"]
    run.train(tiny(*resumed, "logger.continue_run=false", folder="branch"))
    run.train(tiny(*resumed, "logger.project=other", folder="other"))
    with monkeypatch.context() as sweeping:  # two jobs that start from one checkpoint must not be merged
        hydra = OmegaConf.create({"mode": RunMode.MULTIRUN, "sweep": {"dir": str(tmp_path)}})
        sweeping.setattr(HydraConfig, "initialized", lambda: True)
        sweeping.setattr(HydraConfig, "get", lambda: hydra)
        run.train(tiny(*resumed, folder="job"))
        run.train(tiny(*STEPS, "trainer.max_steps=3", f"resume={first}", folder="first"))
    ids = [wandb_run_of(tmp_path / folder).id for folder in ("branch", "other", "job")]
    assert len({*ids, name}) == 4
    assert {found for found, _, _ in offline_runs(first)} == {name}  # a job that goes on in its own folder
    assert len(wandb_run_of(first).folders) == 2


def test_without_wandb_nothing_is_kept(tiny, tmp_path) -> None:
    for folder, logger in (("none", "logger=none"), ("off", "logger.mode=disabled")):
        run.train(tiny(*STEPS, logger, "trainer.max_steps=1", folder=folder))
        assert not (tmp_path / folder / FILE).exists()
