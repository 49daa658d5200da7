"""Says which installed packages have known weaknesses, by pip-audit; never fails, and takes two minutes at most.

    python scripts/audit.py

An advisory that appears overnight is no fault of the change that is being tested: it is for the log, in one line each,
and for a change of its own. Nor is a service that is not reached; that nothing could be asked is said, since pip-audit
itself takes it for nothing found.
"""

import json
import subprocess
import sys
from typing import Any

SECONDS = 120
COMMAND = ("-m", "pip_audit", "--local", "--skip-editable", "--format=json", "--progress-spinner=off", "--timeout=5")


def told(answer: dict[str, Any]) -> str:
    """pip-audit's answer in words."""
    asked = [package for package in answer["dependencies"] if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in asked
        for found in package["vulns"]
    ]
    total = len(answer["dependencies"])
    if not asked:
        return f"pip-audit: not one of {total} packages could be asked about"
    return "\n".join(
        [f"pip-audit: asked about {len(asked)} of {total} packages, known weaknesses: {len(lines)}", *lines]
    )


def main() -> None:
    """Asks, and prints."""
    try:
        done = subprocess.run([sys.executable, *COMMAND], capture_output=True, text=True, timeout=SECONDS, check=False)
        print(told(json.loads(done.stdout)))
    except subprocess.TimeoutExpired:
        print(f"pip-audit: no answer in {SECONDS} s")
    except ValueError:
        print(f"pip-audit: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")


if __name__ == "__main__":
    main()
