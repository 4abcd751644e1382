"""``slides.html``: one slide per figure, in one file that needs no network.

Arrow keys, Page Down and a swipe turn the page; the browser prints a slide per sheet. A figure's
title states its finding; its alt text, with the numbers, stands below it.
"""

from __future__ import annotations

import base64
import json
from html import escape

from ...core import paths
from ...tables.manifest import manifest

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mergelib: slides</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
html { scroll-snap-type: y mandatory; font-family: sans-serif; }
body { margin: 0; }
section { box-sizing: border-box; height: 100vh; padding: 2vh 4vw; scroll-snap-align: start;
  display: flex; flex-direction: column; break-after: page; }
h1 { font-size: 1.4rem; margin: 0 0 1vh; }
img { flex: 1; min-height: 0; object-fit: contain; }
p { font-size: .8rem; margin: 1vh 0 0; max-height: 14vh; overflow-y: auto; }
@page { size: landscape; }
</style>
<script>
addEventListener("keydown", (event) => {
  const pages = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (pages) scrollBy(0, pages * innerHeight);
});
</script>
"""


def page(profile: str) -> str:
    """The slides as HTML: every figure of ``profile``, or of ``mini`` where it was not drawn."""
    folders = (paths.figures(profile), paths.root() / "figures" / "mini")
    slides = []
    for item in manifest():
        for stem in (item.id, *item.extra_figures):
            found = (f / f"{stem}.png" for f in folders if (f / f"{stem}.json").is_file())
            picture = next((p for p in found if p.is_file()), None)
            if picture is None:
                continue
            image = base64.b64encode(picture.read_bytes()).decode()
            alt = escape(json.loads(picture.with_suffix(".json").read_text())["alt"])
            slides.append(
                f"<section><h1>{escape(f'{item.item}: {item.title}')}</h1>"
                f'<img src="data:image/png;base64,{image}" alt="{alt}"><p>{alt}</p></section>\n'
            )
    return PAGE + "".join(slides)
