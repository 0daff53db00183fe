"""Sets up an environment in the checkout and runs every check: ruff, types, import layers, tests.

python3 scripts/test.py [further pytest arguments]
"""

from __future__ import annotations

import sys

import environment

python = environment.make(".venv-test", "--editable", ".[train,bench,view,dev]")
environment.run(python, "-m", "ruff", "check", ".")
environment.run(python, "-m", "ruff", "format", "--check", ".")
environment.run(python, "-m", "mypy")
environment.run(python.parent / "lint-imports")
# a process for each processor, up to what their memory allows; one that runs out of tests takes some of another's
spread = ("--numprocesses", "logical", "--maxprocesses", "4", "--dist", "worksteal")
environment.run(python, "-m", "pytest", *spread, *sys.argv[1:])
