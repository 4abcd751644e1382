"""Licences of everything that is installed because of mergelib, from the packages' own metadata.

``python tests/licences.py --update`` writes ``docs/licences.md``, ``--pins`` lists the packages for
pip-audit. Packages are not shipped with this project: pip fetches them. What matters is that a user
of an MIT library may install and combine them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "licences.md"
# Words of licences under which everybody may use, change and combine: permissive ones, and weak
# copyleft that ends at the package's files.
GOOD = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|PSFL|Python Software Foundation|Python-2\.0|CNRI|HPND|MIT-CMU|Zlib"
    r"|0BSD|Unlicense|CC0|MPL|Mozilla|LGPL|Lesser|NCSA|BSL|Boost|OFL)\b",
    re.I,
)
BAD = re.compile(
    r"(?<!L)\bA?GPL|(?<!Lesser )General Public|Affero|proprietary|non-?commercial|SSPL|BUSL", re.I
)
# Not free, but theirs to give: pip's CUDA build of torch installs these run-time libraries; the CPU
# build does not.
RUNTIME = re.compile(r"^(nvidia-|cuda-)")


@dataclass(frozen=True)
class Row:
    """One installed package. ``direct``: mergelib itself asks for it."""

    name: str
    version: str
    licence: str
    direct: bool


def licence_of(name: str) -> str:
    """The expression, else the classifiers, else the first line of the field ``License``."""
    meta = distribution(name).metadata
    classifiers = [
        c.split(" :: ")[-1]
        for c in meta.get_all("Classifier") or []
        if c.startswith("License :: ") and c.count(" :: ") > 1
    ]
    field = (meta.get("License") or "").strip().splitlines()
    return (
        meta.get("License-Expression")
        or ", ".join(classifiers)
        or (field[0][:80] if field else "not said")
    )


def rows() -> list[Row]:
    """The closure of the core dependencies over what is installed here, direct ones first."""
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    waiting = [(Requirement(pin), True) for pin in pins]
    found: dict[str, Row] = {}
    while waiting:
        requirement, direct = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # wanted only by an extra, or on another platform
            continue
        found[name] = Row(name, installed.version, licence_of(name), direct)
        waiting += [(Requirement(text), False) for text in installed.requires or []]
    return sorted(found.values(), key=lambda r: (not r.direct, r.name))


def doubtful(row: Row) -> bool:
    """Whether somebody has to look at this licence: a strong copyleft, a restriction of use, or
    nothing known."""
    return not RUNTIME.match(row.name) and (
        bool(BAD.search(row.licence)) or not GOOD.search(row.licence)
    )


def table(found: list[Row]) -> str:
    """Markdown: direct dependencies in bold, with the version that is pinned."""
    return "\n".join(
        [
            "| package | licence | version here |",
            "|---|---|---|",
            *(
                f"| {f'**{r.name}**' if r.direct else r.name} | {r.licence} | {r.version} |"
                for r in found
            ),
        ]
    )


def main() -> int:
    found = rows()
    if "--pins" in sys.argv:
        print("\n".join(f"{r.name}=={r.version.split('+')[0]}" for r in found))
        return 0
    odd = [r for r in found if doubtful(r)]
    for r in odd:
        print(f"doubtful: {r.name} {r.version}: {r.licence}")
    if "--update" in sys.argv:
        FILE.write_text(f"""# Licences of what mergelib installs

mergelib is under the [MIT licence](../LICENSE) and ships none of these packages; \
pip fetches them. Bold: asked for by `pyproject.toml`; the
others come with those. Versions of the latter are what was installed where this table was made:

```bash
python tests/licences.py --update
```

A test compares the bold rows with what is installed, \
and fails for a package whose licence is a strong copyleft, restricts its use, or is not
said. MPL and LGPL end at the package's own files. \
pip's CUDA build of torch adds NVIDIA's run-time libraries under NVIDIA's own terms;
the CPU build has none.

{table(found)}
""")
    print(f"{len(found)} packages, {sum(r.direct for r in found)} asked for, {len(odd)} doubtful")
    return bool(odd)


if __name__ == "__main__":
    sys.exit(main())
