"""Rows, rates, alarms and the progress line of a run."""

import json
import types

import pytest

from oneforcing_jax.targets import chips
from oneforcing_jax.training import metrics
from oneforcing_jax.training.metrics import Cost, Log

COST = Cost(tokens=600, flops={"generator": 4e9, "critic": 1e9})


def rows(folder):
    return [json.loads(line) for line in (folder / metrics.ROWS).open()]


def critic(gap, loss=0.5):
    return {"critic/loss": loss, "critic/logit_gap": gap, "critic/denoise_loss": 0.1}


def test_rates_count_the_updates_that_ran(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(metrics.chips, "find", lambda kind: types.SimpleNamespace(peak=1e10))
    monkeypatch.setattr(metrics.jax, "device_count", lambda: 1)
    with Log(tmp_path, "run", 0, 4, 2, {}, COST) as log:
        for done in range(1, 5):
            clock[0] += 0.5
            generator = {"generator/loss": 0.1} if done == 3 else {}
            if done == 4:
                with log.aside():
                    clock[0] += 100
            log.step(done, critic(1.0) | generator)
    first, second = rows(tmp_path)
    assert [first["iteration"], second["iteration"]] == [2, 4]
    for row, operations in ((first, 2e9), (second, 6e9)):
        assert row["rates/seconds_per_iteration"] == 0.5
        assert row["rates/tokens_per_second"] == 1200
        assert row["rates/tflops_per_second"] == pytest.approx(operations / 1e12)
        assert row["rates/flop_utilisation"] == pytest.approx(operations / 1e10)
        assert row["rates/memory_gb"] > 0.05
    assert "generator/loss" not in first and second["generator/loss"] == 0.1


def test_the_time_of_an_iteration_is_split_as_on_the_slowest_host(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    others = [[0.5, 0.25, 1.5]]
    monkeypatch.setattr(metrics.processes, "exchange", lambda mine, why: [mine, *others])
    monkeypatch.setattr(metrics.processes, "names", lambda: ["process 0 (a)", "process 1 (b)"])
    with Log(tmp_path, "run", 0, 3, 2, {}, COST) as log:

        def spend(place, seconds):
            with log.on(place):
                clock[0] += seconds

        for done in range(1, 4):
            spend("data", 0.25)
            spend("waiting", 1.0)
            clock[0] += 0.75
            if done == 3:
                others[0] = [0.0, 0.0, 0.5]
            log.step(done, critic(1.0))
            spend("saving", 0.5)
    first, last = rows(tmp_path)
    # A save after an iteration counts to the row after it, which is as long as the time between the rows.
    assert first["rates/hosts"]["process 0 (a)"] == {"data": 0.25, "saving": 0.25, "busy": 1.25}
    assert [first[f"rates/{name}_seconds"] for name in ("data", "saving", "computing")] == [
        0.5,
        0.25,
        1.5,
    ]
    assert [last[f"rates/{name}_seconds"] for name in ("data", "saving", "computing")] == [
        0.25,
        0.5,
        1.75,
    ]
    assert last["rates/hosts"]["process 1 (b)"] == {"data": 0.0, "saving": 0.0, "busy": 0.5}
    assert "slowest process 1 (b): 1.5 s, 0.5 of them for data" in "".join(capsys.readouterr())


def test_alarms_stand_in_the_row_where_they_begin_and_are_printed_once(tmp_path, capsys):
    gaps = [1.0] * 20 + [0.0] * 20

    def run(start, last):
        with Log(tmp_path, "run", start, last, 1, {}, COST) as log:
            for done in range(start + 1, last + 1):
                log.step(done, critic(gaps[done - 1]))

    run(0, 35)
    begun = {row["iteration"]: row["alarms"] for row in rows(tmp_path) if "alarms" in row}
    assert begun.keys() == {30}
    assert "gap between real and fake logits collapsed" in begun[30][0]
    assert "warning: iteration 30: the gap" in "".join(capsys.readouterr())
    # Continued from a checkpoint at 33: the rows after it go, the alarm is not news.
    run(33, 40)
    assert [row["iteration"] for row in rows(tmp_path)] == list(range(1, 41))
    assert sum("alarms" in row for row in rows(tmp_path)) == 1
    assert "warning" not in "".join(capsys.readouterr())


def test_the_progress_line_says_what_matters(tmp_path, capsys):
    values = {"loss": 0.25, "gradient_norm": 2.0, "real_logit": 1.5, "fake_logit": -1.0}
    with Log(tmp_path, "run", 0, 1, 1, {}, COST) as log:
        log.step(1, {f"critic/{k}": v for k, v in values.items()} | {"critic/logit_gap": 2.5})
    shown = capsys.readouterr().err
    assert "critic loss 0.25 grad 2 real 1.5 fake -1 gap 2.5" in shown
    assert "tokens/s" in shown and " GB" in shown and "1/1" in shown


@pytest.mark.parametrize(
    ("kind", "rate"),
    [("NVIDIA H200", 989e12), ("TPU v5", 459e12), ("TPU v5 lite", 197e12), ("TPU v6 lite", 918e12)],
)
def test_peaks_are_the_makers(kind, rate):
    assert chips.find(kind).peak == rate
    assert chips.find("cpu") is None
