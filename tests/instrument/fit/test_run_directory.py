"""The directory of a fit whose Monitor was given none, and what is printed about it."""

import copy
import sys
import time
import types

import keras
import numpy as np
import pytest

import tapescope
from tapescope.fit import run_directory


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fit(*monitors):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "relu")], name="digits")
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(np.ones([8, 3]), np.ones([8, 2]), verbose=0, callbacks=list(monitors))


@pytest.mark.slow
def test_a_monitor_without_arguments_picks_a_name_and_says_how_to_look(tmp_path, capsys):
    monitor = tapescope.Monitor()
    assert monitor.logdir is None
    copied = copy.deepcopy(monitor)
    fit(monitor)
    fit(copied)
    directories = tapescope.runs("runs")
    assert len(directories) == 2
    assert monitor.logdir == str(tmp_path / min(directories, key=len))
    printed = capsys.readouterr().out
    assert f"tapescope: this fit is recorded in {min(directories, key=len)}." in printed
    assert "\n  tensorboard --logdir runs\n" in printed
    assert printed.count("this fit is recorded in") == 2


@pytest.mark.slow
def test_a_monitor_with_a_directory_prints_nothing(tmp_path, capsys):
    monitor = tapescope.Monitor(tmp_path / "mine")
    fit(monitor)
    assert monitor.logdir == str(tmp_path / "mine")
    assert capsys.readouterr().out == ""


def test_runs_that_begin_in_the_same_second_have_directories_of_their_own(monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "2026-01-02_03-04-05")
    names = [run_directory.make_directory("digits").rpartition("/")[2] for _ in range(3)]
    assert names == [f"digits_2026-01-02_03-04-05{end}" for end in ("", "_2", "_3")]


@pytest.mark.parametrize("name", ["my model", "größe:3", "..", "a\nb", "x" * 300])
def test_any_name_of_a_model_makes_one_directory_below_runs(name, tmp_path):
    path = run_directory.make_directory(name)
    assert path.rpartition("/")[0] == str(tmp_path / "runs")


def test_a_notebook_gets_its_own_commands(monkeypatch):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    lines = run_directory.how_to_look(run_directory.make_directory("digits")).splitlines()
    assert [line.strip() for line in lines[1:3]] == ["%load_ext tensorboard", "%tensorboard --logdir runs"]


@pytest.mark.parametrize("shell", [None, types.SimpleNamespace()])
def test_a_terminal_gets_the_command_line(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert "  tensorboard --logdir runs\n" in run_directory.how_to_look(run_directory.make_directory("digits"))
