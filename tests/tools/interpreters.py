"""Say which Python versions a tox run has tested, from its report; under CI, fail when they are too few.

    interpreters.py REPORT

tox skips an interpreter that the machine lacks, and calls that a success.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ENOUGH = 3


def tested(report: dict[str, Any]) -> set[str]:
    """Give the versions whose test command ran to its end and well, in each environment that has them."""
    versions: dict[str, bool] = {}
    for name, environment in report.get("testenvs", {}).items():
        if match := re.match(r"py3(\d+)-", name):
            commands = environment.get("test", [])
            ran = bool(commands) and all(command.get("retcode") == 0 for command in commands)
            # What ran counts, not what the environment is called.
            python = environment.get("python", {}).get("version", "")
            well = ran and python.startswith(f"3.{match[1]}.")
            version = f"3.{match[1]}"
            versions[version] = versions.get(version, True) and well
    return {version for version, well in versions.items() if well}


def main(path: str) -> str | None:
    report = Path(path)
    versions = sorted(tested(json.loads(report.read_text()) if report.exists() else {}))
    print(f"tests passed on Python {', '.join(versions) or '(none)'}")
    if os.environ.get("CI", "").lower() in {"true", "1", "yes"} and len(versions) < ENOUGH:
        return f"under CI they must pass on {ENOUGH} versions of 3.11 to 3.14, with both lines of PyMySQL"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
