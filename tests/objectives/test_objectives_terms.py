"""Each term against a plain, slow computation of it: value, targets, gradient."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from recdepth.objectives import (
    Consistency,
    Contraction,
    DepthConsistency,
    DraftExposure,
    IndependentDepths,
    SingleLanes,
    Staircase,
    StateNoise,
    WavefrontLoss,
    WaveRun,
    deep_pass,
    terms,
)
from recdepth.objectives.lanes import NEVER, draw_fronts

from .reference import window_loss

SEED, DEPTH = 3, 4


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def term_loss(model, batch, term, deep_keep=1 << 30, seed=0):
    """The term's loss with states that are keyed, and its plan."""
    deep = deep_pass(model, batch["input_ids"], DEPTH, deep_keep, seed=SEED)
    drawn = term.plan(batch, deep, 11, 1.0, torch.Generator().manual_seed(seed))
    plan = replace(drawn, seed=SEED)
    run = WaveRun(model, batch["input_ids"], deep, plan)
    return term.loss(model, batch["labels"], deep, run.positions.flatten(1), run.run()), plan


def slow_loss(model, batch, plan, **settings):
    losses, logits = [], {}
    for row in range(len(batch["labels"])):
        for window in range(plan.fronts.shape[1]):
            front, opens = int(plan.fronts[row, window]), plan.opens[row, window].tolist()
            ids, labels = (batch[name][row].tolist() for name in ("input_ids", "labels"))
            drafting = bool(plan.drafting[row, window])
            lanes = window_loss(
                model,
                ids,
                labels,
                front,
                opens,
                plan.recurrences,
                SEED,
                row,
                drafting=drafting,
                **{"depth": DEPTH, **settings},
            )
            losses += [loss for loss, _ in lanes.values() if loss is not None]
            logits |= {(row, window, j): (front + j, each) for j, (loss, each) in lanes.items() if loss is not None}
    return torch.stack(losses).sum(), logits


TERMS = {
    "staircase": WavefrontLoss(Staircase(width=5, headway=1), windows=2),
    "wide staircase": WavefrontLoss(Staircase(width=6, headway=(2, 3)), windows=2),
    "terminal keys": WavefrontLoss(SingleLanes(), windows=4),
    "independent depths": WavefrontLoss(IndependentDepths(width=4), windows=2),
    "drafts": WavefrontLoss(Staircase(width=5, headway=1), windows=2, drafts=DraftExposure(share=0.5)),
    "deeper windows": WavefrontLoss(
        Staircase(width=5, headway=1), windows=2, drafts=DraftExposure(share=0.5), more_recurrences=2
    ),
}

# the reference reads what stands before a lane, so that only depths that fall can be compared;
# the other is in test_independent_depths_hide_closed_lanes
FALLING = [name for name in TERMS if name != "independent depths"]


@pytest.mark.parametrize("keep", [1, 2, 99])
@pytest.mark.parametrize("name", FALLING)
def test_loss_and_gradient_are_those_of_one_window_at_a_time(model, batch, name, keep) -> None:
    term = TERMS[name]
    term = WavefrontLoss(
        term.schedule, term.windows, term.drafts, backprop_depth=keep, more_recurrences=term.more_recurrences
    )
    loss, plan = term_loss(model, batch, term, deep_keep=keep)
    assert plan.recurrences == DEPTH + term.more_recurrences
    expected, _ = slow_loss(model, batch, plan, keep=keep, deep_keep=keep)
    torch.testing.assert_close(loss.sum, expected, rtol=1e-11, atol=0)
    ours, theirs = (
        gradients(model, loss.sum),
        gradients(model, slow_loss(model, batch, plan, keep=keep, deep_keep=keep)[0]),
    )
    for each in theirs:
        torch.testing.assert_close(ours[each], theirs[each], rtol=1e-8, atol=1e-11, msg=each)


def test_windows_read_a_text_of_fewer_recurrences(model, batch, monkeypatch) -> None:
    """As after a sampler's light prefill: with the gradient through that pass, and not the deep one."""
    term = WavefrontLoss(Staircase(width=5, headway=2), windows=2, prefill_steps=2, more_recurrences=1)
    deep = deep_pass(model, batch["input_ids"], DEPTH, 9, seed=SEED)
    plan = replace(term.plan(batch, deep, 11, 1.0, torch.Generator().manual_seed(0)), seed=SEED)
    monkeypatch.setattr(term, "plan", lambda *_: plan)
    monkeypatch.setattr(terms, "deep_pass", partial(deep_pass, seed=SEED))
    assert plan.recurrences == DEPTH + 1
    loss = term(model, batch, deep, 1.0, None)
    slow = slow_loss(model, batch, plan, keep=DEPTH, deep_keep=2, depth=2)[0]
    torch.testing.assert_close(loss.sum, slow, rtol=1e-11, atol=0)
    ours, theirs = gradients(model, loss.sum), gradients(model, slow)
    for each in theirs:
        torch.testing.assert_close(ours[each], theirs[each], rtol=1e-8, atol=1e-11, msg=each)


@pytest.mark.parametrize("name", ["staircase", "independent depths", "drafts"])
def test_gradient_is_the_slope(model, batch, name) -> None:
    loss, _ = term_loss(model, batch, TERMS[name])
    slope = gradients(model, loss.sum)
    along = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    expected = sum((slope[n] * along[n]).sum() for n in slope)

    def at(step):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p += step * along[n]
            value = term_loss(model, batch, TERMS[name])[0].sum
            for n, p in model.named_parameters():
                p -= step * along[n]
        return value

    eps = 1e-7
    torch.testing.assert_close((at(eps) - at(-eps)) / (2 * eps), expected, rtol=1e-5, atol=1e-6)


def test_targets_by_hand(model) -> None:
    """Front 3, three lanes, the last one closed; position 5 has no label."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, -100, -100, 5, -100, 7, 8]])
    batch = {"input_ids": ids, "labels": labels}
    term = WavefrontLoss(Staircase(width=4, headway=1), windows=1)
    deep = deep_pass(model, ids, 3, 9, seed=SEED)
    plan = replace(term.plan(batch, deep, 11, 1.0, None), fronts=torch.tensor([[3]]), seed=SEED)
    run = WaveRun(model, ids, deep, plan)
    look = run.run()
    assert look.age[0, 0, :3].tolist() == [3, 2, 1] and look.opened[0, 0].tolist() == [True, True, True, False]
    loss = term.loss(model, labels, deep, run.positions.flatten(1), look)
    by_hand = -(look.logits[0, 0].log_softmax(-1)[5] + look.logits[0, 2].log_softmax(-1)[7])  # lane 1 has no target
    torch.testing.assert_close(loss.sum, by_hand)
    assert loss.count == 2 and loss.metrics["lane_depth"] == 2.0  # depths 3 and 1


def test_consistency_pulls_lanes_to_the_deep_pass_and_not_the_reverse(model, batch) -> None:
    term = WavefrontLoss(Staircase(width=4, headway=1), windows=2)
    both = WavefrontLoss(term.schedule, 2, consistency=Consistency(kl=2.0, latent=0.5))
    plain, plan = term_loss(model, batch, term)
    pulled, _ = term_loss(model, batch, both)
    deep = deep_pass(model, batch["input_ids"], DEPTH, 9, seed=SEED)
    _, logits = slow_loss(model, batch, plan)
    look = WaveRun(model, batch["input_ids"], deep, plan).run()
    expected = 0.0
    for (row, window, j), (position, lane) in logits.items():
        p = deep.logits[row, position].detach().softmax(-1)
        expected += 2.0 * (p * (p.log() - lane.log_softmax(-1))).sum()
        target = model.norm(deep.states[-1][row, position]).detach()
        state = model.norm(look.states[row, window * 4 + j])
        expected += 0.5 * (state - target).square().sum() / target.square().sum()
    torch.testing.assert_close(pulled.sum - plain.sum, expected)
    ours, theirs = gradients(model, pulled.sum), gradients(model, expected + slow_loss(model, batch, plan)[0])
    for each in theirs:
        torch.testing.assert_close(ours[each], theirs[each], rtol=1e-8, atol=1e-10, msg=each)


def test_lanes_behind_a_wrong_token_weigh_less(model, batch) -> None:
    drafts = DraftExposure(share=1.0)
    loss, plan = term_loss(model, batch, WavefrontLoss(Staircase(5, 1), 2, drafts))
    less, _ = term_loss(model, batch, WavefrontLoss(Staircase(5, 1), 2, replace(drafts, wrong=0.25)))
    run = WaveRun(model, batch["input_ids"], deep_pass(model, batch["input_ids"], DEPTH, 9, seed=SEED), plan)
    look = run.run()
    _, logits = slow_loss(model, batch, plan)
    expected, seen = 0.0, set()
    for (row, window, j), (position, lane) in logits.items():
        front = position - j
        held, true = look.tokens[row, window, : j + 1], batch["input_ids"][row, front : position + 1]
        right = held.tolist() == true.tolist()
        seen.add(right)
        target = batch["labels"][row, position + 1]
        expected += (1.0 if right else 0.25) * F.cross_entropy(lane, target)
    assert seen == {True, False}
    torch.testing.assert_close(less.sum, expected)
    assert less.count == loss.count and 0 < less.metrics["right_inputs"] < 1


def test_depth_consistency_by_hand(model, batch) -> None:
    deep = deep_pass(model, batch["input_ids"], DEPTH, 9, seed=SEED)
    term = DepthConsistency(Consistency(kl=1.0, latent=0.3))
    loss = term(model, batch, deep, 1.0, torch.Generator().manual_seed(1))
    shallow = 1 + int(torch.randint(DEPTH - 1, (), generator=torch.Generator().manual_seed(1)))
    out = model(batch["input_ids"], num_steps=shallow, seed=SEED)
    full = model(batch["input_ids"], num_steps=DEPTH, seed=SEED)
    counted = (batch["labels"][:, 1:] != -100).double()
    kl = F.kl_div(out.logits.log_softmax(-1), full.logits.detach().softmax(-1), reduction="none").sum(-1)[:, :-1]
    target = full.latents.detach()
    latent = ((out.latents - target).square().sum(-1) / target.square().sum(-1))[:, :-1]
    expected = ((kl + 0.3 * latent) * counted).sum()
    torch.testing.assert_close(loss.sum, expected)
    assert loss.count == counted.sum()
    ours, theirs = gradients(model, loss.sum), gradients(model, expected)
    for each in theirs:
        torch.testing.assert_close(ours[each], theirs[each], rtol=1e-8, atol=1e-10, msg=each)
    one = term(model, batch, deep_pass(model, batch["input_ids"], 1, 9), 1.0, None)
    assert one.sum == 0  # nothing is shallower than one recurrence


def moves(model, ids, recurrences):
    """The states' moves in every recurrence, and the states, [recurrences, batch, time, dim]."""
    span = model.span(torch.arange(ids.shape[1]).expand(ids.shape), start=0, padded=False)
    e = model.embed(ids, None, span)
    states = [model.initial_state(e, torch.arange(len(ids)), span.positions, SEED)]
    for depth in range(recurrences):
        states.append(model.recur(e, states[-1], None, span, depth))
    states = torch.stack(states)
    return states.diff(dim=0), states[1:]


def test_contraction_by_hand(model, batch) -> None:
    deep = deep_pass(model, batch["input_ids"], DEPTH, 2, seed=SEED)
    term = Contraction(more_recurrences=5)
    loss = term(model, batch, deep, 1.0, torch.Generator().manual_seed(4))
    more = int(torch.randint(6, (), generator=torch.Generator().manual_seed(4)))
    assert more
    with torch.no_grad():
        move, states = moves(model, batch["input_ids"], DEPTH + more + 2)
    before, after = (each.norm(dim=-1) ** 2 for each in move[-2:])
    expected, count = 0.0, 0
    for row, labels in enumerate(batch["labels"].tolist()):
        for place in range(1 + max(i for i, label in enumerate(labels) if label != -100)):
            expected += after[row, place] / (before[row, place] + after[row, place])
            count += 1
    torch.testing.assert_close(loss.sum.detach(), expected)
    assert loss.count == count < batch["labels"].numel()
    inside = torch.arange(18) < torch.tensor([18, 14, 18])[:, None]
    torch.testing.assert_close(loss.metrics["move"], (move[-2].norm(dim=-1) / states[-2].norm(dim=-1))[inside].mean())

    # a gradient by differences, of a map whose inputs stay where they are
    s, v = states[-3], move[-2]
    weight = model.core[0].mlp.proj.weight
    direction = torch.randn_like(weight)

    def value(shift: float) -> torch.Tensor:
        with torch.no_grad():
            weight.add_(direction, alpha=shift)
            e = model.embed(batch["input_ids"], None, deep.span)
            after = model.recur(e, s + v, None, deep.span, 0) - model.recur(e, s, None, deep.span, 0)
            weight.sub_(direction, alpha=shift)
            after, before = after.square().sum(-1), v.square().sum(-1)
            return (after / (after + before))[inside].sum()

    (gradient,) = torch.autograd.grad(loss.sum, weight)
    torch.testing.assert_close((gradient * direction).sum(), (value(1e-6) - value(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-6)


def test_contraction_lets_states_come_to_rest_sooner(model, batch) -> None:
    """On nothing but the term, a few steps: what is left of the moves after many recurrences shrinks by far."""
    term, generator = Contraction(more_recurrences=4), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def late() -> float:
        with torch.no_grad():
            move, states = moves(model, batch["input_ids"], 24)
            return float((move[-1].norm(dim=-1) / states[-1].norm(dim=-1)).max())

    before = late()
    for _ in range(30):
        deep = deep_pass(model, batch["input_ids"], DEPTH, 1, seed=SEED)
        optimizer.zero_grad()
        term(model, batch, deep, 1.0, generator).mean.backward()
        optimizer.step()
    assert late() < 0.01 * before


def test_rounding_is_that_of_the_dtype_in_which_recurrences_are_computed(model, batch) -> None:
    model = model.float()
    with torch.no_grad():
        model.injection.weight[:, : model.config.hidden_size] *= 0.05
    with torch.autocast("cpu", torch.bfloat16):
        deep = deep_pass(model, batch["input_ids"], DEPTH, 2, seed=SEED)
        deep = replace(deep, states=[s.float() for s in deep.states])  # wherever the states' own dtype comes from
        loss = Contraction(0)(model, batch, deep, 1.0, torch.Generator())
    assert loss.sum.dtype == torch.float32
    assert 1e-3 < loss.metrics["move"] < 0.03  # more than rounding in float32, not in bfloat16
    assert 0 < loss.mean < 0.01


def test_states_at_rest_have_nothing_to_contract(model, batch) -> None:
    """Moves of rounding's size count for nothing, and neither do their gradients."""
    with torch.no_grad():
        for block in model.core:  # nothing but the injection is left: it forgets the state
            block.attn.proj.weight.zero_()
            block.mlp.proj.weight.zero_()
        model.injection.weight[:, : model.config.hidden_size] = 0
    loss = Contraction(0)(model, batch, deep_pass(model, batch["input_ids"], DEPTH, 2), 1.0, torch.Generator())
    assert loss.sum == 0 and loss.metrics["move"] == 0
    (gradient,) = torch.autograd.grad(loss.sum, model.injection.weight)
    assert not gradient.any()
    with pytest.raises(ValueError, match="more_recurrences=-1 must be at least 0"):
        Contraction(-1)


def test_single_lanes_are_decoding_with_shared_keys(model, batch) -> None:
    """Every place of a row at once gives what stepping through it with a shared cache gives, given the same text."""
    ids = batch["input_ids"][:1]
    time = ids.shape[1]
    with torch.no_grad():
        deep = deep_pass(model, ids, DEPTH, 1, seed=SEED)
        plan = replace(
            WavefrontLoss(SingleLanes(), windows=time).plan(batch | {"labels": ids}, deep, 11, 1.0, None),
            fronts=torch.arange(time)[None],
            opens=torch.zeros(1, time, 1, dtype=torch.long),
            drafting=torch.zeros(1, time, dtype=torch.bool),
            seed=SEED,
        )
        look = WaveRun(model, ids, deep, plan).run()
        for front in (4, time - 1):  # a prefill, then one token: what Autoregressive(kv="shared") does
            cache = model.new_cache(1, time, "shared")
            for part in (range(front), range(front, front + 1)):
                positions = torch.tensor([list(part)])
                e = model.embed(ids[:, part.start : part.stop], cache, positions)
                s = model.initial_state(e, torch.tensor([0]), positions, SEED)
                for _ in range(DEPTH):
                    s = model.recur(e, s, cache, positions, 0)
                logits = model.decode(s, cache, positions)
            torch.testing.assert_close(look.logits[0, front], logits[0, -1], rtol=0, atol=1e-12)


def test_independent_depths_hide_closed_lanes(model, batch) -> None:
    """A lane that opens later is as good as absent until then: checked where the middle lane comes last."""
    ids = batch["input_ids"][:1]
    with torch.no_grad():
        deep = deep_pass(model, ids, 3, 1, seed=SEED)
        term = WavefrontLoss(IndependentDepths(width=3), windows=1)
        drawn = replace(term.plan(batch, deep, 11, 1.0, None), fronts=torch.tensor([[6]]), seed=SEED)
        plan = replace(drawn, opens=torch.tensor([[[0, 2, 0]]]), drafting=torch.tensor([[False]]))
        run = WaveRun(model, ids, deep, plan)
        run.step(0)
        run.step(1)
        changed = ids.clone()
        changed[0, 7] = (ids[0, 7] + 1) % 11  # the closed lane's token
        other = WaveRun(model, changed, deep, plan)
        other.step(0)
        other.step(1)
        assert torch.equal(run.states[0, 2], other.states[0, 2])
        run.step(2)
        other.step(2)
        assert not torch.equal(run.states[0, 2], other.states[0, 2])


def test_schedules_by_hand() -> None:
    assert Staircase(6, 2).opens((1, 1), 9, 1.0, None).tolist() == [[[0, 1, 1, 2, 2, 3]]]
    assert Staircase(4, 1, width_growth=0.5).opens((1, 1), 9, 0.3, None).tolist() == [[[0, 1, NEVER, NEVER]]]
    assert [Staircase(8, width_growth=0.5).lanes_at(p) for p in (0.0, 0.25, 0.5, 1.0)] == [1, 4, 8, 8]
    several = Staircase(5, (1, 4)).opens((40, 3), 9, 1.0, torch.Generator().manual_seed(0))
    assert {tuple(w) for w in several.flatten(0, 1).tolist()} == {(0, 1, 2, 3, 4), (0, 1, 1, 1, 1)}
    drawn = IndependentDepths(5).opens((500, 2), 4, 1.0, torch.Generator().manual_seed(0))
    assert (drawn[..., 0] == 0).all()
    share = torch.bincount(drawn[..., 1:].flatten(), minlength=4) / drawn[..., 1:].numel()
    torch.testing.assert_close(share, torch.full((4,), 0.25), rtol=0, atol=0.03)


def test_windows_begin_where_a_labelled_token_is_predicted(batch) -> None:
    fronts = draw_fronts(batch["labels"], 200, torch.Generator().manual_seed(0))
    assert set(fronts[0].tolist()) == set(range(5, 17)) and set(fronts[1].tolist()) == set(range(5, 13))
    assert draw_fronts(torch.full((1, 5), -100), 3, None).shape == (1, 3)


def test_windows_may_begin_where_an_answer_does() -> None:
    labels = torch.tensor([[-100, -100, 7, 7, -100, 7, 7, 7], [7, 7, 7, 7, -100, -100, -100, -100], [-100] * 8])
    fronts = draw_fronts(labels, 100, torch.Generator().manual_seed(0), "first")
    assert [set(row) for row in fronts[:2].tolist()] == [{1, 4}, {0}]
    with pytest.raises(ValueError, match="fronts='last' must be one of random, first"):
        WavefrontLoss(Staircase(), fronts="last")  # type: ignore[arg-type]


def test_random_tokens_open_lanes_and_last_a_step(model, batch) -> None:
    term = WavefrontLoss(Staircase(width=4, headway=1), windows=3, drafts=DraftExposure(0.0, random_tokens=1.0))
    deep = deep_pass(model, batch["input_ids"], DEPTH, 1)
    plan = term.plan(batch, deep, 11, 1.0, torch.Generator().manual_seed(0))
    run = WaveRun(model, batch["input_ids"], deep, plan)
    true = run.text.gather(2, run.positions)
    for number in range(4):
        look = run.step(number)
        fresh = (run.opens == number) & (run.opens < 4)
        assert torch.equal(look.tokens[~fresh], true[~fresh])
        if number:
            assert torch.equal(look.tokens[fresh], plan.replaced[fresh])
        else:
            assert torch.equal(look.tokens[fresh], true[fresh])  # the first lane's token is final


def test_noise_moves_the_states(model, batch) -> None:
    quiet, _ = term_loss(model, batch, WavefrontLoss(Staircase(4, 1), windows=2))
    noisy, _ = term_loss(model, batch, WavefrontLoss(Staircase(4, 1), windows=2, noise=StateNoise(0.3)))
    assert quiet.sum != noisy.sum  # and the states are the sampler's: test_objectives_sampler.py
    assert quiet.count == noisy.count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Staircase(width=0, headway=(1, 0)), "width=0 must be at least 1; headway="),
        (lambda: Staircase(width_growth=2), "width_growth=2 is a fraction"),
        (lambda: IndependentDepths(0), "width=0"),
        (lambda: DraftExposure(share=2, random_tokens=-1), "share=2 must lie between 0 and 1; random_tokens=-1"),
        (lambda: StateNoise(beta=2), "beta=2"),
        (lambda: StateNoise(schedule="sine"), "schedule='sine' is unknown; take one of constant, inverse, linear"),
        (lambda: Consistency(kl=0), "kl=0 and latent=0.0"),
        (lambda: WavefrontLoss(SingleLanes(), windows=0, momentum=1.0), "windows=0 must be at least 1; momentum=1.0"),
        (lambda: WavefrontLoss(SingleLanes(), backprop_depth=0), "backprop_depth=0"),
        (lambda: WavefrontLoss(SingleLanes(), more_recurrences=-1), "more_recurrences=-1"),
        (lambda: WavefrontLoss(SingleLanes(), prefill_steps=0), "prefill_steps=0"),
    ],
)
def test_wrong_settings_are_named(make, message) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(message)
