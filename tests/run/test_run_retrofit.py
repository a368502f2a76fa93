"""model=retrofit: fine-tuning starts from the base, and what does not go with it is said before anything starts."""

import json
import sys
from pathlib import Path

import pytest
import torch

import recdepth
from recdepth import checks, run
from recdepth.settings import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from llama import write_llama

SMALL = ["debug=fdr", "model.prelude_layers=2", "model.coda_layers=1", "logger=none", "report=false"]
SMALL += ["data=word_problems", "+data.tokenizer._target_=recdepth.data.pretrained_tokenizer"]
SMALL += ["data.sequence_length=400", "data.max_new_tokens=200", "callbacks=none", "optimizer=adamw"]


@pytest.fixture(autouse=True)
def fresh_cache():
    recdepth.models.retrofit.base_config.cache_clear()


def test_training_starts_from_the_base(composed, tmp_path):
    llama = write_llama(tmp_path / "llama")
    base = ["model=retrofit", f"model.base={tmp_path / 'llama'}", "+data.tokenizer.path=${model.base}"]
    run.train(composed(base[0], base[1], *SMALL, base[2], "optimizer.lr=1e-9", "optimizer.weight_decay=0"))
    model = recdepth.load_model(tmp_path / "run" / "model")
    assert model.config.retrofit["layers"] == {"prelude": [0, 1], "core": [2, 3, 4, 5, 6, 7], "coda": [8]}
    ids = torch.randint(0, 250, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(model(ids, num_steps=3).logits, llama(ids).logits, atol=1e-4, rtol=1e-4)
    assert recdepth.load_tokenizer(tmp_path / "run" / "model").get_vocab()


def test_the_shipped_recipe_runs(composed, tmp_path):
    pytest.importorskip("reasoning_gym", reason="the extra 'tasks' is not installed")
    write_llama(tmp_path / "llama", num_hidden_layers=21)
    sizes = [
        "data.sequence_length=500",
        "data.max_new_tokens=200",
        "data.batch_size=2",
        "data.validation_items=4",
        "evaluation.items=2",
    ]
    folder = f"model.base={tmp_path / 'llama'}"
    cfg = composed("experiment=finetune/smollm2", folder, "debug=fdr", *sizes, "logger=none")
    assert run.train(cfg) > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("test/accuracy/diffusion_forcing" in line for line in lines)


def test_what_does_not_go_with_a_base(composed, tmp_path):
    write_llama(tmp_path / "llama", max_position_embeddings=128)
    base = ["model=retrofit", f"model.base={tmp_path / 'llama'}"]
    with pytest.raises(ConfigError, match=r"(?s)data.tokenizer has other tokens.*exceeds the context.*128; lower it"):
        run.train(composed(*base, "debug=fdr", "logger=none", "data.sequence_length=200"))
    with pytest.raises(ConfigError, match=r"model\.core_layers=9 must lie between 1 and the 3"):
        checks.check_train(composed(*base, "model.core_layers=9", "model.prelude_layers=3", "model.coda_layers=3"))
    with pytest.raises(ConfigError, match=r"model\.base=\?\?\? has no value"):
        checks.check_train(composed("model=retrofit"))
    with pytest.raises(ConfigError, match=r"model\.base=.*nothing cannot be read.*is not a folder"):
        checks.check_train(composed("model=retrofit", f"model.base={tmp_path / 'nothing'}"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_samplers_that_do_not_suit_the_model_are_named_before_training(composed):
    ouro = ["model=tiny", "model.injection=none", "model.norm_placement=inner_sandwich", "model.state_norm=every"]
    ouro += ["model.prelude_layers=0", "model.coda_layers=0"]
    named = r"callbacks\.sampler_evaluation\.samplers\.diffusion_forcing: .* injection is missing.*allow_unsupported"
    with pytest.raises(ConfigError, match=named):
        checks.check_train(composed(*ouro))
    with pytest.raises(ConfigError, match=r"comparison\.samplers\.df-paper: diffusion_forcing does not suit"):
        checks.check_train(composed(*ouro, "callbacks=none", "compare=true"))
    exact = ["sampler@callbacks.sampler_evaluation.samplers.diffusion_forcing=exact"]
    allowed = "callbacks.sampler_evaluation.samplers.diffusion_forcing.allow_unsupported=true"
    checks.check_train(composed(*ouro, *exact))
    checks.check_train(composed(*ouro, allowed))
    run.train(composed(*ouro, "debug=fdr", "callbacks=none", "logger=none", "model.hidden_size=16"))
