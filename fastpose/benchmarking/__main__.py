"""`python -m fastpose.benchmarking`: what `fastpose bench` does, without the libraries that the command needs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastpose._library import NotBuiltError
from fastpose.benchmarking.bench import bench, closing_lines, parse_settings, result_file
from fastpose.benchmarking.progress import Lines
from fastpose.benchmarking.settings import HELP
from fastpose.benchmarking.table import markdown


def main(arguments: list[str] | None = None, *, prog: str = "python -m fastpose.benchmarking", out: Path = Path()) -> int:
    """Run with these command-line arguments, by default the process's own.

    Args:
        arguments: see ``--help``.
        prog: how the user calls it.
        out: the default of ``--out``.

    Returns:
        Exit code: 0, 1 if fastpose failed somewhere, 2 if something impossible was asked for.
    """
    options = vars(parser(prog, out).parse_args(arguments))
    out, compare, resume = (options.pop(name) for name in ("out", "compare", "resume"))
    try:
        settings = parse_settings(**options)
        outcome = bench(settings, result_file(out, settings, compare), Lines(), compare=compare, resume=resume)
    except (ValueError, TypeError, OSError, NotBuiltError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    print(markdown(outcome.result))
    print("", *closing_lines(outcome), sep="\n")
    return 1 if outcome.failures else 0


def parser(prog: str, out: Path) -> argparse.ArgumentParser:
    """Of the options that `fastpose bench` has too."""
    parser = argparse.ArgumentParser(prog=prog, description="Measure fastpose against its baselines on this machine.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=HELP["suites"])
    for flag in ("quick", "resume"):
        parser.add_argument(f"--{flag}", action="store_true", help=HELP[flag])
    for option, metavar in (("device", "DEVICE"), ("compare", "REVISION")):
        parser.add_argument(f"--{option}", metavar=metavar, help=HELP[option])
    for option in ("providers", "threads", "batches", "dtypes"):
        parser.add_argument(f"--{option}", metavar="LIST", default="", help=HELP[option])
    parser.add_argument("--out", type=Path, metavar="PATH", default=out, help=HELP["out"])
    parser.add_argument("--minutes", type=float, help=HELP["minutes"])
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help=HELP["only"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
