"""The page of what `bench gpu` measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# What is published of the original on one H200: seconds.
ORIGINAL = {"steady": 0.1178, "diffusion": 2.46, "decode": 1.62, "both": 4.13}
# Its training: a mean iteration of 8 clips on 8 GPUs.
ITERATION = "24.0 s, 8 clips on 8"
# In the order of their worth.
PARTS = ("ceilings", "streaming", "vae", "updates", "vectors")
COMMAND = "python tools/bench.py gpu"
UPDATES = ("generator", "critic")
# Blocks of a stream that have a row; the first is another row.
SHOWN = (2, 6, 11, 21)


def page(made: dict[str, Any], plans: Sequence[dict[str, Any]] = ()) -> str:
    """The page.

    Args:
      made: what `bench gpu` wrote.
      plans: what tools/plan.py wrote of the same config; its seconds stand beside the measured ones.
    """
    parts = made["parts"]
    sections = [
        "# One GPU, measured",
        _facts(made),
        *_failed(parts),
        "## Work",
        _work(parts, _predicted(plans)),
        *_basis(plans),
        *_tables(parts),
        *_ceilings(parts.get("ceilings", {})),
        *_vectors(parts.get("vectors", {})),
    ]
    return "\n\n".join(sections) + "\n"


def _facts(made: dict[str, Any]) -> str:
    card, versions = made["card"], made["versions"]
    devices = [part["device"] for part in made["parts"].values() if "device" in part]
    name = card.get("name") or (devices[0] if devices else "no device")
    more = [f"{field.replace('.', ' ').replace('_', ' ')} {value}" for field, value in card.items()
            if field != "name"]  # fmt: skip
    said = ", ".join([*more, f"{made['cores']} cores", f"Python {made['python']}"])
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return (
        f"**{name}**, {made['when'][:16].replace('T', ' ')} UTC; the code at "
        f"{made['commit'] or 'a commit that is not known'}, `{made['config']}`, random weights. {said}; "
        f"{packages}.\n\n"
        f"`{COMMAND} --out=FOLDER` measured it, `{COMMAND} --out=FOLDER --page=docs/gpu.md` wrote this page."
    )


def _failed(parts: dict[str, Any]) -> Iterator[str]:
    if missing := [name for name in PARTS if name not in parts]:
        yield f"Not run: {', '.join(missing)}."
    for name, part in parts.items():
        if "error" in part:
            yield f"Part {name} did not come to its end: {part['error']}"


def _predicted(plans: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds by the names of `_work`'s rows."""
    found: dict[str, float] = {}
    for plan in plans:
        total = plan["total"]
        if plan["what"] == "generate" and total["predicted_s"]:
            found |= {"first": total["first_block_s"], "steady": total["steady_block_s"],
                      "diffusion": total["diffusion_s"], "decode": total["decode_s"],
                      "step": total["steady_decode_s"], "both": total["predicted_s"]}  # fmt: skip
            found |= {f"block {n}": s for n, s in enumerate(total["steady_blocks_s"], 2)}
        if plan["what"] == "train":
            rows = {row["name"].rpartition("/")[2]: row["predicted_s"] for row in plan["programs"]}
            found |= {net: rows[net] for net in UPDATES if rows.get(net)}
            found |= {"iteration": total["predicted_s"]} if total["predicted_s"] else {}
    return found


def _work(parts: dict[str, Any], predicted: dict[str, float]) -> str:
    """Predicted and measured times, and those of the original."""
    stream, vae, training = (parts.get(name, {}) for name in ("streaming", "vae", "updates"))
    steady = stream.get("steady_blocks_s") or []
    rows = [
        ("first", "first block, ready to show", stream.get("first_block_s"), ""),
        ("steady", "a block that is waited for, mean", sum(steady) / len(steady) if steady else None, ""),
        *((f"block {n}", f"block {n} of them", steady[n - 2], "") for n in SHOWN if len(steady) > n - 2),
        ("diffusion", "diffusion, blocks queued", stream.get("diffusion_s"), _rate(stream)),
        ("", "until the host has queued all of it", stream.get("host_s"), ""),
        ("decode", "decoding, queued", vae.get("decode_s"), ""),
        ("step", "decoding of a latent frame that is waited for", vae.get("steady_decode_s"), ""),
        ("", "first frames, decoded", vae.get("first_frame_s"), ""),
        ("both", "diffusion and decoding, overlapped", vae.get("total_s"), ""),
    ]  # fmt: skip
    updates = training.get("updates", {})
    rows += [(net, f"{net} update, {training.get('batch')} clip", updates[net]["step_s"],
              _rate(updates[net])) for net in UPDATES if net in updates]  # fmt: skip
    if updates.keys() >= set(UPDATES):
        mean = sum(row["step_s"] / row["every"] for row in updates.values())
        rows.append(("iteration", "mean iteration", mean, ""))
    original = {name: _time(seconds) for name, seconds in ORIGINAL.items()} | {
        "iteration": ITERATION
    }
    text = _table(
        ("work", "predicted", "measured", "error", "rate", "published original"),
        (
            (
                name,
                _time(predicted.get(key)),
                _time(seconds),
                _error(predicted.get(key), seconds),
                rate,
                original.get(key, ""),
            )
            for key, name, seconds, rate in rows
            if seconds is not None
        ),
    )
    memory = [f"{name} {part['peak_memory_bytes'] / 1e9:.1f} GB" for name, part in
              (("streaming", stream), ("streaming with the VAE", vae), ("updates", training))
              if part.get("peak_memory_bytes")]  # fmt: skip
    return text + (f"\n\nPeak memory: {', '.join(memory)}." if memory else "")


def _basis(plans: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What the predicted times rest on."""
    said: dict[str, list[str]] = {}
    for plan in plans:
        kind = "calibrated by" if plan["calibrated"] else "not calibrated, the least by"
        said.setdefault(f"{kind} {plan['source']}", []).append(f"`{plan['what']}`")
    for basis, kinds in said.items():
        yield f"Predicted by `tools/plan.py` ({', '.join(kinds)}): {basis}."


def _error(predicted: float | None, measured: float | None) -> str:
    """How far the prediction is off, as a part of what was measured."""
    return f"{predicted / measured - 1:+.0%}" if predicted and measured else ""


def _rate(row: dict[str, Any]) -> str:
    """Model operations a second."""
    if "flops_per_s" not in row:
        return ""
    used = row.get("utilisation")
    part = f", {used:.0%} of the data sheet" if used else ""
    return f"{row['flops_per_s'] / 1e12:.3g} TFLOP/s{part}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _tables(parts: dict[str, Any]) -> Iterator[str]:
    """Time by kind of kernel of each program, and the longest."""
    found = {"diffusion": parts.get("streaming", {}), "decoding": parts.get("vae", {})}
    found |= {
        f"{net} update": row for net, row in parts.get("updates", {}).get("updates", {}).items()
    }
    tables = {name: part["kernels"] for name, part in found.items() if "kernels" in part}
    full = {name: table for name, table in tables.items() if table.get("kernels")}
    yield "## Kernels"
    for name in [name for name in tables if name not in full]:
        yield f"Of {name} the profile holds none; {tables[name].get('error', 'that of a GPU does')}."
    if not full:
        return
    kinds = dict.fromkeys(kind for table in full.values() for kind in table["kinds"])
    rows = [(kind, *(_kind(table["kinds"].get(kind)) for table in full.values())) for kind in kinds]
    for title, key in (("busy", "busy_s"), ("from first to last", "whole_s")):
        rows.append((title, *(f"{1e3 * table[key]:.1f}" for table in full.values())))
    for title, key in (("kernels", "kernels"), ("copies on the device", "device_copies")):
        rows.append((title, *(str(table[key]) for table in full.values())))
    yield "Milliseconds, and how many, of one run with a profile:"
    yield _table(("kind", *full), rows)
    for name, table in full.items():
        yield f"The longest of {name}:"
        yield _table(
            ("ms", "times", "kernel", "an operation of it"),
            ((f"{1e3 * row['seconds']:.2f}", str(row["number"]), f"`{row['name']}`", f"`{row['op']}`")
             for row in table["longest"]),
        )  # fmt: skip


def _kind(found: list[float] | None) -> str:
    return f"{1e3 * found[0]:.1f} ({found[1]})" if found else ""


def _ceilings(part: dict[str, Any]) -> Iterator[str]:
    if "products" not in part:
        return
    yield "## What the device does at best"
    rows = []
    for key, name in (
        ("products", "product of rows x inner x columns, and back"),
        ("attention", "attention of queries x keys, heads"),
        ("trained", "attention, forward and backward"),
    ):
        for row in part.get(key, []):
            if "error" in row:
                rows.append((name, "", row["error"], ""))
                continue
            *sizes, last = row["size"]
            size = " x ".join(map(str, sizes))
            size += f" x {last}" if key == "products" else f", {last}"
            rows.append(
                (name, size, _fine(row["seconds"]), f"{row['flops_per_s'] / 1e12:.3g} TFLOP/s")
            )
    if "copy" in part:
        copy = part["copy"]
        rows.append(("read and written", f"{copy['bytes'] / 1e9:.3g} GB", _fine(copy["seconds"]),
                     f"{copy['bytes_per_s'] / 1e12:.3g} TB/s"))  # fmt: skip
    for name, row in part.get("launches", {}).items():
        title = "command buffers" if name == "buffered" else "one by one"
        rows.append((f"a small kernel, {title}", f"{row['kernels']} in a row", _fine(row["seconds"]),
                     f"host {_fine(row['host_s'])}"))  # fmt: skip
    yield _table(("work", "size", "time", "rate"), rows)


def _fine(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us" if seconds < 1e-3 else _time(seconds)


def _vectors(part: dict[str, Any]) -> Iterator[str]:
    if "passed" not in part:
        return
    failed = part.get("failed", [])
    yield "## Recorded vectors"
    yield (
        f"`pytest -m gpu`, float32 with exact products and bfloat16: {len(part['passed'])} tests passed, "
        f"{len(failed)} failed{': ' + ', '.join(f'`{name}`' for name in failed) if failed else ''}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
