"""Every layout of label file is read by what stands in it, or refused with line and column."""

import re
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqbank.pipelines.labels import key_of, read_labels
from vqbank.pipelines.labels.label import parts_of
from vqbank.pipelines.labels.match import assumed_data_set, match
from vqbank.pipelines.labels.merge import agreement, merged
from vqbank.pipelines.labels.scenes import likely_pattern, scenes_by_name, scenes_by_pattern
from vqbank.pipelines.labels.videos import reconcile, videos_of
from vqbank.store.errors import ManifestError, RecipeError

FASTVQA = "set/a.mp4, 8.0, 29.97, 3.22\nset/b.mp4, -1, -1, 4.5\nset/c, d.mp4, 8.0, 30, 1.25\n"
FASTVQA = FASTVQA.replace("c, d", "c d")

CASES = Path(__file__).parent / "data" / "cases"


def write(tmp_path, text, name="x.txt", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def read(tmp_path, text, **options):
    return read_labels(write(tmp_path, text), **options)


def attempt(path):
    """The labels, or the message that refuses them."""
    try:
        return read_labels(path)
    except ManifestError as error:
        return str(error)


def assert_right_or_refused(path, whole):
    found = attempt(path)
    if isinstance(found, str):
        assert path.name in found
        return
    *rows, last = rated(found)
    assert rows == whole[: len(rows)]
    if last != whole[len(rows)]:  # cut within its last number, which is told
        assert any("has no line end" in note for note in found.notes)
        assert last[0] == whole[len(rows)][0]


def rated(labels):
    return [(row.name, row.mos) for row in labels.rows]


# Layouts, one by one


def test_fastvqas_labels_have_no_header(tmp_path):
    labels = read(tmp_path, FASTVQA)

    assert rated(labels) == [("set/a.mp4", 3.22), ("set/b.mp4", 4.5), ("set/c d.mp4", 1.25)]
    assert "FAST-VQA" in labels.layout


def test_maxwells_labels_of_the_same_shape_are_told_apart_by_their_numbers(tmp_path):
    labels = read(tmp_path, "a.mp4, 3.1, 2.9, 3.0\nb.mp4, 1.5, 1.25, 1.3\n")

    assert labels.mos.tolist() == [3.0, 1.3]
    assert labels.rows[0].other_scores == {"T-all": 3.1, "A-all": 2.9}
    assert "MaxWell" in labels.layout
    assert read(tmp_path, "a.mp4,3.1,2.9,3.0\nb.mp4,1.5,2,1\n", score="A-all").mos[0] == 2.9


def test_a_file_is_maxwells_only_where_every_score_is_one(tmp_path):
    labels = read(tmp_path, "a.mp4, 8.0, 4, 3.0\nb.mp4, 8.5, 5, 1.3\n")

    assert "FAST-VQA" in labels.layout
    assert "FAST-VQA" in read(tmp_path, "a.mp4, 3.1, 2.9, 3.0\nb.mp4, 1.5, 1.25, 72\n").layout


@pytest.mark.parametrize("numbers", [(0, 1, 2), (0, 7, 40)])
def test_the_index_that_pandas_writes_is_no_column(tmp_path, numbers):
    rows = "".join(f"{number},{name},3.5\n" for number, name in zip(numbers, "abc", strict=True))
    labels = read(tmp_path, f",video,mos\n{rows}")

    assert rated(labels) == [("a", 3.5), ("b", 3.5), ("c", 3.5)]
    assert "row numbers before it" in labels.layout


def test_names_of_digits_need_no_header(tmp_path):
    labels = read(tmp_path, "3339962845,4.64\n5319047612,3.5\n")

    assert rated(labels) == [("3339962845", 4.64), ("5319047612", 3.5)]
    assert "column 1 holds names of digits" in labels.notes


def test_four_columns_that_are_neither_are_refused_with_line_and_column(tmp_path):
    with pytest.raises(ManifestError, match=r"x.txt:2, column 3: -2 is not frames per second"):
        read(tmp_path, "a.mp4, 8.0, 29.97, 3.0\nb.mp4, 1.5, -2, 1.3\n")
    with pytest.raises(ManifestError, match=r"x.txt:1, column 2: 0 is not a duration in seconds"):
        read(tmp_path, "a.mp4, 0, 29.97, 3.0\nb.mp4, 1.5, 4, 1.3\n")


def test_one_slow_video_does_not_make_a_file_maxwells(tmp_path):
    labels = read(tmp_path, "a.mp4, 20, 4, 2.778\nb.mp4, 20, 30, 4.4\n")

    assert "FAST-VQA" in labels.layout
    assert labels.mos.tolist() == [2.778, 4.4]


def test_maxwells_csv_names_no_videos_so_rows_are_called_by_number(tmp_path):
    labels = read(tmp_path, "O,A-1,A-all,T-1,T-all\n3.5,0.1,3.25,-0.5,2.5\n1.5,0,1,0,2\n")

    assert rated(labels) == [("row-0001", 3.5), ("row-0002", 1.5)]
    assert not labels.named
    assert labels.rows[0].other_scores == {"A-1": 0.1, "A-all": 3.25, "T-1": -0.5, "T-all": 2.5}


@pytest.mark.parametrize(
    ("header", "row", "name", "mos"),
    [
        ("flickr_id,mos", "3339962845,4.64", "3339962845", 4.64),
        ("flickr_id,width,file_name,MOS", "33,960,33_a.mp4,4.5", "33_a.mp4", 4.5),
        ("File,MOS,width,height", "A001.mp4,80.232,1920,1080", "A001.mp4", 80.232),
        (
            "vid,category,x_Subjects,MOSFull,MOSChunk00,stdFull,stdChunk00,nb_frames",
            "Animation_1080P-01b3,Animation,125,3.649,3.604,0.468,0.574,NaN",
            "Animation_1080P-01b3", 3.649,
        ),
        ("ref_name,dist_name,dmos", "1600.png,1600.AWGN.1.png,0.06", "1600.AWGN.1.png", 0.06),
        (
            "img_name,mos,std,split,c1,c_total",
            "10004473376.jpg,77.38,0.52,training,0.0,105", "10004473376.jpg", 77.38,
        ),
        ("filename,score", "train/0001.mp4,3.36", "train/0001.mp4", 3.36),
        ("video_name,video_score", "orig_1.mp4,2.5", "orig_1.mp4", 2.5),
        ("videoName,MOS,std", "Beauty_q_27,55.1,9.5", "Beauty_q_27", 55.1),
        ("filename,MOS,std", "a.webm,-2,1", "a.webm", -2.0),
        ("file_name,MOS", "a.mp4,3", "a.mp4", 3.0),
        (
            "Encoder,Video Number,Resolution,Distortion Level,MOS,path",
            "AV1,3,960x540,2,61.5,AV1/3_2.mp4", "AV1/3_2.mp4", 61.5,
        ),
        ("name,mos,std", "a.jpg,3.5,0.5", "a.jpg", 3.5),
    ],
)  # fmt: skip
def test_columns_mean_what_their_names_say(tmp_path, header, row, name, mos):
    labels = read(tmp_path, f"{header}\n{row}\n")

    assert rated(labels) == [(name, mos)]
    deviations = {
        "Beauty_q_27": 9.5, "a.webm": 1, "a.jpg": 0.5, "10004473376.jpg": 0.52,
        "Animation_1080P-01b3": 0.468,
    }  # fmt: skip
    assert labels.rows[0].std == deviations.get(name)
    counts = {"10004473376.jpg": 105, "Animation_1080P-01b3": 125}
    assert labels.rows[0].ratings == counts.get(name)


def test_lsvqs_quoted_lists_and_test_flags(tmp_path):
    text = (
        "name,p1,mos_p1,mos,is_test,is_valid\n"
        'yfcc-batch1/722,"[263, 1031]",68.5,78.75,True,False\n'
        'ia-batch2/722,"[0, ""x"", 9]",60.5,70.25,False,True\n'
    )
    labels = read(tmp_path, text)

    assert rated(labels) == [("yfcc-batch1/722", 78.75), ("ia-batch2/722", 70.25)]
    assert [row.part for row in labels.rows] == ["test", "train"]
    assert labels.rows[0].other_scores == {"mos_p1": 68.5}


def test_cvd2014s_realignment_has_a_decimal_comma_and_two_scores(tmp_path):
    text = (
        "Content;File_name;Original MOS;Realignment MOS;;\r\n"
        "City;Test01_City_D01;71,17;67,29;;\r\n"
        "Talking head;Test06_Talking_head_D01;22,41;14,9;;\r\n;;;;;\r\n"
    )
    labels = read(tmp_path, text)
    original = read(tmp_path, text, score="Original MOS")

    assert rated(labels) == [("Test01_City_D01", 67.29), ("Test06_Talking_head_D01", 14.9)]
    assert labels.kind == "CVD2014's realigned MOS"
    assert original.mos.tolist() == [71.17, 22.41]
    assert original.kind == "CVD2014's original MOS"
    assert [row.scene for row in labels.rows] == ["City", "Talking head"]


def test_pyiqas_split_columns_and_official_part(tmp_path):
    labels = read(
        tmp_path,
        "name,mos,std,official_split,ratio802_seed123_split01\n"
        "a.jpg,3,1,train,test\nb.jpg,4,1,val,train\nc.jpg,5,1,test,val\n",
    )

    assert [row.part for row in labels.rows] == ["train", "validation", "test"]
    assert labels.split_columns == {"ratio802_seed123_split01": ("test", "train", "validation")}


def test_unscored_rows_and_counts_of_ratings(tmp_path):
    labels = read(tmp_path, "filename,score,n_ratings\na.mp4,,\nb.mp4,2.5,31\n")

    assert [(row.mos, row.ratings) for row in labels.rows] == [(None, None), (2.5, 31)]
    with pytest.raises(ManifestError, match=r"x.txt:2: a.mp4 has no score"):
        _ = labels.mos


@pytest.mark.parametrize("text", ["a.mp4 3.5\nb.mp4\t2\n", "3.5,a.mp4\n2,b.mp4\n"])
def test_two_columns_are_a_name_and_a_score_in_either_order(tmp_path, text):
    if "\t" in text:
        text = text.replace("\t", "  ")
    assert rated(read(tmp_path, text)) == [("a.mp4", 3.5), ("b.mp4", 2.0)]


def test_what_nobody_has_to_use_may_be_missing_and_the_score_may_not(tmp_path):
    text = "vid,MOSFull,MOSChunk10,stdFull\na,3.5,NaN,0.5\nb,2.5,1.5,NA\n"
    rows = read(tmp_path, text).rows

    assert [(row.mos, row.std) for row in rows] == [(3.5, 0.5), (2.5, None)]
    assert [dict(row.other_scores) for row in rows] == [{}, {"MOSChunk10": 1.5}]
    with pytest.raises(ManifestError, match=r"x.txt:2, column 3 \(MOSChunk10\) is 'NaN'"):
        read(tmp_path, text, score="MOSChunk10")


def test_a_deviation_belongs_to_the_main_score_only(tmp_path):
    text = "vid,MOSFull,MOSChunk10,stdFull\na,3.5,3.25,0.5\nb,2.5,1.5,0.25\n"

    assert [row.std for row in read(tmp_path, text, score="MOSFull").rows] == [0.5, 0.25]
    assert [row.std for row in read(tmp_path, text, score="MOSChunk10").rows] == [None, None]


# MATLAB


def cells(texts):
    return np.array([[text] for text in texts], dtype=object)


def orders(rng, values, count=4):
    return np.stack([rng.permutation(values) for _ in range(count)])


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(
    ("names", "scores"), [("video_names", "scores"), ("video_list", "mos"), ("video_list", "MOS")]
)
def test_simplevqas_index_holds_row_numbers_from_0(tmp_path, names, scores, across):
    index = orders(np.random.default_rng(0), np.arange(3)).astype(np.uint16)
    mos = np.array([1.5, 2.5, 3.25])
    content = {
        names: cells(["a.mp4", "b.mp4", "c.mp4"]),
        scores: mos[None] if across else mos[:, None],
        "index": index,
    }
    scipy.io.savemat(tmp_path / "x.mat", content, do_compression=across)
    labels = read_labels(tmp_path / "x.mat")

    assert rated(labels) == [("a.mp4", 1.5), ("b.mp4", 2.5), ("c.mp4", 3.25)]
    assert labels.orders.meaning == "row numbers from 0"
    assert np.array_equal(labels.orders.orders, index)


def save_73(path, *, names, scores, index, ref_ids):
    """As MATLAB does: 512 bytes before the HDF5, axes reversed, cells as references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references = np.empty((1, len(names)), dtype=h5py.ref_dtype)
        for row, name in enumerate(names):
            codes = np.frombuffer(name.encode("utf-16-le"), "<u2")[:, None]
            item = file.create_dataset(f"#refs#/{row}", data=codes)
            item.attrs["MATLAB_class"] = np.bytes_("char")
            references[0, row] = item.ref
        file.create_dataset("video_names", data=references).attrs["MATLAB_class"] = np.bytes_(
            "cell"
        )
        file["scores"] = np.array(scores)[None]
        file["index"] = index.T.astype(np.float64)
        file["ref_ids"] = np.array(ref_ids, np.float64)[None]
        file["max_len"] = np.array([[830.0]])
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def test_vsfas_index_holds_reference_ids_from_1(tmp_path):
    path = tmp_path / "x.mat"
    index = orders(np.random.default_rng(0), np.arange(1, 3), count=5)
    save_73(
        path, names=["ü/a.mp4", "b.mp4", "c.mp4"], scores=[1.5, 2, 3], index=index,
        ref_ids=[2, 1, 2],
    )  # fmt: skip
    labels = read_labels(path)

    assert rated(labels) == [("ü/a.mp4", 1.5), ("b.mp4", 2.0), ("c.mp4", 3.0)]
    assert labels.orders.meaning == "reference ids"
    assert labels.orders.groups.tolist() == [1, 0, 1]
    assert np.array_equal(labels.orders.orders, index - 1)
    assert [row.scene for row in labels.rows] == ["2", "1", "2"]


def test_reference_ids_that_differ_in_every_row_are_what_an_index_orders(tmp_path):
    index = orders(np.random.default_rng(0), np.arange(1, 5), count=3)
    save_73(
        tmp_path / "x.mat", names=["a", "b", "c", "d"], scores=[1.5, 2, 3, 4], index=index,
        ref_ids=[3, 1, 4, 2],
    )  # fmt: skip
    labels = read_labels(tmp_path / "x.mat")

    assert labels.orders.meaning == "reference ids"
    assert labels.orders.groups.tolist() == [2, 0, 3, 1]
    assert np.array_equal(labels.orders.orders, index - 1)


def test_an_index_that_orders_other_rows_is_not_used_and_says_so(tmp_path):
    content = {
        "video_names": cells(["a", "b", "c"]),
        "scores": np.array([1, 2, 3]),
        "index": np.array([[5, 6, 7], [7, 5, 6]]),
        "name": "a set",
    }
    scipy.io.savemat(tmp_path / "x.mat", content)
    labels = read_labels(tmp_path / "x.mat")

    assert labels.orders is None
    assert any("from 5 to 7 it holds no orders of these 3" in note for note in labels.notes)


def test_live_qualcomms_structs_are_looked_into(tmp_path):
    names = ["0723_ManUnderTree_GS5_03_20150723_130016.yuv", "0911panGarden_Note4_20150911_15.yuv"]
    content = {
        "qualcommSubjectiveData": {
            "unBiasedMOS": np.array([[51.5], [40]]),
            "biasedMOS": [[1], [2]],
        },
        "qualcommVideoData": {
            "vidNames": cells(names),
            "distortionNames": cells(["Artifacts", "Color", "Focus"]),
            "distortionType": np.array([[1], [2]]),
        },
    }
    scipy.io.savemat(tmp_path / "x.mat", content)
    labels = read_labels(tmp_path / "x.mat")

    assert rated(labels) == [(names[0], 51.5), (names[1], 40.0)]
    assert labels.rows[0].other_scores == {"biasedMOS": 1.0}
    assert [row.scene for row in labels.rows] == ["0723manundertree", "0911pangarden"]


def test_an_array_of_structs_is_a_table(tmp_path):
    rows = np.array([("a.mp4", 1.5), ("b.mp4", 2.5)], dtype=[("name", object), ("mos", object)])
    scipy.io.savemat(tmp_path / "x.mat", {"data": rows})

    assert rated(read_labels(tmp_path / "x.mat")) == [("a.mp4", 1.5), ("b.mp4", 2.5)]


# VMAF

VMAF = """import os
dataset_name = 'set'
width = 1920
folder = '/data/' + dataset_name
ref_videos = [{'content_id': 0, 'path': resource('x')}]
dis_videos = [
    {'content_id': 0, 'asset_id': 0, 'dmos': 72.5, 'path': folder + '/a.yuv'},
    {'content_id': 0, 'asset_id': 1, 'dmos': -1, 'path': f'{folder}/b.yuv'},
    {'content_id': 4, 'asset_id': 2, 'dmos': 30, 'path': 'c.yuv'},
]
"""


def test_vmafs_modules_are_read_and_never_run(tmp_path):
    labels = read(tmp_path, VMAF)

    assert rated(labels) == [("/data/set/a.yuv", 72.5), ("/data/set/b.yuv", -1.0), ("c.yuv", 30.0)]
    assert [row.scene for row in labels.rows] == ["0", "0", "4"]
    with pytest.raises(ManifestError, match=r"x.txt:9:58: `resource\('c'\)` would have to be run"):
        read(tmp_path, VMAF.replace("'c.yuv'", "resource('c')"))


@pytest.mark.parametrize(
    "more",
    [
        "dis_videos += [{'path': 'd.yuv', 'dmos': 1}]",
        "dis_videos.append({'path': 'd.yuv', 'dmos': 1})",
        "for n in range(3): dis_videos.append({'path': str(n), 'dmos': n})",
        "dis_videos = [{'path': 'd.yuv', 'dmos': 1}]",
        "dis_videos = dis_videos + [{'path': 'd.yuv', 'dmos': 1}]",
        "also = dis_videos",
    ],
)
def test_vmafs_videos_stand_in_one_statement_or_the_file_is_refused(tmp_path, more):
    with pytest.raises(ManifestError, match=r"x.txt:11:1: `.*` would have to be run"):
        read(tmp_path, VMAF + more + "\n")


def test_vmafs_list_may_have_a_type(tmp_path):
    typed = VMAF.replace("dis_videos =", "dis_videos: list[dict] =")

    assert rated(read(tmp_path, typed)) == rated(read(tmp_path, VMAF))
    with pytest.raises(ManifestError, match=r"x.txt:1:1: `dis_videos \+= "):
        read(tmp_path, "dis_videos += [{'path': 'd.yuv', 'dmos': 1}]\n")


@pytest.mark.parametrize(
    "between",
    ["folder += '/more'", "folder = resource('y')", "if width:\n    folder = '/other'"],
)
def test_vmafs_variables_that_may_have_changed_are_not_used(tmp_path, between):
    changed = VMAF.replace("ref_videos", f"{between}\nref_videos")

    with pytest.raises(ManifestError, match="`folder` would have to be run"):
        read(tmp_path, changed)


@pytest.mark.parametrize("path", ["f'{width:05d}.yuv'", "f'{folder!r}.yuv'", "'%s.yuv' % folder"])
def test_what_formats_a_vmaf_path_is_refused_and_never_dropped(tmp_path, path):
    with pytest.raises(ManifestError, match=r"would have to be run"):
        read(tmp_path, VMAF.replace("'c.yuv'", path))
    with pytest.raises(ManifestError, match=r"x.txt:9:5: `.*` would have to be run"):
        read(tmp_path, VMAF.replace("'path': 'c.yuv'", "'path': 'c.yuv', **base"))


def test_vmafs_raw_scores_become_mean_deviation_and_number(tmp_path):
    text = "dis_videos = [{'path': 'a', 'os': [1, 2, 3]}, {'path': 'b', 'os': {'x': 4, 'y': 4}}]\n"
    rows = read(tmp_path, text).rows

    assert [(row.mos, row.std, row.ratings) for row in rows] == [(2.0, 1.0, 3), (4.0, 0.0, 2)]


# What fits none, or two


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.txt is empty"),
        ("a.mp4\nb.mp4\n", r"x.txt:1: 'a.mp4' is one cell"),
        ("name,quality\na,3\n", r"x.txt:1 fits no layout: no column holds scores.*'quality'"),
        ("clip,mos\na,3\n", r"x.txt:1 fits no layout: no column names the videos.*'clip', 'mos'"),
        ("name,mos,score\na,3,4\n", r"x.txt:1 fits two layouts: 'mos' and 'score' may be"),
        ("name,filename,mos\na,b,4\n", r"x.txt:1 fits two layouts: 'name' and 'filename'"),
        ("name,mos,mos\na,3,4\n", r"x.txt:1, column 3: 'mos' stands in the header twice"),
        ("name,mos,\na,3,4\n", r"x.txt:1, column 3 has cells and no name"),
        ("name,mos\n", r"x.txt rates no videos"),
        ("name,mos\na,3\nb,4,5\n", r"x.txt:3: 3 cells with comma between them, and 2 in line 1"),
        ("name,mos\na,3\n\nb,four\n", r"x.txt:4, column 2 \(mos\) is 'four', which is no finite"),
        ("name,mos\na,3\nb,nan\n", r"x.txt:3, column 2 \(mos\) is 'nan'"),
        ("name,mos\na,3\nb,-inf\n", r"x.txt:3, column 2 \(mos\) is '-inf'"),
        ("name,mos\na,1_0\n", r"x.txt:2, column 2 \(mos\) is '1_0'"),
        ("name;mos\na;1,5\nb;2.5\n", r"x.txt:2, column 2 \(mos\): '1,5' has a decimal comma"),
        ("a.mp4,nan\nb.mp4,3\n", r"x.txt:1 fits no layout"),
        ("a.mp4,3\nb.mp4,nan\n", r"x.txt:2, column 2 is 'nan'"),
        ("a,8,30,3\nb,8,30,NaN\n", r"x.txt:2, column 4 is 'NaN'"),
        ("name,mos\na,3\nb,4\na,3\n", r"x.txt:4, column 1 \(name\): video 'a' is rated in \S+:2 "),
        ("name,mos\n./a.mp4,3\nA.mp4,4\n", r"x.txt:3, .*'A.mp4' is rated in \S+:2 .*as './a.mp4'"),
        ("s\\a.mp4,3\ns/a.mp4,4\n", r"x.txt:2, column 1: .* is rated in \S+:1 already, as 's.*a"),
        ("name,mos\n,3\n", r"x.txt:2, column 1 \(name\) is empty"),
        (",mos\n0,3\n1,4\n", r"x.txt:1 fits no layout: no column names the videos"),
        (",name,mos\n7,a,3\n7,b,4\n", r"x.txt:1, column 1 has cells and no name in the header"),
        ("name,mos,std\na,3,-1\n", r"x.txt:2, column 3 \(std\): a standard deviation is not -1"),
        ("name,mos,votes\na,3,1.5\n", r"x.txt:2, column 3 \(votes\): a number of ratings is not"),
        ("name,mos,split\na,3,train\nb,3,tset\n", r"x.txt:3, column 3 \(split\): 'tset' is no"),
        ("1,2\n3,4\n", r"x.txt:1 fits no layout: .* hold numbers, numbers"),
        ("a,1,2,3,4\nb,1,2,3,4\n", r"its 5 columns hold text, numbers, numbers, numbers, numbers"),
        ('name,mos\n"a,3\nb,4\n', r"x.txt:3: unexpected end of data"),
        ("a.mp4;1,5\nb.mp4;2,5\n", r"x.txt fits two layouts"),
        (b"name,mos\nb\x00,3\n", r"x.txt:2:2: character '\\x00' has no place"),
        (b"\x00\x00\x00\x18ftyp\xe9", r"x.txt is no text but a video or other data; give the file"),
        ("name,mos\nü,3\n".encode("latin-1"), r"x.txt:2:1: byte 0xfc is no UTF-8 text; if .*iconv"),
        (b"\x80\x04}", "x.txt is a pickle"),
        (b"PK\x03\x04xl", "x.txt is a zip archive or a spreadsheet"),
        (b"MATLAB 5.0 MAT", "x.txt is cut off: it has 14 bytes"),
        ("dis_videos = [\n", r"x.txt:\d: this is no Python"),
        ("dis_videos = [{'path': 'a'}]\n", r"x.txt:1:15: a distorted video has a path and one of"),
    ],
)  # fmt: skip
def test_what_fits_no_layout_or_two_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_or_has_no_such_column_says_so(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read: No such file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match=r"unknown column 'mso'\. Did you mean 'mos'"):
        read(tmp_path, "name,mos\na,3\n", score="mso")


def test_a_mat_without_scores_or_with_others_of_them_is_refused(tmp_path):
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"video_names": cells(["a", "b"]), "index": np.eye(2)})
    with pytest.raises(ManifestError, match="no column holds scores"):
        read_labels(path)
    scipy.io.savemat(path, {"video_names": cells(["a", "b"]), "scores": [1.0, 2.0, 3.0]})
    with pytest.raises(ManifestError, match="scores has 3 rows and there are 2 names"):
        read_labels(path)
    scipy.io.savemat(path, {"feats_mat": np.eye(4)})
    with pytest.raises(ManifestError, match=r"without a list of names; it has feats_mat \[4 x 4\]"):
        read_labels(path)
    scipy.io.savemat(path, {"video_names": cells(["a", "b"]), "scores": [1.0, np.nan]})
    with pytest.raises(ManifestError, match=r"x.mat: scores\(2\) is 'nan'"):
        read_labels(path)


# Damage

TEXTS = {
    "fastvqa": FASTVQA,
    "columns": "filename,score\na.mp4,1.25\nb.mp4,2.5\nc.mp4,3\n",
    "realigned": "File_name;MOS;;\nx_1;1,25;;\nx_2;2,5;;\nx_3;13,5;;\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_cut_off_anywhere_is_read_right_or_refused(tmp_path, text):
    whole = rated(read(tmp_path, text))
    for length in range(len(text)):
        assert_right_or_refused(write(tmp_path, text[:length]), whole)


@pytest.mark.parametrize("version", ["5", "5 compressed", "7.3"])
def test_a_mat_cut_off_anywhere_is_refused(tmp_path, version):
    path = tmp_path / "whole.mat"
    names = [f"clip_{number}.mp4" for number in range(40)]
    scores = np.linspace(1, 5, 40)
    if version == "7.3":
        index = orders(np.random.default_rng(0), np.arange(1, 41))
        save_73(path, names=names, scores=scores, index=index, ref_ids=np.arange(1, 41))
    else:
        content = {"scores": scores, "video_names": cells(names)}
        scipy.io.savemat(path, content, do_compression="compressed" in version)
    whole = path.read_bytes()

    assert len(read_labels(path)) == 40
    for length in [*range(0, len(whole), len(whole) // 60), *range(len(whole) - 9, len(whole))]:
        found = attempt(write(tmp_path, whole[:length]))
        assert isinstance(found, str), length
        assert "x.txt" in found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, text, ending, encoding):
    path = write(tmp_path, text.replace("\n", ending), encoding=encoding)

    assert rated(read_labels(path)) == rated(read(tmp_path, text))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(st.sampled_from("ab.,;\t|\n\"' 0129-eémos"), max_size=60))
def test_no_text_at_all_ends_in_another_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, encoding="utf-8", newline="")
    found = attempt(path)
    if isinstance(found, str):
        assert "any.txt" in found
    else:
        assert len({row.name for row in found.rows}) == len(found) > 0


@settings(max_examples=100)
@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=["C", "Z"]), max_size=9).map("v{}".format),
        min_size=2, max_size=8, unique_by=parts_of,
    ),
    scores=st.lists(st.floats(-100, 100).map(lambda x: round(x, 4)), min_size=8, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
)  # fmt: skip
def test_what_csv_writes_is_read_back(tmp_path_factory, names, scores, delimiter):
    import csv

    path = tmp_path_factory.getbasetemp() / "written.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["file name", "MOS"])
        writer.writerows(zip(names, scores, strict=False))

    assert rated(read_labels(path)) == list(zip(names, scores, strict=False))


# Names, scenes, agreement


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/B.MP4", "b"),
        (r"a\b.avi", "b"),
        ("clip_0.5", "clip_0.5"),
        ("3339962845.0", "3339962845"),
        ("8536919744_original_centercrop_960x540_8s.mp4", "8536919744"),
        ("5319047612_cut_centercrop_960x540_8s.mp4", "5319047612"),
        ("Sports_2160P-4e9f_crf_10_ss_00_t_20.0.mp4", "sports_2160p-4e9f"),
        (".mp4", ".mp4"),
    ],
)
def test_a_key_is_what_sources_have_in_common(name, key):
    assert key_of(name) == key


def test_names_match_by_as_much_as_both_state():
    found = match(
        ["set/b1/722", "set/b2/722", "set/b2/9", "set/x/City_D01", "set/b7/5"],
        ["b2/722.mp4", "b1/722.mp4", "b3/9.mp4", "x/y/City_D01.avi", "b7/5.mp4", "b7/5.avi"],
    )

    assert found.pairs == ((0, 1), (1, 0), (3, 3))
    assert found.only_one == (2,)  # b2/9 is not b3/9
    assert found.only_two == (2,)
    assert found.unclear == ((4, (4, 5)),)


def test_parts_are_not_dropped_as_common_folders():
    assert match(["train/0001.mp4"], ["test/0001.mp4"]).pairs == ()
    assert match(["KoNViD_1k_videos/1.mp4"], ["1"]).pairs == ((0, 0),)


def test_names_are_of_one_data_set_that_is_named_where_they_do_not_state_it():
    ids = ["kvq/train/0000.mp4", "kvq/train/0001.mp4", "vqc/A.mp4"]

    def assumed(*names):
        return assumed_data_set(match(names, ids), names, ids)

    assert assumed("0000.mp4", "0001.mp4") == "kvq"
    assert assumed("KVQ/train/0000.mp4", "vqc/a.mp4") == ""
    assert assumed("kvq/0000.mp4", "x/9.mp4") == ""
    with pytest.raises(ManifestError, match=r"0000.mp4 fits kvq/train.*, and a.mp4 fits vqc"):
        assumed("0000.mp4", "a.mp4")


def test_scenes_follow_stated_rules_or_nothing_is_grouped():
    kvq = [f"train/{number:04d}.mp4" for number in range(1, 15)]

    assert scenes_by_name(kvq).scenes == ("train-001",) * 7 + ("train-002",) * 7
    assert scenes_by_name(kvq[:13]) is None
    assert scenes_by_name(["Test1/City/Test01_City_D01.avi", "Test06_Talking_head_D02"]).scenes == (
        "City", "Talking head",
    )  # fmt: skip
    assert scenes_by_name(["Test01_City_D01", "other"]) is None
    qualcomm = [
        "Color/0912_CheerLeader1_Nokia1080_20130306_17_46_21_Pro.yuv",
        "Color/0912_Cheerleader1_iphone_IMG_0184.yuv",
        "Stabilization/1019_SkateBoarderStepsOut_HTCOneVX.yuv",
        "Sharpness/0826_TrainPullsAway_LG_G2_CAM00726.yuv",
        "Artifacts/0911nightScene_1020_WindowsPhone_20130305_21_59_44_Pro.mp4",
        "0911nightScene_5s_IMG_0160",
    ]
    assert scenes_by_name(qualcomm).scenes == (
        "0912cheerleader1", "0912cheerleader1", "1019skateboarderstepsout",
        "0826trainpullsaway", "0911nightscene", "0911nightscene",
    )  # fmt: skip
    assert scenes_by_name(["a.mp4"]) is None


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [("train_video/", ""), ("", ".mp4"), ("KVQ/", ".mp4"), ("", ""), ("kvq\\train\\", ".MP4")],
)
def test_kvqs_scenes_are_found_under_any_folder_with_or_without_suffix(folder, suffix):
    names = [f"{folder}{number:04d}{suffix}" for number in range(1, 15)]
    found = scenes_by_name(names)

    assert len(set(found.scenes)) == 2
    assert found.scenes[0:7] == (found.scenes[0],) * 7
    assert "guess" in found.caution
    assert scenes_by_name(names[1:]) is None
    two = [f"train/{number:04d}" for number in range(1, 8)]
    assert len(set(scenes_by_name([*two, *(n.replace("train", "val") for n in two)]).scenes)) == 2


@pytest.mark.parametrize(
    ("name", "rows", "scenes"),
    [("labels_kvq_names.csv", 14, [7, 7]), ("labels_game_names.csv", 6, [3, 3])],
)
def test_names_of_kvq_and_of_live_yt_gaming_tell_their_scenes(name, rows, scenes):
    labels = read_labels(CASES / name)

    assert len(labels) == rows
    assert list(Counter(row.scene for row in labels.rows).values()) == scenes


def test_numbers_behind_names_are_no_games_where_none_has_several():
    assert scenes_by_name(["Chess-001", "Racing-001", "Golf-001"]) is None
    assert scenes_by_name(["Chess-001", "Chess-002"]) is None
    assert scenes_by_name(["2019-001", "2019-002", "2020-001", "2020-002"]) is None


def test_several_patterns_are_tried_in_turn_and_a_name_may_be_its_own_scene():
    names = ["a_1", "b-2", "odd"]

    found = scenes_by_pattern(names, [r"(\w)_\d", r"(\w)-\d"], fallback=True)
    assert found.scenes == ("a", "b", "odd")
    assert found.rule.endswith("; 1 names are scenes of their own")
    assert scenes_by_pattern(names[:2], [r"(\w)_\d", r"(\w)-\d"]).scenes == ("a", "b")


def test_scenes_that_a_file_states_go_before_those_of_its_names(tmp_path):
    names = [f"train/{number:04d}.mp4" for number in range(1, 15)]
    stated = "".join(f"{name},3,{row // 2}\n" for row, name in enumerate(names))
    labels = read(tmp_path, f"filename,mos,content_id\n{stated}")

    assert [row.scene for row in labels.rows] == [str(row // 2) for row in range(14)]
    assert labels.scene_rule == "column content_id"
    guessed = read(tmp_path, "filename,mos\n" + "".join(f"{name},3\n" for name in names))
    assert [row.scene for row in guessed.rows] == ["train-001"] * 7 + ["train-002"] * 7
    assert "a guess from names that any data set may have" in guessed.scene_note
    assert not labels.scene_note


@pytest.mark.parametrize("suffix", ["mkv", "webm", "y4m", "YUV"])
def test_scenes_do_not_depend_on_the_container(suffix):
    names = [f"Test01_City_D01.{suffix}", f"Test06_Talking_head_D02.{suffix}"]

    assert scenes_by_name(names).scenes == ("City", "Talking head")


def test_a_pattern_groups_and_a_hint_offers_one():
    names = [f"x/{content}_{crf}.mp4" for content in "abc" for crf in (20, 30)]
    pattern = likely_pattern(names)

    assert scenes_by_pattern(names, [pattern]).scenes == ("a", "a", "b", "b", "c", "c")
    assert likely_pattern(["a_1.mp4", "b_1.mp4"]) is None
    with pytest.raises(RecipeError, match=r"finds no scene in 2 of 3 names: x, z; give another"):
        scenes_by_pattern(["x", "y", "z"], ["(y)"])
    with pytest.raises(RecipeError, match="has no group"):
        scenes_by_pattern(["x"], ["x"])
    with pytest.raises(RecipeError, match="is no regular expression"):
        scenes_by_pattern(["x"], ["("])


CVD = ["Test01_City_D01", "Test03_City_D01", "Test05_Television_D01"]


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ((71.17, 57.75, 5.0), "CVD2014's original MOS"),
        ((71, 57, 5), "CVD2014's original MOS, cut to whole numbers"),
        ((67.29, 34.75, 11.45), "CVD2014's realigned MOS"),
        ((3.1, 2.0, 1.0), ""),
    ],
)
def test_the_kind_of_cvd2014s_mos_is_named(tmp_path, scores, kind):
    text = "".join(f"{name},{score}\n" for name, score in zip(CVD, scores, strict=True))

    labels = read(tmp_path, f"name,mos\n{text}")

    assert labels.kind == kind
    assert bool(kind) != any("neither its original nor its" in note for note in labels.notes)


def test_two_kinds_of_mos_are_never_mixed(tmp_path):
    with pytest.raises(ManifestError, match=r"mixes two kinds of MOS: Test01_City_D01 \(.*:2\)"):
        read(tmp_path, f"name,mos\n{CVD[0]},71.17\n{CVD[1]},34.75\n")
    one = read(tmp_path, f"name,mos\n{CVD[0]},71.17\n")
    two = read(tmp_path, f"name,mos\n{CVD[1]},34.75\n")

    with pytest.raises(ManifestError, match=r"original MOS, and .* realigned MOS; they cannot"):
        merged([one, two])


def test_files_that_agree_are_joined_and_fill_each_other_in(tmp_path):
    one = read(tmp_path, "name,mos,std\nset/a.mp4,3.5,\nset/b.mp4,,0.5\n")
    two = read(tmp_path, "name,mos,votes,split\nb,2,9,test\nc,1,8,train\na,3.50005,7,train\n")
    rows = merged([one, two]).rows

    assert agreement(one, two).compared == 1
    assert [(r.name, r.mos, r.std, r.ratings, r.part) for r in rows] == [
        ("set/a.mp4", 3.5, None, 7, "train"),
        ("set/b.mp4", 2.0, 0.5, 9, "test"),
        ("c", 1.0, None, 8, "train"),
    ]


def test_files_without_a_shared_score_are_joined_with_a_caution_or_refused(tmp_path):
    one = read_labels(write(tmp_path, "name,mos\na,1\nb,5\n", "one.csv"))
    near = read_labels(write(tmp_path, "name,mos\nc,0\nd,90\n", "near.csv"))
    far = read_labels(write(tmp_path, "name,mos\ne,20\nf,90\n", "far.csv"))
    unscored = read_labels(write(tmp_path, "name,mos\ng,\nh,\n", "test.csv"))

    (caution,) = merged([one, near, unscored]).cautions
    assert "from 1 to 5" in caution
    assert "from 0 to 90, and no video is scored in both: nothing shows" in caution
    with pytest.raises(ManifestError, match=r"from 1 to 5, .*from 20 to 90, .* are two scales"):
        merged([one, far])


def test_a_name_that_may_be_one_of_two_is_not_joined(tmp_path):
    one = read(tmp_path, "name,mos\n1.mp4,3\n2.mp4,4\n")
    two = read_labels(write(tmp_path, "name,mos\na/1.mp4,3\nb/1.mp4,3\n", "two.csv"))

    with pytest.raises(ManifestError, match=r"x.txt:2: 1.mp4 may be a/1.mp4 or b/1.mp4 of"):
        merged([one, two])
    both = agreement(one, two)
    assert (both.shared, both.unclear) == (0, "1.mp4 may be a/1.mp4 or b/1.mp4")


def test_files_that_disagree_are_refused_with_both_places(tmp_path):
    one = read_labels(write(tmp_path, "name,mos\na,3.5\nb,1\n", "one.csv"))
    two = read_labels(write(tmp_path, "name,mos,mos_raw\na,3.6,3.5\nb,1,1\n", "two.csv"))

    message = r"a has 3.5 in \S+one.csv:2 and 3.6 in \S+two.csv:2; 1 of 2 .* column 'mos_raw' of"
    with pytest.raises(ManifestError, match=message):
        agreement(one, two)


def test_a_file_without_names_is_neither_compared_nor_joined(tmp_path):
    named = read(tmp_path, "name,mos\na,3.5\n")
    unnamed = read(tmp_path, "O,A-all,T-all\n3,3,3\n")

    with pytest.raises(ManifestError, match="names no videos, so it can neither"):
        merged([named, unnamed])


def test_labels_and_files_are_reconciled(tmp_path):
    for name in ("b1/1.mp4", "b2/1.mp4", "clip_twoo.mp4", "extra.mp4", "dup.mp4", "dup.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    labels = read(tmp_path, "name,mos\nb2/1,1\nb1/1,2\nclip_two.mp4,3\ndup,4\n")

    found = reconcile(labels.rows, tmp_path / "videos", "set")

    assert [(video.id, video.mos) for video in found.videos] == [
        ("set/b2/1.mp4", 1.0), ("set/b1/1.mp4", 2.0),
    ]  # fmt: skip
    assert all(video.path.is_file() for video in found.videos)
    assert [row.name for row in found.without_file] == ["clip_two.mp4"]
    assert found.without_label == ("clip_twoo.mp4", "extra.mp4")
    assert found.near == {"clip_two.mp4": "clip_twoo.mp4"}
    assert [(row.name, several) for row, several in found.unclear] == [
        ("dup", ("dup.mkv", "dup.mp4"))
    ]
    with pytest.raises(ManifestError, match="is no folder"):
        reconcile(labels.rows, tmp_path / "none", "set")


def test_raw_frames_are_found_as_files(tmp_path):
    name = "0723_ManUnderTree_GS5_03_20150723_130016.yuv"
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / name).touch()

    found = reconcile(read(tmp_path, f"{name},3\n").rows, tmp_path / "videos", "set")

    assert [video.path.name for video in found.videos] == [name]


# Published files


@pytest.fixture(scope="session")
def published(shared_data):
    folder = shared_data / "data" / "labels"
    if not folder.is_dir():
        pytest.skip("no published label files")
    return folder


COUNTS = {
    "KONVID_1K_metadata.csv": 1200, "LIVE_VQC_metadata.csv": 585, "cvd2014_realignment.csv": 234,
    "fastvqa_CVD2014.txt": 234, "fastvqa_KoNViD.txt": 1200, "fastvqa_LIVE_VQC.txt": 585,
    "kvq_test.csv": 854, "kvq_train.csv": 2926, "lsvq_test_1080p.csv": 3561,
    "maxwell_dover_test.txt": 909, "maxwell_val.csv": 909, "minimalisticvqa_CVD2014_data.mat": 234,
    "simplevqa_KoNViD-1k_data.mat": 1200, "vsfa_CVD2014info.mat": 234,
    "vsfa_KoNViD-1kinfo.mat": 1200,
}  # fmt: skip
TEXT_FILES = [name for name in COUNTS if not name.endswith(".mat")]


@pytest.mark.parametrize("name", COUNTS)
def test_every_published_file_is_read_whatever_it_is_called(published, tmp_path, name):
    path = write(tmp_path, (published / name).read_bytes(), "labels")

    assert len(read_labels(path)) == COUNTS[name]


def test_every_published_file_of_a_data_set_gives_the_same_scores(published):
    konvid = [read_labels(published / name) for name in COUNTS if "onvid" in name.lower()]
    vqc = [read_labels(published / name) for name in COUNTS if "VQC" in name]

    assert len(konvid) == 4
    for other in konvid[1:]:
        both = agreement(konvid[0], other)
        assert (both.shared, both.compared) == (1200, 1200)
        assert both.largest < 1e-4
    # Nine videos are called A012NEW.mp4 and so on in one file only.
    assert agreement(*vqc).shared == 576


def test_the_published_cvd2014_files_say_which_mos_they_have(published):
    files = {name: read_labels(published / name) for name in COUNTS if "cvd2014" in name.lower()}
    realigned = [labels for labels in files.values() if labels.kind == "CVD2014's realigned MOS"]
    cut = files["minimalisticvqa_CVD2014_data.mat"]

    assert len(realigned) == 3
    assert agreement(realigned[0], realigned[1]).largest == 0
    assert cut.kind == "CVD2014's original MOS, cut to whole numbers"
    for labels in realigned:
        with pytest.raises(ManifestError, match="cannot be mixed"):
            merged([labels, cut])
    for labels in files.values():
        assert len({row.scene for row in labels.rows}) == 5


def test_the_two_meanings_of_index_in_published_files_are_told_apart(published):
    vsfa = read_labels(published / "vsfa_KoNViD-1kinfo.mat")
    simple = read_labels(published / "simplevqa_KoNViD-1k_data.mat")

    assert (vsfa.orders.meaning, simple.orders.meaning) == ("reference ids", "row numbers from 0")
    for labels in (vsfa, simple):
        assert labels.orders.orders.shape == (1000, 1200)
        assert np.array_equal(np.sort(labels.orders.orders[7]), np.arange(1200))
    raw = scipy.io.loadmat(published / "simplevqa_KoNViD-1k_data.mat")["index"]
    assert np.array_equal(simple.orders.orders, raw)
    with h5py.File(published / "vsfa_KoNViD-1kinfo.mat") as file:
        assert np.array_equal(vsfa.orders.orders[3], file["index"][:, 3] - 1)


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_file_cut_off_anywhere_is_read_right_or_refused(published, tmp_path, name):
    content = (published / name).read_bytes()
    whole = rated(read_labels(published / name))
    rng = np.random.default_rng(len(content))
    cuts = [*rng.integers(0, len(content), 5), *rng.integers(len(content) - 40, len(content), 4)]
    for length in cuts:
        assert_right_or_refused(write(tmp_path, content[:length]), whole)


def swapped(text):
    return text.replace(";", "|") if ";" in text else text.replace(",", ";")


def duplicated(text):
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:9], lines[5], *lines[9:]])


@pytest.mark.parametrize("name", TEXT_FILES)
def test_a_published_file_in_other_dress_is_the_same(published, tmp_path, name):
    whole = rated(read_labels(published / name))
    text = (published / name).read_text(encoding="utf-8")
    dresses = {
        "delimiter": swapped(text).encode(),
        "mark": b"\xef\xbb\xbf" + text.encode(),
        "windows": "\r\n".join([*text.splitlines(), ""]).encode(),
    }
    for dress, content in dresses.items():
        assert rated(read_labels(write(tmp_path, content))) == whole, dress


@pytest.mark.parametrize("name", TEXT_FILES)
def test_a_published_file_with_a_fault_is_refused_with_its_line(published, tmp_path, name):
    text = (published / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    score = str(read_labels(published / name).mos[4]) if name != "kvq_test.csv" else ""
    faults = {"x.txt:2:1: byte 0xe9": text.replace("\n", "\né", 1).encode("latin-1")}
    if name != "maxwell_val.csv":
        faults[r"x.txt:10, column \d.*: video '.*' is rated in \S+:6 already"] = duplicated(text)
    if score:
        row = next(row for row, line in enumerate(lines) if row > 3 and re.search(r"\d", line))
        mark = "([;])" if ";" in text else "([,])"
        cells = re.split(mark, lines[row])
        place = -1 if name.endswith("txt") or name.startswith("kvq") else None
        if place is None:
            header = re.split(mark, lines[0])
            wanted = {"cvd2014_realignment.csv": "Realignment MOS", "maxwell_val.csv": "O"}
            place = [cell.lower() for cell in header].index(wanted.get(name, "mos").lower())
        if "lsvq" not in name:  # whose quoted lists hold commas
            cells[place] = "NaN"
            broken = "\n".join([*lines[:row], "".join(cells), *lines[row + 1 :], ""])
            faults[rf"x.txt:{row + 1}, column \d+.* is 'NaN'"] = broken
    for message, content in faults.items():
        with pytest.raises(ManifestError, match=message):
            read_labels(write(tmp_path, content))


def test_videos_keep_everything_that_a_label_says(tmp_path):
    labels = read(
        tmp_path, "name,mos,std,votes,scene,split\na.mp4,3,0.5,9,x,test\nb.mp4,2,1,8,x,\n"
    )
    video = videos_of(labels.rows, "set")[0]

    assert (video.id, video.path, video.mos) == ("set/a.mp4", Path("a.mp4"), 3.0)
    assert (video.scene, video.part, video.std, video.n_ratings) == ("x", "test", 0.5, 9)


@pytest.mark.parametrize("last", ["3.25", "3.2", "3", "3.12345678901", "3.2e-1"])
def test_a_file_is_whole_without_a_line_end_after_its_last_line(tmp_path, last):
    labels = read(tmp_path, f"name,mos\na.mp4,1.25\nb.mp4,2.50\nc.mp4,{last}")

    assert labels.rows[-1].mos == float(last)
    assert any("(" + str(tmp_path / "x.txt") + ":4) has no line end" in n for n in labels.notes)


def test_a_published_case_without_a_final_line_end_is_read_whole():
    labels = read_labels(CASES / "labels_no_final_newline.csv")

    assert [(row.name, row.mos, row.std) for row in labels.rows] == [
        ("clip_a_24fps", 43.02, 12.5742),
        ("clip_b_24fps", 30.16, 11.121),
    ]


@pytest.mark.parametrize("end", ["3.", "3.25,", "", "3.2e", "3.2e-", "-"])
def test_a_file_that_ends_within_a_number_or_before_it_is_refused(tmp_path, end):
    with pytest.raises(ManifestError, match=r"x\.txt:4"):
        read(tmp_path, f"name,mos\na.mp4,1.25\nb.mp4,2.50\nc.mp4,{end}")


def test_a_column_of_fixed_decimals_tells_that_its_last_number_is_cut(tmp_path):
    rows = "".join(f"{row}.mp4,{row / 8 + 1e-4:.4f}\n" for row in range(60))

    assert read(tmp_path, f"name,mos\n{rows}z.mp4,3.1234").rows[-1].mos == 3.1234
    with pytest.raises(ManifestError, match=r"x\.txt:62, .*'3.123' is cut off; if it is whole"):
        read(tmp_path, f"name,mos\n{rows}z.mp4,3.123")
    assert read(tmp_path, f"name,mos\n{rows}z.mp4,3.123\n").rows[-1].mos == 3.123


D = "dis_videos = [{'path': 'a.mp4', 'mos': 1.0}, {'path': 'b.mp4', 'mos': 2.0}]\n"
DOUBLED = "".join(f"a{n} = f'{{a{n - 1}}}{{a{n - 1}}}'\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ((CASES / "vmaf_growing_string.py").read_text(), 18),
        ((CASES / "vmaf_deep_operators.py").read_text(), 1),
        (f"a0 = 'sixteen letters.'\n{DOUBLED}{D}", 21),
        (f"y = 1\nx = {'(' * 5000}1{')' * 5000}\n{D}", 2),
        (f"y = 1\nx = {'-' * 50000}1\n{D}", 2),
        (f"y = 1\nx = {'not ' * 50000}1\n{D}", 2),
        (f"y = 1\nx = {'1 if 1 else ' * 20000}1\n{D}", 2),
        (f"y = 1\nx = a{'.b' * 50000}\n{D}", 2),
        (f"y = 1\nx = {'lambda:' * 20000}1\n{D}", 2),
        ("if 1:\n  y = 1\n" + "elif 1:\n  y = 1\n" * 20000 + D, 203),
        (f"y = 1\nx = {'9' * 5000}\n{D}", 2),
        (f"y = 1\n{D.replace('1.0', '0x' + 'f' * 5000)}", 2),
        (f"y = 1\nx = [{'1,' * 300000}]\n{D}", 2),
    ],
    ids=range(13),
)
def test_vmaf_literals_that_grow_or_nest_are_refused_in_a_moment_with_their_line(
    tmp_path, text, line
):
    path = write(tmp_path, text)
    started = time.process_time()
    with pytest.raises(ManifestError, match=rf"x\.txt:{line}\b"):
        read_labels(path)
    assert time.process_time() - started < 5


def test_a_text_of_millions_of_cells_is_no_label_file(tmp_path):
    started = time.process_time()
    with pytest.raises(ManifestError, match=r"x\.txt has some 4,500,000 cells; 4,000,000 are"):
        read(tmp_path, "a,1\n" * 2_250_000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", ["1," * 250_000, "1 " * 250_000, '"\n",' * 20_000], ids=len)
def test_a_line_of_very_many_cells_is_no_label_file(tmp_path, text):
    started = time.process_time()
    with pytest.raises(ManifestError, match=r"x\.txt:1: some .* columns; a label file has 10,000"):
        read(tmp_path, f"{text}1\n")
    assert time.process_time() - started < 1


def test_the_columns_of_a_wide_table_are_told_in_a_line_that_can_be_read(tmp_path):
    with pytest.raises(ManifestError, match="9,999 columns hold numbers, numbers, ") as refused:
        read(tmp_path, f"{'1,' * 9_998}1\n")
    assert len(str(refused.value)) < 1000
