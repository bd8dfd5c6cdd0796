"""The page of a report, from what was collected."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from oneforcing_jax import pages
from oneforcing_jax.data.playable import playable
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.report import svg
from oneforcing_jax.evaluation.report.collect import Found, shown, table


def page(found: Found, title: str, most: int) -> str:
    """HTML with everything in it.

    Args:
      found: what to show. Clips that cannot be read are added to its notes.
      title: of the page.
      most: prompts whose videos are embedded.
    """
    clips = videos(found, most)
    parts = {
        "title": html.escape(title),
        "style": pages.part("theme.css") + pages.part("report.css"),
        "script": pages.part("together.js") + pages.part("report.js"),
        "methods": methods(found.methods),
        "scores": scores(found),
        "curves": curves(found),
        "config": config(found),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in found.notes),
        # "</script>" in a prompt must not end the data.
        "data": json.dumps(clips).replace("<", "\\u003c"),
    }
    # One pass, so that nothing in a part is taken for a place.
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], pages.part("report.html"))


def methods(names: Sequence[str]) -> str:
    """Check boxes of methods, with the colours of their lines."""
    return "".join(
        f'<label class="m{n}"><input type="checkbox" value="{html.escape(name)}" checked>'
        f'<svg viewBox="0 0 24 8" aria-hidden="true"><path class="line" d="M1,4H23"/></svg>'
        f"{html.escape(name)}</label>"
        for n, name in enumerate(names)
    )


def scores(found: Found) -> str:
    """The table of scores."""
    rows = table(found)
    metrics = list(dict.fromkeys(metric for *_, values in rows for metric in values))
    head = "".join(f'<th scope="col">{html.escape(metric)}</th>' for metric in metrics)
    lines = []
    for method, name, values in rows:
        cells = "".join(f"<td>{values.get(metric, '')}</td>" for metric in metrics)
        runs = max(value.count for value in values.values())
        first = f'<th scope="row">{html.escape(name)}</th><td>{runs}</td>'
        lines.append(f'<tr class="m{found.methods.index(method)}">{first}{cells}</tr>')
    top = f'<thead><tr><th scope="col">model</th><th scope="col">runs</th>{head}</tr></thead>'
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>" if rows else ""


def curves(found: Found) -> str:
    """All panels."""
    titles = list(dict.fromkeys(title for run in found.runs for title in run.curves))
    drawn = []
    for title in titles:
        lines = {
            n: [
                run.curves[title]
                for run in found.runs
                if run.method == name and title in run.curves
            ]
            for n, name in enumerate(found.methods)
        }
        drawn.append(svg.panel(title, {n: found_ for n, found_ in lines.items() if found_}))
    return "".join(drawn)


def config(found: Found) -> str:
    """Fields in which methods differ, and then those that all share."""
    first = {
        name: next(run.config for run in found.runs if run.method == name) for name in found.methods
    }
    fields = list(dict.fromkeys(field for values in first.values() for field in values))
    texts = {f: [shown(c[f]) if f in c else "" for c in first.values()] for f in fields}
    differ = {field: row for field, row in texts.items() if len(set(row)) > 1}
    shared = {field: row[:1] for field, row in texts.items() if field not in differ}
    parts = []
    if differ:
        head = "".join(
            f'<th scope="col" class="m{n}">{html.escape(name)}</th>' for n, name in enumerate(first)
        )
        parts.append(f'<div class="wide"><table><thead><tr><th scope="col">field</th>{head}</tr></thead>'
                     f"{_fields(differ, True)}</table></div>")  # fmt: skip
    if shared:
        said = "Fields that all share" if differ or len(first) > 1 else "All fields"
        parts.append(f'<details><summary>{said} ({len(shared)})</summary><div class="wide"><table>'
                     f"{_fields(shared, False)}</table></div></details>")  # fmt: skip
    return "".join(parts)


def _fields(rows: dict[str, list[str]], by_method: bool) -> str:
    lines = []
    for field, row in rows.items():
        kinds = [f' class="m{n}"' if by_method else "" for n in range(len(row))]
        cells = (
            f"<td{kind}>{html.escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)
        )
        lines.append(f'<tr><th scope="row">{html.escape(field)}</th>{"".join(cells)}</tr>')
    return f"<tbody>{''.join(lines)}</tbody>"


def videos(found: Found, most: int) -> list[dict[str, Any]]:
    """Prompts, each with its clips as data URLs, as the script of the page reads them."""
    prompts = list(dict.fromkeys(prompt for run in found.runs for prompt in run.clips))
    if len(prompts) > most:
        found.notes.append(
            f"videos of {most} of {len(prompts)} prompts are shown; --prompts takes more"
        )
    chosen = prompts[:most]
    wanted = [(p, run) for p in chosen for run in found.runs if p in run.clips]
    tiles: dict[str, list[dict[str, str]]] = {prompt: [] for prompt in chosen}
    for prompt, run in tqdm(wanted, desc="videos", unit="video"):
        try:
            content = base64.b64encode(playable(run.clips[prompt])).decode()
        except InputError as error:
            found.notes.append(str(error))
            continue
        url = f"data:video/mp4;base64,{content}"
        tiles[prompt].append({"method": run.method, "seed": run.seed, "url": url})
    return [{"prompt": prompt, "tiles": row} for prompt, row in tiles.items() if row]
