"""Training that starts from a model there is: its shape and tokenizer, all weights or adapters, resuming, errors."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import recdepth
from recdepth import checks, run, run_sample
from recdepth.settings import ConfigError

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "huginn"
SIZE = ["debug=fdr", "callbacks=checkpoint", "report=false", "data.validation_items=16", "trainer.limit_val_batches=1"]
STILL = ["optimizer.lr=1e-12", "optimizer.weight_decay=0"]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The folder of a short run with a shape of its own."""
    from hydra import compose, initialize_config_dir

    folder = tmp_path_factory.mktemp("start") / "run"
    words = ["model=tiny", "model.hidden_size=32", "model.core_layers=2", "model.mean_recurrence=3", *SIZE]
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3"):
        run.train(compose("train", overrides=[*words, f"paths.run_dir={folder}"]))
    return folder


@pytest.fixture
def finetune(composed, start):
    """Fine-tune by an experiment, in a folder of its own; returns that."""

    def go(name: str, *overrides: str, folder: str = "run", init_from: Path = start) -> Path:
        cfg = composed(f"experiment=finetune/{name}", *SIZE, f"init_from={init_from}", *overrides, folder=folder)
        run.train(cfg)
        return Path(cfg.paths.run_dir)

    return go


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("inside", ["", "model"])
def test_all_weights_go_on_in_the_shape_that_they_have(finetune, start, inside) -> None:
    folder = finetune("full", *STILL, init_from=start / inside)
    before, after = weights(start), weights(folder)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6, msg=name)
    config = recdepth.load_model(folder / "model").config
    assert (config.hidden_size, config.core_layers, config.mean_recurrence) == (32, 2, 3)
    assert recdepth.load_tokenizer(folder / "model").get_vocab() == recdepth.load_tokenizer(start / "model").get_vocab()
    assert "model.safetensors" not in {p.name for p in folder.glob("adapter/*")}


def test_depth_and_context_may_change(finetune) -> None:
    folder = finetune("full", "model.mean_recurrence=5", "model.backprop_depth=2", "model.max_position_embeddings=2048")
    config = recdepth.load_model(folder / "model").config
    assert (config.mean_recurrence, config.backprop_depth, config.max_position_embeddings) == (5, 2, 2048)


def test_a_model_of_another_format_goes_on_too(finetune) -> None:
    folder = finetune("full", "data.tokenizer=null", *STILL, init_from=GOLDEN)
    old, new = recdepth.load_model(GOLDEN), recdepth.load_model(folder / "model")
    ids = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(new(ids, seed=0).logits, old(ids, seed=0).logits, rtol=0, atol=1e-4)
    assert new.config.eos_token_id == recdepth.load_tokenizer(folder / "model").eos_token_id


@pytest.mark.parametrize("settings", [[], ["lora.use_rslora=true", "lora.target_modules=[qkv,injection]"]], ids=str)
def test_adapters_are_saved_alone_and_merged(finetune, start, settings) -> None:
    folder = finetune("lora", "lora.r=4", "optimizer.lr=0.05", *settings)
    ids = torch.tensor([[5, 6, 7, 8]])
    merged = recdepth.load_model(folder / "model")
    assert not any("lora" in name for name in merged.state_dict())
    adapted = AutoModelForCausalLM.from_pretrained(folder / "adapter").eval()  # finds its base by itself
    with torch.no_grad():
        a, b = merged(ids, seed=0).logits, adapted(ids, seed=0).logits
        plain = recdepth.load_model(start / "model")(ids, seed=0).logits
    torch.testing.assert_close(a, b)
    assert (a - plain).abs().max() > 1e-3
    before, after = weights(start), weights(folder)
    assert torch.equal(before["embedding.weight"], after["embedding.weight"])
    changed = {name.rsplit(".", 2)[-2] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == ({"qkv", "injection"} if settings else {"qkv", "proj", "fc", "injection"})
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all("lora" in name for name in checkpoint["state_dict"])
    assert "lora:" in (folder / "model" / "README.md").read_text()


def test_a_frozen_base_may_be_bfloat16_under_float32_adapters(finetune) -> None:
    folder = finetune("lora", "lora.base_dtype=bfloat16", "lora.r=2", "lora.lora_dropout=0.1")
    assert {value.dtype for value in weights(folder).values()} == {torch.bfloat16}
    assert {v.dtype for v in load_file(folder / "adapter" / "adapter_model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_resumed_run_goes_on_as_if_never_stopped(finetune, name) -> None:
    settings = ["callbacks.checkpoint.every_n_train_steps=2", "callbacks.checkpoint.save_top_k=-1"]
    settings += ["trainer.max_steps=4", "trainer.val_check_interval=100", "optimizer.lr=0.01"]
    whole = finetune(name, *settings, folder="whole")
    again = finetune(name, *settings, f"resume={whole / 'checkpoints' / 'step_2.ckpt'}", folder="again")
    first, second = weights(whole), weights(again)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0, msg=key)
    if name == "full":
        return
    resume = f"resume={whole}/checkpoints/step_2.ckpt"
    for other, message in (
        ("lora.target_modules=[qkv]", r"is of another model: .*lora_A.* there and missing here; take its lora=…"),
        ("lora.r=2", r"lora_A.* is \(16, 32\) there and \(2, 32\) here; take its lora=… and init_from=…"),
        ("lora.lora_alpha=1", r"its adapters count differently, .* there and 0\.\d+ here; take its lora\.lora_alpha=…"),
    ):
        with pytest.raises(ConfigError, match=message):
            finetune(name, *settings, other, resume, folder=other.partition("=")[0])


def test_what_was_fine_tuned_is_sampled_from(finetune, composed) -> None:
    folder = finetune("lora", "lora.r=2")
    settings = [f"run_dir={folder}", "num_prompts=1", "sampler.num_steps=4", "max_new_tokens=3"]
    assert len(run_sample.sample(composed(*settings, name="sample", folder="sampled"))) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=finetune/full"],
            r"^This setting cannot work:\n  - init_from=null: model=pretrained cannot do without a model to start from",
        ),
        (["model=pretrained"], "init_from=null: model=pretrained cannot do without a model to start from"),
        (["lora=default", "optimizer=adamw"], "init_from=null: lora=… cannot do without a model to start from"),
        (["lora=default", "init_from=START"], "optimizer: MuonAdamW needs groups of both kinds"),
        (["lora=default", "init_from=START", "lora.r=0"], "lora.r=0 must be at least 1"),
        (["lora=default", "init_from=START", "lora.rank=4"], "lora.rank=4: there is no such key|Could not override"),
        (["lora=default", "init_from=START", "lora.target_modules=[query]"], r"lora.target_modules=\['query'\]: "),
        (
            ["experiment=finetune/lora", "init_from=START", "lora.base_dtype=bfloat16", "trainer=bf16"],
            "lora.base_dtype=bfloat16: trainer.precision=bf16-true sets the dtype of all weights",
        ),
        (["experiment=finetune/full", "init_from=START", "model.mean_recurrence=0"], "model.mean_recurrence=0 must be"),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_before_any_work(composed, start, overrides, message) -> None:
    from hydra.errors import ConfigCompositionException

    with pytest.raises((ConfigError, ConfigCompositionException), match=message):
        checks.check_train(composed(*(word.replace("START", str(start)) for word in overrides)))


def test_a_mean_that_is_the_models_bounds_the_least_depth(finetune, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"least_recurrence=4 exceeds the mean depth, model\.mean_recurrence=3"):
        finetune("full", "objective.least_recurrence=4")
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_the_model_is_named(finetune, start, tmp_path) -> None:
    with pytest.raises(ConfigError) as caught:
        finetune("full", "data.tokenizer=null", "data=pointer_chase", "data.sequence_length=2000")
    assert any("has other tokens than the data's tokenizer" in p or "vocabulary" in p for p in caught.value.problems)
    assert any("exceeds the context of init_from=" in p for p in caught.value.problems)
    assert not (tmp_path / "run").exists()
    shutil.copytree(start, tmp_path / "broken")
    (tmp_path / "broken" / "model" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="lacks weights"):
        finetune("full", init_from=tmp_path / "broken")


def test_the_recipe_for_huginn_composes(composed, start) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra 'tasks' is not installed")
    cfg = composed("experiment=finetune/huginn_24gb", "trainer=cpu", f"init_from={start}")
    checks.check_train(cfg)
    assert (cfg.trainer.precision, cfg.lora.base_dtype) == ("32-true", "bfloat16")
    assert cfg.objective.checkpoint_recurrences
    assert composed("experiment=finetune/huginn_24gb").init_from == "tomg-group-umd/huginn-0125"
