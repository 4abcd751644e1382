"""``python -m benchmarks.verdicts REVISION [--profile real]``: claims' verdicts there and now.

Reads ``figures/REPORT.md`` as committed there and as it lies here.
"""

from __future__ import annotations

import argparse
import re
import subprocess

from mergelib.core import paths


def verdicts(report: str, profile: str) -> dict[str, str]:
    """Claim -> verdict and deciding part of the profile, from the report's tables of claims."""
    lines = [line for line in report.splitlines() if line.startswith("|")]
    rows = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    column, found = None, {}
    for row in rows:
        if not re.fullmatch(r"`[A-Z].*`|-+", row[0]):  # the head of a table
            column = row.index(profile) if row[0] == "claim" and profile in row else None
        elif column and row[0].startswith("`"):
            found[row[0]] = row[column]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision")
    parser.add_argument("--profile", default="mini")
    args = parser.parse_args()
    command = ["git", "show", f"{args.revision}:figures/REPORT.md"]
    old = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, check=True)
    before = verdicts(old.stdout, args.profile)
    now = verdicts((paths.root() / "figures/REPORT.md").read_text(encoding="utf-8"), args.profile)
    print("| claim | before | now |\n|---|---|---|")
    for claim in now:
        print(f"| {claim} | {before.get(claim, '')} | {now[claim]} |")


if __name__ == "__main__":
    main()
