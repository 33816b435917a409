"""Twins of all benchmarks, made once for all workers, and lmms-eval's tasks on them, loaded once for each benchmark."""

import os
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest

from eval import data as datasource
from eval.benchmarks import BENCHMARKS
from eval.guard import tasks_of

COUNT = 4
SUITES = Path(__file__).resolve().parents[2] / "eval" / "suites"


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder for runs, the same for all workers of a test session."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs"


@pytest.fixture(scope="session")
def twins(runs) -> datasource.Data:
    runs.mkdir(exist_ok=True)
    with filelock.FileLock(runs / "twins.lock"):
        return datasource.find("twin", list(BENCHMARKS), runs / "cache" / "twins", COUNT, 0)


@pytest.fixture(scope="session")
def home(twins, tmp_path_factory):
    """The variables that lmms-eval's stock tasks read when they are imported."""
    folder = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    for name, value in datasource.variables(twins, folder / "home", folder / "datasets").items():
        patch.setenv(name, value)
    yield folder / "home"
    patch.undo()


@pytest.fixture(scope="session")
def manager(home):
    """Finds our groups and the stock tasks that they are made of, without reading all of lmms-eval's."""
    import lmms_eval
    from lmms_eval.tasks import TaskManager

    stock = Path(lmms_eval.__file__).parent / "tasks"
    names = ("scienceqa", "mme", "vizwiz_vqa", "pope", "seedbench", "videomme", "longvideobench", "mlvu", "egoschema")
    names += ("mvbench", "perceptiontest/val", "nextqa", "vinoground")
    paths = [str(stock / name) for name in names]
    return TaskManager("ERROR", include_path=[*paths, str(SUITES)], include_defaults=False)


@pytest.fixture(scope="session")
def suite(manager, twins):
    """name, profile -> (tasks as lmms-eval loads them, their names)."""
    from lmms_eval.tasks import get_task_dict

    loaded = {}

    def load(name, profile="paper"):
        if (name, profile) not in loaded:
            os.environ["REGATE_EVAL_PROMPTS"] = profile
            names = tasks_of(name, twins.shown)
            group = _group(manager, name, names)
            loaded[name, profile] = get_task_dict([group], manager, "chat"), names
            del os.environ["REGATE_EVAL_PROMPTS"]
        return loaded[name, profile]

    return load


def _group(manager, name, names):
    """The group without the tasks that the twin cannot show, as `eval.run` writes it."""
    group = BENCHMARKS[name].group
    if len(names) == len(BENCHMARKS[name].tasks):
        return group
    from lmms_eval import utils

    config = utils.load_yaml_config(manager.task_index[group]["yaml_path"], mode="full")
    config["task"] = [entry for entry in config["task"] if entry["task"] in names]
    return config


@pytest.fixture(scope="session")
def evaluate(suite):
    """name, model -> lmms-eval's results, its samples, the names of the tasks; all in this process."""
    from lmms_eval import evaluator

    def run(name, model, profile="paper", **kwargs):
        tasks, names = suite(name, profile)
        for task in _leaves(tasks):
            model.task_dict[task.config.task] = task.dataset
        cli = SimpleNamespace(process_with_media=False, reasoning_tags=None, output_path=None)
        results = evaluator.evaluate(model, tasks, bootstrap_iters=0, cli_args=cli, process_docs_parallel=1, **kwargs)
        return results, results["samples"], names

    return run


def _leaves(tasks):
    for value in tasks.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value
