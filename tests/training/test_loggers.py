"""What Weights & Biases and MLflow are told, by stand-ins of their interfaces."""

import sys
import types

import pytest

from mom_jax.errors import InputError
from mom_jax.training.config import TrainConfig
from mom_jax.training.loggers import check_installed, open_loggers

METRICS = {"loss": 2.0, "load": [[0.25, 0.75]]}
TAGS = {"train/loss": 2.0, "train/load/layer_0/memory_0": 0.25, "train/load/layer_0/memory_1": 0.75}


@pytest.fixture
def stand_ins(monkeypatch):
    told = []

    def method(name, result=None):
        return lambda *args, **kwargs: told.append((name, args, kwargs)) or result

    run = types.SimpleNamespace(log=method("log"), finish=method("finish"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=method("init", run)))
    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(**{name: method(name) for name in names}))
    return told


@pytest.mark.parametrize("server", [None, "http://localhost:5000"])
def test_mlflow_writes_into_the_run_unless_told_otherwise(server, stand_ins, tmp_path, monkeypatch):
    if server is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    open_loggers(TrainConfig(log=("mlflow",)), tmp_path / "mine", 0)
    set_to = [args for name, args, _ in stand_ins if name == "set_tracking_uri"]
    assert set_to == ([] if server else [((tmp_path / "mine/mlflow").as_uri(),)])


def test_both_get_config_metrics_and_the_end(stand_ins, tmp_path):
    loggers = open_loggers(TrainConfig(log=("wandb", "mlflow", "wandb")), tmp_path / "mine", 7)
    for logger in loggers:
        logger.log(8, METRICS, "train")
        logger.close()
    told = {name: (args, kwargs) for name, args, kwargs in stand_ins}
    assert [name for name, *_ in stand_ins].count("init") == 1, "named twice, opened once"
    assert told["init"][1]["name"] == "mine" and told["init"][1]["config"]["optimizer.name"] == "adamw"
    assert told["log"] == ((TAGS,), {"step": 8}) and "finish" in told
    assert told["start_run"][1] == {"run_name": "mine from step 7"}
    assert told["log_params"][0][0]["model.num_memories"] == "4"
    assert told["log_metrics"] == ((TAGS,), {"step": 8}) and "end_run" in told


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_or_does_not_start(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"^log={name}: the package is missing: .*{name}"):
        check_installed(TrainConfig(log=(name,)))
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(InputError, match=rf"^log={name}: does not start \(AttributeError"):
        open_loggers(TrainConfig(log=(name,)), tmp_path, 0)
