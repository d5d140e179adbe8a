"""Manifests are read whole or refused with file and line."""

import io
import os
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest

from vqbank.extractors.video import probe
from vqbank.pipelines.labels import read_labels
from vqbank.pipelines.manifest import (
    VIDEO_SUFFIXES,
    is_manifest,
    read_manifest,
    read_videos,
    scores,
    write_manifest,
)
from vqbank.store.errors import ManifestError
from vqbank.store.schema import Video


def manifest(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "set.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_columns_mean_what_their_names_say_in_any_order(tmp_path):
    path = manifest(tmp_path, "mos,path,scene,part,id\n3.5,a/x.mp4,s1,train,one\n,y.mp4,,,two\n")

    one, two = read_manifest(path)

    assert (one.id, one.path, one.mos, one.scene, one.part) == (
        "one", tmp_path / "a/x.mp4", 3.5, "s1", "train",
    )  # fmt: skip
    assert (two.mos, two.scene, two.part) == (None, None, None)


def test_an_id_is_the_manifest_and_the_relative_path_unless_given(tmp_path):
    (video,) = read_manifest(manifest(tmp_path, "path\nclips/ü x.mp4\n"))

    assert video.id == "set/clips/ü x.mp4"


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, ending, encoding):
    text = f'path,mos{ending}"a, b.mp4",1{ending}{ending}c.mp4,2{ending}'

    videos = read_manifest(manifest(tmp_path, text, encoding))

    assert [(video.path.name, video.mos) for video in videos] == [("a, b.mp4", 1), ("c.mp4", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,mos\na.mp4,1\nb.mp4,good\n", r"set.csv:3: mos 'good' is not a number"),
        ("path,mos\na.mp4,nan\n", r"set.csv:2: mos 'nan' is not a finite number"),
        ("path,mos\na.mp4,1\nb.mp4,2\na.mp4,3\n", r"set.csv:4: id 'set/a.mp4' stands in line 2"),
        ("path,mos,mos\na.mp4,1,2\n", r"set.csv:1: column 'mos' stands there twice"),
        ("path,mso\na.mp4,1\n", r"set.csv:1: unknown column 'mso'. Did you mean 'mos'"),
        ("id,mos\na,1\n", r"set.csv:1: no column 'path'"),
        ("path,mos\na.mp4\n", r"set.csv:2: 1 cells under 2 columns"),
        ("path;mos\na.mp4;1\n", r"set.csv:1: unknown column 'path;mos'"),
        ("path,mos\n,1\n", r"set.csv:2: path is empty"),
        ("path,part\na.mp4,trian\n", r"set.csv:2: unknown part 'trian'. Did you mean 'train'"),
        ("path,std\na.mp4,-1\n", r"set.csv:2: std '-1' is below 0"),
        ("path,n_ratings\na.mp4,1.5\n", r"set.csv:2: n_ratings '1.5' is not a number of people"),
        (f"path,n_ratings\na.mp4,{'9' * 5000}\n", r"set.csv:2: n_ratings '9{20}' is not a number"),
        ("path,mos\n", r"set.csv names no videos"),
        ("", r"set.csv:1: no column 'path'"),
        ('path,mos\n"a.mp4,1\n', r"set.csv:\d: unexpected end of data"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_with_the_line(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(manifest(tmp_path, text))


def test_a_manifest_that_is_not_utf8_or_not_there_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(manifest(tmp_path, "path\nü.mp4\n", "latin-1"))
    with pytest.raises(ManifestError, match="cannot be read: No such file"):
        read_manifest(tmp_path / "none.csv")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no file without end")
def test_a_manifest_or_label_file_without_end_is_read_no_further_than_it_may_be(
    tmp_path, monkeypatch
):
    for module, name in (("manifest", "MOST_BYTES"), ("labels.reader", "LARGEST_BYTES")):
        monkeypatch.setattr(f"vqbank.pipelines.{module}.{name}", 1000)
    assert not is_manifest(Path("/dev/zero"))
    sparse = tmp_path / "sparse.csv"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    for read in (read_manifest, read_labels):
        with pytest.raises(ManifestError, match="a pipe, socket or device is no ordinary file"):
            read(Path("/dev/zero"))
        with pytest.raises(ManifestError, match="has more than 1,000 bytes"):
            read(sparse)


def test_a_folder_gives_its_videos_by_relative_path(tmp_path):
    for name in ("b.MP4", "sub/a.mkv", "notes.txt"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    (tmp_path / "empty").mkdir()

    videos = read_videos(tmp_path / "clips")

    assert [video.id for video in videos] == ["clips/b.MP4", "clips/sub/a.mkv"]
    with pytest.raises(ManifestError, match="holds no videos"):
        read_videos(tmp_path / "empty")


def test_what_a_folder_leaves_out_is_counted_by_suffix(tmp_path, capsys, caplog):
    names = ["a.3gp", "b.M2TS", "notes.txt", "sub/more.TXT", "Makefile", "cover.png", ".hidden"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.ogv").symlink_to(tmp_path / "nowhere")

    with caplog.at_level("INFO", "vqbank"):
        videos = read_videos(tmp_path)

    assert [video.path.name for video in videos] == ["a.3gp", "b.M2TS", "gone.ogv"]
    told = "4 files left out that are no videos: 1 .png, 2 .txt, 1 without a suffix"
    assert caplog.messages == [f"{tmp_path}: {told}"]
    assert capsys.readouterr() == ("", "")
    for video in videos:
        video.path.unlink()
    with pytest.raises(ManifestError, match=r"holds no videos, but 1 \.png, 2 \.txt, 1 without"):
        read_videos(tmp_path)


def test_a_folder_of_videos_alone_says_nothing(tmp_path, capsys):
    (tmp_path / "a.mp4").touch()
    read_videos(tmp_path)
    assert capsys.readouterr() == ("", "")


# Suffixes that FFmpeg writes videos to and that mean something else as often.
LEFT_OUT = {
    "pictures": {"apng", "avif", "bmp", "fits", "flm", "heic", "heif", "ico", "mpo", "webp"},
    "sound": {"aac", "afc", "aif", "aifc", "aiff", "flac", "isma", "m2a", "m4a", "m4b", "mka",
              "mp2", "mp3", "mpa", "ogg", "ra", "wma"},
    "scripts, meshes, playlists, subtitles": {"avs", "drc", "ism", "m3u8", "mks", "mpd"},
    "planes without a header": {"cif", "qcif", "rgb", "yuv"},
    "rare": {"a64", "cpk", "dif", "h26l"},
}  # fmt: skip


def test_a_folder_takes_whatever_ffmpeg_writes_videos_to():
    written = set()
    for name in av.formats_available:
        with suppress(ValueError, av.FFmpegError):  # a demuxer alone; a device
            container = av.open(io.BytesIO(), "w", format=name)
            if container.default_video_codec != "none" and not name.startswith("image2"):
                written |= {suffix.strip().lower() for suffix in container.format.extensions}

    assert {"3gp", "m2ts", "asf", "gif", "ogv", "mts", "vob", "mxf", "nut", "ivf", "y4m"} < written
    left_out = written - {suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES}
    assert left_out <= set().union(*LEFT_OUT.values()), left_out


CODECS = {
    "3gp": "mpeg4", "asf": "wmv2", "avi": "mpeg4", "flv": "flv", "gif": "gif", "ivf": "libvpx",
    "m2ts": "mpeg2video", "mkv": "ffv1", "mov": "mjpeg", "mp4": "mpeg4", "ps": "mpeg1video",
    "mts": "mpeg2video", "mxf": "mpeg2video", "nut": "ffv1", "ogv": "libvpx", "ts": "mpeg2video",
    "vob": "mpeg2video", "webm": "libvpx", "wmv": "wmv2", "wtv": "mpeg2video", "mj2": "jpeg2000",
}  # fmt: skip


MUXERS = {"mj2": "mov", "ps": "mpeg"}


def test_what_a_folder_takes_can_be_opened(tmp_path):
    for suffix, codec in CODECS.items():
        with av.open(tmp_path / f"clip.{suffix}", "w", format=MUXERS.get(suffix)) as container:
            stream = container.add_stream(codec, rate=25, width=64, height=48)
            stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            for picture in np.random.default_rng(1).integers(0, 256, (4, 48, 64, 3), np.uint8):
                frame = av.VideoFrame.from_ndarray(picture)
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))

    videos = read_videos(tmp_path)

    assert len(videos) == len(CODECS)
    assert {video.id: len(probe(video.path).pts_seconds) for video in videos} == {
        video.id: 4 for video in videos
    }


def test_a_file_name_that_is_no_utf8_has_a_readable_id(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    path.touch()

    (video,) = read_videos(tmp_path)

    assert video.id == rf"{tmp_path.name}/caf\xe9.mp4"
    assert video.path.exists()


def test_spaces_around_cells_do_not_make_another_scene(tmp_path):
    one, two = read_manifest(manifest(tmp_path, "path,scene\na.mp4,park\nb.mp4, park \n"))

    assert one.scene == two.scene


def test_scores_are_all_there_or_missing_ones_are_named(tmp_path):
    videos = read_manifest(manifest(tmp_path, "path,mos\na.mp4,1\nb.mp4,\n"))

    with pytest.raises(ManifestError, match=r"1 of 2 videos have no mos: set/b.mp4"):
        scores(videos)


def test_a_written_manifest_is_read_back(tmp_path):
    videos = [
        Video("set/a, b.mp4", tmp_path / "clips/a, b.mp4", 1 / 3, "s", "test", 0.5, 31),
        Video("set/ü.mp4", tmp_path.parent / "ü.mp4"),
    ]
    path = tmp_path / "set.csv"
    write_manifest(path, videos)

    read = read_manifest(path)

    assert read[0] == videos[0]
    assert (read[1].id, read[1].path.resolve()) == (videos[1].id, videos[1].path)
    assert (
        path.read_text(encoding="utf-8").splitlines()[0] == "id,path,mos,scene,part,std,n_ratings"
    )


def test_columns_of_ratings_are_written_only_where_there_are_any(tmp_path):
    write_manifest(tmp_path / "set.csv", [Video("set/a", Path("a"), 3.0)])

    assert (tmp_path / "set.csv").read_text() == "id,path,mos,scene,part\nset/a,a,3.0,,\n"


def test_a_manifest_is_known_by_its_header(tmp_path):
    assert is_manifest(manifest(tmp_path, "mos,path\n1,a\n"))
    assert not is_manifest(manifest(tmp_path, "filename,score\na,1\n"))
    assert not is_manifest(manifest(tmp_path, "path,mos,width\na,1,2\n"))
    assert not is_manifest(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "path,n_ratings\na.mp4," + "9" * 5000,
            r"m\.csv:2: n_ratings .9+. is not a number",
        ),
        ("path,mos\na.mp4," + "9" * 5000, r"m\.csv:2: mos '9+' is not a finite number"),
        ("path,mos\na\0.mp4,1\n" + "x" * 200_000, r"m\.csv:"),
        ("path," * 100_000, r"m\.csv:1: column 'path' stands there twice"),
    ],
    ids=["digits", "score", "field", "header"],
)
def test_a_hostile_manifest_is_refused_with_its_line(tmp_path, text, told):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ManifestError, match=told):
        read_manifest(tmp_path / "m.csv")


def test_a_manifest_without_end_is_not_read(tmp_path):
    with (tmp_path / "m.csv").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ManifestError, match="the most of such a file"):
        read_manifest(tmp_path / "m.csv")
