"""What was saved is loaded bit for bit, and what was loaded is saved bit for bit."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens.read import load, parameters_by_name, under
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mom_jax import MoMConfig, load_pretrained, save_pretrained
from mom_jax.errors import InputError
from mom_jax.interop.published import published_fields
from mom_jax.models.config import AttentionConfig

# The reference's parameters; between them they have every key that it writes.
STORED = ["a_default", "b_noshared", "c_single_kv", "d_top1of3", "e_expand_v2", "f_tied", "i_nogate"]
STORED.append("j_hybrid_patched")


def assert_same(got, want):
    """The parameters of two models are equal to the last bit."""
    got, want = (parameters_by_name(nnx.state(model)) for model in (got, want))
    assert set(got) == set(want)
    for name, values in want.items():
        assert got[name].dtype == values.dtype == jnp.float32
        assert np.array_equal(got[name], values), name


def test_every_kind_of_model(config, make_model, tmp_path):
    """Configuration and parameters survive."""
    model = make_model(config)
    save_pretrained(model, tmp_path / "saved")
    loaded = load_pretrained(tmp_path / "saved")
    assert published_fields(loaded.config, "float32") == published_fields(config, "float32")
    assert_same(loaded, model)


@pytest.mark.parametrize("name", STORED)
def test_tensors_of_the_reference(name, tmp_path):
    """A folder as the reference writes it: loaded and saved again, every tensor has its name and its bits back."""
    stored = load(name)
    entries = under(stored, "sd")
    if json.loads(str(stored["config"])).get("tie_word_embeddings"):
        entries.pop("lm_head.weight", None)  # never in its files
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text(
        json.dumps({"model_type": "mom", **json.loads(str(stored["config"]))}),
        encoding="utf-8",
    )
    save_file(entries, tmp_path / "theirs/model.safetensors", metadata={"format": "pt"})
    save_pretrained(load_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    again = load_file(tmp_path / "ours/model.safetensors")
    assert set(again) == set(entries)
    for key, values in entries.items():
        assert np.array_equal(again[key], values), key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats(dtype, make_model, tmp_path):
    """Parameters become float32 of the same value; saved in the stored dtype again, the files are equal."""
    model = make_model()
    save_pretrained(model, tmp_path / "first", dtype=dtype)
    loaded = load_pretrained(tmp_path / "first")
    want = {name: values.astype(dtype).astype(jnp.float32) for name, values in params(model).items()}
    for name, values in params(loaded).items():
        assert np.array_equal(values, want[name]), name
    save_pretrained(loaded, tmp_path / "second", dtype=dtype)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


def params(model):
    """Parameters by name."""
    return parameters_by_name(nnx.state(model))


def test_shards(make_model, tmp_path):
    """Files stay below the limit, the index names the file of each tensor, and the model is whole."""
    model = make_model()
    save_pretrained(model, tmp_path / "saved", max_shard_bytes=5000)
    files = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "saved/model.safetensors.index.json").read_text(encoding="utf-8"))
    total = 0
    for name in files:
        tensors = load_file(tmp_path / "saved" / name)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 5000 or len(tensors) == 1
        assert {key for key, file in index["weight_map"].items() if file == name} == set(tensors)
        total += size
    assert index["metadata"]["total_size"] == total == 4 * sum(values.size for values in params(model).values())
    assert_same(load_pretrained(tmp_path / "saved"), model)


def test_what_the_folder_says(saved):
    """The file names the framework whose layout it has; config.json holds what the reference asks for."""
    with safe_open(saved / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    fields = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert fields["model_type"] == "mom" and fields["architectures"] == ["MomForCausalLM"]
    assert fields["mom_backend"] == "gated_deltanet" and fields["dtype"] == "float32" and fields["attn"] is None
    assert MoMConfig.from_dict(fields) == MoMConfig.from_file(saved / "config.json")


def test_rotary_frequencies_are_left_aside(saved, make_model):
    """Buffers that older versions store change nothing."""
    tensors = load_file(saved / "model.safetensors")
    tensors["model.layers.1.attn.rotary.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, saved / "model.safetensors")
    assert_same(load_pretrained(saved), make_model())


def test_attention_biases(make_model, tmp_path):
    """They are read where they are stored; the library's MoM has none, so they cannot be saved for it."""
    attn = {"layers": (0,), "num_heads": 2}
    sizes = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 1, "head_dim": 8}
    plain = make_model(MoMConfig(**sizes, attn=AttentionConfig(**attn)))
    save_pretrained(plain, tmp_path / "saved")
    fields = json.loads((tmp_path / "saved/config.json").read_text(encoding="utf-8"))
    fields["attn"]["qkv_bias"] = True
    (tmp_path / "saved/config.json").write_text(json.dumps(fields), encoding="utf-8")
    tensors = load_file(tmp_path / "saved/model.safetensors")
    biases = {f"model.layers.0.attn.{n}_proj.bias": np.arange(16, dtype=np.float32) + i for i, n in enumerate("qkv")}
    save_file(tensors | biases, tmp_path / "saved/model.safetensors")
    model = load_pretrained(tmp_path / "saved")
    assert np.array_equal(params(model)["attention_layers.attn.v_proj.bias"][0], np.arange(16) + 2)
    with pytest.raises(InputError, match=r"attn=.*'qkv_bias': True.*: the PyTorch library's MoM has attention without"):
        save_pretrained(model, tmp_path / "again")
    other = make_model(MoMConfig(**sizes, attn=AttentionConfig(**attn, rope_theta=5e5)))
    with pytest.raises(InputError, match=r"attn=.*500000\.0.* and with a base of 10000 only"):
        save_pretrained(other, tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_bar_for_large_models(saved, monkeypatch, capsys):
    """On a terminal; small models and files have none."""
    load_pretrained(saved)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("mom_jax.interop.pretrained._PROGRESS_BYTES", 0)
    monkeypatch.setattr("mom_jax.terminal.is_live", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    load_pretrained(saved)
    assert "loading saved" in capsys.readouterr().err
