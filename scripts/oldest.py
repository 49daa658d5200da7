"""Prints the oldest versions that setup.cfg allows, as constraints for pip; `make oldest` tests with them."""

import configparser
import pathlib
import re


def oldest(setup: str) -> list[str]:
    """`numpy==1.26` for `numpy>=1.26,<3`; what the linters and the documentation need is left out."""
    config = configparser.ConfigParser()
    config.read_string(setup)
    extras = config["options.extras_require"]
    needed = "\n".join(
        [config["options"]["install_requires"], *(extras[name] for name in ("trainers", "frame", "test"))]
    )
    found = dict(re.findall(r"^([\w.-]+)>=([\w.]+)", needed, re.MULTILINE))
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    print("\n".join(oldest((pathlib.Path(__file__).parents[1] / "setup.cfg").read_text())))
