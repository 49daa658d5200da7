"""The quick programs of the corpus train the same with Tapescope as without it; `make corpus` has all of them."""

import pytest

from tests import corpus
from tests.corpus import page
from tests.corpus.program import Result, compare, unexpected

PROGRAMS = {p.name: p for p in corpus.programs()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.quick])
def test_a_program_trains_the_same(name):
    assert unexpected(PROGRAMS[name], compare(PROGRAMS[name])) == []


def result(**fields):
    good = Result(
        how="fit",
        steps=[0, 2],
        same_bits=True,
        largest_difference=0.0,
        same_graph=True,
        layers=3,
        unmeasured={},
        unseen=[],
        wrong=[],
        variables=2,
        warnings=[],
        seconds=1.0,
    )
    return good._replace(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": [0]}, "the steps that were recorded are [0]"),
        ({"same_bits": False, "largest_difference": 1e-7}, "a weight differs by 1.0e-07 of its norm"),
        ({"same_graph": False}, "the plain graph is another one"),
        ({"warnings": ["a"]}, "a warning: a"),
        ({"unmeasured": {"a": "b"}}, "not measured: a: b"),
        ({"unseen": ["a"]}, "unseen: a"),
        ({"wrong": ["a"]}, "wrong: a"),
    ],
)
def test_each_difference_is_reported(fields, message):
    program = PROGRAMS["convnet"]
    assert unexpected(program, result()) == []
    assert unexpected(program, result(**fields)) == [message]


def test_at_least_forty_programs_have_names_of_their_own():
    programs = corpus.programs()
    assert len(PROGRAMS) == len(programs) >= 40


def test_the_page_counts_what_differs():
    programs = [PROGRAMS["convnet"], PROGRAMS["unet"]]
    text = page.text(programs, {"unet": result(same_bits=False, unmeasured={"a": "b"})})
    assert "| same bits of all weights | 0 of 1;" in text
    assert "3 measured, 1 listed with a reason, 0 unseen" in text
    assert "Not run for this page: `convnet`." in text
