"""The check of words finds each avoided word and docstring beginning, and no other text."""

import pytest
from scripts import words

SENTENCES = {
    "The defect was mended.": "mended",
    "The graver one wins.": "graver",
    "It stops, lest it fail.": "lest",
    "It shall stop.": "shall",
    "Every manieth block is read.": "manieth",
    "Each is told\nof below.": "told of",
    "It says so in words.": "in words",
    "It is no tensor.": "is no",
}


@pytest.mark.parametrize(("sentence", "word"), SENTENCES.items(), ids=SENTENCES.values())
def test_an_avoided_word_is_found_with_its_line(sentence, word):
    ((line, message),) = words.avoided_words(f"One line.\n{sentence}\n")
    assert line == 2
    assert message.startswith(f"`{word}`: write ")


@pytest.mark.parametrize("sentence", ["There is no such run.", "It is no longer used.", "The smallest amendment."])
def test_other_text_is_not_found(sentence):
    assert list(words.avoided_words(sentence)) == []


@pytest.mark.parametrize("beginning", words.BEGINNINGS)
@pytest.mark.parametrize("source", ["{}", "def f():\n    {}", "class C:\n    {}", "async def f():\n    {}"])
def test_an_avoided_docstring_beginning_is_found(source, beginning):
    docstring = f'"""{beginning} it comes from."""'
    ((_, message),) = words.docstring_beginnings(source.format(docstring))
    assert f"begins with `{beginning}`" in message


def test_a_property_may_be_described_as_a_field():
    source = 'class C:\n    @functools.cached_property\n    def f(self):\n        """Whether it is."""'
    assert list(words.docstring_beginnings(source)) == []


def test_other_docstring_beginnings_are_not_found():
    assert list(words.docstring_beginnings('def f():\n    """Return whatever it is."""')) == []


def test_the_command_reports_the_place_and_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(words, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("Good.\nIt was mended.\n")
    monkeypatch.chdir(tmp_path)
    assert words.main([str(page)]) == 1
    assert capsys.readouterr().out == "page.md:2: `mended`: write fix\n"


def test_the_command_succeeds_without_problems(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(words, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("Good.\n")
    assert words.main([str(page)]) == 0
    assert capsys.readouterr().out == ""
