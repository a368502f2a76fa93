"""Sample from a trained model: the newest run, or the one named by run_dir= or model_path=.

python sample.py
python sample.py prompt="Zoe has 4 8 apples ." sampler=diffusion_forcing sampler.inner_steps=1
python sample.py run_dir=outputs/train/runs/2026-01-01/12-00-00-000000 sampler=adaptive trace=true
python sample.py experiment=tune_sampler tune.max_loss=0.5
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from recdepth import run_sample, run_tune
from recdepth.entry import launch, user_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> float | list[float | None] | None:
    """Sample as configured, and return the metrics named by optimized_metric; or tune a sampler."""
    with user_errors():
        if cfg.tune is not None:
            run_tune.tune(cfg)
        else:
            run_sample.sample(cfg)
        return run_sample.sample_metric(cfg)


if __name__ == "__main__":
    sys.exit(launch(main, Path(__file__).parent / "conf", "sample", text_keys=["prompt"]))
