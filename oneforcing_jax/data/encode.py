"""Video files and captions to a store of latents and prompt embeddings."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from oneforcing_jax.data import colour, scenes
from oneforcing_jax.data.captions import Pair, pair
from oneforcing_jax.data.clips import Clips, read_clip
from oneforcing_jax.data.store import LEFT_OUT, META, NEGATIVE_TEXT, Store
from oneforcing_jax.data.video import Clip
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.codec import Encoders, TextEncoder, pad
from oneforcing_jax.system import places, processes, textfiles
from oneforcing_jax.system.files import write_whole

# In a store: the video and caption of each sample, a line each; of clips of scenes also start and reason.
SAMPLES = "samples.jsonl"
# Which clips of a file are samples: its beginning, or all of its scenes that are worth training on.
CLIPS = ("first", "scenes")
# Videos that are read while another is encoded.
_AHEAD = 2
# Samples left out that a summary names.
_LISTED = 10


def encode(
    videos_dir: str | Path,
    captions_path: str | Path,
    folder: str | Path,
    encoders: Encoders,
    clip: Clip,
    store_path: str | Path,
    shard: tuple[int, int] = (0, 1),
    clips: str = "first",
) -> Store:
    """Encodes a folder of videos; to continue after an error or a kill, call it again.

    Sample i is the i-th name among videos and captions: `latents` [f, c, y, x], and `text` [length,
    dim], zero beyond the prompt, where it takes no room. A sample that cannot be made (no caption,
    no video, unreadable, too short, a prompt that is too long) is left out with its reason, and
    tried again by the next call.

    Args:
      videos_dir, captions_path: see `captions.pair`.
      folder: where `encoders` were loaded from; the store remembers it.
      encoders: what encodes them; a store is filled by one set of them.
      clip: frames, size and rate that every video is brought to.
      store_path: folder of the store.
      shard: (i, n): do every n-th sample from the i-th on; other commands do the others. The processes of a
        command divide its share.
      clips: of `CLIPS`. "scenes" looks through all files once, before the store is made; it keeps the list.

    Returns:
      The store. The negative prompt's embedding is its shared array `negative_text`.

    Raises:
      MissingInput: videos or captions are missing.
      InputError: a malformed caption file; a store that was begun with other videos, captions,
        encoders or sizes; a disk that is full. Samples that were written stay.
    """
    codec, text, negative = encoders
    pairs = pair(videos_dir, captions_path)
    fields = {
        "latents": (codec.latent_shape(clip.frames, clip.rows, clip.columns), codec.dtype),
        "text": ((text.length, text.dim), text.dtype),
    }
    made_with = {
        "clip": dataclasses.asdict(clip),
        "codec": codec.digest(),
        "text": text.digest(),
        **colour.SAID,
        **(scenes.SAID if clips == "scenes" else {}),
    }
    if old := _of_other_pixels(store_path):
        return old
    with processes.first(f"the store {store_path}") as mine:
        if mine:
            samples = _samples(store_path, pairs, clip) if clips == "scenes" else pairs
            store = Store.create(store_path, len(samples), fields, made_with)
            _keep_samples(store, samples)
            encoding.record(store.path, folder)
            store.write_shared(NEGATIVE_TEXT, embed_padded(text, negative).astype(np.float32))
    samples = _samples(store_path, pairs, clip) if clips == "scenes" else pairs
    store = Store.create(store_path, len(samples), fields, made_with)

    first, step = processes.part(shard)
    own, done, begun = range(first, len(samples), step), store.done(), time.perf_counter()
    todo = [i for i in own if not done[i]]
    with tqdm(
        total=len(own),
        initial=len(own) - len(todo),
        desc=f"encode {videos_dir}",
        unit="video",
        mininterval=1.0,
        disable=not processes.is_first(),
    ) as progress:
        read, threads = (
            (_InTurn(clip).read, 1)
            if clips == "scenes"
            else (lambda video, _: read_clip(video, clip, tqdm.write), _AHEAD)
        )
        videos = _ahead(lambda i: _read(samples[i], read), todo, threads)
        while group := list(itertools.islice(videos, jax.local_device_count())):
            _encode_group(store, encoders, samples, group)
            progress.update(len(group))
    processes.say_rates(f"encode {videos_dir}", len(todo), time.perf_counter() - begun, "video")
    return store


def _of_other_pixels(path: str | Path) -> Store | None:
    """The store that is there, if another version read its videos and it is complete.

    Raises:
      InputError: it is not complete; two versions would lie in it side by side.
    """
    path = places.path(path)
    if not (path / META).is_file() or colour.is_current((store := Store.open(path)).attributes):
        return None
    try:
        store.require_complete()
    except InputError:
        raise InputError(
            f"{path}: begun by a version that read other pixels from videos; finish it with that version, or "
            "encode into another folder"
        ) from None
    return store


def _encode_group(
    store: Store,
    encoders: Encoders,
    samples: Sequence[Pair],
    group: Sequence[tuple[int, Future[np.ndarray]]],
) -> None:
    """Encodes a video a device; fewer are filled up, so that one program serves all groups."""
    videos, texts = {}, {}
    for index, future in group:
        try:
            texts[index] = embed_padded(encoders.text, samples[index].caption or "")
            videos[index] = future.result()
        except (InputError, OSError) as error:
            leave_out(store, index, samples[index].name, str(error))
    if not videos:
        return
    filled = itertools.islice(itertools.cycle(videos.values()), len(group))
    latents = np.asarray(encoders.codec.encode(np.stack(list(filled))), encoders.codec.dtype)
    for index, row in zip(videos, latents, strict=False):
        if np.isfinite(row).all():
            store.write(index, {"latents": row, "text": texts[index]})
        else:
            leave_out(store, index, samples[index].name, "its latents are not finite")


def _read(sample: Pair, read: Callable[[Path, float], np.ndarray]) -> np.ndarray:
    if sample.video is None or sample.caption is None or sample.reason:
        raise InputError(sample.reason)
    return read(sample.video, sample.start)


class _InTurn:
    """Clips that are asked for in their order: those of one file are read in one pass."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self._video = clip, Path()
        self._clips: Clips | None = None

    def read(self, video: Path, start: float) -> np.ndarray:
        if self._clips is None or video != self._video:
            self._video, self._clips = video, Clips(video, self._clip, tqdm.write)
        return self._clips.read(start)


def _ahead(
    read: Callable[[int], np.ndarray], indices: Iterable[int], threads: int
) -> Iterator[tuple[int, Future[np.ndarray]]]:
    """Reads in threads, a few videos ahead of whoever asks."""
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for index in indices:
            waiting.append((index, pool.submit(read, index)))
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
        yield from waiting


def embed_padded(text: TextEncoder, prompt: str) -> np.ndarray:
    """Embedding of a prompt as a store holds it, [length, dim]."""
    return pad(text.encode(prompt), text.length).astype(text.dtype)


def leave_out(store: Store, index: int, name: str, reason: str) -> None:
    """Leaves a sample out, and says so."""
    reason = reason if name in reason else f"{name}: {reason}"
    store.leave_out(index, reason)
    tqdm.write(f"left out: {reason}")


def _samples(store_path: str | Path, pairs: Sequence[Pair], clip: Clip) -> list[Pair]:
    """The clips of the scenes of all files: those that the store was begun with, or found now.

    Raises:
      InputError: it was begun with other files.
    """
    file = places.path(store_path) / SAMPLES
    by_name = {textfiles.form(sample.name): sample for sample in pairs}
    if not file.is_file():
        return scenes.clips(pairs, clip)
    rows = [json.loads(line) for line in textfiles.lines(textfiles.read(file))]
    if any("start" not in row for row in rows):
        return list(pairs)  # another store: its description says so
    names = [textfiles.form(row["video"]) for row in rows]
    if changed := by_name.keys() ^ set(names):
        raise InputError(
            f"{store_path}: begun with the scenes of other videos, {min(changed)} is new or gone; choose "
            "another folder or remove it"
        )
    return [
        by_name[name]._replace(start=row["start"], reason=row["reason"])
        for name, row in zip(names, rows, strict=True)
    ]


def _keep_samples(store: Store, samples: Sequence[Pair]) -> None:
    """Writes down what each sample is, and refuses a store that was begun with other samples."""
    file = store.path / SAMPLES
    if file.is_file():
        done = store.done()
        for index, line in enumerate(textfiles.lines(textfiles.read(file))):
            old, new = json.loads(line), samples[index]
            same = textfiles.form(old["video"]) == textfiles.form(new.name)
            if not same or (done[index] and old["caption"] != new.caption):
                raise InputError(
                    f"{store.path} was begun with other videos or captions: sample {index} is "
                    f"{old['video']} ({old['caption']!r}) there, {new.name} ({new.caption!r}) now; "
                    "choose another folder or remove it"
                )
    rows: list[dict[str, object]] = [
        {"video": sample.name, "caption": sample.caption} for sample in samples
    ]
    if "scenes" in store.attributes:
        for row, sample in zip(rows, samples, strict=True):
            row |= {"start": sample.start, "reason": sample.reason}
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows).encode())


def summary(store: Store) -> str:
    """What is in a store and what is not.

    Raises:
      InputError: all samples are left out.
    """
    done, left_out = int(store.done().sum()), store.left_out()
    waiting = len(store) - done - len(left_out)
    parts = [f"{done} of {len(store)} samples"]
    parts += [f"{len(left_out)} left out"] if left_out else []
    parts += [f"{waiting} not made yet (by other processes)"] if waiting else []
    lines = [f"{store.path}: {', '.join(parts)}"]
    lines += [f"  {reason}" for reason in itertools.islice(left_out.values(), _LISTED)]
    if len(left_out) > _LISTED:
        more = len(left_out) - _LISTED
        lines.append(f"  ... and {more} more, one file each in {store.path / LEFT_OUT}")
    if not waiting:
        store.require_complete()
    return "\n".join(lines)
