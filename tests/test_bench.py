"""The benchmark's count of operations, and its command line."""

import json
import runpy
from pathlib import Path

import pytest

from oneforcing_jax import methods
from oneforcing_jax.bench import gpu_page, trace
from oneforcing_jax.bench.trace import Event
from oneforcing_jax.causal import flops
from oneforcing_jax.families.wan21 import WAN_1_3B, WAN_14B
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run

ROOT = Path(__file__).parents[1]
BENCH = runpy.run_path(str(ROOT / "tools" / "bench.py"))
TOKENS = WAN_1_3B.frame_tokens(60, 104)


@pytest.mark.parametrize(("size", "expected"), [(WAN_1_3B, 283), (WAN_14B, 1678)])
def test_forward_of_a_clip(size, expected):
    found = flops.clip(size, TOKENS, 21).forward / 1e12
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("keys", "expected"), [(1, 4.5), (11, 9.0), (21, 13.5)])
def test_cached_pass_of_a_frame(keys, expected):
    found = flops.dit(WAN_1_3B, TOKENS, 1, keys, prompts=0).forward / 1e12
    assert found == pytest.approx(expected, rel=0.01)


def work(net, *overrides, config="framewise", method="one_forcing"):
    """Of one sample's update."""
    run = Run.of(configs.load(ROOT / "configs" / f"{config}.py", overrides))
    return next(u.work for u in methods.make(method, run).updates if u.net == net)


@pytest.mark.parametrize(("net", "expected"), [("critic", 3773), ("generator", 5831)])
def test_updates_of_the_paper(net, expected):
    """With all that is computed again; without, a model's operations are a quarter of each backward less."""
    full = [f"--config.{part}.remat=full" for part in ("generator", "critic")]
    hardware, model = work(net, *full).hardware, work(net, *full).model
    assert hardware / 1e12 == pytest.approx(expected, rel=0.03)
    assert model < work(net).hardware < hardware
    assert 0.75 * expected < model / 1e12 < 0.95 * expected
    for remat, counted in (("offload", True), ("none", False)):
        changed = [f"--config.{part}.remat={remat}" for part in ("generator", "critic")]
        found = work(net, *changed).hardware
        assert found == (pytest.approx(expected * 1e12, rel=0.03) if counted else model)


SMALL = [
    "--config.latents.frames=2",
    "--config.latents.rows=4",
    "--config.latents.columns=4",
    *(
        f"--config.{net}.{field}"
        for net in ("generator",)
        for field in ("dim=16", "ffn_dim=16", "num_heads=2", "num_layers=1")
    ),
]


def test_command_line(tmp_path, capsys):
    out, toy = tmp_path / "bench.json", ROOT / "configs" / "toy.py"
    stage = ["--stage=ode", "--config.stages.ode.batch=8"]
    rule = "--config.stages.ode.optimisers.model.name=adamw"
    BENCH["main"](["train", f"--config={toy}", *stage, *SMALL, rule, "--repeats=2", f"--out={out}"])
    made, printed = json.loads(out.read_text()), capsys.readouterr().out
    row, *data = made["work"]
    assert row["work"] == "model update" and "TFLOP/s" in printed
    assert len(data) == 2 and all(part["step_s"] > 0 for part in data)
    for field in ("compile_s", "first_s", "step_s", "flops", "flops_per_s", "memory_bytes"):
        assert row[field] > 0, field
    assert row["flops_per_s"] == pytest.approx(row["flops"] / row["step_s"])
    assert made["mean_iteration_s"] == row["step_s"]


@pytest.mark.parametrize("method", ["teacher", "teacher_forcing", "causal_ode"])
def test_depth_multiplies(method):
    """Each further layer costs the same."""
    net = "teacher" if method == "teacher" else "generator"
    layers = [f"--config.{net}.num_layers={n}" for n in (1, 2, 3)]
    one, two, three = (work("model", n, config="toy", method=method).model for n in layers)
    assert three - two == pytest.approx(two - one) and two - one > 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--stage=world", "expected one of .*'one_forcing'.*found 'world'"),
        ("--repeats=0", "repeats: expected 1 or more, found 0"),
        ("--config.sed=3", "no field 'sed'; did you mean 'seed'"),
    ],
)
def test_odd_arguments_are_one_line(argument, message):
    with pytest.raises(SystemExit, match=message):
        BENCH["main"](["train", f"--config={ROOT / 'configs' / 'toy.py'}", argument])


@pytest.mark.long
def test_vae(tmp_path, capsys):
    sizes = ["--frames=9", "--rows=16", "--columns=16", "--width=2", "--dtype=float32"]
    BENCH["main"](["vae", *sizes, "--repeats=1", f"--out={tmp_path / 'vae.json'}"])
    rows = {row["work"]: row for row in json.loads((tmp_path / "vae.json").read_text())["work"]}
    assert (
        rows.keys() == {"encode", "decode", "stream step"} and "frames/s" in capsys.readouterr().out
    )
    # Two of the three latent frames are later steps.
    first = rows["decode"]["flops"] - 2 * rows["stream step"]["flops"]
    assert 0 < first < rows["stream step"]["flops"]
    with pytest.raises(SystemExit, match="1 . a multiple of 4 frames"):
        BENCH["main"](["vae", *sizes, "--frames=8"])


def test_reading_data(tmp_path, capsys):
    given = ["data", f"--store={tmp_path / 'store'}", "--batch=2", "--batches=2", "--every=0.2"]
    BENCH["main"]([*given, "--fill=2", f"--out={tmp_path / 'data.json'}"])
    made, printed = json.loads((tmp_path / "data.json").read_text()), capsys.readouterr().out
    assert made["samples"] == 2 and 0 < made["samples_per_s"] <= 2 / 0.2
    assert 0 < made["wait_s"] <= made["longest_wait_s"] and "2 samples, opened in" in printed
    with pytest.raises(SystemExit, match="every: expected 0 to 3600 seconds, found -1.0"):
        BENCH["main"]([*given, "--every=-1"])
    with pytest.raises(SystemExit, match="no store at"):
        BENCH["main"](["data", f"--store={tmp_path / 'absent'}"])


def test_generation_by_the_command_line(tmp_path, capsys):
    """Every part of a video is timed."""
    out = tmp_path / "bench.json"
    toy = [f"--config={ROOT / 'configs' / 'toy.py'}", *SMALL, "--config.latents.frames=3"]
    given = ["--repeats=1", "--first_steps=1000", "--profile"]
    BENCH["main"](["generate", *toy, *given, f"--out={out}"])
    made, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert made["frames"] == 3 and made["blocks"] == [[1, 1]] * 3
    for name in ("first_frame", "steady_block", "first_block", "decode", "diffusion", "total"):
        assert made[f"{name}_s"] > 0, name
    assert made["with_compilation_s"] > 0
    assert made["kernels"]["kernels"] == 0 and "the profile holds no kernels" in printed
    assert made["frames_per_s"] == pytest.approx(3 / made["total_s"])
    assert "frames/s" in printed and "both, overlapped" in printed
    with pytest.raises(SystemExit, match="batch: expected 1 or more, found 0"):
        BENCH["main"](["generate", *toy, "--batch=0"])
    with pytest.raises(SystemExit, match="of 16 channels, which tiny is for, found 12"):
        BENCH["main"](["generate", *toy, "--decoder=tiny"])


# A GPU.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "attention forward"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_kn", "attention backward"),
        ("void cudnn::fusion::compute_dot_do_o_specialized<true, 128>", "attention backward"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("gemm_fusion_dot_12", "products"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_nhwckrsc_nhwc", "convolutions"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "copies"),
        ("MemcpyD2D", "copies"),
        ("input_concatenate_fusion_3", "concatenations and slices"),
        ("loop_dynamic_update_slice_fusion", "concatenations and slices"),
        ("loop_convert_fusion_7", "conversions"),
        ("input_reduce_fusion", "reductions"),
        ("loop_multiply_fusion", "other fusions"),
        ("Cijk", "other"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert trace.kind(name) == kind


def test_a_table_of_kernels():
    """Time that two streams share counts once as busy; names are without their numbers."""
    events = [
        Event("loop_add_fusion_1", "add.1", 100, 50),
        Event("loop_add_fusion_2", "add.2", 120, 50),
        Event("MemcpyD2D", "copy.3", 200, 10),
    ]
    found = trace.table(events)
    assert found["kernels"] == 3 and found["device_copies"] == 1
    assert found["busy_s"] == pytest.approx(80e-9) and found["whole_s"] == pytest.approx(110e-9)
    assert found["kinds"]["other fusions"] == [pytest.approx(100e-9), 2]
    first = found["longest"][0]
    assert (first["name"], first["op"], first["number"]) == ("loop_add_fusion", "add.1", 2)
    assert "2 x loop_add_fusion [add.1]" in "\n".join(trace.lines(found))
    assert trace.table([])["kernels"] == 0 and "no kernels" in trace.lines(trace.table([]))[0]


def measured(kernels):
    """What a rehearsal writes, shortened; the kernels are a GPU's."""
    row = {"flops": 1e15, "flops_per_s": 494.5e12, "utilisation": 0.5, "step_s": 2.0}
    return {
        "when": "2026-11-27T18:57:00+00:00", "commit": "a8a3852", "config": "configs/noise.py",
        "card": {"name": "NVIDIA H200", "driver_version": "580.1"}, "python": "3.12.1", "cores": 2,
        "versions": {"jax": "0.11.2"},
        "parts": {
            "ceilings": {
                "products": [{"size": [97, 48, 280], "seconds": 88e-6, "flops_per_s": 29e9}],
                "attention": [{"size": [48, 16, 12], "seconds": 0.0129, "flops_per_s": 14e9}],
                "trained": [{"error": "XlaRuntimeError: no such length"}],
                "copy": {"bytes": 262144, "seconds": 59e-6, "bytes_per_s": 4.4e9},
                "launches": {"single": {"kernels": 400, "seconds": 9e-5, "host_s": 5e-7}},
            },
            "streaming": {"first_block_s": 0.05, "steady_blocks_s": [0.02, 0.04], "host_s": 0.7,
                          "diffusion_s": 0.9, "peak_memory_bytes": 14.7e9, "kernels": kernels},
            "vae": {"error": "took longer than 90 s", "decode_s": 0.5},
            "updates": {"batch": 1, "updates": {
                "generator": row | {"every": 5}, "critic": row | {"every": 1, "kernels": {"error": "no"}}}},
            "vectors": {"passed": ["tests/test_models.py::test_a"], "failed": ["tests/test_vae.py::test_b"]},
        },
    }  # fmt: skip


def test_the_page_of_a_gpu(tmp_path):
    """It says which card and when; what was measured stands beside what was predicted and published."""
    made = measured(trace.table([Event("loop_add_fusion_1", "add.1", 0, 5e6)]))
    (tmp_path / "gpu.json").write_text(json.dumps(made))
    total = {"predicted_s": 6.5}
    plan = {"what": "train", "total": total, "programs": [{"name": "a/critic", "predicted_s": 1.5}],
            "calibrated": True, "source": "one H200"}  # fmt: skip
    (tmp_path / "plan_train.json").write_text(json.dumps(plan))
    BENCH["main"](["gpu", f"--out={tmp_path}", f"--page={tmp_path / 'gpu.md'}"])
    page = (tmp_path / "gpu.md").read_text()
    assert "**NVIDIA H200**, 2026-11-27 18:57 UTC; the code at a8a3852" in page
    for line in (
        "| a block that is waited for, mean |  | 30 ms |  |  | 118 ms |",
        "| critic update, 1 clip | 1.5 s | 2 s | -25% | 494 TFLOP/s, 50% of the data sheet |  |",
        "| mean iteration | 6.5 s | 2.4 s | +171% |  | 24.0 s, 8 clips on 8 |",
        "Predicted by `tools/plan.py` (`train`): calibrated by one H200.",
        "| other fusions | 5.0 (1) |",
        "| attention, forward and backward |  | XlaRuntimeError: no such length |  |",
        "| product of rows x inner x columns, and back | 97 x 48 x 280 | 88 us | 0.029 TFLOP/s |",
    ):
        assert line in page, line
    assert "Part vae did not come to its end: took longer than 90 s" in page
    assert "Of critic update the profile holds none; no." in page
    assert "1 tests passed, 1 failed: `tests/test_vae.py::test_b`" in page
    assert gpu_page.page(made | {"parts": {}}).count("##") == 2
    assert "Not run: ceilings, vectors." in gpu_page.page(
        made | {"parts": {"streaming": {}, "vae": {}, "updates": {}}}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "out: expected a folder of this machine, found None"),
        (["--out=.", "--page=gpu.md"], "gpu.json: expected a measurement, found none"),
        (["--out=gs://bucket/gpu"], "expected a folder of this machine, found gs://bucket/gpu"),
    ],
)
def test_a_gpu_needs_a_folder(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        BENCH["main"](["gpu", *arguments])


@pytest.mark.long
def test_a_rehearsal_without_a_gpu(tmp_path, monkeypatch, light_environment):
    """Every part but the tests, without PyAV; what fails is said, and one part alone can be made again."""
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "av.py").write_text("raise ImportError('there is no PyAV')")
    for name, value in light_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lacking"))
    given = ["gpu", f"--config={ROOT / 'configs' / 'noise.py'}", f"--out={tmp_path}"]

    def parts(*arguments):
        BENCH["main"]([*given, *arguments])
        return json.loads((tmp_path / "gpu.json").read_text())["parts"]

    made = parts("--parts=vae,updates,streaming,ceilings")
    assert list(made) == ["ceilings", "streaming", "vae", "updates"]
    assert not [part["error"] for part in made.values() if "error" in part]
    assert len(made["streaming"]["steady_blocks_s"]) == 1 and made["vae"]["total_s"] > 0
    assert made["updates"]["updates"].keys() == {"generator", "critic"}
    assert made["updates"]["updates"]["critic"]["kernels"]["kernels"] == 0
    assert all(row["seconds"] > 0 for row in made["ceilings"]["attention"])
    again = parts("--parts=vae", "--config.latents.colums=4")
    assert "no field 'latents.colums'" in again["vae"]["error"]
    assert again["streaming"] == made["streaming"]
