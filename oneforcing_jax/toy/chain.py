"""The stages of the toy that are not training: world, ODE pairs, the teacher's exam, and the report.

Each is a function of (config, stage name, work directory), as a training stage is; each continues where
it was interrupted and does nothing where it is done.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from oneforcing_jax import build, checkpoint, flow, sharding
from oneforcing_jax.causal import rollout
from oneforcing_jax.data import encoders as encoding
from oneforcing_jax.data.encode import encode
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.data.text import pad
from oneforcing_jax.data.video import VideoWriter, read_video
from oneforcing_jax.files import write_whole
from oneforcing_jax.generation.samplers import euler, sample
from oneforcing_jax.generation.student import Student
from oneforcing_jax.methods import causal_ode
from oneforcing_jax.models.wan import WanConfig, WanDiT
from oneforcing_jax.toy import codec as codecs
from oneforcing_jax.toy import scores as scoring
from oneforcing_jax.toy import text as texts
from oneforcing_jax.toy import world as worlds
from oneforcing_jax.toy.sheet import contact_sheet, spread
from oneforcing_jax.training import steps
from oneforcing_jax.training.loop import CHECKPOINTS

# Scores given as a part of those of real videos.
RATIOS = ("sharpness", "motion")


def _world(config: ConfigDict) -> worlds.World:
    return worlds.World(**config.world)


def make_world(config: ConfigDict, name: str, workdir: Path) -> None:
    """Renders mp4 files with captions, fits codec and text encoder, and encodes into a store."""
    stage, folder, world = config.stages[name], workdir / name, _world(config)
    videos = folder / "videos"
    pairs = worlds.write_dataset(videos, stage.count, config.seed, world)
    fitted = folder / codecs.FILE
    if not fitted.exists():
        frames = np.concatenate([read_video(path)[0] for path, _ in pairs[: stage.codec_videos]])
        codecs.fit(frames, config.latents.channels).save(fitted)
    texts.TextEncoder.train(
        world.captions(), config.generator.text_dim, config.generator.text_len, config.seed
    ).save(folder / texts.FOLDER)
    encoders = encoding.load(folder)
    clip = build.clip(config, encoders.codec)
    captions = videos / "captions.jsonl"
    store = encode(videos, captions, folder, encoders, clip, folder / "store")
    if left_out := store.left_out():
        raise ValueError(f"{name}: {next(iter(left_out.values()))}; remove it and run again")


def _load(
    config: ConfigDict, model: WanConfig, workdir: Path, source: str, ema: bool = False
) -> Any:
    """Parameters of a network of an earlier stage, "STAGE:NET"; "" gives random ones."""

    def init() -> Any:
        return sharding.unbox(steps.init(WanDiT(model), config.seed))

    if not source:
        return jax.jit(init)()
    stage, _, net = source.rpartition(":")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(init),
    )
    return checkpoint.load_net(workdir / stage / CHECKPOINTS, net, abstract, ema)


def make_ode_pairs(config: ConfigDict, name: str, workdir: Path) -> None:
    """Trajectories of the causal teacher on real clips, into a store."""
    stage, ode = config.stages[name], config.ode
    source = Store.open(workdir / stage.data)
    latents, text = source.fields["latents"], source.fields["text"]
    shape = (len(ode.kept) + 1, *latents[0])
    fields = {"latents": latents, "text": text, "trajectory": (shape, "float32")}
    store = Store.create(
        workdir / name / "store", stage.count, fields, {"kept": list(ode.kept), "steps": ode.steps}
    )
    negative = source.read_shared(NEGATIVE_TEXT)
    store.write_shared(NEGATIVE_TEXT, negative)
    missing = np.flatnonzero(~store.done())
    if not len(missing):
        return
    config_model = build.model(config, "generator")
    params = _load(config, config_model, workdir, stage.source)
    sigmas = flow.grid(ode.steps, config.shift)

    @jax.jit
    def solve(params: Any, clean: jax.Array, noise: jax.Array, text: jax.Array) -> jax.Array:
        return causal_ode.trajectory(
            WanDiT(config_model), params, clean, noise, text, jnp.asarray(negative),
            build.layout(config), sigmas, tuple(ode.kept), ode.guidance,
        )  # fmt: skip

    with tqdm(total=stage.count, initial=stage.count - len(missing), desc=name, unit="clip") as bar:
        for start in range(0, len(missing), stage.batch):
            chosen = missing[start : start + stage.batch]
            # The last batch is filled up, so that one program serves all.
            filled = np.resize(chosen, stage.batch)
            clips = [source.read(int(i) % len(source)) for i in filled]
            clean, prompt = (np.stack([clip[k] for clip in clips]) for k in ("latents", "text"))
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(config.seed), i))(filled)
            noise = jax.vmap(lambda k: jax.random.normal(k, latents[0]))(keys)
            rows = np.asarray(solve(params, clean, noise, prompt))
            for i, clip, row in zip(chosen, clips, rows, strict=False):
                store.write(
                    int(i), {"latents": clip["latents"], "text": clip["text"], "trajectory": row}
                )
            bar.update(len(chosen))


class Gallery:
    """Prompts, the encoder's and codec's view of them, and scores of the videos that answer them."""

    def __init__(self, config: ConfigDict, workdir: Path) -> None:
        name = next(n for n in config.run if config.stages[n].kind == "world")
        store, self.config, self.world = workdir / name / "store", config, _world(config)
        encoders = encoding.load(store)
        self.codec: Any = encoders.codec
        self.negative = Store.open(store).read_shared(NEGATIVE_TEXT)
        count = config.evaluation.samples
        self.captions = list(itertools.islice(itertools.cycle(self.world.captions()), count))
        self.text = np.stack(
            [pad(encoders.text.encode(c), encoders.text.length) for c in self.captions]
        )
        files = sorted((workdir / name / "videos").glob("*.mp4"))
        rows = [json.loads(line) for line in (workdir / name / "videos" / "captions.jsonl").open()]
        self.real_captions = [row["caption"] for row in sorted(rows, key=lambda r: r["video"])][
            :count
        ]
        self.real = np.stack([read_video(file)[0] for file in files[:count]])
        self.seen = self.decode(np.asarray(self.codec.encode(self.real)))
        self.reference = scoring.scores(self.seen, self.real_captions, self.world)
        latents = config.latents
        shape = (count, latents.frames, latents.channels, latents.rows, latents.columns)
        self.plan = build.plan(config)
        self.draws = rollout.draw(jax.random.key(config.seed + 1), shape, self.plan, 0.0)

    def decode(self, latents: Any) -> np.ndarray:
        """Pixels uint8 [n, f, y, x, 3]."""
        return np.asarray(self.codec.decode(latents))

    def score(self, videos: np.ndarray, captions: list[str]) -> dict[str, float]:
        """Accuracies, sharpness and motion as parts of those of real videos seen through the codec, and
        the Fréchet distance to them."""
        found = scoring.scores(videos, captions, self.world)
        ratios = {k: found[k] / max(self.reference[k], 1e-6) for k in RATIOS}
        return found | ratios | {"frechet": scoring.frechet_distance(self.seen, videos, self.world)}

    def teacher(self, workdir: Path, source: str) -> np.ndarray:
        """Videos of the many-step bidirectional teacher."""
        settings, config = self.config.evaluation, build.model(self.config, "teacher")
        latents = sample(
            WanDiT(config),
            _load(self.config, config, workdir, source),
            self.draws.start,
            jnp.asarray(self.text),
            jnp.asarray(self.negative),
            euler(flow.grid(settings.steps, self.config.shift)),
            guidance=settings.guidance,
        )
        return self.decode(latents)


def examine_teacher(config: ConfigDict, name: str, workdir: Path) -> None:
    """Scores of the teacher; nothing is distilled from one that fails them.

    Raises:
      ValueError: a score below what the stage asks for.
    """
    stage, file = config.stages[name], workdir / name / "scores.json"
    if not file.exists():
        gallery = Gallery(config, workdir)
        found = gallery.score(gallery.teacher(workdir, stage.source), gallery.captions)
        write_whole(file, json.dumps(found, indent=1).encode())
    found = json.loads(file.read_text())
    tqdm.write(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
    low = [key for key, least in stage.least.items() if found[key] < least]
    if low:
        file.unlink()
        raise ValueError(
            f"{name}: expected of the teacher at least {dict(stage.least)}, found "
            f"{ {key: round(found[key], 2) for key in low} }; train it longer "
            "(--config.stages.teacher.iterations) in a new work directory"
        )


def report(config: ConfigDict, name: str, workdir: Path) -> None:
    """Scores of every stage, videos streamed to mp4 files, a contact sheet and a table."""
    stage, folder = config.stages[name], workdir / name
    if (folder / "scores.json").exists():
        print((folder / "table.txt").read_text())
        return
    gallery = Gallery(config, workdir)
    videos = {"real": gallery.real, "real through the codec": gallery.seen}
    results = {row: gallery.score(shown, gallery.real_captions) for row, shown in videos.items()}
    videos["teacher"] = gallery.teacher(workdir, stage.teacher)
    model = build.model(config, "generator")
    student = Student(model, None)
    for row, source in tqdm(stage.students, desc=name, unit="student"):
        ema = source.startswith("ema ")
        student = student.of(_load(config, model, workdir, source.removeprefix("ema "), ema))
        videos[row] = gallery.decode(
            student.clip(gallery.draws, jnp.asarray(gallery.text), gallery.plan)
        )
    for row in ("teacher", *dict(stage.students)):
        results[row] = gallery.score(videos[row], gallery.captions)
    _stream(gallery, student, folder / "videos", stage.videos)
    contact_sheet(folder / "sheet.png", videos, results, gallery.captions, gallery.real_captions)
    table = _table(results)
    write_whole(folder / "table.txt", table.encode())
    write_whole(folder / "scores.json", json.dumps(results, indent=1).encode())
    print(f"{table}\nVideos: {folder / 'videos'}\nContact sheet: {folder / 'sheet.png'}")


def _stream(gallery: Gallery, student: Student, folder: Path, count: int) -> None:
    """Writes videos of the last student as they are made, block by block."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in tqdm(spread(len(gallery.world.captions()), count), desc="stream", unit="video"):
        draws = jax.tree.map(lambda x, i=i: x[i : i + 1], gallery.draws)
        path = folder / f"{gallery.captions[i].replace(' ', '_')}.mp4"
        with VideoWriter(path, worlds.FPS, crf=worlds.CRF, full_chroma=True) as writer:
            for block in student.stream(draws, jnp.asarray(gallery.text[i : i + 1]), gallery.plan):
                writer.write(gallery.decode(block)[0])


def _table(results: dict[str, dict[str, float]]) -> str:
    columns = ("colour", "shape", "direction", "joint", "sharpness", "motion", "frechet")
    width = max(map(len, results))
    head = " " * width + "".join(f"{c:>11}" for c in columns)
    rows = [
        f"{row:<{width}}" + "".join(f"{found[c]:11.2f}" for c in columns)
        for row, found in results.items()
    ]
    return "\n".join([head, *rows])


STAGES = {
    "world": make_world,
    "ode_pairs": make_ode_pairs,
    "exam": examine_teacher,
    "report": report,
}
