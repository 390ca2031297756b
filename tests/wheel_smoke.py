"""Look at the installed distribution from outside, as a user's program meets it: no source tree, no server.

Run by an interpreter that has the wheel and its requirements installed and nothing else.
"""

import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

DISTRIBUTION = "pooled-pymysql"
PACKAGE = "pooled_pymysql"
EXTRAS = {"rsa", "ed25519", "otel", "prometheus", "sqlalchemy"}
ADAPTERS = {  # what they import; nobody imports them
    "pooled_pymysql.engine_pool": "sqlalchemy",
    "pooled_pymysql.opentelemetry": "opentelemetry",
    "pooled_pymysql.sqlalchemy": "sqlalchemy",
}


def check(fact: object, text: str) -> None:
    # Not `assert`: an interpreter under -O would check nothing.
    if not fact:
        sys.exit(f"wheel: {text}")


def check_metadata() -> None:
    wheel = distribution(DISTRIBUTION)
    always = [text for text in wheel.requires or () if "extra ==" not in text]
    names = {re.split(r"[^\w-]", text)[0].lower() for text in always}
    check(names == {"pymysql"}, f"requires more, or less, than PyMySQL: {wheel.requires}")
    check(len(always) == 1 and "[" not in always[0], f"more than one plain requirement: {always}")
    check(
        set(wheel.metadata.get_all("Provides-Extra", ())) == EXTRAS,
        f"its extras are not {EXTRAS}",
    )
    folders = {Path(str(file)).parts[0] for file in wheel.files or ()}
    strangers = {name for name in folders if name != PACKAGE and not name.endswith(".dist-info")}
    check(not strangers, f"brings files that are not the package's: {strangers}")
    check(any(file.name == "LICENSE" for file in wheel.files or ()), "brings no licence")


def lacks(name: str) -> str | None:
    """Return what a module cannot be imported for."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return error.name
    return None


def check_package() -> None:
    package = importlib.import_module(PACKAGE)
    folder = Path(str(package.__file__)).parent
    check(folder.is_relative_to(sys.prefix), f"{folder} is imported, not the wheel's")
    check((folder / "py.typed").is_file(), "brings no py.typed")
    names = [module.name for module in pkgutil.walk_packages([str(folder)], f"{PACKAGE}.")]
    names = [name for name in names if not name.startswith(f"{PACKAGE}.django.")]  # needs Django
    for name in names:
        if name in ADAPTERS:
            check(lacks(name) == ADAPTERS[name], f"{name} does not ask for {ADAPTERS[name]}")
        elif not name.endswith(".__main__"):
            importlib.import_module(name)
    check(callable(package.connect), "has no connect()")
    check(
        issubclass(package.Connection, importlib.import_module("pymysql.connections").Connection),
        "its own Connection",
    )
    print(f"wheel: {len(names) - len(ADAPTERS)} modules import, {folder}")


def check_run() -> None:
    program = "import pymysql; print(pymysql.__name__)"
    command = [sys.executable, "-m", PACKAGE, "run", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    check(done.stdout.strip() == PACKAGE, f"its command `run` does not stand in for PyMySQL: {done}")


check_metadata()
check_package()
check_run()
