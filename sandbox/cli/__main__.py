"""``python -m sandbox.cli``: the command where its script is not on PATH."""

from __future__ import annotations

from sandbox.cli import main

main()
