"""A report of known vulnerabilities in the installed packages, by pip-audit.

    python scripts/audit.py

It takes two minutes at most and never fails. An advisory that appears overnight must not block a change that has
nothing to do with it: it is a line in the log, and deserves a change of its own. An unreachable service is reported as
such, because pip-audit itself reports it as no vulnerabilities.
"""

import json
import subprocess
import sys
from typing import Any

TIMEOUT_SECONDS = 120
COMMAND = ("-m", "pip_audit", "--local", "--skip-editable", "--format=json", "--progress-spinner=off", "--timeout=5")


def summarize(report: dict[str, Any]) -> str:
    """Return pip-audit's JSON report as text: a line with the counts, and a line for each vulnerability."""
    packages = report["dependencies"]
    checked = [package for package in packages if "skip_reason" not in package]
    if not checked:
        return f"pip-audit: could not check any of {len(packages)} packages"
    lines = []
    for package in checked:
        for vulnerability in package["vulns"]:
            fixes = ", ".join(vulnerability["fix_versions"]) or "no version"
            lines.append(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixes}")
    counts = f"pip-audit: checked {len(checked)} of {len(packages)} packages, known vulnerabilities: {len(lines)}"
    return "\n".join([counts, *lines])


def main() -> None:
    """Run pip-audit and print its summary."""
    command = [sys.executable, *COMMAND]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"pip-audit: no answer in {TIMEOUT_SECONDS} s")
        return
    try:
        print(summarize(json.loads(done.stdout)))
    except ValueError:
        errors = done.stderr.strip().splitlines()
        print(f"pip-audit: {errors[-1] if errors else 'no answer'}")


if __name__ == "__main__":
    main()
