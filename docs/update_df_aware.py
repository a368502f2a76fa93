"""Make docs/results/df_aware.md from the runs of the study, so that no number there is typed by hand.

    python docs/update_df_aware.py

Each folder docs/results/data/df_aware/RUN holds the config.yaml, choices.yaml, metrics.jsonl and comparison.json that
benchmarks/df_aware.py kept of a run. Draws docs/results/data/df_aware/frontier.png, too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from recdepth.evaluation import Interval, mean_interval  # noqa: E402
from recdepth.evaluation.compare import EQUAL_DIFFERENCE  # noqa: E402
from recdepth.reporting import plot_frontier  # noqa: E402
from recdepth.reporting.study import (  # noqa: E402
    EQUAL_TIME,
    PLAIN,
    Cell,
    Setting,
    StudyRun,
    cell,
    fastest_equal,
    gain,
    grouped,
    read_run,
)

RESULTS = ROOT / "docs" / "results"
DATA = RESULTS / "data" / "df_aware"
GAIN, SPEEDUP = 1.5, 12.0  # what was hoped for: over plain training, and over AR at r
HEAD = """# Training made for the sampler, measured

Made by `python docs/update_df_aware.py` from `docs/results/data/df_aware`, which `python benchmarks/df_aware.py` fills:
the same model, data and seeds with the plain objective (`next_token`) and with those that show the model what the
sampler will ([docs/objectives.md](../objectives.md)), compared by the same samplers
(`conf/experiment/df_aware/samplers.yaml`). All trainings of a section have equally many steps; a step of the others
takes longer, so there is also plain training of *equal time*: the steps that it makes in the time of the slowest of the
others, at its pace when nothing else takes the machine (`seconds` in the tables are what passed, whatever else ran).
*Pointer chase* has fine-tunes of the shipped model only; *pointer chase wide* is the same task for a model twice as
wide, which learns it from scratch in 3000 steps, about three quarters of an hour on a CPU core.

Numbers are means over seeds with 95 % intervals (Student's t) of that mean. Speed-ups are over decodings of the *same*
model in the same process, batch 1: over AR at r, and over the fastest one-token-at-a-time sampler whose accuracy is not
distinguishable from that of AR at r. A sampler counts as *equal* if its accuracy is at most half a point below both
plain training's AR at r and its own model's. *Core* and *token passes* are per token. Accuracies differ from seed to
seed, as do the models; the difference to AR at r is paired, on the same prompts.

## What limits the sampler, and what training can do

A wavefront that opens one lane a step takes at least one core pass a token, however good the drafts are. Beyond that it
has to open several lanes at a time. The first of them holds the draft of the lane before it, the others hold guesses,
most of them wrong. A plain model has only ever seen true text: behind a wrong token it says what would follow *that*,
so the drafts come right one after the other, and a larger headway buys flips instead of passes. Where an answer is
determined by what stands before it, a model can be taught to look past the guesses. That is what `aware` trains:
windows as wide as the sampler's, opened four or eight lanes at a time on guessed tokens, each lane to say the true next
token after some recurrences. `aware_answers` goes further where answers are short: windows open whole answers, for two
recurrences more than the text gets, and shallow read-outs are pulled a little to deep ones. `aware_answers_mid` and
`aware_answers_late` are the same after three or four fifths of a training without: windows are learnt in some hundred
steps once the task is learnt, and until then a step costs what a plain one does. The tables below show it in the drafts
that are right after so many recurrences, and in the flips.

Sections of *compiled samplers* time them as compiled graphs (`comparison.compile=true`), the others eagerly. Where the
samplers are compiled, time goes by work (token passes) on this CPU; a machine on which width is free would gain what
core passes do. Compiled AR has become faster since they were measured ([by how much](samplers.md)), so their speed-ups
over it are larger than they would be now; gains of one training over another are ratios of such speed-ups and stay.
Where no prefill reads the prompt (`df-all-prompt`), guessed lanes open along with it now, a step earlier than when the
sections of fine-tunes were measured. *Pointer chase wide* was trained with one core and compared with both, on a
machine that ran nothing else, but for `aware_answers_late`: with one, on older code, without the samplers added last.
Products with small weights take less time outside graphs there than in all other sections: `df-all-prompt-loose` took
17.2 and 18.7 ms a text of seed 0, 19.5 and 19.9 before (medians over 25 prompts, two processes of each code in turn),
`ar-32` the same. Gains of `aware_answers_late` over plain training are too small by that.

Drafts are not all that a text waits for: a lane is final only when its state moves little, some steps after its input
and its draft are right. Over 100 prompts of seed 0 with `df-all-prompt`,
`aware_answers_mid` takes 7.4 steps a text, and every draft is right after 4.5 of them; plain training 13.0 and 10.0
(the part *waiting* of `benchmarks/samplers.py`). Training saves the steps until drafts are right. Those behind were
tried to be saved by [`contraction`](../objectives.md#contraction) beside the windows (from three fifths on, with
`terms.contraction.more_recurrences=2`): with weight 0.1 a text took 7.1 steps, drafts right after 4.6; with 0.3 7.4
and 5.0. With a read-out at every recurrence (`df-all-prompt-1`) it took 10.0 steps instead of 12.6, so that this
sampler became as fast as the others (10.4 times `ar-32` over 40 prompts, 9.1 before), no faster: one seed, and no
recipe. Committing earlier (`df-all-prompt-loose`, `df-all-prompt-kl`, `-kl-loose`) gains more where drafts are right,
and only there.
"""
PICTURE = """
![Speed-up against accuracy](data/df_aware/frontier.png)

"""
QUICKSTART = """\
A step of the recipes takes longer than one of plain training (*step, × plain* below), so the quickstart has none of
them; in its last third it trains for contraction, which costs it hardly any steps
([what that is](../objectives.md#contraction), [what it gains](samplers.md)). A fine-tune can follow it:
`python train.py experiment=df_aware/word_problems_finetune objective=aware init_from=outputs/quickstart`.
"""
NO_SCRATCH = "All runs here are fine-tunes. The recipe from scratch (`--starts scratch`) has not been measured.\n"
VIEW = ["draft_accuracy_depth_1", "draft_accuracy_depth_2", "draft_accuracy_depth_4", "flips_per_token"]
VIEW += ["recurrences_to_convergence", "kv_agreement"]
ByTraining = Mapping[str, Sequence[StudyRun]]


def grid(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """A Markdown table; the first columns hold words."""
    rule = "|" + "---|" * words + "--:|" * (len(headers) - words)
    return ["| " + " | ".join(headers) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows), ""]


def spread(interval: Interval, digits: int = 2, factor: float = 1.0, sign: str = "") -> str:
    """``mean ± half the interval``."""
    text = f"{factor * interval.value:{sign}.{digits}f}"
    half = factor * (interval.high - interval.low) / 2
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


def best_of(by_training: ByTraining) -> dict[str, tuple[str, Cell] | None]:
    """The fastest equal sampler of every training, measured by plain training's AR at r."""
    plain = by_training[PLAIN]
    needed = cell(plain, plain[0].reference).accuracy.value
    return {training: fastest_equal(runs, needed) for training, runs in by_training.items()}


def gains(by_training: ByTraining, training: str, sampler: str | None = None) -> dict[str, Interval]:
    """The speed-up of a training's sampler, or its fastest equal one, over that of plain, of equal steps and time."""
    best, found = best_of(by_training), {}
    own = best[training]
    sampler = sampler or (own[0] if own else None)
    for plain in (PLAIN, PLAIN + EQUAL_TIME):
        base = best.get(plain)
        if sampler and base:
            longer = plain == PLAIN + EQUAL_TIME and not training.startswith(PLAIN)
            runs = as_long(by_training, training) if longer else by_training[plain]
            ratio = gain((by_training[training], sampler), (runs, base[0]))
            if ratio is not None:
                found[plain] = ratio
    return found


def as_long(by_training: ByTraining, training: str) -> list[StudyRun]:
    """The runs of plain training of equal time that took as long as that training of their seed, at plain's pace."""
    pace = {run.seed: run.step_seconds for run in by_training[PLAIN]}
    taken = {run.seed: run.steps * run.step_seconds for run in by_training[training]}
    return [
        run
        for run in by_training.get(PLAIN + EQUAL_TIME, [])
        # the steps of the one were counted with what graphs took to compile, and paces are medians
        if run.seed not in taken or run.steps * pace.get(run.seed, 0.0) >= 0.95 * taken[run.seed]
    ]


def headline(by_training: ByTraining) -> list[str]:
    """The fastest sampler of equal accuracy for every training, and its gain over plain training."""
    if PLAIN not in by_training:
        return ["No plain runs: nothing to compare with.", ""]
    reference, rows = by_training[PLAIN][0].reference, []
    for training, best in best_of(by_training).items():
        own = cell(by_training[training], reference)
        head = [training, str(own.seeds), spread(own.accuracy, 1, 100)]
        if best is None:
            rows.append([*head, "none", *["–"] * 7])
            continue
        name, found = best
        numbers = [spread(found.accuracy, 1, 100), spread(found.difference, 1, 100, "+"), spread(found.speedup)]
        numbers += [spread(found.speedup_equal), spread(found.core_passes)]
        over = gains(by_training, training)
        numbers += [spread(over[plain]) if plain in over else "–" for plain in (PLAIN, PLAIN + EQUAL_TIME)]
        rows.append([*head, name, *numbers])
    headers = ["training", "seeds", f"{reference}, %", "sampler", "accuracy, %", f"to {reference}, points"]
    headers += [f"× {reference}", "× fastest equal AR", "core passes", "× plain", "× plain, equal time"]
    return ["The fastest equal sampler of every training:", "", *grid(headers, rows)]


def verdict(by_training: ByTraining) -> list[str]:
    """In words: what the best training gained, and whether that is what was hoped for."""
    if PLAIN not in by_training:
        return []
    best, plain = best_of(by_training), by_training[PLAIN]
    lines, base = hunger(plain), best[PLAIN]
    compared = {run.seed for run in plain}  # a training of fewer seeds must not win by luck
    full = [name for name, runs in by_training.items() if {run.seed for run in runs} == compared]
    others = {name: each for name, each in best.items() if each and name in full and not name.startswith(PLAIN)}
    lines += more_accurate(by_training, [name for name in full if not name.startswith(PLAIN)])
    if not others or base is None:
        return [*lines, "No training but plain has a sampler of equal accuracy.", ""]
    winner = max(others, key=lambda name: others[name][1].speedup.value)
    name, found = others[winner]
    over, seeds = gains(by_training, winner), {run.seed for run in by_training[winner]}
    timed = {run.seed for run in by_training.get(PLAIN + EQUAL_TIME, [])} & seeds
    enough = timed & {run.seed for run in as_long(by_training, winner)}
    shown_by = f" (on {len(enough)} of {len(seeds)} seeds)" if enough and enough < seeds else ""
    if timed and not enough:
        shown_by = f" (it took longer than {PLAIN}{EQUAL_TIME}, which says nothing about it)"
    prompts = sum(run.rows[name]["n"] for run in by_training[winner])
    lines.append(
        f"**{winner}** decodes {spread(found.speedup)} times as fast as {plain[0].reference} (sampler {name}; "
        f"{spread(found.difference, 2, 100, '+')} points to it over {prompts} prompts), plain training at most "
        f"{spread(base[1].speedup)} times ({base[0]}): a gain of "
        + ", ".join(f"{spread(ratio)} over {plain}" for plain, ratio in over.items())
        + shown_by
        + f". Hoped for were {GAIN:g} over plain training and {SPEEDUP:g} over {plain[0].reference}: by the means, "
        + reached(min(ratio.value for ratio in over.values()), found.speedup.value)
        + "."
    )
    return [*lines, "", *why(by_training, winner, name, base[0]), *lossless(by_training, winner)]


def more_accurate(by_training: ByTraining, trainings: Sequence[str]) -> list[str]:
    """The fastest of samplers that are as accurate as plain training's AR at r, if not as their own model's."""
    plain = by_training[PLAIN]
    own = cell(plain, plain[0].reference).accuracy
    best = best_of(by_training)
    found = []
    for training in trainings:
        any_difference = fastest_equal(by_training[training], own.value, least_difference=-math.inf)
        equal = best[training]
        if any_difference and (equal is None or any_difference[1].speedup.value > equal[1].speedup.value):
            found.append((any_difference[1].speedup.value, training, *any_difference))
    if not found or (base := best[PLAIN]) is None:
        return []
    _, training, name, fastest = max(found, key=lambda each: each[0])
    over = gains(by_training, training, name)
    longer, better = by_training.get(PLAIN + EQUAL_TIME), ""
    theirs = cell(longer, plain[0].reference).accuracy if longer else None
    if theirs and theirs.value + EQUAL_DIFFERENCE > fastest.accuracy.value:
        over.pop(PLAIN + EQUAL_TIME, None)
        better = f" In as much time plain training is {spread(theirs, 1, 100)} % accurate, though."
    ratios = ", ".join(f"{spread(ratio)} over {of}" for of, ratio in over.items())
    return [
        f"Measured by plain training's accuracy alone, {spread(own, 1, 100)} %, **{training}** decodes "
        f"{spread(fastest.speedup)} times as fast as its {plain[0].reference} (sampler {name}; "
        f"{spread(fastest.accuracy, 1, 100)} %, {spread(fastest.difference, 1, 100, '+')} points to its own "
        f"{plain[0].reference}), plain training {spread(base[1].speedup)} times ({base[0]})"
        + (f": a gain of {ratios}." if ratios else ".")
        + better,
        "",
    ]


def why(by_training: ByTraining, training: str, ours: str, theirs: str) -> list[str]:
    """What moved, between plain training and another one, each with its fastest equal sampler."""
    before, after = cell(by_training[PLAIN], theirs), cell(by_training[training], ours)
    moved = [
        f"core passes per token from {before.core_passes.value:.2f} to {after.core_passes.value:.2f}",
        f"work from {before.token_passes.value:.1f} to {after.token_passes.value:.1f} token passes",
    ]
    looks = [("draft_accuracy_depth_4", "drafts right after 4 recurrences", 100, 0, " %")]
    looks += [("recurrences_to_convergence", "recurrences until a lane settles", 1, 1, "")]
    for metric, name, factor, digits, unit in looks:
        runs = [[run.metrics for run in by_training[each]] for each in (PLAIN, training)]
        if all(f"val/{metric}" in metrics for several in runs for metrics in several):
            values = [[metrics[f"val/{metric}"] for metrics in several] for several in runs]
            low, high = (f"{factor * mean_interval(several).value:.{digits}f}" for several in values)
            moved.append(f"{name} from {low} to {high}{unit}")
    return [
        f"What moved from plain to {training}: {'; '.join(moved)}. A lane that needs many recurrences takes as many"
        " steps however early its draft is right, and wider passes take longer on this machine: both bound the gain.",
        "",
    ]


def lossless(by_training: ByTraining, training: str) -> list[str]:
    """What the samplers whose text is that of AR gain."""
    plain, ours = by_training[PLAIN], by_training[training]
    names = [name for name, row in plain[0].rows.items() if row["settings"]["name"] in ("exact", "speculative")]
    ratios = {name: gain((ours, name), (plain, name)) for name in names if all(name in run.rows for run in ours)}
    found = ", ".join(f"{name} {spread(ratio)}" for name, ratio in ratios.items() if ratio)
    if not found:
        return []
    return [
        f"The lossless samplers on {training}, over the same on plain training: {found} times as fast. They take every"
        " token through all r recurrences, whatever the drafts, so that less of their time is there to be saved.",
        "",
    ]


def hunger(plain: Sequence[StudyRun]) -> list[str]:
    """How much the task needs depth."""
    deep = "ar-16" if "ar-16" in plain[0].rows else plain[0].reference
    if "ar-4" not in plain[0].rows:
        return []
    lost = 100 * (cell(plain, deep).accuracy.value - cell(plain, "ar-4").accuracy.value)
    kind = "The task needs its depth" if lost >= 10 else "The task is done after few recurrences"
    return [f"{kind}: ar-4 is {lost:.1f} points below {deep} (plain training).", ""]


def reached(over_plain: float, over_reference: float) -> str:
    """Which of the two aims were reached."""
    first, second = over_plain >= GAIN, over_reference >= SPEEDUP
    if first and second:
        return "both are reached"
    if not first and not second:
        return "neither is reached"
    return f"the {'first' if first else 'second'} is reached, the {'second' if first else 'first'} is not"


def every_sampler(by_training: ByTraining) -> list[str]:
    """All samplers of all trainings."""
    rows = []
    for training, runs in by_training.items():
        for sampler in runs[0].rows:
            if any(sampler not in run.rows for run in runs):
                continue
            found = cell(runs, sampler)
            numbers = [spread(found.accuracy, 1, 100), spread(found.difference, 1, 100, "+"), spread(found.speedup)]
            numbers += [spread(found.speedup_equal), spread(found.core_passes), spread(found.token_passes, 1)]
            rows.append([training, sampler, *numbers, spread(found.flips)])
    reference = next(iter(by_training.values()))[0].reference
    headers = ["training", "sampler", "accuracy, %", f"to {reference}, points", f"× {reference}", "× fastest equal AR"]
    body = grid([*headers, "core passes", "token passes", "flips"], rows, words=2)
    return ["<details><summary>Every sampler</summary>", "", *body, "</details>", ""]


def view(by_training: ByTraining) -> list[str]:
    """What the sampler would meet on validation texts, and what training took."""
    rows, plain = [], {run.seed: run.step_seconds for run in by_training.get(PLAIN, [])}
    for training, runs in by_training.items():
        numbers = []
        for name in VIEW:
            known = [run.metrics[f"val/{name}"] for run in runs if f"val/{name}" in run.metrics]
            numbers.append(spread(mean_interval(known), 3) if known else "–")
        steps, seconds = (mean_interval([getattr(run, what) for run in runs]) for what in ("steps", "seconds"))
        slower = [run.step_seconds / plain[run.seed] for run in runs if run.seed in plain]
        times = [f"{steps.value:.0f}", f"{seconds.value:.0f}", f"{mean_interval(slower).value:.2f}" if slower else "–"]
        rows.append([training, *numbers, *times])
    headers = ["training", "draft right at 1", "at 2", "at 4", "flips a lane", "recurrences to settle"]
    body = grid([*headers, "shared = per-depth KV", "steps", "seconds", "step, × plain"], rows)
    looked = next(iter(by_training.values()))[0].config["callbacks"]["sampler_view"]
    lanes = f"windows of {looked['width']} lanes that open {looked['headway']} at a time"
    return [f"On validation texts, at the end ({lanes}), and what training took:", "", *body]


def section(setting: Setting, by_training: ByTraining) -> str:
    """One task and start."""
    references = [run.rows[run.reference] for runs in by_training.values() for run in runs]
    machine = references[0]["machine"]
    read, timed = (" or ".join(map(str, sorted({row[name] for row in references}))) for name in ("n", "speed_n"))
    prompts = f"{read} prompts a seed for accuracy, {timed} at batch 1 for speed"
    cpus = " or ".join(sorted({row["machine"]["cpu"] for row in references}))
    facts = f"{machine['parameters'] / 1e6:.2f} M parameters, {machine['dtype']}, {cpus}, {machine['cores']} "
    facts += f"cores, torch threads: {machine['torch_threads']}, torch {machine['torch']}; {prompts}."
    starts = {run.config["init_from"] for runs in by_training.values() for run in runs}
    if setting.start == "finetune" and len(starts) == 1:
        start = starts.pop()
        facts += (
            f" All seeds start from `{start}` (`--base {setting.task} SEED {start}` of `benchmarks/df_aware.py`), so"
        )
        facts += " the intervals do not cover the training of that model."
    elif setting.start == "finetune":
        facts += " Each seed starts from a plain model of its own, trained by"
        facts += f" `python train.py experiment=df_aware/{setting.task} seed=SEED`."
    seeds = max(len(runs) for runs in by_training.values())
    known = sorted(path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml") if path.stem != "weighted")
    if absent := [name for name in known if len(by_training.get(name, [])) < seeds]:
        facts += f" Not measured here, or on fewer seeds: {', '.join(absent)}."
    if PLAIN + EQUAL_TIME not in by_training:
        facts += (
            " Plain training of equal time has not been measured here: it takes more steps, and may be more accurate."
        )
    if len(code := sorted({run.commit[:7] for runs in by_training.values() for run in runs if run.commit})) > 1:
        facts += (
            f" The runs are of several commits ({', '.join(code)}, some with changes on top): a speed-up is a ratio"
        )
        facts += " within one run, yet later engines make both of its sides faster."
    parts = [verdict(by_training), headline(by_training), view(by_training), every_sampler(by_training)]
    return "\n".join([f"## {setting}", "", *(line for part in parts for line in part), facts, ""])


def page(runs: Sequence[StudyRun]) -> str:
    """The whole page."""
    groups = grouped(runs)
    missing = [] if any(setting.start == "scratch" for setting in groups) else [NO_SCRATCH]
    return "\n".join(
        [HEAD + PICTURE + QUICKSTART, *missing, *(section(setting, group) for setting, group in groups.items())]
    )


def main() -> int:
    """Read, draw, write."""
    folders = sorted(path.parent for path in DATA.glob("*/comparison.json"))
    if not folders:
        print(f"{DATA} holds no runs; python benchmarks/df_aware.py makes them", file=sys.stderr)
        return 1
    runs = [read_run(folder) for folder in folders]
    plot_frontier(runs, DATA / "frontier.png")
    (RESULTS / "df_aware.md").write_text(page(runs), encoding="utf-8")
    print(json.dumps({"docs/results/df_aware.md": len(runs)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
