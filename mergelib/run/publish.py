"""For maintainers: refresh the committed notebooks, minutes, report and README from a run."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml
from PIL import Image

from ..core import paths
from ..core.errors import ConfigError
from ..core.manifest import MINUTES_FILE, Item, manifest
from ..tables import markdown
from ..tables.report import REPORT_ID, readme_part
from .runner import Runner, solutions

COMMITTED = "mini"  # whose outputs the committed notebooks show
MAX_BYTES = 1_000_000
# characters of a picture in a notebook; larger ones are reduced to 256 colours
LARGE_IMAGE = 400_000
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_ALONE = {
    WIDGET,
    "text/plain",
}  # a progress bar, which would stay frozen without its kernel
MACHINE_FOLDERS = ("/home/", "/Users/", "/root/", "/tmp/")


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook in the form to commit: no injected cell, no timings, no widget state, no stderr,
    counts 1..n, large pictures in 256 colours."""
    cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for cell in cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [
            o
            for o in cell.outputs
            if not (o.output_type == "stream" and o.name == "stderr")
            and set(o.get("data", {})) != WIDGET_ALONE
        ]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            # Without its kernel a widget is a broken picture; its static alternative stays.
            output.get("data", {}).pop(WIDGET, None)
            plain = output.get("data", {}).get("text/plain")
            if plain:  # an object's address is meaningless and changes with every run
                output.data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", plain)
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = in_256_colours(output.data["image/png"])
            if "metadata" in output:
                output.metadata = {
                    kind: {"alt": entry["alt"]}
                    for kind, entry in output.metadata.items()
                    if isinstance(entry, dict) and "alt" in entry
                }
    notebook.cells = cells
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def in_256_colours(png: str) -> str:
    """A PNG (base64) with an optimised palette: photographs and hundreds of translucent points
    shrink to a third. Pictures below ``LARGE_IMAGE`` are not changed."""
    if len(png) <= LARGE_IMAGE:
        return png
    image, file = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if image.mode == "P":
        return png
    image.convert("RGB").quantize(256).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def publish(profile: str, items: Sequence[Item]) -> None:
    """After a run of ``profile``: refresh the committed notebooks, the minutes, the report and the
    README together.

    Committed notebooks show the classroom's outputs (``mini``); other profiles lend figures and
    numbers. Solutions run after the notebooks whose exercises they solve, and find their results
    stored. The report reads all profiles, so it runs again in each that shows it. Raises
    ``ConfigError`` for a notebook that cannot be committed, or solutions or a report that fail.
    """
    if profile == COMMITTED:
        solved = solutions(items)
        run_again(profile, solved)
        publish_notebooks(profile, [*(i for i in items if i.id != REPORT_ID), *solved])
    record_minutes(profile, json.loads((paths.build(profile) / "timings.json").read_text()))
    report = next(i for i in manifest() if i.id == REPORT_ID)
    for shown in dict.fromkeys(
        [COMMITTED, *(p.parent.name for p in _figures().glob(f"*/{REPORT_ID}.json"))]
    ):
        # What is published becomes the committed numbers; older ones are no yardstick.
        run_again(shown, [report], compare=False)
    publish_notebooks(COMMITTED, [report])
    refresh_readme()


def run_again(profile: str, items: Sequence[Item], **parameters: Any) -> None:
    """Run notebooks that need the results of others. Raises ``ConfigError`` for a notebook that
    fails."""
    for result in Runner(profile).run(items, {i.id: parameters for i in items}):
        if not result.ok:
            raise ConfigError(f"{result.item.id} failed for {profile}:\n{result.error}")


def publish_notebooks(profile: str, items: Sequence[Item]) -> None:
    """Write the executed notebooks of ``profile`` over the committed ones. Raises ``ConfigError``
    for a notebook that is too large, holds an error, or shows a path of this machine."""
    for item in items:
        notebook = normalise(
            nbformat.read(paths.build(profile) / "notebooks" / f"{item.id}.ipynb", as_version=4)
        )
        nbformat.validate(notebook)
        text = nbformat.writes(notebook, version=4, indent=1, ensure_ascii=False) + "\n"
        if len(text) > MAX_BYTES:
            raise ConfigError(
                f"{item.id}: {len(text)} bytes; committed notebooks stay under {MAX_BYTES}."
            )
        machine = [d for d in MACHINE_FOLDERS if d in text]
        if machine or '"output_type": "error"' in text:
            raise ConfigError(
                f"{item.id}: it shows {machine or 'an error'}; fix the notebook before publishing."
            )
        paths.write_whole(item.path, text.encode())


def record_minutes(profile: str, timings: dict, file: Path = MINUTES_FILE) -> None:
    """Write a cold run's minutes into ``minutes.yaml``; a warm run's are meaningless and ignored.

    All minutes of a profile come from one run, in the manifest's order: the first notebook includes
    the training that the others share.
    """
    if timings["cold"]:
        minutes = yaml.safe_load(file.read_text())
        minutes[profile] = {i: round(s / 60, 1) for i, s in timings["seconds"].items()}
        paths.write_whole(file, yaml.safe_dump(minutes).encode())


# ---- the README's generated parts ----------------------------------------------------------------


def marks(part: str) -> tuple[str, str]:
    """The comments around a generated part of the README."""
    return (
        f"<!-- {part}: generated by ./run_all.sh --publish; do not edit by hand -->",
        f"<!-- /{part} -->",
    )


def _figures() -> Path:
    return paths.output_root() / "figures"


def notebooks_markdown(items: Sequence[Item], folder: Path) -> str:
    """The README's table of notebooks: thumbnail, what it answers for, measured minutes per
    profile."""
    profiles = sorted({p for i in items for p in i.minutes})
    rows = []
    for item in items:
        picture = f"{COMMITTED}/{item.id}.png"
        thumbnail = (
            f'<img src="figures/{picture}" width="150" alt="{item.item}: {item.title}">'
            if (folder / picture).is_file()
            else ""
        )
        minutes = [f"{item.minutes[p]:g}" if p in item.minutes else "–" for p in profiles]
        link = f"[{item.id}](notebooks/{item.id}.ipynb)"
        rows.append([thumbnail, link, f"{item.item}: {item.title}", *minutes])
    if profiles:
        totals = [f"{sum(i.minutes.get(p, 0) for i in items):.0f}" for p in profiles]
        rows.append(["", "sum of those measured", "", *totals])
    heading = ["", "notebook", "shows", *(f"minutes, `{p}`" for p in profiles)]
    return markdown(pd.DataFrame(rows, columns=heading))


def readme_parts(folder: Path | None = None) -> dict[str, str]:
    """The generated parts of the README by name: ``results`` (from ``figures/REPORT.md``) and
    ``notebooks``."""
    folder = folder or _figures()
    manifest.cache_clear()  # minutes may just have been recorded
    return {
        "results": readme_part((folder / "REPORT.md").read_text()),
        "notebooks": notebooks_markdown(manifest(), folder),
    }


def refresh_readme() -> None:
    """Put the generated parts between the README's marks. Raises ``ConfigError`` when a mark is
    missing."""
    path = paths.root() / "README.md"
    text = path.read_text()
    for part, content in readme_parts().items():
        first, last = marks(part)
        before, start, rest = text.partition(first)
        _, end, after = rest.partition(last)
        if not (start and end):
            raise ConfigError(f"README.md lost its marks of '{part}'; put back {first} and {last}.")
        text = f"{before}{start}\n{content}\n{end}{after}"
    paths.write_whole(path, text.encode())
