import pytest

from mom_jax.data.config import DataConfig
from mom_jax.errors import InputError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence_length", 0),
        ("batch_size", -1),
        ("shard_bytes", 0),
        ("held_out_fraction", 0.0),
        ("held_out_fraction", 1.0),
        ("path", ""),
        ("tokenizer", ""),
        ("text_field", ""),
        ("cache_dir", ""),
        ("path", "gs://bucket/texts"),
        ("held_out_path", "s3://bucket/valid.jsonl"),
        ("cache_dir", "https://host/cache"),
        ("path", "file:///texts"),
        ("mixture", "books"),
    ],
)
def test_a_bad_value_is_refused_by_field(field, value):
    with pytest.raises(InputError, match=f"^{field}=") as caught:
        DataConfig(**{field: value})
    assert caught.value.field == field


def test_the_cache_follows_xdg(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert DataConfig().cache_dir == "/somewhere/mom-jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert DataConfig().cache_dir == "/home/me/.cache/mom-jax"


def test_anchored_paths_mean_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "tok.json").touch()
    config = DataConfig(path="texts/*.txt", held_out_path="~/valid", tokenizer="tok.json", cache_dir="cache").anchored()
    monkeypatch.chdir("/")
    assert config.path == f"{tmp_path}/texts/*.txt" and config.held_out_path == "/home/me/valid"
    assert config.tokenizer == f"{tmp_path}/tok.json" and config.cache_dir == f"{tmp_path}/cache"
    assert config == config.anchored()


@pytest.mark.parametrize("path", ["stdlib", "hf:owner/name::train"])
def test_what_is_no_path_stays(path):
    config = DataConfig(path=path, held_out_path=path, tokenizer="bytes", cache_dir="/cache")
    assert config.anchored() == config
