"""A student goes out as a folder of diffusers, and makes there what it makes here."""

import numpy as np
import pytest
from test_convert import CONVERT, EXPORT, run, write_json
from test_wan_path import WAN, published

from oneforcing_jax import cli
from oneforcing_jax.causal.plan import ClipDraws, make_plan
from oneforcing_jax.generation import streaming

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PROMPT = "a red square moving left"


def weights(folder, causal):
    """Random published networks, converted."""
    published(folder / "wan")
    settings = {"dim": WAN.dim, "num_heads": WAN.num_heads, "text_len": WAN.text_len}
    write_json(folder / "wan/config.json", settings | {"causal": causal})
    run(CONVERT, source=folder / "wan", out=folder / "weights")
    return folder / "weights"


@pytest.mark.long
def test_the_same_frames(tmp_path):
    found = weights(tmp_path, causal=True)
    run(EXPORT, checkpoint=found, layout="pipeline", out=tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    theirs.set_progress_bar_config(disable=True)
    ours = streaming.load(found, dtype="float32")
    source, condition = ours.source, ours.embed([PROMPT])
    random = np.random.default_rng(0)
    start, renoise = (
        random.standard_normal((1, *shape)).astype(np.float32)
        for shape in ((6, 16, 4, 6), (3, 6, 16, 4, 6))
    )
    asked = {
        "latents": torch.tensor(start).movedim(2, 1),
        "renoise": torch.tensor(renoise).movedim(1, 0).movedim(3, 2),
    }
    for frames in (1, 2):  # framewise as it was exported, then chunkwise
        theirs.register_to_config(block_frames=frames, first_frames=frames)
        expected = theirs(PROMPT, output_type="latent", **asked).frames.movedim(2, 1)
        plan = make_plan(6, frames, source.steps, source.shift, frames, source.first_steps)
        assert [len(block.sigmas) for block in plan[:2]] == [4, 1]
        made = ours.maker.clip(ClipDraws(start, None, renoise), condition, plan)
        assert np.abs(np.asarray(made) - expected.numpy()).max() < 1e-4
        video = np.asarray(ours.encoders.codec.stream()(made))[0]
        shown = theirs(PROMPT, **asked).frames[0] * 255
        assert video.shape == shown.shape and np.abs(shown - video).max() < 1
    with pytest.raises(ValueError, match="expected at most 21 latent frames, 2 and blocks of 2"):
        theirs(PROMPT, num_frames=9, height=32, width=48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout=pipeline", "--net=critic"], "--net is for single networks; leave it out"),
        (["--encoders=weights"], "--encoders is for the layouts pipeline, student; leave it out"),
        (["--layout=pipeline", "--out=a.pt"], "expected the name of a new folder"),
        (["--layout=pipeline"], "expected a causal student, found a bidirectional model"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, tmp_path, capsys):
    given = [f"--checkpoint={tmp_path / 'weights'}", f"--out={tmp_path / 'out'}", *options]
    if "found a bidirectional" in message:
        weights(tmp_path, causal=False)
    with pytest.raises(SystemExit) as end:
        cli.main(["export", *given])
    assert message in f"{end.value} {capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()
