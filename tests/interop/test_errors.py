"""Folders that cannot be loaded, and places that cannot be saved to: one line that says what is wrong."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mom_jax import load_pretrained, save_pretrained
from mom_jax.errors import InputError
from mom_jax.interop.tokenizer_files import find_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def change(folder, **tensors):
    """Replaces tensors of a saved model; None removes one."""
    stored = load_file(folder / WEIGHTS) | {name.replace("__", "."): values for name, values in tensors.items()}
    save_file({name: values for name, values in stored.items() if values is not None}, folder / WEIGHTS)


def edit(folder, **fields):
    """Replaces fields of a saved model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def complaint(folder):
    """The message of the error that loading raises; it must be a single line."""
    with pytest.raises(InputError) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_folder(tmp_path):
    """A name with nothing behind it."""
    assert complaint(tmp_path / "none") == f"directory={tmp_path / 'none'}: no such folder"


def test_no_config(saved):
    """A folder of something else."""
    (saved / "config.json").unlink()
    assert "holds no config.json" in complaint(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged (Expecting property name"),
        ("[" * 100_000, "is damaged (nested too deeply); get an undamaged copy"),
        ("[]", "is damaged (the whole is a list, not an object)"),
        ('{"hidden_size": 16}', "names no model_type"),
        ('{"model_type": "llama"}', "model_type=llama: expected one of mom, mom_gated_deltanet, "),
        ('{"model_type": "rwkv7"}', "model_type=rwkv7: cannot be converted: its layers add the first layer's values"),
        ('{"model_type": "mom", "hidden_size": "16"}', "hidden_size=16: expected a whole number (in "),
    ],
)
def test_config_of_something_else(text, message, saved):
    """Not JSON, a run of ours, another model."""
    (saved / "config.json").write_text(text, encoding="utf-8")
    assert message in complaint(saved)


def test_no_weights(saved):
    """A configuration alone."""
    (saved / WEIGHTS).unlink()
    assert f"holds neither {WEIGHTS} nor {INDEX}" in complaint(saved)


@pytest.mark.parametrize("keep", [0, 5, 200, 3000, -1])
def test_truncated(keep, saved):
    """Cut anywhere: in the length, in the header, in the data, one byte short."""
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:keep])
    message = complaint(saved)
    assert message.startswith(f"weights={saved / WEIGHTS}: is not a whole safetensors file")


def test_another_format(saved):
    """A file of that name that is something else."""
    (saved / WEIGHTS).write_bytes(b"PK\x03\x04 pretend that this is a pickle " * 100)
    assert "is not a whole safetensors file" in complaint(saved)


def test_every_tensor_that_does_not_fit_is_named(saved):
    """Missing, misshapen and unexpected ones in one message, with their shapes."""
    change(
        saved,
        model__layers__0__attn__A_log=None,
        model__layers__1__attn__k_proj__2__weight=None,
        model__layers__1__mlp__up_proj__weight=np.zeros((7, 16), np.float32),
        model__layers__2__attn__A_log=np.zeros(2, np.float32),
        model__norm__weight=np.zeros(16, np.int64),
    )
    message = complaint(saved)
    for part in (
        "model.layers.0.attn.A_log [2] is missing",
        "model.layers.1.attn.k_proj.2.weight [16, 16] is missing",
        "model.layers.1.mlp.up_proj.weight has shape [7, 16] instead of [24, 16]",
        "model.layers.2.attn.A_log [2] is unexpected",
        "model.norm.weight is stored as I64 instead of F32, BF16, F16",
    ):
        assert part in message
    assert message.startswith("tensors=5 of ")


def test_another_vocabulary(saved):
    """More rows than config.json says."""
    edit(saved, vocab_size=40)
    message = complaint(saved)
    assert "model.embeddings.weight has shape [48, 16] instead of [40, 16] (vocab_size)" in message
    assert "lm_head.weight has shape [48, 16] instead of [40, 16] (vocab_size)" in message


def test_values_that_are_not_finite(saved):
    """All tensors with such values are named."""
    stored = load_file(saved / WEIGHTS)
    names = ["model.layers.0.attn.k_proj.3.weight", "model.layers.1.attn.A_log", "model.embeddings.weight"]
    for name, bad in zip(names, (np.nan, np.inf, -np.inf), strict=True):
        stored[name].reshape(-1)[-1] = bad
    save_file(stored, saved / WEIGHTS)
    message = complaint(saved)
    assert message.startswith(f"tensors={', '.join(sorted(names))}: hold NaN or infinite values")


def test_tied_but_different(saved):
    """A separate output matrix would be lost."""
    edit(saved, tie_word_embeddings=True)
    assert complaint(saved).startswith("tie_word_embeddings=True: but lm_head.weight differs from model.embeddings")


def test_tied_and_equal(saved):
    """A stored copy of the embedding is no mistake."""
    edit(saved, tie_word_embeddings=True)
    change(saved, lm_head__weight=load_file(saved / WEIGHTS)["model.embeddings.weight"])
    assert load_pretrained(saved).config.tie_word_embeddings


@pytest.fixture
def sharded(make_model, tmp_path):
    """A model in several files."""
    save_pretrained(make_model(), tmp_path / "sharded", max_shard_bytes=10_000)
    return tmp_path / "sharded"


def test_index_names_missing_files(sharded):
    """All of them."""
    files = sorted(sharded.glob("*.safetensors"))
    for path in files[:2]:
        path.unlink()
    message = complaint(sharded)
    assert f"{INDEX}: names missing files: {files[0].name}, {files[1].name}" in message


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["b"]}}'])
def test_index_that_is_none(text, sharded):
    """Not JSON, or without a weight_map."""
    (sharded / INDEX).write_text(text, encoding="utf-8")
    assert "is damaged (" in complaint(sharded)


def test_damaged_shard(sharded):
    """The damaged file is named."""
    last = sorted(sharded.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-4])
    assert complaint(sharded).startswith(f"weights={last}")


def test_saving_needs_an_empty_place(make_model, saved):
    """A folder with something in it stays as it is; an empty one is taken."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        save_pretrained(make_model(), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    (saved.parent / "empty").mkdir()
    save_pretrained(make_model(), saved.parent / "empty")
    assert (saved.parent / "empty" / WEIGHTS).is_file()


@pytest.mark.parametrize(("options", "field"), [({"dtype": "int8"}, "dtype"), ({"max_shard_bytes": 0}, "max_shard")])
def test_bad_options(options, field, make_model, tmp_path):
    """Refused before anything is written."""
    with pytest.raises(InputError, match=field):
        save_pretrained(make_model(), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_router_bias_is_not_published(make_model, saved, tmp_path):
    """The PyTorch library has no place for it: neither written nor read."""
    model = make_model(dataclasses.replace(make_model().config, router_balance="loss_free"))
    with pytest.raises(InputError, match=r"^router_balance=loss_free: the PyTorch library's router") as error:
        save_pretrained(model, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    edit(saved, router_balance="loss_free")
    assert complaint(saved).startswith("router_balance=loss_free: published models have no such bias; edit ")
    edit(saved, router_balance="none")
    load_pretrained(saved)


@pytest.mark.parametrize("option", [{"router_scores": "sigmoid"}, {"router_renormalise": False}], ids=str)
def test_another_router_is_not_published(make_model, tmp_path, option):
    (name,) = option
    model = make_model(dataclasses.replace(make_model().config, **option))
    with pytest.raises(InputError, match=rf"^{name}=.*: the PyTorch library's mixtures have .* only"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_nothing(make_model, tmp_path, monkeypatch):
    """The disk fills up while the second file is written."""
    written = []

    def fail(path, *rest):
        written.append(path)
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"something")

    monkeypatch.setattr("mom_jax.interop.tensors._write_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(make_model(), tmp_path / "out", max_shard_bytes=10_000)
    assert len(written) == 2 and not list(tmp_path.iterdir())


def test_an_index_that_lies(sharded):
    """A tensor that is not in the file that the index names is missing."""
    index = json.loads((sharded / INDEX).read_text(encoding="utf-8"))
    lost = load_file(sharded / index["weight_map"]["model.norm.weight"])
    del lost["model.norm.weight"]
    save_file(lost, sharded / index["weight_map"]["model.norm.weight"])
    assert "tensors=1 of" in (message := complaint(sharded)) and "model.norm.weight [16] is missing" in message


@pytest.mark.parametrize("name", ["../weights.safetensors", "/weights.safetensors", "a/../../b.safetensors", "a\nb"])
def test_an_index_that_leads_outside(name, sharded):
    """A file outside of the folder is not opened, whether it is there or not."""
    (sharded.parent / "weights.safetensors").write_bytes(next(sharded.glob("*.safetensors")).read_bytes())
    index = json.loads((sharded / INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["model.norm.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert complaint(sharded).endswith(f"names a file outside of the folder: {name!r}")


def test_a_tensor_in_two_files(sharded):
    """Which of the two is meant nobody can say."""
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    name, values = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: values}, second)
    assert complaint(sharded) == f"tensors={name}: is stored twice, in {first.name} and {second.name}; remove one"


def test_a_config_that_is_no_text(saved):
    """Bytes that are not UTF-8, and a number of thousands of digits."""
    (saved / "config.json").write_bytes(b'{"model_type": "mom\xff"}')
    assert "config.json: is damaged (byte 19 is not UTF-8)" in complaint(saved)
    (saved / "config.json").write_text('{"model_type": "mom", "hidden_size": ' + "1" * 5000 + "}", encoding="utf-8")
    assert "config.json: is damaged (" in complaint(saved)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_not_published(value, make_model, tmp_path):
    """The tensor is named, nothing is left."""
    model = make_model()
    rows = model.layers.mlp.down_proj.weight
    rows[...] = rows[...].at[1, 0, 0].set(value)
    with pytest.raises(InputError, match=r"^tensors=model\.layers\.1\.mlp\.down_proj\.weight: holds NaN or infinite"):
        save_pretrained(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_is_too_narrow(make_model, tmp_path):
    """70,000 is infinite in float16, and not in bfloat16."""
    model = make_model()
    model.norm.weight[...] = model.norm.weight[...] * 0 + 7e4
    with pytest.raises(InputError, match=r"^dtype=float16: is too narrow for .*model\.norm\.weight; use float32"):
        save_pretrained(model, tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
    save_pretrained(model, tmp_path / "out", dtype="bfloat16")


@pytest.mark.parametrize("place", ["gs://bucket/model", "https://example.org/model", ""])
def test_places_that_are_not_here(place, make_model):
    """No folder of such a name is looked for, or made."""
    with pytest.raises(InputError, match=r"^directory="):
        load_pretrained(place)
    with pytest.raises(InputError, match=r"^directory="):
        save_pretrained(make_model(), place)


def test_a_note_of_one_tokenizer_beside_the_files_of_another(tmp_path):
    """Bytes have files too, for other libraries."""
    note = tmp_path / "mom_jax.json"
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert find_tokenizer(tmp_path) == str(tmp_path)
    note.write_text('{"tokenizer": "bytes"}', encoding="utf-8")
    assert find_tokenizer(tmp_path) == "bytes"
    note.write_text('{"tokenizer": "mistral"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer=mistral: so .*mom_jax.json says, but a tokenizer"):
        find_tokenizer(tmp_path)
