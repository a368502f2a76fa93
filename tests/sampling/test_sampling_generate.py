"""``model.generate(sampler=…)``: every sampler behind transformers' face; what it cannot honour is refused."""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class
from transformers import GenerationConfig, LogitsProcessorList, TextStreamer, pipeline, set_seed
from transformers.generation.streamers import BaseStreamer

from recdepth.data.tokenizers import character_tokenizer
from recdepth.models import RecurrentDepthConfig, RecurrentDepthForCausalLM
from recdepth.sampling import SAMPLERS, Autoregressive, DiffusionForcing, Trace, make_sampler

CONF = Path(__file__).parents[2] / "conf" / "sampler"
PROMPTS = [[5, 3, 9, 12], [7], [4, 4, 8, 14, 6, 10], [3, 11]]
TOKENIZER = character_tokenizer("abcdefghijklmnopqrst ")


@pytest.fixture(scope="module")
def model() -> RecurrentDepthForCausalLM:
    """A random float64 model of TOKENIZER's vocabulary; its text depends on the noise."""
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 300}
    ids = {name: getattr(TOKENIZER, name) for name in ("eos_token_id", "pad_token_id")}
    model = RecurrentDepthForCausalLM(
        RecurrentDepthConfig(vocab_size=len(TOKENIZER), mean_recurrence=5, **shape, **ids)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4 if parameter.ndim == 2 else 1
    return model.eval()


def padded(prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def without_padding(out, prompts, stop):
    rows = []
    for row in out[:, max(map(len, prompts)) :].tolist():
        rows.append(row[: row.index(stop) + 1] if stop in row else row)
    return rows


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_name_is_that_sampler(model, name):
    expected = make_sampler(name, 5)(model, PROMPTS, max_new_tokens=12, stop_tokens=[1], seed=2).tokens
    out = model.generate(**padded(PROMPTS), max_new_tokens=12, sampler=name, seed=2)
    assert without_padding(out, PROMPTS, 1) == expected
    assert torch.equal(out[:, :6], padded(PROMPTS)["input_ids"])


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_names_mean_what_the_files_mean(path):
    def settings(path):
        own = yaml.safe_load(path.read_text())
        base = [name for name in own.pop("defaults", []) if name != "_self_"]
        return {k: v for name in base for k, v in settings(path.with_name(f"{name}.yaml")).items()} | own

    node = settings(path)
    assert get_class(node.pop("_target_"))(**node) == make_sampler(path.stem)


def test_the_same_text_as_the_plain_loop_where_samplers_are_lossless(model):
    plain = model.generate(**padded(PROMPTS), max_new_tokens=10)
    for name in ("autoregressive", "exact", "speculative"):
        assert torch.equal(model.generate(**padded(PROMPTS), max_new_tokens=10, sampler=name), plain)


def test_settings_of_samplers_are_keywords(model):
    calls = {"max_new_tokens": 8, "return_dict_in_generate": True}
    out = model.generate(
        **padded(PROMPTS), **calls, sampler="diffusion_forcing", num_steps=8, inner_steps=2, headway=3, max_wavefront=5
    )
    sampler = DiffusionForcing(num_steps=8, inner_steps=2, headway=3, max_wavefront=5)
    expected = sampler(model, PROMPTS, max_new_tokens=8, stop_tokens=[1])
    assert without_padding(out.sequences, PROMPTS, 1) == expected.tokens
    assert out.stats.core_passes == expected.stats.core_passes
    same = model.generate(**padded(PROMPTS), **calls, sampler=sampler)
    assert torch.equal(same.sequences, out.sequences)
    trace = Trace()
    fewer = model.generate(**padded(PROMPTS), **calls, sampler=sampler, num_steps=2, trace=trace)
    assert fewer.stats.prefill_passes == 2
    assert len(trace.steps) > 0
    config = GenerationConfig(max_new_tokens=8, num_steps=3, return_dict_in_generate=True)
    assert model.generate(**padded(PROMPTS), generation_config=config, sampler="exact").stats.prefill_passes == 3
    one_by_one = {"batch_size": 1, "rows": [0, 1, 2, 3]}
    small = model.generate(**padded(PROMPTS), **calls, sampler=sampler, **one_by_one)
    expected = sampler(model, PROMPTS, max_new_tokens=8, stop_tokens=[1], **one_by_one)
    assert without_padding(small.sequences, PROMPTS, 1) == expected.tokens
    assert small.stats.core_passes == expected.stats.core_passes > out.stats.core_passes
    assert small.stats.core_passes > out.stats.core_passes


def test_what_governs_sampling(model):
    ids = torch.tensor([PROMPTS[0]])
    call = {"max_new_tokens": 10, "sampler": "exact", "do_sample": True, "temperature": 1.5, "top_k": 20}
    seeded = model.generate(ids, **call, seed=4)
    assert torch.equal(seeded, model.generate(ids, **call, seed=4))
    assert not torch.equal(seeded, model.generate(ids, **call, seed=5))
    sampler = Autoregressive(num_steps=5)
    expected = sampler(model, [PROMPTS[0]] * 3, max_new_tokens=10, stop_tokens=[1], temperature=1.5, top_k=20, seed=4)
    three = model.generate(ids, **call, seed=4, num_return_sequences=3)
    assert without_padding(three, [PROMPTS[0]], 1) == expected.tokens

    def drawn(seed):
        set_seed(seed)
        return model.generate(ids, **call)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_rows_are_streams_that_copies_share_out(model):
    call = {"max_new_tokens": 10, "sampler": "exact", "do_sample": True, "top_k": 0, "seed": 1}
    both = model.generate(torch.tensor([PROMPTS[0]] * 2), **call, num_return_sequences=2)
    second = model.generate(torch.tensor([PROMPTS[0]]), **call, num_return_sequences=2, rows=[1])
    assert torch.equal(both[2:, : second.shape[1]], second)


class Collect(BaseStreamer):
    def __init__(self):
        self.pieces, self.ended = [], False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("name", [*SAMPLERS, None])
def test_a_streamer_gets_tokens_as_they_are_committed(model, name):
    heard = Collect()
    call = {"sampler": name} if name else {}
    out = model.generate(torch.tensor([PROMPTS[2]]), max_new_tokens=12, streamer=heard, **call)
    assert heard.pieces[0] == PROMPTS[2]
    assert [token for piece in heard.pieces[1:] for token in piece] == out[0, 6:].tolist()
    assert heard.ended


def test_streaming_does_not_wait_for_the_end(model, capsys):
    early = []

    class Watch(Collect):
        def put(self, value):
            early.append(len(trace.steps))
            super().put(value)

    trace = Trace()
    model.generate(torch.tensor([PROMPTS[2]]), max_new_tokens=12, sampler="exact", streamer=Watch(), trace=trace)
    assert early[1] < early[-1] == len(trace.steps)
    ids = TOKENIZER("abc", return_tensors="pt")
    out = model.generate(
        **ids, max_new_tokens=6, sampler="diffusion_forcing", streamer=TextStreamer(TOKENIZER, skip_prompt=True)
    )
    assert capsys.readouterr().out == TOKENIZER.decode(out[0, 3:]) + "\n"


def test_a_pipeline(model):
    texts = ["abc", "a", "hello"]
    pipe = pipeline("text-generation", model=model, tokenizer=TOKENIZER)
    call = {"max_new_tokens": 8, "return_full_text": False, "do_sample": False, "init_scale": 0.0}
    alone = [pipe(text, **call, sampler="exact")[0]["generated_text"] for text in texts]
    batch = pipe(texts, **call, sampler="exact", batch_size=3)
    assert [found[0]["generated_text"] for found in batch] == alone
    assert pipe("abc")[0]["generated_text"].startswith("abc")  # the pipeline's own 256 new tokens, sampled


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampler": "difusion"}, r"sampler='difusion' is unknown; take one of autoregressive"),
        ({"sampler": 3}, r"sampler=3 must be a name or a Sampler"),
        ({"momentum": 0.3}, r"momentum=0.3 is not a setting of exact; there are"),
        ({"num_beams": 2}, r"num_beams=2 is for transformers' own loop"),
        ({"repetition_penalty": 1.2, "max_time": 3.0}, r"(?s)max_time=3.0.*repetition_penalty=1.2"),
        ({"generation_config": GenerationConfig(min_new_tokens=3)}, r"min_new_tokens=3 is for transformers' own loop"),
        ({"logits_processor": LogitsProcessorList([print])}, r"logits_processor=… is for transformers' own loop"),
        ({"stop_strings": ["a"], "tokenizer": TOKENIZER}, r"tokenizer=…"),
        ({"output_scores": True, "return_dict_in_generate": True}, r"output_scores=True"),
        ({"use_cache": False}, r"use_cache=False: a sampler cannot do without its cache"),
        ({"temperature": 0.5}, r"temperature=0.5 has no effect without do_sample=True"),
        ({"temperature": 0.0, "do_sample": True}, r"temperature"),
        ({"streamer": Collect()}, r"streamer=… takes one prompt at a time, not 4"),
        ({"rows": [1, 2]}, r"rows has 2 ids for 4 prompts"),
        ({"max_new_tokens": 500}, r"exceeds? the context of (max_position_embeddings=)?300"),
        ({"headroom": 2}, r"headroom"),
    ],
)
def test_what_cannot_be_honoured_is_refused(model, settings, words):
    with pytest.raises(ValueError, match=words):
        model.generate(**padded(PROMPTS), **{"max_new_tokens": 4, "sampler": "exact", **settings})


def test_a_preset_is_cut_to_few_recurrences_but_a_setting_is_not():
    assert make_sampler("diffusion_forcing_headway", 2).prefill_steps == 2
    assert make_sampler("diffusion_forcing", 2).inner_steps == 2
    with pytest.raises(ValueError, match="inner_steps=4 exceeds num_steps=2"):
        make_sampler("diffusion_forcing", 2, inner_steps=4)


def test_the_models_own_entries_count_where_the_given_configuration_has_none(model, monkeypatch):
    own = {"num_steps": 2, "seed": 9, "kv": "per_depth"}
    for name, value in own.items():
        monkeypatch.setattr(model.generation_config, name, value, raising=False)
    given = GenerationConfig(max_new_tokens=6, pad_token_id=0)
    ids = torch.tensor(PROMPTS[:1])
    expected = model.generate(ids, given)
    for name in ("autoregressive", "exact", "speculative"):  # the latter have no other kv
        sampled = model.generate(ids, given, sampler=name, return_dict_in_generate=True)
        assert torch.equal(sampled.sequences, expected), name
        assert sampled.stats.recurrences_per_token == 2
    monkeypatch.setattr(model.generation_config, "kv", "shared", raising=False)
    with pytest.raises(ValueError, match="kv='shared' is not a setting of exact"):
        model.generate(ids, given, sampler="exact")


@pytest.mark.parametrize("name", ["initial_state", "labels", "backprop_depth", "position_ids"])
def test_what_only_forward_takes_is_refused(model, name):
    with pytest.raises(ValueError, match=name):
        model.generate(torch.tensor([[2, 3]]), sampler="exact", max_new_tokens=2, **{name: torch.ones(1, 2)})
    with pytest.raises(ValueError, match="num_steps=0 must be at least 1"):
        model.generate(torch.tensor([[2, 3]]), sampler="exact", max_new_tokens=2, num_steps=0)
