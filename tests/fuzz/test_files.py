"""Damaged prepared shards, tokenizers and published models."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support import damage
from support.fuzz import TINY, Trials
from support.tokenizers import JSON_KINDS, sentencepiece_file

pytestmark = pytest.mark.fuzz

Copy = Callable[[str], Path]


def test_shards(trials: Trials, copy: Copy, rng: random.Random):
    names = sorted(path.name for path in copy("shards").iterdir())
    train = ["train", "mom-tiny", *TINY, "--run-dir", "run", "--data.path"]
    for name in names:
        for harm in damage.BYTES:
            shards = copy("shards")
            harm(shards / name, rng)
            trials.refused([*train, shards], name.partition(".")[0] if name != "index.json" else "")


@pytest.mark.parametrize("name", ["index.json", "train-00000.json"])
def test_descriptions_of_shards(name: str, trials: Trials, copy: Copy, rng: random.Random):
    path = copy("shards") / name
    whole = json.loads(path.read_text(encoding="utf-8"))
    spoilt = [json.dumps(damage.with_value(whole, way, damage.of_other_kind(whole, way, rng)))
              for way in damage.places(whole)]  # fmt: skip
    for text in [*damage.WHOLES, *spoilt]:
        damage.put(path, text)
        trials.refused(["train", "mom-tiny", *TINY, "--run-dir", "run", "--data.path", path.parent], path.name)


def test_published_configurations(trials: Trials, copy: Copy, rng: random.Random):
    path = copy("published") / "config.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    ways = [way for way in damage.places(whole) if way[0] not in SAY_NOTHING and damage.at(whole, way) is not None]
    spoilt = [(way[-1], json.dumps(damage.with_value(whole, way, damage.of_other_kind(whole, way, rng, none=False))))
              for way in [*ways, *ways]]  # fmt: skip
    for name, text in [*(("", text) for text in damage.WHOLES), *spoilt]:
        damage.put(path, text)
        trials.refused(["convert", path.parent, "converted"], str(name))


# Fields of other programs, or of what does not change the mathematics.
SAY_NOTHING = ("architectures", "attn_mode", "capacity", "dtype", "fuse_cross_entropy", "fuse_norm", "fuse_swiglu",
               "use_cache", "use_layer_wise_balance")  # fmt: skip


def test_weights(trials: Trials, copy: Copy, rng: random.Random):
    harms = [damage.cut] * 20 + [damage.lengthen] * 3 + [damage.garble] * 5
    harms += [damage.zero, damage.empty, damage.remove, damage.make_folder, damage.link_to_nothing]
    for harm in harms:
        path = copy("published") / "model.safetensors"
        harm(path, rng)
        trials.refused(["convert", path.parent, "converted"], path.name)


def test_headers_of_weights(trials: Trials, copy: Copy, rng: random.Random):
    path = copy("published") / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    ways = [way for way in damage.places(header) if way[0] != "__metadata__"]
    for way in rng.sample(ways, 30):
        text = json.dumps(damage.with_value(header, way, damage.of_other_kind(header, way, rng))).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
        trials.refused(["convert", path.parent, "converted"], path.name)


def test_indexes_of_weights(trials: Trials, copy: Copy, rng: random.Random):
    folder = copy("published")
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    maps = ["../x.safetensors", "/etc/passwd", "gone.safetensors", "", "\0", "sub/../../x.safetensors", 3, None, []]
    maps += [".", "..", "config.json", "a" * 300]
    texts = [json.dumps({"weight_map": {"model.norm.weight": value}}) for value in maps]
    for text in [*damage.WHOLES, "{}", '{"weight_map": []}', '{"weight_map": {}}', *texts]:
        damage.put(index, text)
        trials.refused(["convert", folder, "converted"])


def test_notes_of_published_models(trials: Trials, copy: Copy):
    path = copy("published") / "mom_jax.json"
    names = [3, "", "gs://bucket/t", "gone.json", [], "\0"]
    for text in [*damage.WHOLES, *(json.dumps({"tokenizer": name}) for name in names)]:
        damage.put(path, text)
        trials.refused(["convert", path.parent, "converted"])


@pytest.mark.parametrize("kind", JSON_KINDS)
def test_tokenizers(kind: str, trials: Trials, sound: Path, rng: random.Random):
    path = trials.folder / "tokenizer.json"
    JSON_KINDS[kind]().save(str(path))
    text = path.read_text(encoding="utf-8")
    prepare = ["data", "prepare", "out", "--workers", 1, "--data.path", sound / "text", "--data.tokenizer", path]
    for spoilt in damage.WHOLES:
        damage.put(path, spoilt)
        trials.refused(prepare, "tokenizer")
    for harm in [*damage.BYTES, damage.cut, damage.cut, damage.garble]:
        if harm in (damage.flip, damage.lengthen):
            continue
        damage.put(path, text)
        harm(path, rng)
        trials.refused(prepare, "tokenizer")


def test_sentencepiece_models(trials: Trials, sound: Path, rng: random.Random):
    path = sentencepiece_file(trials.folder)
    content = path.read_bytes()
    for harm in [*damage.BYTES, *[damage.cut] * 12, *[damage.garble] * 6]:
        if harm is damage.flip:  # often another piece, and a whole model
            continue
        damage.put(path, content)
        harm(path, rng)
        line = ["data", "prepare", "out", "--workers", 1, "--data.path", sound / "text", "--data.tokenizer", path]
        trials.refused(line, "tokenizer")
