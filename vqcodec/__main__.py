"""The command, as `python -m vqcodec`."""

from vqcodec.cli import run

run()
