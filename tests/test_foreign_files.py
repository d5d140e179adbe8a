"""Binary files of others end in a line where they are cut or lie, and reach nothing else."""

import io
import shutil
import struct
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from vqbank.pipelines.labels import read_labels
from vqbank.store import mat5
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import BankError, InvalidFeatureError, ManifestError, VqbankError
from vqbank.store.exchange.feats_mat import import_feats_mat
from vqbank.store.exchange.hdf5_file import export_hdf5, import_hdf5
from vqbank.store.exchange.incoming import MOST_ARRAY_BYTES, npy_feature
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint

CASES = Path(__file__).parent / "data" / "cases"
IDS = [f"set/{row}.mp4" for row in range(12)]


def import_mat(path, tmp_path, ids=IDS):
    return import_feats_mat(path, FeatureStore.create(tmp_path / "bank"), name="x", ids=ids)


def test_values_in_another_file_are_not_read_naming_external_storage(tmp_path):
    for name in ("mat_external_storage.mat", "other_file.bin"):
        shutil.copy(CASES / name, tmp_path)
    ids = [f"set/{row}" for row in range(60)]
    with pytest.raises(BankError, match=r"feats_mat has external storage.*'other_file.bin'"):
        import_mat(tmp_path / "mat_external_storage.mat", tmp_path, ids)
    with pytest.raises(ManifestError, match="external storage"):
        read_labels(tmp_path / "mat_external_storage.mat")


def external_storage(file, other):
    file.create_dataset("feats_mat", (3, 12), "<f8", external=[(str(other), 0, 288)])


def external_link(file, other):
    file["feats_mat"] = h5py.ExternalLink(str(other), "/x")


def virtual(file, other):
    layout = h5py.VirtualLayout((3, 12), "<f8")
    layout[:] = h5py.VirtualSource(str(other), "x", (3, 12))
    file.create_virtual_dataset("feats_mat", layout)


def soft_link(file, other):
    file["a"] = np.zeros((3, 12))
    file["feats_mat"] = h5py.SoftLink("/a")


def behind_a_reference(file, other):
    external_storage(file, other)
    file.move("feats_mat", "#refs#/x")
    file["feats_mat"] = np.array([file["#refs#/x"].ref] * 12, h5py.ref_dtype)


ELSEWHERE = [external_storage, external_link, virtual, soft_link, behind_a_reference]


def hdf5(path, make, *arguments):
    with h5py.File(path, "w") as file:
        make(file, *arguments)
    return path


@pytest.mark.parametrize("make", ELSEWHERE)
def test_no_reader_of_hdf5_goes_to_another_file(tmp_path, make):
    other = hdf5(tmp_path / "other.h5", lambda file: file.create_dataset("x", data=np.eye(3, 12)))
    path = hdf5(tmp_path / "m.mat", make, other)
    what = "external storage|external link|virtual data set|symbolic link"
    with pytest.raises(BankError, match=what):
        import_mat(path, tmp_path)
    with pytest.raises(ManifestError, match=what):
        read_labels(path)


@pytest.mark.parametrize("make", ELSEWHERE[:4])
def test_an_export_that_names_another_file_is_refused(tmp_path, make):
    store = FeatureStore.create(tmp_path / "bank")
    spec = FeatureSpec("some.feature", (2,), "float32", {"source": "x"})
    writer = store.writer(spec, provenance={}, durable=False)
    feature = Feature(np.ones((3, 2), "f4"), np.arange(3.0), np.arange(3))
    writer.add("a", feature, fingerprint=Fingerprint(1, "x"), probe={})
    writer.commit()
    store.refresh()
    export_hdf5(store, [spec], tmp_path / "bank.h5")
    with h5py.File(tmp_path / "bank.h5", "r+") as file:
        group = file[spec.key]
        del group["values"]
        make(group, tmp_path / "other")
        group.move("feats_mat", "values")
    with pytest.raises(BankError, match=r"external|virtual|symbolic"):
        import_hdf5(tmp_path / "bank.h5", FeatureStore.create(tmp_path / "into"))
    assert FeatureStore(tmp_path / "into").specs() == []


def fill_value(file):
    file.create_dataset("feats_mat", (12, 2**40), "<f8", chunks=(1, 2**20), fillvalue=1.0)


def bomb(file):
    values = np.zeros((12, 2**21))
    file.create_dataset("feats_mat", data=values, chunks=(12, 2**18), compression="gzip")


def huge_chunk(file):
    file.create_dataset("feats_mat", (12, 4), "<f8", chunks=(12, 2**24), maxshape=(12, None))


def one_cell_often(file):
    file["#refs#/x"] = np.zeros((8, 2**17))  # 8 MiB
    file["feats_mat"] = np.array([file["#refs#/x"].ref] * 2000, h5py.ref_dtype)


def many_fill_values(file):
    for number in range(100):
        file.create_dataset(f"x{number}", (12, 2**18), "<f8", chunks=(1, 2**10))


@pytest.mark.parametrize("make", [fill_value, bomb, huge_chunk, one_cell_often, many_fill_values])
def test_a_feature_file_that_unfolds_to_gigabytes_is_refused(tmp_path, make):
    path = hdf5(tmp_path / "m.mat", make)
    started = time.process_time()
    with pytest.raises(BankError, match="unfold"):
        import_mat(path, tmp_path)
    assert time.process_time() - started < 5


def test_groups_that_hold_themselves_are_refused(tmp_path):
    def circle(file):
        for name in "abcdefghij":
            file.create_group(name)
        for name in "abcdefghij":
            for other in "abcdefghij":
                file[name][other] = file[other]

    started = time.process_time()
    with pytest.raises(ManifestError, match=r"more than 10,000 entries|nested more than 8 deep"):
        read_labels(hdf5(tmp_path / "m.mat", circle))
    assert time.process_time() - started < 5


def test_a_heap_without_end_does_not_hang_the_reader(tmp_path):
    path = hdf5(tmp_path / "m.mat", lambda file: file.attrs.update(text="vqbank"))
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    (size,) = struct.unpack_from("<Q", content, heap + 24)  # of the first text
    free = heap + 16 + 16 + size + -size % 8
    content[free + 8 : free + 16] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"its heap at byte \d+ has no end"):
        read_labels(path)
    with pytest.raises(BankError, match=r"its heap at byte \d+ has no end"):
        import_hdf5(path, FeatureStore.create(tmp_path / "bank"))


# MATLAB 5


def matlab(**variables):
    file = io.BytesIO()
    scipy.io.savemat(file, variables)
    return file.getvalue()


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def array(kind, shape, *parts, name=b"x", flags=0):
    head = element(6, struct.pack("<II", kind | flags, 0))
    head += element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, name)
    return element(14, head + b"".join(parts))


def nested(depth):
    inner = array(6, (1, 1), element(9, bytes(8)))
    for _ in range(depth):
        inner = array(1, (1, 1), inner)
    return inner


HEADER = matlab()[:128]
LIES = {
    "characters": array(4, (1, 2**31 - 1), element(16, b"")),
    "cells": array(1, (2**15, 2**15)),
    "structs": array(2, (2**15, 2**15), element(5, struct.pack("<i", 8)), element(1, b"")),
    "no name": array(2, (1, 1), element(5, struct.pack("<i", 0)), element(1, b"abc")),
    "negative": array(6, (-4, 2), element(9, bytes(8))),
    "no data": array(6, (1, 1)),
    "no imaginary part": array(6, (1, 1), element(9, bytes(8)), flags=0x800),
    "no such type": array(6, (1, 1), element(99, bytes(8))),
    "no such class": array(99, (1, 1), element(9, bytes(8))),
    "no shape": array(6, (), element(9, bytes(8))),
    "deep": nested(5000),
    "other": element(7, bytes(8)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_matlab_file_that_lies_is_refused_before_it_is_believed(tmp_path, lie):
    path = tmp_path / "m.mat"
    path.write_bytes(HEADER + LIES[lie])
    with pytest.raises(ManifestError, match="damaged in the variable at byte 128"):
        read_labels(path)
    with pytest.raises(BankError, match="damaged in the variable at byte 128"):
        import_mat(path, tmp_path)


def test_a_compressed_variable_that_unfolds_to_gigabytes_is_refused(tmp_path):
    import zlib

    pack = zlib.compressobj(9)
    body = b"".join(pack.compress(bytes(2**24)) for _ in range(12)) + pack.flush()
    path = tmp_path / "m.mat"
    path.write_bytes(HEADER + struct.pack("<II", 15, len(body)) + body)
    started = time.process_time()
    with pytest.raises(BankError, match="it would unfold from"):
        import_mat(path, tmp_path)
    assert time.process_time() - started < 5


def test_matlab_files_are_read_as_scipy_reads_them():
    cells = np.array(["a.mp4", "bb.mp4", ""], object)
    content = matlab(
        x=np.arange(6.0).reshape(2, 3), names=cells, c=np.array([1 + 2j]), b=np.array([True]),
        s={"a": 1, "b": {"c": cells}}, t="text", e=np.zeros((0, 3)), i=np.int16([1]),
        sparse=scipy.sparse.csc_matrix(np.eye(300)),
    )  # fmt: skip
    read = mat5.variables(Path("m.mat"), content, ManifestError)
    expected = scipy.io.loadmat(io.BytesIO(content))
    assert read.keys() == expected.keys()
    assert np.array_equal(read["x"], expected["x"])
    assert [str(cell[0]) for cell in read["names"].ravel()[:2]] == ["a.mp4", "bb.mp4"]


def test_bytes_of_a_matlab_file_that_are_swapped_end_in_a_line(tmp_path):
    # SciPy 1.18 ends the process for some of these.
    content = bytearray(matlab(feats_mat=np.ones((12, 3)), s={"a": np.array(["x", "y"], object)}))
    rng = np.random.default_rng(0)
    path = tmp_path / "m.mat"
    for _ in range(300):
        changed = content.copy()
        for place in rng.integers(128, len(content), rng.integers(1, 4)):
            changed[place] = rng.choice([0, 1, 127, 255])
        path.write_bytes(changed)
        for read in (read_labels, lambda path: mat5.variables(path, path.read_bytes(), BankError)):
            with suppress(VqbankError):
                read(path)


# .npy


def npy(header, content=b""):
    text = header.encode() + b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def described(shape, kind="<f4", order="False"):
    return npy(f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}", bytes(64))


@pytest.mark.parametrize(
    "content",
    [
        described("(1000000000, 1000)"),
        described("(4, -4)"),
        described("(-1, 4)"),
        described(f"({2**62}, {2**62})"),
        described("(4, 4)", "|O"),
        described("(4, 4)", "<U4"),
        described("(0, 4)"),
        described("(4, True)"),
        described("4"),
        npy("(" * 9000),
        npy("{" * 500),
        npy("{'descr': '<f4'"),
        npy("-" * 9000 + "1"),
        npy("__import__('os').system('true')"),
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY",
        b"",
        b"\x80\x04]",
    ],
    ids=str,
)
def test_a_npy_file_that_is_none_or_lies_ends_in_a_line(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InvalidFeatureError, match=r"a\.npy[^\n]*$"):
        npy_feature(tmp_path / "a.npy")


def test_a_npy_file_with_holes_is_no_video(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        file.write(described(f"({MOST_ARRAY_BYTES // 4 + 1}, 1)"))
        file.truncate(MOST_ARRAY_BYTES + 1000)
    with pytest.raises(InvalidFeatureError, match=r"a\.npy holds .* one video has 536,870,912 at"):
        npy_feature(tmp_path / "a.npy")


def test_fortrans_order_of_a_npy_file_is_the_same_array(tmp_path):
    values = np.arange(12, dtype="f4").reshape(4, 3)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    assert np.array_equal(npy_feature(tmp_path / "a.npy").values, values)
