"""``slides.html``: one slide per figure, in one file that needs no network.

Arrow keys, Page Down and a swipe turn the page; the browser prints a slide per sheet. A figure's
title states its finding; its alt text, with the numbers, stands below it.
"""

from __future__ import annotations

import base64
from html import escape

from . import gallery

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
    """The slides as HTML: every figure that the gallery shows for ``profile``."""
    slides = []
    for item, sidecar in gallery.figures(profile):
        title, alt = map(escape, gallery.told((item, sidecar)))
        image = base64.b64encode(sidecar.with_suffix(".png").read_bytes()).decode()
        slides.append(
            f"<section><h1>{title}</h1>"
            f'<img src="data:image/png;base64,{image}" alt="{alt}"><p>{alt}</p></section>\n'
        )
    return PAGE + "".join(slides)
