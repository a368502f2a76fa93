"""transformers' own ``generate`` with our cache: the text of Autoregressive, and everything around it."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from recdepth.models import RecurrentCache, RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.models.generation import check_one_device
from recdepth.sampling import Autoregressive

PROMPTS = [[5, 3, 9, 2], [7], [4, 4, 8, 1, 6, 10], [2, 11]]


def make_model(gain: float = 4.0, **settings) -> RecurrentDepthForCausalLM:
    """A random float64 model that does not contract: its text depends on noise, depth and every key."""
    torch.manual_seed(1)
    shape = {"vocab_size": 29, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = RecurrentDepthConfig(**{**shape, "max_position_embeddings": 40, "mean_recurrence": 3, **settings})
    model = RecurrentDepthForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= gain if parameter.ndim == 2 else 1
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


def padded(prompts, pad=0):
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def new_tokens(out, prompts):
    return out[:, max(map(len, prompts)) :].tolist()


@pytest.mark.parametrize("kv", ["per_depth", "shared"])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_greedy_equals_autoregressive(model, kv, num_steps):
    expected = Autoregressive(num_steps=num_steps, kv=kv)(model, PROMPTS, max_new_tokens=12, seed=3).tokens
    out = model.generate(**padded(PROMPTS), max_new_tokens=12, num_steps=num_steps, seed=3, kv=kv)
    assert new_tokens(out, PROMPTS) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)


def test_without_a_cache_the_text_is_the_same(model):
    calls = {"max_new_tokens": 8, "num_steps": 4}
    assert torch.equal(
        model.generate(**padded(PROMPTS), **calls), model.generate(**padded(PROMPTS), **calls, use_cache=False)
    )


def test_a_padded_batch_equals_its_rows_alone(model):
    out = model.generate(**padded(PROMPTS), max_new_tokens=10)
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=10, rows=[row])
        assert alone[0, len(prompt) :].tolist() == new_tokens(out, PROMPTS)[row]


def test_a_token_costs_num_steps_core_passes_over_one_place(model, monkeypatch):
    widths = []
    recur = model.recur
    monkeypatch.setattr(model, "recur", lambda e, s, *rest: widths.append(s.shape[1]) or recur(e, s, *rest))
    model.generate(**padded(PROMPTS), max_new_tokens=6, num_steps=3)
    assert widths == [6] * 3 + [1] * 3 * 5


def test_num_steps_come_from_the_call_then_the_generation_config_then_the_model(model, monkeypatch):
    depths = []
    recur = model.recur
    monkeypatch.setattr(model, "recur", lambda e, s, c, p, depth: depths.append(depth) or recur(e, s, c, p, depth))

    def used(**kwargs):
        depths.clear()
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=1, **kwargs)
        return len(depths)

    assert used() == 3
    monkeypatch.setattr(model, "generation_config", GenerationConfig(num_steps=5))
    assert used() == 5
    assert used(num_steps=2) == 2
    assert used(generation_config=GenerationConfig(max_new_tokens=1, num_steps=7)) == 7


def test_what_governs_randomness(model):
    ids = torch.tensor([PROMPTS[2]])
    call = {"max_new_tokens": 12}
    assert torch.equal(model.generate(ids, **call), model.generate(ids, **call))
    assert not torch.equal(model.generate(ids, **call), model.generate(ids, **call, seed=5))

    def drawn(seed):
        set_seed(seed)
        return model.generate(ids, **call, do_sample=True, num_return_sequences=3)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert len({tuple(row) for row in drawn(1).tolist()}) == 3


def test_stop_tokens_end_rows_and_pad_the_rest(model):
    free = model.generate(**padded(PROMPTS), max_new_tokens=12)
    stops = [free[0, 8].item(), free[2, 10].item()]
    out = model.generate(**padded(PROMPTS), max_new_tokens=12, eos_token_id=stops, pad_token_id=0)
    expected = Autoregressive(num_steps=3)(model, PROMPTS, max_new_tokens=12, stop_tokens=stops).tokens
    for row, tokens in zip(new_tokens(out, PROMPTS), expected, strict=True):
        assert row == tokens + [0] * (len(row) - len(tokens))


def test_beams_and_prompt_lookup_use_the_cache(model):
    ids = torch.tensor([PROMPTS[2]])
    call = {"max_new_tokens": 8, "rows": [0]}
    beams = model.generate(ids, num_beams=3, **call)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **call))
    lookup = model.generate(torch.cat([ids, ids], 1), prompt_lookup_num_tokens=3, **call)
    assert torch.equal(lookup, model.generate(torch.cat([ids, ids], 1), **call))
    with pytest.raises(ValueError, match=r"kv=shared: .*prompt lookup would give other text; take kv=per_depth"):
        model.generate(ids, prompt_lookup_num_tokens=3, kv="shared", **call)


def test_a_text_goes_on_from_its_cache(model):
    ids = torch.tensor([PROMPTS[0]])
    whole = model.generate(ids, max_new_tokens=12)
    begun = model.generate(ids, max_new_tokens=6, return_dict_in_generate=True)
    assert begun.past_key_values.get_seq_length() == 9
    rest = model.generate(begun.sequences, max_new_tokens=6, past_key_values=begun.past_key_values)
    assert torch.equal(rest, whole)


def test_forward_in_pieces_equals_the_whole(model):
    inputs = padded(PROMPTS)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    whole = model(ids, attention_mask=mask, num_steps=4, seed=0)
    first = model(ids[:, :3], attention_mask=mask[:, :3], num_steps=4, seed=0, use_cache=True)
    cache = first.past_key_values
    second = model(ids[:, 3:], attention_mask=mask, seed=0, past_key_values=cache)
    shown = mask.bool()
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1)[shown], whole.logits[shown])
    torch.testing.assert_close(torch.cat([first.latents, second.latents], 1)[shown], whole.latents[shown])
    cache.crop(-2)  # and once more
    again = model(ids[:, 4:], attention_mask=mask, seed=0, past_key_values=cache, logits_to_keep=1)
    torch.testing.assert_close(again.logits, second.logits[:, -1:])
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 2 * len(PROMPTS)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size) == (0, -1)


def test_a_folder_loads_with_the_auto_class(model, tmp_path):
    model.generation_config.num_steps = 5
    try:
        model.save_pretrained(tmp_path)
    finally:
        del model.generation_config.num_steps
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, RecurrentDepthForCausalLM)
    assert loaded.dtype == torch.float64
    assert loaded.generation_config.num_steps == 5
    assert torch.equal(
        loaded.generate(**padded(PROMPTS), max_new_tokens=5),
        model.generate(**padded(PROMPTS), max_new_tokens=5, num_steps=5),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_dtype_and_device_map(model, tmp_path, dtype, device_map):
    pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, device_map=device_map)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.generate(**padded(PROMPTS), max_new_tokens=3).shape == (4, 9)
    assert loaded.head.weight is loaded.embedding.weight


def test_weights_on_disk(tmp_path):
    pytest.importorskip("accelerate")
    model = make_model(prelude_layers=1, core_layers=2, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "model")
    parts = {name: "cpu" for name, _ in model.named_children()} | {"core": "disk", "coda": "disk"}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offload"
    )
    assert {p.device.type for p in loaded.core.parameters()} == {"meta"}
    call = {"max_new_tokens": 6}
    assert torch.equal(loaded.generate(**padded(PROMPTS), **call), model.generate(**padded(PROMPTS), **call))


def test_parts_on_several_gpus_are_refused():
    check_one_device({"": 0})
    check_one_device({"prelude": 0, "core": "cpu", "coda": "disk"})
    with pytest.raises(ValueError, match=r"parts on 0, 1: .* take device_map=\{'': 0\}"):
        check_one_device({"prelude": 0, "core": 1})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 60}, r"66 in all, exceed the context of max_position_embeddings=40; lower max_new_tokens"),
        ({"num_steps": 0}, r"num_steps=0 must be at least 1"),
        ({"kv": "none"}, r"kv='none' is unknown"),
        ({"kv": "shared", "use_cache": False}, r"kv='shared' is a choice of the cache"),
        ({"cache_implementation": "static"}, r"cache_implementation='static'.*cache of its own"),
        ({"output_attentions": True, "return_dict_in_generate": True}, r"output_attentions=True.*does not return"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, r"output_hidden_states=True"),
        ({"past_key_values": DynamicCache()}, r"past_key_values is a DynamicCache; this model takes a RecurrentCache"),
        ({"past_key_values": RecurrentCache(7), "num_steps": 3}, r"was made for num_steps=7"),
        ({"headway": 2}, r"headway"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model, settings, words):
    with pytest.raises(ValueError, match=words):
        model.generate(**padded(PROMPTS), **{"max_new_tokens": 4, **settings})


def test_what_forward_refuses(model):
    ids = torch.tensor([PROMPTS[0]])
    with pytest.raises(ValueError, match="for training"):
        model(ids, labels=ids, use_cache=True)
    with pytest.raises(ValueError, match="kv='shared' is a choice of the cache"):
        model(ids, kv="shared")
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="holds 1 rows, input_ids 2"):
        model(ids.repeat(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=r"shape \(1, 2\); with 4 places in past_key_values and 2 new ones"):
        model(ids[:, :2], attention_mask=torch.ones(1, 2), past_key_values=cache)
    with pytest.raises(ValueError, match="exceed the context"):
        model(ids.repeat(1, 10), past_key_values=cache)
    for cached in (False, True):
        with pytest.raises(ValueError, match=r"rows has the shape \(1,\), input_ids 2 rows"):
            model(ids.repeat(2, 1), rows=torch.tensor([4]), use_cache=cached)
    assert model(ids, return_dict=False)[0].shape == (1, 4, 29)


def test_peft_wraps_it(model):
    peft = pytest.importorskip("peft")
    base = make_model()
    wrapped = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    ids = torch.tensor([PROMPTS[2]])
    wrapped(input_ids=ids, labels=ids, num_steps=2).loss.backward()
    assert all(p.grad is not None for n, p in wrapped.named_parameters() if "lora_B" in n)
    for call in ({}, {"sampler": "exact"}):
        made = wrapped.eval().generate(input_ids=ids, max_new_tokens=5, **call)
        assert torch.equal(made, model.generate(ids, max_new_tokens=5))
    with pytest.raises(ValueError, match="inputs_embeds, output_attentions and output_hidden_states are not supported"):
        model(ids, output_hidden_states=True)


def test_transformers_trainer_trains_it(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    model = make_model(gain=1.0).float()
    rows = [{"input_ids": PROMPTS[2], "labels": PROMPTS[2]} for _ in range(8)]
    before = model.core[0].mlp.fc.weight.clone()
    recomputed = []
    recur = model.recur
    monkeypatch.setattr(model, "recur", lambda *args: recomputed.append(1) or recur(*args))
    settings = TrainingArguments(
        str(tmp_path), max_steps=2, gradient_checkpointing=True, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(model, settings, train_dataset=rows).train()
    assert not torch.equal(before, model.core[0].mlp.fc.weight)
    assert len(recomputed) == 2 * 2 * 3  # steps, passes, recurrences


@torch.no_grad()
def test_a_pass_that_failed_may_be_tried_again(model):
    ids, mask = torch.tensor([[3, 4, 5], [2, 6, 7]]), torch.ones(2, 3, dtype=torch.long)
    whole = model(ids, num_steps=3, seed=0, use_cache=True).logits
    for wrong, error in (
        ({"input_ids": torch.full((2, 1), 10_000)}, IndexError),
        ({"input_ids": ids[:, 2:], "attention_mask": mask[:, :2]}, ValueError),
    ):
        past = model(ids[:, :2], num_steps=3, seed=0, use_cache=True).past_key_values
        with pytest.raises(error):
            model(**wrong, past_key_values=past, seed=0)
        assert past.get_seq_length() == 2
        torch.testing.assert_close(model(ids[:, 2:], past_key_values=past, seed=0).logits, whole[:, 2:])
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache; this model takes a RecurrentCache"):
        model(ids, past_key_values=DynamicCache())


@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_can_be_resized(tied):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "tie_word_embeddings": tied}
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(vocab_size=20, **shape)).eval()
    before = model(torch.tensor([[1, 2]]), num_steps=2, seed=0).logits
    model.resize_token_embeddings(24)
    assert model.config.vocab_size == 24
    assert (model.head.weight is model.embedding.weight) == tied
    after = model(torch.tensor([[1, 2]]), num_steps=2, seed=0).logits
    torch.testing.assert_close(after[..., :20], before)
    assert Autoregressive(num_steps=2)(model, [[23, 1]], max_new_tokens=3).tokens[0]
