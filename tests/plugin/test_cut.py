"""Event files that end anywhere, or have a byte changed, through the tab's routes, with both loaders."""

import random

from scripts.testbed.cut_files import (
    STEPS,
    changed,
    data_server,
    last_step,
    python_loader,
    recorded,
    right,
    shown,
    waited,
    written,
)


def test_a_file_cut_anywhere_is_shown_to_its_last_whole_record_by_the_python_loader(tmp_path):
    content, ends = written(tmp_path / "whole")
    cut = tmp_path / "logdir" / "cut"
    cut.mkdir(parents=True)
    for length in (*ends, *random.Random(0).sample(range(len(content)), 30)):
        (cut / "events.out.tfevents.1").write_bytes(content[:length])
        tab, step = python_loader(tmp_path / "logdir"), last_step(ends, length)
        assert shown(tab) == ({} if step < 0 else {"cut": step}), length
        if step >= 0:
            assert right(recorded(tab, "cut"), step), length


def test_cut_and_changed_files_beside_a_good_one_by_the_data_server(tmp_path):
    content, ends = written(tmp_path / "whole")
    rng = random.Random(1)
    lengths = [*ends, *rng.sample(range(len(content)), 20)]
    files = {f"cut {length}": content[:length] for length in lengths}
    files |= {f"changed {i}": changed(content, rng) for i in range(30)}
    for name, bytes_ in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.out.tfevents.1").write_bytes(bytes_)
    tab = data_server(tmp_path)
    expected = {f"cut {n}": last_step(ends, n) for n in lengths if last_step(ends, n) >= 0}
    found = waited(tab, expected)
    assert {run: step for run, step in found.items() if run.startswith("cut")} == expected
    for run in found:
        assert set(recorded(tab, run)) <= set(STEPS)
    assert recorded(tab, "whole") == list(STEPS)
