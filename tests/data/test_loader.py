import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mom_jax.data.config import DataConfig
from mom_jax.data.loader import TokenWindows, TrainLoader, eval_batches
from mom_jax.data.prepare import prepare
from mom_jax.data.shards import TokenStream, open_prepared
from mom_jax.errors import InputError
from mom_jax.labels import IGNORE

END = 257
CONFIG = DataConfig(sequence_length=16, batch_size=4)


class _Tokens(TokenStream):
    """A token stream of given documents, in memory."""

    def __init__(self, documents):
        self.ids = np.concatenate([np.array([*d, END], np.int32) for d in documents])
        self.first = np.zeros(len(self.ids), bool)
        self.first[np.cumsum([0, *(len(d) + 1 for d in documents[:-1])])] = True

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        return self.ids[start:stop], self.first[start:stop]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder of a few dozen windows."""
    root = tmp_path_factory.mktemp("loader")
    (root / "text").mkdir()
    for number in range(12):
        lines = [json.dumps({"text": f"file {number} " + "x" * (7 * j + number)}) for j in range(6)]
        (root / "text" / f"{number:02d}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare(DataConfig(path=str(root / "text"), held_out_fraction=0.3, shard_bytes=500), root / "out")
    return open_prepared(root / "out")


DOCUMENTS = st.lists(st.lists(st.integers(0, 255), max_size=12), min_size=1, max_size=12)


@given(DOCUMENTS, st.integers(1, 20))
def test_windows_predict_every_token_once_within_its_document(documents, length):
    stream = _Tokens(documents)
    windows = TokenWindows(stream, length, padded=True)
    got = [windows[i] for i in range(len(windows))]
    assume(got)  # a lone end token predicts nothing
    for window in got:
        assert {field: (a.shape, a.dtype) for field, a in window.items()} == dict.fromkeys(
            ("input_ids", "labels", "segment_ids"), ((length,), np.int32)
        )
    inputs, labels, segments = (np.concatenate([w[f] for w in got]) for f in got[0])
    count = len(stream) - 1
    np.testing.assert_array_equal(inputs[:count], stream.ids[:-1])
    np.testing.assert_array_equal(labels[:count], np.where(stream.first[1:], IGNORE, stream.ids[1:]))
    # Padding is nothing but padding.
    assert not np.any(segments[count:]) and np.all(labels[count:] == IGNORE) and np.all(segments[:count] >= 1)
    # The end token of each document is a label; its first token never is.
    assert np.sum(labels != IGNORE) == len(stream) - len(documents)


@given(DOCUMENTS, st.integers(1, 20))
def test_segments_count_the_documents_of_a_window(documents, length):
    stream = _Tokens(documents)
    number = np.cumsum(stream.first)
    windows = TokenWindows(stream, length, padded=False)
    assert len(windows) == (len(stream) - 1) // length
    for i in range(len(windows)):
        mine = number[i * length : (i + 1) * length]
        np.testing.assert_array_equal(windows[i]["segment_ids"], mine - mine[0] + 1)


def test_an_example_by_hand():
    windows = TokenWindows(_Tokens([[1, 2, 3], [4], [5, 6]]), 4, padded=True)
    first, second = windows[0], windows[1]
    # tokens: 1 2 3 END | 4 END | 5 6 END
    assert first["input_ids"].tolist() == [1, 2, 3, END]
    assert first["labels"].tolist() == [2, 3, END, IGNORE]
    assert first["segment_ids"].tolist() == [1, 1, 1, 1]
    assert second["input_ids"].tolist() == [4, END, 5, 6]
    assert second["labels"].tolist() == [END, IGNORE, 6, END]
    assert second["segment_ids"].tolist() == [1, 1, 2, 2]
    assert len(windows) == 2


def test_an_index_out_of_range():
    windows = TokenWindows(_Tokens([[1, 2, 3]]), 2, padded=True)
    for index in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows[index]


def _take(loader, count):
    return [next(loader) for _ in range(count)]


def _same(left, right):
    return len(left) == len(right) and all(
        set(a) == set(b) and all(np.array_equal(a[f], b[f]) for f in a) for a, b in zip(left, right, strict=True)
    )


@settings(max_examples=20)
@given(st.integers(0, 60), st.integers(1, 20))
def test_resuming_equals_going_on(data, before, after):
    loader = TrainLoader(data, CONFIG)
    _take(loader, before)
    state = json.loads(json.dumps(loader.get_state()))
    wanted = _take(loader, after)
    resumed = TrainLoader(data, CONFIG)
    _take(resumed, 3)
    resumed.set_state(state)
    assert _same(_take(resumed, after), wanted)
    assert resumed.get_state() == loader.get_state()


def _rows(batches):
    return sorted(row.tobytes() for batch in batches for row in batch["input_ids"])


def test_every_epoch_holds_each_window_once_and_in_a_new_order(data):
    windows = TokenWindows(data.train, CONFIG.sequence_length, padded=False)
    count = len(windows)
    rows = list(
        itertools.islice(
            (row.tobytes() for batch in TrainLoader(data, CONFIG) for row in batch["input_ids"]), 2 * count
        )
    )
    everything = sorted(windows[i]["input_ids"].tobytes() for i in range(count))
    assert sorted(rows[:count]) == sorted(rows[count:]) == everything
    assert rows[:count] != rows[count:]


def test_the_seed_decides_the_order(data):
    orders = [
        _take(TrainLoader(data, DataConfig(sequence_length=16, batch_size=4, seed=seed)), 5) for seed in (0, 0, 1)
    ]
    assert _same(orders[0], orders[1]) and not _same(orders[0], orders[2])


@pytest.mark.parametrize("processes", [2, 4])
def test_each_step_holds_the_same_windows_for_any_number_of_processes(data, processes):
    alone = TrainLoader(data, CONFIG)
    parts = [TrainLoader(data, CONFIG, index, processes) for index in range(processes)]
    for _ in range(30):
        batches = [next(part) for part in parts]
        assert all(batch["labels"].shape == (4 // processes, 16) for batch in batches)
        assert _rows(batches) == _rows([next(alone)])
    # A position saved by one process may be taken up by several.
    state = alone.get_state()
    assert all(part.get_state() == state for part in parts)
    fresh = [TrainLoader(data, CONFIG, index, processes) for index in range(processes)]
    for part in fresh:
        part.set_state(state)
    assert _rows([next(part) for part in fresh]) == _rows([next(alone)])


@pytest.mark.parametrize("field", ["batch_size", "sequence_length", "data_seed", "data_fingerprint"])
def test_a_position_in_other_data_is_refused(data, field):
    state = TrainLoader(data, CONFIG).get_state()
    for wrong in ({**state, field: 5}, {k: v for k, v in state.items() if k != field}):
        loader = TrainLoader(data, CONFIG)
        with pytest.raises(InputError) as caught:
            loader.set_state(wrong)
        assert caught.value.field == ("data.path" if field == "data_fingerprint" else field)
        assert loader.get_state() == state


@pytest.mark.parametrize("wrong", [None, [], "x", {}, {"next_index": "5"}, {"next_index": -1}, {"next_index": 1.5}])
def test_a_damaged_position_is_refused(data, wrong):
    loader = TrainLoader(data, CONFIG)
    state = loader.get_state()
    with pytest.raises(InputError, match=r"data position=.*is damaged"):
        loader.set_state(wrong if not isinstance(wrong, dict) else {**state, "next_index": None, **wrong})


def test_too_little_text_for_a_batch(data):
    with pytest.raises(InputError, match="batch_size=4000: the training text fills only"):
        TrainLoader(data, DataConfig(sequence_length=16, batch_size=4000))
    with pytest.raises(InputError, match="fills only 0 windows"):
        TrainLoader(data, DataConfig(sequence_length=10**6, batch_size=1))


def test_batches_that_do_not_divide(data):
    for make in (TrainLoader, eval_batches):
        with pytest.raises(InputError, match=r"batch_size=4: must be a multiple of the number of processes \(3\)"):
            make(data, CONFIG, 0, 3)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("length", [5, 16, 10_000])
def test_evaluation_covers_all_tokens_once(data, processes, length):
    config = DataConfig(sequence_length=length, batch_size=4)
    parts = [list(eval_batches(data, config, index, processes)) for index in range(processes)]
    assert len({len(part) for part in parts}) == 1
    assert all(a.shape == (4 // processes, length) for part in parts for batch in part for a in batch.values())
    # Rows of a step, process after process, are the windows in order.
    labels = np.concatenate([part[step]["labels"] for step in range(len(parts[0])) for part in parts]).reshape(-1)
    ids, is_first = data.held_out.read(0, len(data.held_out))
    assert labels[labels != IGNORE].tolist() == ids[~is_first].tolist()


def test_a_part_of_the_evaluation_is_spread_evenly(data):
    windows = TokenWindows(data.held_out, 16, padded=True)
    chosen = np.concatenate([b["input_ids"] for b in eval_batches(data, CONFIG, max_windows=5)])
    wanted = [windows[i * len(windows) // 5]["input_ids"] for i in range(5)]
    assert len(windows) > 10 and chosen.shape == (8, 16)
    np.testing.assert_array_equal(chosen, [*wanted, *np.zeros((3, 16))])
    with pytest.raises(InputError, match="max_windows=0"):
        eval_batches(data, CONFIG, max_windows=0)
