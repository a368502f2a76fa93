"""Train a recurrent-depth model: the configuration in conf/, any of it overridden on the command line.

python train.py experiment=quickstart
python train.py model=tiny data=pointer_chase data.task.level=1 callbacks=curriculum trainer.max_steps=500
python train.py -m model=tiny,small optimizer.lr=1e-3,3e-3 trainer.max_steps=20
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from recdepth import run
from recdepth.entry import launch, user_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | list[float | None] | None:
    """Train as configured; returns the metric named by optimized_metric."""
    with user_errors():
        return run.train(cfg)


if __name__ == "__main__":
    sys.exit(launch(main, Path(__file__).parent / "conf", "train"))
