"""How wide a wavefront may be before width stops being free: measured once per machine and model, then remembered."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recdepth.models import Depth, Flight, KVPolicy, RecurrentDepthForCausalLM
from recdepth.models.cpu import cpu_name
from recdepth.models.products import packed_products

log = logging.getLogger(__name__)

#: Widths that are timed, in lanes.
MEASURED_WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
#: A width is wide enough when it gives this share of the best lane throughput.
SHARE = 0.8

#: From a width in lanes to the seconds of one core pass over so many lanes, which it runs.
Timer = Callable[[int], float]

_CONTEXT = 256  # committed positions that the timed lanes attend to
_SAMPLES = 10  # timed passes per width, if they are quick; the first warms up
_QUICK, _BUDGET = 0.7, 3.0  # seconds of all passes: with more than a few per width; at most
_SLOW = 0.1  # seconds of a narrow pass from which on every other width is left out
_MEMORY = 256 << 20  # bytes of a cache that is never too large; a larger model may take as much as its weights

_known: dict[tuple[Path | None, str], dict[int, float]] = {}
_complaints: set[Path] = set()


def auto_width(
    model: RecurrentDepthForCausalLM,
    kv: KVPolicy = "shared",
    *,
    limit: int = 128,
    compiled: bool = False,
    timer: Timer | None = None,
) -> int:
    """The width at which a wider wavefront hardly gives more lanes per second: the value of ``max_wavefront=auto``.

    A core pass over w lanes takes t(w) seconds. While reading weights and launching kernels dominate, t hardly grows
    and lanes are free; once arithmetic dominates, twice the lanes take twice the time, and lanes that a flip throws
    away are paid for. The rule takes the smallest width whose throughput w/t(w) reaches 80 % of the best one up to
    ``limit``. For t = b + c·w (and a large limit) that is about w = 4·b/c, where the fixed part b is a fifth of the
    pass; for a flat t it is ``limit``, or what comes within 80 % of it; for t = c·w it is 1.

    t is timed on ``model.recur`` for one row, at all ``MEASURED_WIDTHS`` in turn, with a filled cache; so the answer
    does not depend on batches or prompts. That takes well under a second on a small model, up to about 3 s on a large
    one; where one pass over one lane takes 0.3 s or more, up to about 10 such passes. Random state, grad mode and the
    model's mode are left alone. The times are kept in memory and in :func:`width_file`, apart for every device, dtype,
    number of CPU threads, model shape, ``kv``, ``compiled`` and torch version; whatever is kept is not measured again,
    so one machine keeps giving one width until :func:`forget_widths`. A file that cannot be read or written is logged
    and otherwise ignored.

    Args:
        model: the model, on its device.
        kv: of the sampler; with ``per_depth`` the lanes are timed at depths that fall by one, as in ``Exact``.
        limit: largest answer, in lanes; widths above 128 or the model's context are not tried.
        compiled: whether ``model.recur`` is compiled at present; then every width is compiled first, seconds for each
            with static shapes, not counted in the times above.
        timer: runs and times a pass, in place of the model.

    Raises:
        ValueError: for a limit below 1 or an unknown ``kv``.
    """
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    if kv not in ("shared", "per_depth"):
        raise ValueError(f"kv={kv!r} is unknown; take 'shared' or 'per_depth'")
    path, key = width_file(), _key(model, kv, compiled)
    if (path, key) not in _known:
        seconds, source = _load(path, key), f"from {path}"
        if seconds is None:
            widths, committed = _plan(model, kv)
            seconds = measure_widths(timer or _pass_timer(model, kv, committed, widths[-1]), widths, compiled)
            seconds, source = _keep(path, key, seconds), "measured"
        _known[path, key] = seconds
        log.info("max_wavefront=auto stands for %d lanes here (%s)", choose_width(seconds, limit), source)
        rates = ", ".join(f"{w}: {w / t:.0f}" for w, t in sorted(seconds.items()))
        log.debug("lanes per second by width, %s: %s", key, rates)
    return choose_width(_known[path, key], limit)


def choose_width(seconds: Mapping[int, float], limit: int) -> int:
    """The smallest width whose lane throughput reaches 80 % of the best up to ``limit`` (see :func:`auto_width`).

    Args:
        seconds: of one core pass, by width in lanes.
        limit: largest answer; between two measured widths its time is interpolated.
    """
    rates = {w: w / t for w, t in sorted(seconds.items()) if w <= limit}
    below, above = max(rates, default=0), min((w for w in seconds if w > limit), default=0)
    if below < limit < above:
        part = (limit - below) / (above - below)
        rates[limit] = limit / (seconds[above] * part + seconds[below] * (1 - part))
    best = max(rates.values())
    return next(w for w, rate in rates.items() if rate >= SHARE * best)


def measure_widths(timer: Timer, widths: Sequence[int] = MEASURED_WIDTHS, compiled: bool = False) -> dict[int, float]:
    """Median seconds of one pass at each width; the widest are left out where passes are slow.

    Args:
        timer: runs and times a pass.
        widths: rising.
        compiled: run every width once before the clock starts.
    """
    for width in widths if compiled else widths[:1]:
        timer(width)
    spent = timer(widths[0])
    budget = max(_BUDGET, 10 * spent)
    samples = {widths[0]: [spent]}
    for width in widths[2::2] if spent > _SLOW else widths[1:]:
        if spent + _foresee(samples, width) > budget:
            break
        samples[width] = [timer(width)]
        spent += samples[width][0]
    # round by round, so that a machine that slows down for a while does so for every width
    for taken in range(1, _SAMPLES):
        if spent + sum(times[-1] for times in samples.values()) > (budget if taken < 4 else _QUICK):
            break
        for width, times in samples.items():
            times.append(timer(width))
            spent += times[-1]
    return {width: statistics.median(times[1:] or times) for width, times in samples.items()}


def width_file() -> Path | None:
    """Where measured times are kept; deleting the file forgets them. None without a home directory.

    ``wavefront_width.json`` in ``$RECDEPTH_CACHE``, else in ``recdepth`` under ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    try:
        if own := os.environ.get("RECDEPTH_CACHE"):
            folder = Path(own).expanduser()
        elif (shared := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():  # the standard ignores others
            folder = shared / "recdepth"
        else:
            folder = Path.home() / ".cache" / "recdepth"
    except RuntimeError:
        return None
    return folder.absolute() / "wavefront_width.json"


def forget_widths() -> None:
    """Measure again from now on: forget what this process and :func:`width_file` hold.

    Raises:
        OSError: if the file cannot be deleted.
    """
    _known.clear()
    _complaints.clear()
    if (path := width_file()) is not None:
        path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------------- the passes


def _foresee(samples: Mapping[int, list[float]], width: int) -> float:
    """Seconds that a wider pass will take, on the line through the two widest so far."""
    *before, (wide, last) = [(w, times[-1]) for w, times in samples.items()]
    slope = (last - before[-1][1]) / (wide - before[-1][0]) if before else 0.0
    return last + max(slope, 0.0) * (width - wide)


def _plan(model: RecurrentDepthForCausalLM, kv: KVPolicy) -> tuple[list[int], int]:
    """Widths that the context and a bounded cache have room for, and the committed positions before the lanes."""
    config = model.config
    widths = [w for w in MEASURED_WIDTHS if w <= config.max_position_embeddings]
    committed = min(_CONTEXT, config.max_position_embeddings - widths[-1])
    if kv == "per_depth":
        allowed = max(_MEMORY, sum(p.nbytes for p in model.parameters()))
        per_slot = 2 * config.hidden_size * model.dtype.itemsize
        others = config.prelude_layers + config.coda_layers
        sizes = {w: (others + config.core_layers * w) * (committed + w + 1) * per_slot for w in widths}
        widths = [w for w in widths if w == 1 or sizes[w] <= allowed]
    return widths, committed


def _pass_timer(model: RecurrentDepthForCausalLM, kv: KVPolicy, committed: int, widest: int) -> Timer:
    """Times ``model.recur`` on random states behind a filled cache."""
    device = model.device
    generator = torch.Generator().manual_seed(0)  # its own: the global one must not move
    passes = 1 if device.type == "cpu" else 4  # a step launches several before it waits for the device

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, model.dtype)

    with torch.inference_mode():
        embedded, states = noise(1, widest, model.config.hidden_size), noise(1, widest, model.config.hidden_size)
        cache = model.new_cache(1, committed + widest, kv, num_steps=widest)
        for store in (cache.keys, cache.values):
            store.copy_(noise(*store.shape[1:]))  # untouched memory would be read too fast
        positions = torch.arange(committed, committed + widest, device=device)[None]

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    @torch.inference_mode()
    def timer(width: int) -> float:
        span = model.span(positions[:, :width], cache, start=committed, length=committed + width)
        depth = _staircase(kv, width)
        e, s = embedded[:, :width], states[:, :width]
        with packed_products(model):  # as samplers have them
            wait()
            begin = time.perf_counter()
            for _ in range(passes):
                s = model.recur(e, s, cache, span, depth)
            wait()
            return (time.perf_counter() - begin) / passes

    return timer


def _staircase(kv: KVPolicy, width: int) -> Depth:
    """Depths along a wavefront that opens one lane per recurrence; a shared cache does not look at them."""
    if kv == "shared" or width == 1:
        return 0
    return (Flight(0, width, range(width - 1, -1, -1)),)


# ----------------------------------------------------------------------------------------------------------- the memory


def _key(model: RecurrentDepthForCausalLM, kv: KVPolicy, compiled: bool) -> str:
    """All that a pass's time depends on, readable."""
    names = ["hidden_size", "intermediate_size", "num_attention_heads", "core_layers", "qk_bias"]
    names += ["num_key_value_heads", "max_position_embeddings"]  # the latter bounds the widths
    shape = ", ".join(f"{name}={getattr(model.config, name)}" for name in names)
    threads = f"{torch.get_num_threads()} threads, " if model.device.type == "cpu" else ""
    dtype, how = str(model.dtype).removeprefix("torch."), "compiled" if compiled else "eager"
    return f"{_device_name(model.device)}, {threads}{dtype}, torch {torch.__version__}, {how}, kv={kv}, {shape}"


@functools.cache
def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_name() if device.type == "cpu" else platform.processor() or platform.machine()
    return f"{device.type} {name}"


def _load(path: Path | None, key: str) -> dict[int, float] | None:
    """The times of a key, or None where there are none that make sense."""
    if path is None:
        return None
    try:
        entries = _read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        _complain(path, error)
        return None
    return _seconds(entries.get(key))


def _keep(path: Path | None, key: str, seconds: dict[int, float]) -> dict[int, float]:
    """Store times, unless another process did so meanwhile.

    Returns:
        the times that count from now on.
    """
    if path is None:
        return seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            try:
                entries = _read(path)
            except (FileNotFoundError, ValueError):  # none yet, or a broken one: begin anew
                entries = {}
            if (known := _seconds(entries.get(key))) is not None:
                return known
            entries[key] = {"seconds": {str(width): t for width, t in seconds.items()}}
            _write(path, entries)
    except OSError as error:
        _complain(path, error)
    return seconds


def _read(path: Path) -> dict[str, Any]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError("it is no JSON object")
    return entries


def _seconds(entry: Any) -> dict[int, float] | None:
    """An entry's times if it is whole: from width 1 on, all above 0."""
    try:
        seconds = {int(width): float(t) for width, t in entry["seconds"].items()}
    except (TypeError, KeyError, AttributeError, ValueError):
        return None
    whole = 1 in seconds and min(seconds) == 1 and all(t > 0 and math.isfinite(t) for t in seconds.values())
    return seconds if whole else None


def _write(path: Path, entries: dict[str, Any]) -> None:
    """Replace the file in one step: others read the old one or the new one, never a part."""
    handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entries, file, indent=1)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time where the system can lock, so that no entry is lost; else hope."""
    with open(path, "a") as file:
        with suppress(ImportError, OSError):  # no fcntl on Windows, no locks on some network drives
            import fcntl

            for _ in range(100):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.02)
        yield


def _complain(path: Path, error: Exception) -> None:
    if path not in _complaints:
        _complaints.add(path)
        log.warning("max_wavefront=auto measures again, since %s cannot be used: %s", path, error)
