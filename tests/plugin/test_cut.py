"""Event files cut at any byte, or with one byte changed, through the tab's routes with both loaders."""

import random

from scripts.testbed.cut_files import (
    STEPS,
    change_byte,
    is_complete_until,
    last_complete_step,
    recorded_steps,
    shown_steps,
    tab_with_data_server,
    tab_with_python_loader,
    wait_for_steps,
    write_run,
)


def test_the_python_loader_shows_a_cut_file_to_its_last_complete_record(tmp_path):
    content, ends = write_run(tmp_path / "whole")
    cut = tmp_path / "logdir" / "cut"
    cut.mkdir(parents=True)
    for length in (*ends, *random.Random(0).sample(range(len(content)), 30)):
        (cut / "events.out.tfevents.1").write_bytes(content[:length])
        step = last_complete_step(ends, length)
        tab = tab_with_python_loader(tmp_path / "logdir")
        expected = {"cut": step} if step >= 0 else {}
        assert shown_steps(tab) == expected, length
        assert all(is_complete_until(recorded_steps(tab, run), last) for run, last in expected.items()), length


def test_the_data_server_shows_cut_files_and_an_intact_one_beside_changed_ones(tmp_path):
    content, ends = write_run(tmp_path / "whole")
    rng = random.Random(1)
    lengths = [*ends, *rng.sample(range(len(content)), 20)]
    files = {f"cut {length}": content[:length] for length in lengths}
    files |= {f"changed {i}": change_byte(content, rng) for i in range(30)}
    for name, bytes_ in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.out.tfevents.1").write_bytes(bytes_)
    tab = tab_with_data_server(tmp_path)
    expected = {f"cut {n}": last_complete_step(ends, n) for n in lengths if last_complete_step(ends, n) >= 0}
    found = wait_for_steps(tab, expected)
    assert {run: step for run, step in found.items() if run.startswith("cut")} == expected
    for run in found:
        assert set(recorded_steps(tab, run)) <= set(STEPS)
    assert recorded_steps(tab, "whole") == list(STEPS)
