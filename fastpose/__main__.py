"""``python -m fastpose`` is the ``fastpose`` command."""

from __future__ import annotations

from fastpose.cli import main

main()
