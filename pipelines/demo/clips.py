"""The demo's data set: moving pictures with known degradations and a pseudo-score for each.

Every scene is a hand-held camera path over one picture that ships inside the wheels of
scikit-image or scikit-learn; every clip is that scene with one degradation, coded by x264.  The
score of a clip is a **pseudo-score**: a documented function of the degradation (`DEGRADATIONS`)
and the scene (`pseudo_score`).  No person has rated any of these clips.
"""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from vqbank.extractors.video import encode
from vqbank.store.errors import naming
from vqbank.store.files import write_atomically

Frames = NDArray[np.uint8]
"""uint8 [n, HEIGHT, WIDTH, 3] RGB."""
Kind = Literal[
    "pristine",
    "compression",
    "blur",
    "noise",
    "down-up-scaling",
    "dropped frames",
    "underexposure",
]

WIDTH, HEIGHT = 640, 360
GRAIN = 2.5
"""Standard deviation, in grey levels, of the camera's own noise: about 40 dB, a good small camera.
Without it the sky of a panned still is flatter than any filmed one, and a frozen frame of a plain
scene cannot be told from a moving one."""
MAX_PICTURE_WIDTH = 760
"""Wider pictures are first reduced to this: they are sharp only when seen from further away."""


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the camera looks, in pixels of the picture (origin: top left corner)."""

    x: float
    y: float
    """The centre."""
    width: float
    """Of the crop; its height follows from the frame's aspect ratio."""
    degrees: float = 0.0
    """Clockwise rotation of the camera."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One scene: a camera path over one picture at constant speed."""

    picture: str
    """`package/path` inside an installed wheel."""
    rate: int
    """Frames per second."""
    seconds: float
    start: Pose
    end: Pose

    @property
    def scene(self) -> str:
        """The picture's name: there is one shot per picture, so scenes never share one."""
        return Path(self.picture).stem

    @property
    def frame_count(self) -> int:
        """The number of frames of every version of this scene."""
        return round(self.rate * self.seconds)

    def path(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """The camera path [n, 6]: PIL's affine coefficients from frame to picture coordinates.

        On the way from start to end the camera trembles by at most 0.8 pixels of the picture, as a
        hand does: slow sway of 0.5 to 1.5 Hz and a third of it at 3 to 6 Hz.
        """
        seconds = np.arange(self.frame_count) / self.rate
        frequency = generator.uniform([0.5, 3.0], [1.5, 6.0], size=(2, 2))  # [axis, component]
        phase = generator.uniform(0, 2 * np.pi, size=(2, 2))
        waves = np.sin(2 * np.pi * frequency * seconds[:, None, None] + phase)
        sway = waves @ np.array([0.6, 0.2])
        way = np.linspace(0, 1, self.frame_count)
        x = self.start.x + way * (self.end.x - self.start.x) + sway[:, 0]
        y = self.start.y + way * (self.end.y - self.start.y) + sway[:, 1]
        width = self.start.width + way * (self.end.width - self.start.width)
        angle = np.radians(self.start.degrees + way * (self.end.degrees - self.start.degrees))
        cosine, sine = width / WIDTH * np.cos(angle), width / WIDTH * np.sin(angle)
        left = x - cosine * WIDTH / 2 + sine * HEIGHT / 2
        top = y - sine * WIDTH / 2 - cosine * HEIGHT / 2
        return np.stack([cosine, -sine, left, sine, cosine, top], axis=1)


@dataclass(frozen=True, slots=True)
class Degradation:
    """What is done to a scene, and what that is worth."""

    name: str
    kind: Kind
    severity: float
    """CRF, standard deviation in pixels or grey levels, scale factor, fraction of frames, stops."""
    pseudo_score: float
    """0 (worst) to 100 (best), before the scene's part."""
    masking: float
    """Points gained in a busy scene and lost in a plain one; negative where detail is at stake."""
    reason: str
    """Why this score."""
    crf: int = 17
    """Of x264; at 17 a part of the camera's grain survives."""


SHOTS = (
    Shot("skimage/data/astronaut.png", 30, 3.0, Pose(256, 160, 502), Pose(256, 260, 498)),
    Shot("skimage/data/brick.png", 25, 3.0, Pose(256, 190, 496, -1), Pose(256, 310, 496, 1.5)),
    Shot("skimage/data/camera.png", 25, 3.0, Pose(256, 148, 500), Pose(256, 240, 504)),
    Shot("skimage/data/cell.png", 25, 3.2, Pose(270, 230, 530), Pose(280, 430, 500, 1)),
    Shot("sklearn/datasets/images/china.jpg", 25, 3.2, Pose(300, 190, 560), Pose(325, 230, 600)),
    Shot("sklearn/datasets/images/flower.jpg", 25, 3.4, Pose(290, 260, 530), Pose(325, 205, 590)),
    Shot("skimage/data/grass.png", 25, 3.2, Pose(254, 200, 498), Pose(258, 260, 498)),
    Shot("skimage/data/gravel.png", 25, 3.0, Pose(256, 310, 500, 0.5), Pose(256, 250, 496, -1)),
    Shot(
        "skimage/data/hubble_deep_field.jpg", 25, 3.0, Pose(350, 270, 600), Pose(400, 330, 590, 2)
    ),
    Shot("skimage/data/ihc.png", 25, 3.0, Pose(256, 150, 498), Pose(256, 260, 502)),
    Shot("skimage/data/moon.png", 25, 3.0, Pose(256, 360, 500), Pose(256, 160, 500, 1)),
    Shot("skimage/data/motorcycle_left.png", 30, 3.0, Pose(340, 280, 590), Pose(400, 245, 600)),
    Shot("skimage/data/retina.jpg", 25, 3.0, Pose(330, 310, 560), Pose(440, 450, 540)),
    Shot("skimage/data/rocket.jpg", 25, 3.0, Pose(300, 180, 540), Pose(345, 245, 560)),
)
"""The scenes of the manifest."""

UNSEEN_SHOT = Shot("skimage/data/coffee.png", 25, 3.2, Pose(280, 170, 510), Pose(315, 225, 530))
"""Never in the manifest: a new video to predict."""

DEGRADATIONS = (
    Degradation("pristine", "pristine", 0, 90, 0, "nothing to see; room above for better cameras"),
    Degradation("crf_33", "compression", 33, 54, 8, "fine texture goes; faint texture is gone", 33),
    Degradation(
        "crf_40", "compression", 40, 32, 8, "texture is gone, edges ring, planes smear", 40
    ),
    Degradation("crf_47", "compression", 47, 14, 4, "little but blocks", 47),
    Degradation("blur_1.2", "blur", 1.2, 56, -2, "slightly out of focus"),
    Degradation("blur_2.5", "blur", 2.5, 30, -3, "plainly out of focus"),
    Degradation("noise_8", "noise", 8, 64, 3, "noise that a dim room gives", 24),
    Degradation("noise_20", "noise", 20, 36, 3, "noise stronger than fine texture", 28),
    Degradation("scale_2", "down-up-scaling", 2, 58, -2, "180 lines shown as 360: soft"),
    Degradation("scale_4", "down-up-scaling", 4, 26, -3, "90 lines shown as 360: shapes only"),
    Degradation("drop_1_4", "dropped frames", 0.25, 78, 0, "a gentle motion jerks now and then"),
    Degradation("drop_1_2", "dropped frames", 0.5, 64, 0, "a gentle motion jerks all the time"),
    Degradation("dark", "underexposure", -1.0, 80, 0, "dull, but nothing is lost"),
)
"""The versions of every scene.  The scores are one plausible order, not anybody's opinion.

The coarser rates of the noisy clips keep the files small; the noise is still there."""

UNSEEN_DEGRADATIONS = tuple(
    one for one in DEGRADATIONS if one.name in {"pristine", "blur_2.5", "crf_40"}
)

README = """\
vqbank's demo data set
======================

The column `mos` of manifest.csv holds a PSEUDO-SCORE.  NO PERSON HAS RATED THESE CLIPS.
The column has that name only because it is the one a manifest keeps its target in.

The pseudo-score (0 worst, 100 best) is the degradation's base score, plus or minus up to
`masking` points for how far a busy scene hides or a plain one shows it (spatial information by
ITU-T P.910), plus a spread of 2 points standard deviation drawn from the seed, the scene and the
degradation.  It shows that the way from videos to a report works; it says nothing about people.

{table}

Pictures: scikit-image's and scikit-learn's own samples, each under the licence that its package
states.  clips/ holds the data set; unseen/ holds a scene that is not in the manifest.
"""


def make_demo_set(
    folder: Path, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the clips, the manifest and a README: about a minute on two cores, about 100 MB.

    The same seed and the same versions of the libraries give the same bytes, on any number of
    cores.  The manifest is written last, so where there is one, the clips are complete.

    Args:
        folder: gets `clips/SCENE/DEGRADATION.mp4`, `unseen/DEGRADATION.mp4`, `README.txt` and
            `manifest.csv` with the columns id, path (relative to the manifest), mos (the
            pseudo-score) and scene.
        seed: of camera tremor, noise, dropped frames and the spread of the pseudo-score.
        progress: called after every clip with the clips done and the clips in all.

    Returns:
        The path of the manifest.

    Raises:
        FileNotFoundError: if scikit-image or scikit-learn, or a picture of theirs, is missing.
    """
    work: list[tuple[Shot, Path, tuple[Degradation, ...]]]
    work = [(shot, folder / "clips" / shot.scene, DEGRADATIONS) for shot in SHOTS]
    work.append((UNSEEN_SHOT, folder / "unseen", UNSEEN_DEGRADATIONS))
    clips = sum(len(versions) for _, _, versions in work)
    done = 0
    rows = []
    # All that takes time here releases the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for shot, place, versions in work:
            place.mkdir(parents=True, exist_ok=True)
            frames = render(shot, seed=seed, threads=threads)
            information = spatial_information(frames)
            write = partial(write_clip, place, shot, frames, seed=seed)
            for version, path in zip(versions, threads.map(write, versions), strict=True):
                done += 1
                if progress is not None:
                    progress(done, clips)
                if shot is UNSEEN_SHOT:
                    continue
                score = pseudo_score(version, shot.scene, information, seed=seed)
                where = path.relative_to(folder).as_posix()
                rows.append(
                    (f"demo/{shot.scene}/{version.name}", where, f"{score:.2f}", shot.scene)
                )
    with naming(folder / "README.txt"):
        (folder / "README.txt").write_text(README.format(table=_table()), encoding="utf-8")
    manifest = folder / "manifest.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "path", "mos", "scene"))
    writer.writerows(rows)
    write_atomically(manifest, text.getvalue().encode())
    return manifest


def open_picture(picture: str) -> Image.Image:
    """A picture of an installed package, RGB, at most `MAX_PICTURE_WIDTH` wide.

    The package is found but not imported.

    Args:
        picture: `package/path/within/it`.

    Raises:
        FileNotFoundError: if the package or the picture is missing.
    """
    package, _, inside = picture.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the demo's picture {picture} needs the package {package}, which is not installed; "
            "install vqbank[extract]"
        )
    path = Path(spec.origin).parent / inside
    if not path.is_file():
        raise FileNotFoundError(f"the demo's picture {path} is missing; reinstall {package}")
    with Image.open(path) as file:
        colours = file.convert("RGB")
    if colours.width <= MAX_PICTURE_WIDTH:
        return colours
    height = round(colours.height * MAX_PICTURE_WIDTH / colours.width)
    return colours.resize((MAX_PICTURE_WIDTH, height), Image.Resampling.LANCZOS)


def render(shot: Shot, *, seed: int, threads: Executor) -> Frames:
    """What the camera sees: [n, HEIGHT, WIDTH, 3], bicubic at sub-pixel positions."""
    picture = open_picture(shot.picture)
    # Bicubic sampling between the pixels of a picture softens; between those of one that has been
    # enlarged by a longer kernel it hardly does.
    fine = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS)
    path = 2 * shot.path(_generator(seed, shot.scene, "camera"))
    generator = _generator(seed, shot.scene, "grain")
    return np.stack(list(_noisy(threads.map(partial(_look, fine), path), GRAIN, generator)))


def degrade(
    frames: Frames, degradation: Degradation, generator: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """The frames one by one as [HEIGHT, WIDTH, 3], degraded in all but compression."""
    severity = degradation.severity
    match degradation.kind:
        case "pristine" | "compression":
            yield from frames
        case "blur":
            for frame in frames:
                blurred = Image.fromarray(frame).filter(ImageFilter.GaussianBlur(severity))
                yield np.asarray(blurred)
        case "noise":
            yield from _noisy(frames, severity, generator)
        case "down-up-scaling":
            small = (round(WIDTH / severity), round(HEIGHT / severity))
            for frame in frames:
                reduced = Image.fromarray(frame).resize(small, Image.Resampling.BICUBIC)
                yield np.asarray(reduced.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        case "dropped frames":
            # The frame before a dropped one stays on the screen; the first is never dropped.
            count = len(frames)
            dropped = 1 + generator.choice(count - 1, size=round(severity * count), replace=False)
            shown = np.arange(count)
            shown[dropped] = 0
            yield from frames[np.maximum.accumulate(shown)]
        case "underexposure":
            # Light times 2^stops, in display values of gamma 2.2.
            values = _to_bytes(np.arange(256) * 2 ** (severity / 2.2))
            for frame in frames:
                yield values[frame]


def write_clip(
    folder: Path, shot: Shot, frames: Frames, degradation: Degradation, *, seed: int
) -> Path:
    """Degrade and encode one clip to `folder/DEGRADATION.mp4`; returns its path."""
    path = folder / f"{degradation.name}.mp4"
    degraded = degrade(frames, degradation, _generator(seed, shot.scene, degradation.name))
    encode(path, degraded, rate=shot.rate, crf=degradation.crf)
    return path


def spatial_information(frames: Frames) -> float:
    """How busy a scene is: ITU-T P.910's SI (2008, 7.7), its mean over 4 frames, not its maximum.

    The standard deviation over the picture of the Sobel-filtered luma.
    """
    few = frames[np.linspace(0, len(frames) - 1, 4).astype(int)]
    lumas = few @ np.array([0.299, 0.587, 0.114])
    edges = [np.hypot(ndimage.sobel(luma, axis=0), ndimage.sobel(luma, axis=1)) for luma in lumas]
    return float(np.mean([one[1:-1, 1:-1].std() for one in edges]))


def pseudo_score(degradation: Degradation, scene: str, information: float, *, seed: int) -> float:
    """The pseudo-score of one clip, 0 (worst) to 100 (best).  No person is behind it.

    Base score of the degradation + masking + spread.  Busy scenes hide coding errors and noise and
    show a loss of detail (contrast masking: Legge and Foley, JOSA 1980): the degradation's
    `masking` times a value from -1 (plain) to 1 (busy).  The spread has a standard deviation of 2
    and is cut at 4, less than half of what lies between two severities of one kind.

    Args:
        degradation: one of `DEGRADATIONS`.
        scene: its name.
        information: `spatial_information` of its pristine frames.
        seed: of the spread.
    """
    # 70 is near the median of the scenes; 30 around it keep them from being all 1 or -1.
    busy = np.tanh((information - 70) / 30)
    spread = _generator(seed, scene, degradation.name, "spread").normal(0, 2)
    return float(degradation.pseudo_score + degradation.masking * busy + np.clip(spread, -4, 4))


def _look(picture: Image.Image, coefficients: NDArray[np.float64]) -> NDArray[np.uint8]:
    data = tuple(coefficients.tolist())
    frame = picture.transform(
        (WIDTH, HEIGHT), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC
    )
    return np.asarray(frame)


def _noisy(
    frames: Iterable[NDArray[np.uint8]], deviation: float, generator: np.random.Generator
) -> Iterator[NDArray[np.uint8]]:
    """Frames with white noise in the luma."""
    for frame in frames:
        noise = deviation * generator.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32)
        yield _to_bytes(frame + noise)


def _to_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _generator(seed: int, *purpose: str) -> np.random.Generator:
    """Independent random numbers for each purpose, the same on every machine."""
    return np.random.default_rng([seed, crc32("/".join(purpose).encode())])


def _table() -> str:
    """The degradations as lines of text."""
    lines = [
        f"{one.name:9} {one.kind:15} {one.severity:>8g} {one.pseudo_score:>5g} {one.masking:>8g}"
        f"  {one.reason}"
        for one in DEGRADATIONS
    ]
    return "\n".join(("version   kind            severity  base  masking  why", *lines))
