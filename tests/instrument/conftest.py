"""Fixtures that tests of several folders share."""

import pytest

from tapescope import cli


@pytest.fixture
def run_cli(capsys):
    """Return a function that runs a command and returns its exit code, standard output and standard error."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
