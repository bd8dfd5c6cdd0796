"""The page of a report, from what was collected."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from oneforcing_jax import pages
from oneforcing_jax.data.playable import playable
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.report import meanings as known
from oneforcing_jax.evaluation.report import svg
from oneforcing_jax.evaluation.report.collect import Found, Row, shown, table, tiles
from oneforcing_jax.evaluation.study import Estimate

# Scores below it are the rounding of sums.
_ROUNDING = 1e-9


def page(found: Found, title: str, most: int) -> str:
    """HTML with everything in it.

    Args:
      found: what to show. Clips that cannot be read are added to its notes.
      title: of the page.
      most: prompts whose videos are embedded.
    """
    clips, rows = videos(found, most), table(found)
    metrics = list(dict.fromkeys(metric for *_, values in rows for metric in values))
    parts = {
        "title": html.escape(title),
        "style": pages.part("theme.css") + pages.part("report.css"),
        "script": pages.part("together.js") + pages.part("report.js"),
        "methods": methods(found.names),
        "models": models(found),
        "scores": scores(found, rows, metrics),
        "meanings": meanings(metrics),
        "curves": curves(found),
        "config": config(found),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in found.notes),
        # "</script>" in a prompt must not end the data.
        "data": json.dumps(clips).replace("<", "\\u003c"),
    }
    # One pass, so that nothing in a part is taken for a place.
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], pages.part("report.html"))


def methods(names: Sequence[str]) -> str:
    """Check boxes of methods or models, with the colours of their lines."""
    return "".join(
        f'<label class="m{n}"><input type="checkbox" value="{html.escape(name)}" checked>'
        f'<svg viewBox="0 0 24 8" aria-hidden="true"><path class="line" d="M1,4H23"/></svg>'
        f"{html.escape(name)}</label>"
        for n, name in enumerate(names)
    )


def models(found: Found) -> str:
    """What the models of a single run are."""
    if found.alone is None:
        return ""
    lines = known.models(found.names, found.alone.config)
    return _list((f' class="m{found.names.index(name)}"', name, text) for name, text in lines)


def meanings(metrics: Sequence[str]) -> str:
    """What the columns of the table of scores say."""
    return _list(("", name, known.SCORES[name]) for name in metrics if name in known.SCORES)


def _list(lines: Iterable[tuple[str, str, str]]) -> str:
    """Attributes, words and their meanings as a list."""
    items = (
        f"<div{more}><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>"
        for more, name, text in lines
    )
    content = "".join(items)
    return f'<dl class="meanings">{content}</dl>' if content else ""


def scores(found: Found, rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """The table of scores; how many runs a row has is said where some have several."""
    if not rows:
        return ""
    several = any(value.count > 1 for *_, values in rows for value in values.values())
    head = "".join(
        f'<th scope="col">{html.escape(name)}</th>' for name in ["runs"] * several + [*metrics]
    )
    lines = []
    for owner, name, values in rows:
        runs = max(value.count for value in values.values())
        texts = [str(runs)] * several + [_figure(values.get(metric)) for metric in metrics]
        cells = "".join(f"<td>{text}</td>" for text in texts)
        first = f'<th scope="row">{html.escape(name)}</th>'
        lines.append(f'<tr class="m{found.names.index(owner)}">{first}{cells}</tr>')
    top = f'<thead><tr><th scope="col">model</th>{head}</tr></thead>'
    note = "Means over seeds, and the half width of their interval of 95%."
    made = _wide(f"{top}<tbody>{''.join(lines)}</tbody>", "Scores")
    return made + (f'<p class="quiet">{note}</p>' if several else "")


def _figure(value: Estimate | None) -> str:
    """A cell; what is 0 but for rounding is 0."""
    if value is None:
        return ""
    return "0" if value.count == 1 and abs(value.mean) < _ROUNDING else str(value)


def _wide(table: str, name: str) -> str:
    """A table that scrolls where it is too wide, also by keys."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{name}"><table>{table}</table></div>'


def curves(found: Found) -> str:
    """All panels. A single run's lines are in the colour of none of its models, and never hidden."""
    titles = list(dict.fromkeys(title for run in found.runs for title in run.curves))
    drawn = []
    for title in titles:
        lines = {
            n: [
                run.curves[title]
                for run in found.runs
                if run.method == name and title in run.curves
            ]
            for n, name in enumerate(found.methods, -1 if found.alone else 0)
        }
        drawn.append(svg.panel(title, {n: found_ for n, found_ in lines.items() if found_}))
    return "".join(drawn)


def config(found: Found) -> str:
    """Fields in which methods differ, and then those that all share. What could not be read differs in
    nothing."""
    first = {
        name: next(run.config for run in found.runs if run.method == name) for name in found.methods
    }
    first = {name: fields for name, fields in first.items() if fields}
    numbers = [found.methods.index(name) for name in first]
    fields = list(dict.fromkeys(field for values in first.values() for field in values))
    texts = {f: [shown(c[f]) if f in c else "" for c in first.values()] for f in fields}
    differ = {field: row for field, row in texts.items() if len(set(row)) > 1}
    shared = {field: row[:1] for field, row in texts.items() if field not in differ}
    parts = []
    if differ:
        head = "".join(
            f'<th scope="col" class="m{n}">{html.escape(name)}</th>'
            for n, name in zip(numbers, first, strict=True)
        )
        top = f'<thead><tr><th scope="col">field</th>{head}</tr></thead>'
        parts.append(_wide(top + _fields(differ, numbers), "Fields that differ"))
    if shared:
        said = "Fields that all share" if differ or len(first) > 1 else "All fields"
        parts.append(f"<details><summary>{said} ({len(shared)})</summary>"
                     f"{_wide(_fields(shared), said)}</details>")  # fmt: skip
    return "".join(parts)


def _fields(rows: dict[str, list[str]], methods: Sequence[int] = ()) -> str:
    """Rows of a table, with a column for each of some methods, or one of all."""
    kinds = [f' class="m{n}"' for n in methods] or [""]
    lines = []
    for field, row in rows.items():
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
    wanted = [
        (prompt, run, name, file)
        for prompt in chosen
        for run in found.runs
        for name, file in tiles(found, run, prompt).items()
    ]
    rows: dict[str, list[dict[str, str]]] = {prompt: [] for prompt in chosen}
    for prompt, run, name, file in tqdm(wanted, desc="videos", unit="video"):
        try:
            content = base64.b64encode(playable(file)).decode()
        except InputError as error:
            found.notes.append(str(error))
            continue
        url = f"data:video/mp4;base64,{content}"
        rows[prompt].append({"name": name, "seed": run.seed, "url": url})
    return [{"prompt": prompt, "tiles": row} for prompt, row in rows.items() if row]
