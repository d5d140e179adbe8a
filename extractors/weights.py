"""Which weight files are published, where they lie, and what they are: their sha256.  No torch."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import TypeAdapter, ValidationError

from vqbank.store.errors import WeightsError, in_words
from vqbank.store.files import write_atomically
from vqbank.store.ordinary import open_ordinary

RANDOM = "random"
"""The choice that asks for weights that nobody trained."""
TINY = "random-tiny"
"""The choice that asks for them in a small network of the same kind, for tests and demos."""

_NAMED_NAMES = 5  # how many an error spells out
HUB = "https://huggingface.co/"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""What says, in a folder of shards, which files belong together."""
SUMS = "SHA256SUMS"
"""Name of the file beside fetched ones that holds their sha256s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A published weight file, or the folder of a model that is published in several."""

    choice: str
    """What a recipe calls it, such as "openai"."""
    url: str
    """Where it is published: a file, or a repository of Hugging Face, which means its shards."""
    save_as: str
    """Its name in the folder of weights."""
    publisher: str
    licence: str
    trained_on: tuple[str, ...]
    """The data sets that the network has seen, by their names."""
    entry: str | None = None
    """The entry of the file that holds the state dict; None where the file is one."""
    sha256: str | None = None
    """All 64 digits of the published file's sha256; None where it is not known.  Of a folder of
    shards, what `sha256_of` makes of theirs."""
    sha256_begins: str | None = None
    """The first digits of its sha256, which some publishers write into a file's name.  They find
    out a damaged file or another version; they do not say that a file is the published one."""
    size: int | None = None
    """How large the file is, in bytes; None where it is not known."""
    on_page: bool = False
    """Whether `url` is a web page with a link to the file, which a person has to follow."""

    def __post_init__(self) -> None:
        for digits, pattern in ((self.sha256, "[0-9a-f]{64}"), (self.sha256_begins, "[0-9a-f]+")):
            if digits is not None and not re.fullmatch(pattern, digits):
                raise ValueError(f"{self.save_as}: {digits!r} is no sha256, or no beginning of one")

    @property
    def published(self) -> str | None:
        """What is known of the sha256, as a message names it; None if nothing is."""
        begins = self.sha256_begins and f"{self.sha256_begins}..."
        return self.sha256 or begins

    def may_be(self, sha256: str) -> bool:
        """Whether a file with this sha256 is not known to be another one."""
        if self.sha256 is not None:
            return sha256 == self.sha256
        return sha256.startswith(self.sha256_begins or "")

    @property
    def is_folder(self) -> bool:
        """Whether the model is published in several files."""
        return self.url.startswith(HUB) and self.url.count("/") == HUB.count("/") + 1


def find_weights(choice: str, *files: WeightFile, extractor: str, has_tiny: bool = False) -> Path:
    """The local file or folder that `choice` means.

    A published choice is looked for in the folder of weights, then where the libraries keep what
    they downloaded: Hugging Face's cache, torch.hub's checkpoints, ~/.cache/clip.  Anything else is
    the path of a local file, of a folder of shards, or of their index.  Nothing is downloaded.

    Args:
        choice: of one of `files`, or a path.
        *files: the published files of this extractor.
        extractor: its name, for messages.
        has_tiny: whether it has a tiny configuration, for messages.

    Raises:
        WeightsError: if there is no such file, or one under the published name is another file.
    """
    file = next((file for file in files if file.choice == choice), None)
    if file is None:
        path = Path(choice).expanduser()
        if not path.exists():
            known = [
                *(file.choice for file in files if file.choice),
                RANDOM,
                *([TINY] if has_tiny else []),
            ]
            raise WeightsError(
                f"extractor {extractor}: weights {choice!r} are neither a file nor one of "
                f"{', '.join(map(repr, known))}"
            )
        return path
    found = locate(file)
    if found is None:
        for place in _places(file):
            if place.is_dir():
                shards_of(place)  # says what is missing there
        command = f"`vqbank weights fetch {extractor}={choice}` downloads them. Or "
        fetch = "follow its link by hand and " if file.on_page else command
        what = "its files in a folder" if file.is_folder else "the file as"
        raise WeightsError(
            f"extractor {extractor}: weights {choice!r} not found. They are published by "
            f"{file.publisher} ({file.licence}) at {file.url}; {fetch}save {what} "
            f"$VQBANK_WEIGHTS/{file.save_as}, or give a path: --weights {extractor}=PATH on the "
            f"command line, weights: PATH in the recipe. Looked for: "
            f"{', '.join(map(str, _places(file)))}"
        )
    _check_published(found, file, extractor=extractor)
    return found


def locate(file: WeightFile) -> Path | None:
    """Where a published file, or a folder of all its shards, lies; None where it is not at hand.

    Raises:
        WeightsError: if VQBANK_WEIGHTS is no folder.
    """
    for place in _places(file):
        if not file.is_folder and place.is_file():
            return place
        if file.is_folder and place.is_dir():
            with suppress(WeightsError):  # some are not there
                shards_of(place)
                return place
    return None


def weights_folder() -> Path:
    """Where our own copies lie: VQBANK_WEIGHTS, by default a folder in the user's cache.

    Raises:
        WeightsError: if VQBANK_WEIGHTS is no folder.
    """
    named = os.environ.get("VQBANK_WEIGHTS")
    if not named:
        return _cache_folder() / "weights"
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"VQBANK_WEIGHTS is {named!r}, which is not a folder; make it first")
    return folder


def _places(file: WeightFile) -> list[Path]:
    ours = weights_folder() / file.save_as
    if file.on_page:  # no library fetches it, and the last part of the address is no file name
        return [ours]
    if file.url.startswith(HUB):
        # Cached by repository: many of them have a file of this very name.
        from huggingface_hub import try_to_load_from_cache

        owner, repository, *within = file.url.removeprefix(HUB).split("/")
        names = INDEXES if file.is_folder else ["/".join(within[2:])]  # after resolve/main
        found = [try_to_load_from_cache(f"{owner}/{repository}", name) for name in names]
        cached = [Path(path) for path in found if isinstance(path, str)]
        return [ours, *(path.parent if file.is_folder else path for path in cached)]
    name = file.url.rsplit("/", 1)[-1]
    return [
        ours,
        _torch_hub() / "checkpoints" / name,
        Path.home() / ".cache" / "clip" / name,
    ]


def _torch_hub() -> Path:
    """What torch.hub.get_dir() says, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser() / "hub"


def _check_published(found: Path, file: WeightFile, *, extractor: str) -> None:
    for shard in shards_of(found):
        recorded = recorded_sha256(shard)
        if recorded is not None and sha256_of(shard) != recorded:
            raise WeightsError(
                f"extractor {extractor}: {shard} is not the file that was fetched (sha256 "
                f"{sha256_of(shard)}, recorded in {SUMS} {recorded}); fetch it again, or give its "
                f"path if it is meant: --weights {extractor}={found}"
            )
    if file.published is not None and not file.may_be(sha256_of(found)):
        raise WeightsError(
            f"extractor {extractor}: {found} is not the file published at {file.url} "
            f"(sha256 {sha256_of(found)}, published {file.published}); fetch it again, or give its "
            f"path if it is meant: --weights {extractor}={found}"
        )


def weights_identity(
    choice: str, *files: WeightFile, extractor: str, has_tiny: bool = False
) -> str:
    """What stands for the weights in a key: their sha256; random ones go by their name.

    Raises:
        WeightsError: as `find_weights`.
    """
    if choice in (RANDOM, TINY):
        return choice
    return sha256_of(find_weights(choice, *files, extractor=extractor, has_tiny=has_tiny))


def weights_origin(choice: str, *files: WeightFile, extractor: str) -> dict[str, Any]:
    """Publisher, licence and training data of the weights, as a FeatureSpec takes them.

    Claimed for a published choice, and for a local file only if it is known to be a published one;
    random weights have none.

    Raises:
        WeightsError: as `find_weights`.
    """
    if choice in (RANDOM, TINY):
        return {}
    # Where `sha256` is not known, the published file given by its path goes by "unknown".  Its key
    # is that of the published choice all the same, and a bank keeps the spec.json that was written
    # first.
    path = find_weights(choice, *files, extractor=extractor)
    for file in files:
        known = file.sha256 is not None and sha256_of(path) == file.sha256
        if file.choice == choice or known:
            return {
                "publisher": file.publisher,
                "licence": file.licence,
                "trained_on": file.trained_on,
            }
    return {"publisher": "unknown (local file)", "licence": "unknown", "trained_on": ()}


def shards_of(path: Path) -> list[Path]:
    """The files that hold the tensors: `path` itself, or those of a folder or of an index.

    In a folder an index counts (model.safetensors.index.json, pytorch_model.bin.index.json), then
    all *.safetensors, then all *.bin.

    Raises:
        WeightsError: if a folder holds no weights, or an index cannot be read or names a file that
            is not beside it.
    """
    if path.is_dir():
        index = index_in(path)
        if index is None:
            shards = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
            if not shards:
                raise WeightsError(f"{path} holds no weights: no *.safetensors, no *.bin")
            return shards
        path = index
    if not path.name.endswith(".index.json"):
        return [path]
    shards = [path.with_name(name) for name in shard_names(path)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise WeightsError(f"{path} names shards that are not there: {some_of(missing)}")
    return shards


def shard_names(index: Path) -> list[str]:
    """The file names in an index of shards, as Hugging Face's libraries write it.

    Raises:
        WeightsError: if it is none, or names a file in another folder.
    """
    names = sorted(set(weight_map(index).values()))
    outside = [name for name in names if Path(name).name != name]
    if outside or not names:
        raise WeightsError(f"{index} names no shards beside it: {some_of(outside)}")
    return names


def index_in(folder: Path) -> Path | None:
    """What says which files of a folder belong together, where it has that."""
    return next((folder / name for name in INDEXES if (folder / name).is_file()), None)


def weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor, by its key.

    Raises:
        WeightsError: if it is no index of shards.
    """
    try:
        read = TypeAdapter(dict[str, Any]).validate_json(index.read_bytes())
        return TypeAdapter(dict[str, str]).validate_python(read.get("weight_map"))
    except (OSError, ValidationError) as error:
        raise WeightsError(f"{index} is not an index of shards: {in_words(error)}") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal; of several shards that of their sorted sha256s.

    Remembered by path, size and modification time in the folder VQBANK_CACHE (by default the
    user's cache folder), so that a file of gigabytes is read once.

    Raises:
        WeightsError: if a file cannot be read.
    """
    shards = shards_of(path)
    if shards == [path]:
        return _sha256_of_file(path)
    digests = sorted(_sha256_of_file(shard) for shard in shards)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
    path = path.resolve()
    try:
        status = path.stat()
        seen = (status.st_size, status.st_mtime_ns)
        known = _read_cache(_cache_file())
        if str(path) in known and known[str(path)][:2] == seen:
            return known[str(path)][2]
        with open_ordinary(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {in_words(error)}") from error
    remember_sha256(path, digest)
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Note the sha256 of a file as it is now, so that `sha256_of` need not read it."""
    path = path.resolve()
    status = path.stat()
    cache = _cache_file()
    entry = [status.st_size, status.st_mtime_ns, digest]
    # A cache that cannot be written, on a read-only home, costs time and nothing else.
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        entries = json.dumps({**_read_cache(cache), str(path): entry}, indent=0)
        write_atomically(cache, entries.encode())


def recorded_sha256(path: Path) -> str | None:
    """What SHA256SUMS beside a file says of it, if anything."""
    return _read_sums(path.parent).get(path.name)


def record_sha256(path: Path, digest: str) -> None:
    """Write a file's sha256 into SHA256SUMS beside it, which `sha256sum --check` reads too.

    Raises:
        OSError: if it cannot be written.
    """
    sums = {**_read_sums(path.parent), path.name: digest}
    lines = [f"{known}  {name}\n" for name, known in sorted(sums.items())]
    write_atomically(path.parent / SUMS, "".join(lines).encode())


def _read_sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{folder / SUMS} cannot be read: {in_words(error)}") from error
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _cache_folder() -> Path:
    return Path(os.environ.get("VQBANK_CACHE") or platformdirs.user_cache_dir("vqbank"))


def _cache_file() -> Path:
    return _cache_folder() / "weights-sha256.json"


def _read_cache(cache: Path) -> dict[str, tuple[int, int, str]]:
    try:
        return TypeAdapter(dict[str, tuple[int, int, str]]).validate_json(cache.read_bytes())
    except (OSError, ValidationError):
        return {}  # absent or damaged: hash again


def some_of(names: Sequence[str]) -> str:
    """The first few, for a message, and how many more there are."""
    more = f" and {len(names) - _NAMED_NAMES} more" if len(names) > _NAMED_NAMES else ""
    return ", ".join(names[:_NAMED_NAMES]) + more
