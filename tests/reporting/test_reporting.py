"""Pictures and tables: valid files whose content follows the data."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image
from rich.console import Console

from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.reporting import (
    WavefrontGrid,
    plot_depth_loss,
    plot_training_curves,
    plot_wavefront,
    print_comparison,
    write_comparison,
    write_pictures,
    write_report,
)
from recdepth.sampling import Autoregressive, DiffusionForcing, Trace, TraceStep


def assert_picture(path: Path) -> np.ndarray:
    """A PNG of sensible size that is not blank."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) >= 400
    assert pixels[..., :3].std() > 0.02
    return pixels


def row(name: str, kind: str, speedup: float, accuracy: float) -> dict:
    return {
        "sampler": name,
        "settings": {"name": kind},
        "n": 300,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.02,
        "accuracy_high": min(1.0, accuracy + 0.01),
        "agreement": 0.987,
        "speed_n": 24,
        "tokens_per_second": 123.4 * speedup,
        "speedup": speedup,
        "speedup_low": 0.9 * speedup,
        "speedup_high": 1.1 * speedup,
        "speedup_equal_accuracy": speedup / 8,
        "equal_accuracy_baseline": "ar-2",
        "core_passes_per_token": 32 / speedup,
        "token_passes_per_token": 33.0,
    }


ROWS = [
    row("ar-32", "autoregressive", 1.0, 1.0),
    row("ar-2", "autoregressive", 8.0, 0.99),
    row("df-headway", "diffusion_forcing", 14.0, 0.98),
]


def test_comparison_files(tmp_path: Path) -> None:
    data, picture = write_comparison(ROWS, tmp_path / "run")
    assert (data, picture) == (tmp_path / "run" / "comparison.json", tmp_path / "run" / "comparison.png")
    assert json.loads(data.read_text()) == ROWS
    assert_picture(picture)


def test_comparison_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_comparison([ROWS[0] | {"accuracy": float("nan")}], tmp_path)


def test_comparison_table_fits_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_comparison(ROWS, console)
    shown = console.file.getvalue()
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert lines["df-headway"].split() == [
        "df-headway",
        "98.0",
        "(96.0-99.0)",
        "98.7",
        "1728",
        "14.00",
        "1.75",
        "2.29",
        "33.0",
    ]
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "fastest one-token-at-a-time sampler" in shown


def lane(step: int, positions: list[int], tokens: list[int], flips: list[int], commits: list[int]) -> TraceStep:
    lanes = np.array([positions])
    return TraceStep(
        step=step,
        seconds=0.1 * step,
        core_passes=2 * (step + 1),
        positions=lanes,
        tokens=np.array([tokens]),
        proposals=np.array([[t + 1 for t in tokens]]),
        depth=np.full(lanes.shape, 2 * (step + 1)),
        age=np.full(lanes.shape, 2),
        residual=np.full(lanes.shape, 0.5 / (step + 1)),
        flipped=np.isin(lanes, flips),
        committed=np.isin(lanes, commits),
    )


def test_the_grid_lays_a_trace_out() -> None:
    steps = [
        lane(0, [4], [70], [], []),
        lane(1, [4, 5], [70, 71], [5], [4]),
        lane(2, [5, 6], [80, 81], [], [5, 6]),
    ]
    grid = WavefrontGrid.of(Trace(steps=steps, prompts=[[0] * 4]))
    assert grid.first == 4
    assert grid.edges.tolist() == [0, 2, 4, 6]
    assert np.array_equal(grid.depth, [[2, 4, np.nan], [np.nan, 4, 6], [np.nan, np.nan, 6]], equal_nan=True)
    assert np.argwhere(grid.flipped).tolist() == [[1, 1]]
    assert grid.committed.tolist() == [1, 2, 2]
    assert grid.tokens == [70, 80, 81, 82]


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Two rows of a random model, whose drafts flip a lot."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=40, hidden_size=32, num_attention_heads=2))
    found = Trace()
    DiffusionForcing(num_steps=8, inner_steps=2)(model.eval(), [[1, 2], [3]], max_new_tokens=12, trace=found)
    return found


def test_wavefront_pictures_differ_with_what_they_show(trace: Trace, tmp_path: Path) -> None:
    by_depth = assert_picture(plot_wavefront(trace, tmp_path / "depth.png", lambda ids: f"w{ids[0]}"))
    by_residual = assert_picture(plot_wavefront(trace, tmp_path / "residual.png", row=1, colour="residual"))
    contrast = assert_picture(plot_wavefront(trace, tmp_path / "new" / "ar.png", str, num_steps=8))
    assert by_depth.shape[1] == by_residual.shape[1] == contrast.shape[1]
    assert not np.array_equal(by_depth, by_residual)


def test_labels_survive_any_token(trace: Trace, tmp_path: Path) -> None:
    texts = ["", " ", "\n", "$x_1$", "a" * 99, "\t$"]
    assert_picture(plot_wavefront(trace, tmp_path / "odd.png", lambda ids: texts[ids[0] % len(texts)]))


def test_what_a_wavefront_cannot_show(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row=2"):
        plot_wavefront(trace, tmp_path / "x.png", row=2)
    with pytest.raises(ValueError, match="colour='speed'"):
        plot_wavefront(trace, tmp_path / "x.png", colour="speed")  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=9, hidden_size=16, num_attention_heads=2))
    plain = Trace()
    Autoregressive(num_steps=2)(model.eval(), [[1]], max_new_tokens=4, trace=plain)
    assert_picture(plot_wavefront(plain, tmp_path / "ar.png"))
    with pytest.raises(ValueError, match="not computed"):
        plot_wavefront(plain, tmp_path / "x.png", colour="residual")


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    records = [{"step": s, "train/loss": 3.0 / (s + 1), "lr": 1e-3} for s in range(5)]
    for s in (2, 4):
        by_depth = {f"val/loss_depth_{d}": 1.0 / (d + s) for d in (1, 2, 4, 8)}
        records.append({"step": s, "val/loss": 2.0 / s, "val/accuracy/ar": s / 5} | by_depth)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 5, "tr')
    return path


def test_curves_of_a_running_job(metrics: Path, tmp_path: Path) -> None:
    assert_picture(plot_training_curves(metrics, tmp_path / "curves.png"))
    assert_picture(plot_depth_loss(metrics, tmp_path / "depth.png"))


def test_curves_say_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "lr": 0.1}\n')
    with pytest.raises(ValueError, match="neither train/loss nor val/loss"):
        plot_training_curves(path, tmp_path / "x.png")
    with pytest.raises(ValueError, match="depth_loss callback"):
        plot_depth_loss(path, tmp_path / "x.png")
    path.write_text("broken\n{}\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        plot_training_curves(path, tmp_path / "x.png")


def test_the_page_holds_the_pictures_of_a_run(metrics: Path) -> None:
    folder = metrics.parent
    write_comparison(ROWS, folder)
    assert [path.name for path in write_pictures(folder)] == ["curves.png", "depth_loss.png"]
    plot_training_curves(metrics, folder / "wavefront.png")
    page = write_report(folder).read_text()
    assert page.count("data:image/png;base64,") == 1  # the wavefront; all else is drawn anew
    assert page.count("<svg") == 4  # comparison, loss, accuracy, loss by depth
    assert "98.0 (96.0-99.0)</td>" in page
