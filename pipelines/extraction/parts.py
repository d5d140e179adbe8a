"""One part of a manifest for one job of a job array."""

import os
from collections.abc import Mapping, Sequence

from vqbank.store.errors import RecipeError
from vqbank.store.schema import Video


def part_of(
    videos: Sequence[Video], part: str, environment: Mapping[str, str] = os.environ
) -> list[Video]:
    """Every n-th video, so that the parts of a sorted manifest cost about the same.

    Args:
        videos: The whole manifest, in the same order for every job.
        part: `i/n` with i from 1 to n; or `slurm`: read from the job array's variables, or from
            those of the tasks of one job.
        environment: Where SLURM's variables stand.

    Raises:
        RecipeError: if `part` is not of this form, or SLURM's variables are not there.
    """
    number, count = _slurm(environment) if part == "slurm" else _given(part)
    return list(videos[number::count])


def _given(part: str) -> tuple[int, int]:
    number, _, count = part.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise RecipeError(f"--part {part!r} is neither i/n, with i from 1 to n, nor `slurm`")
    return int(number) - 1, int(count)


def _slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    if all(name in environment for name in names):
        this, first, last = (int(environment[name]) for name in names)
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        count = (last - first) // step + 1
        jobs = int(environment.get("SLURM_ARRAY_TASK_COUNT", count))
        if jobs != count or (this - first) % step:
            raise RecipeError(
                f"--part slurm: an array of {jobs} jobs from {first} to {last} has gaps, so that "
                "parts would be left out; give --part i/n"
            )
        return (this - first) // step, count
    if "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        return int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"])
    raise RecipeError(
        "--part slurm: neither SLURM_ARRAY_TASK_ID nor SLURM_PROCID is set; this is no SLURM job"
    )
