"""``python -m benchmarks --suite NAME [--peers] [--out FILE.json]``: what the library costs, beside
what bounds it and beside others.

A suite is a module ``benchmarks/suite_<name>.py`` with ``run(peers: bool) -> list[Table]``;
``--peers`` measures public implementations in the same run (``pip install -e ".[peers]"``). Tables
are printed as Markdown; ``--out`` keeps their rows as well.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.frame import machine

SUITES = sorted(p.stem.removeprefix("suite_") for p in Path(__file__).parent.glob("suite_*.py"))


def plain(value: Any) -> Any:
    """What JSON cannot write by itself."""
    return asdict(value) if is_dataclass(value) else str(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument(
        "--peers", action="store_true", help="measure public implementations in the same run"
    )
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    known, _ = parser.parse_known_args(arguments)
    suite = import_module(f"benchmarks.suite_{known.suite}")
    if hasattr(suite, "add_options"):
        suite.add_options(parser)
    args = parser.parse_args(arguments)
    options = {name: value for name, value in vars(args).items() if name not in ("suite", "out")}
    start, said = time.perf_counter(), machine()
    print(f"{said}\n")
    tables = suite.run(**options)
    print(*tables, sep="\n")
    print(f"{time.perf_counter() - start:.0f} s in all")
    if args.out:
        made = {
            "suite": args.suite,
            "peers": args.peers,
            "machine": said,
            "tables": [{"title": t.title, "rows": t.rows, "note": t.note} for t in tables],
        }
        args.out.write_text(json.dumps(made, indent=1, default=plain, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
