"""The oldest versions that setup.cfg allows, printed as constraints for pip; `make oldest` tests with them."""

import configparser
import pathlib
import re

TESTED_EXTRAS = ("trainers", "frame", "test")
"""Extras whose packages the tests use. Linters and documentation are left out."""


def oldest_versions(setup: str) -> list[str]:
    """Return a constraint such as `numpy==1.26` for each requirement such as `numpy>=1.26,<3`.

    Args:
      setup: the text of setup.cfg.
    """
    config = configparser.ConfigParser()
    config.read_string(setup)
    extras = config["options.extras_require"]
    requirements = "\n".join([config["options"]["install_requires"], *(extras[name] for name in TESTED_EXTRAS)])
    versions = dict(re.findall(r"^([\w.-]+)>=([\w.]+)", requirements, re.MULTILINE))
    return [f"{name}=={version}" for name, version in versions.items()]


if __name__ == "__main__":
    print("\n".join(oldest_versions((pathlib.Path(__file__).parents[1] / "setup.cfg").read_text())))
