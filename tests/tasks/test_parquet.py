"""Image tasks from Parquet: what is read, and what is refused with file and row."""

import io
import json
import struct
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mergelib.core.errors import ConfigError, DataError
from mergelib.profiles import load_profile
from mergelib.tasks import load_task
from mergelib.tasks.parquet import MAX_PIXELS, decode_image, parquet_splits, read_parquet

NAMES = ["cat", "dog", "owl"]
SIZE = 8
UNREADABLE = pa.StructArray.from_arrays(  # a path that is not UTF-8
    [pa.array([b"x"]), pa.array([b"\xff"]).cast(pa.string(), safe=False)], ["bytes", "path"]
)
EMBEDDED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(pixels, mode=None, **options):
    image = Image.fromarray(pixels.astype(np.uint8))
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def flat(value, size=SIZE):
    return png(np.full((size, size, 3), value))


def embedded(images):
    return pa.array(
        [None if b is None else {"bytes": b, "path": None} for b in images], type=EMBEDDED
    )


def write(path, images, labels, names=NAMES, label_type=None, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = images if isinstance(images, pa.Array) else embedded(images)
    table = pa.table({"image": images, "label": pa.array(labels, type=label_type or pa.int64())})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = json.dumps({"info": {"features": features}})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path, row_group_size=7)
    return path


def folder(tmp_path, n=30, task="pets", **options):
    for split, shift in (("train", 0), ("test", 100)):
        images = [flat(shift + i) for i in range(n)]
        write(tmp_path / task / f"{split}.parquet", images, [i % 3 for i in range(n)], **options)
    return tmp_path


def refused(path, says, **options):
    """Read, and refused in words that name the file."""
    with pytest.raises(DataError) as error:
        read_parquet(path, SIZE, **options)
    assert str(path) in str(error.value) and says in str(error.value)


def values(split):
    """The red of every image's first pixel."""
    return split.inputs[:, 0, 0, 0].tolist()


def test_pixels_labels_and_names_come_back_in_the_files_order(tmp_path):
    names, train, test = parquet_splits(folder(tmp_path), "pets", SIZE)
    assert names == tuple(NAMES)
    for split, shift in ((train, 0), (test, 100)):
        assert (split.inputs.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        flat_values = shift + torch.arange(30)
        assert torch.equal(split.inputs, flat_values[:, None, None, None].expand(30, 3, SIZE, SIZE))
        assert split.labels.tolist() == [i % 3 for i in range(30)]


def test_it_reads_what_the_datasets_library_writes(tmp_path):
    """An independent writer of the layout: both encodings of the pixels and the metadata are the
    library's own."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    rows = {
        "image": [Image.fromarray(p) for p in pixels],
        "label": ["owl", "cat", "dog", "dog", "cat"],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    split, names = read_parquet(tmp_path / "train.parquet", SIZE)
    assert names == tuple(NAMES) and split.labels.tolist() == [2, 0, 1, 1, 0]
    assert torch.equal(split.inputs, torch.from_numpy(pixels).permute(0, 3, 1, 2))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_and_other_integers_are_read_too(tmp_path, kind):
    images = pa.array([flat(9), flat(8)], type=kind)
    path = write(tmp_path / "train.parquet", images, [1, 0], label_type=pa.int32())
    split, _ = read_parquet(path, SIZE)
    assert values(split) == [9, 8] and split.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "shape, mode, colour",
    [
        ((28, 28), None, [77] * 3),
        ((64, 64, 3), None, [200, 10, 30]),
        ((9, 9, 4), None, [120] * 4),  # see-through
        ((9, 9, 3), "P", [51] * 3),
    ],
)
def test_grey_and_colour_of_several_sizes_become_one_shape(shape, mode, colour):
    pixels = np.full(shape, colour[: shape[2]] if len(shape) == 3 else colour[0])
    found = decode_image(png(pixels, mode), 32, "x")
    expected = torch.tensor(colour[:3], dtype=torch.uint8)[:, None, None]
    assert torch.equal(found, expected.expand(3, 32, 32))


def test_the_central_square_is_kept_upright():
    """Left, middle and right third of a wide image differ; only the middle third is the central
    square."""
    wide = np.zeros((12, 36, 3))
    wide[:, 12:24, 1] = 255
    wide[:6, 12:24, 2] = 255
    image = decode_image(png(wide), 12, "x")
    assert (image[0] == 0).all() and (image[1] == 255).all()
    assert (image[2, :6] == 255).all() and (image[2, 6:] == 0).all()


def test_shrinking_averages_and_enlarging_keeps_the_mean():
    """Bare interpolation of a checkerboard by half would see one colour only."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode_image(png(board), 32, "x").float()
    assert (small[:, 4:-4, 4:-4] - 127.5).abs().max() < 12
    ramp = np.tile(np.linspace(0, 252, 28), (28, 1))
    assert abs(decode_image(png(ramp), 32, "x").float().mean() - ramp.mean()) < 1


def test_a_limit_draws_rows_without_a_look_at_labels(tmp_path):
    _, whole, _ = parquet_splits(folder(tmp_path), "pets", SIZE, n_train=1000)
    _, train, test = parquet_splits(tmp_path, "pets", SIZE, n_train=11, n_test=5)
    assert (len(whole), len(train), len(test)) == (30, 11, 5)
    rows = values(train)  # a flat image's value is its row
    assert rows == sorted(set(rows)) and rows != list(range(11))
    assert torch.equal(train.inputs, whole.inputs[rows])
    assert torch.equal(train.labels, whole.labels[rows])
    for split in ("train", "test"):
        path = tmp_path / "other" / f"{split}.parquet"
        write(path, [flat(i) for i in range(30)], [2] * 30)
    assert values(parquet_splits(tmp_path, "other", SIZE, n_train=11)[1]) == rows


def test_a_limit_leaves_the_rest_undecoded(tmp_path):
    path, limit = tmp_path / "train.parquet", {"limit": 3, "seed": 5}

    def read(images):
        return values(read_parquet(write(path, images, [0] * 40), SIZE, **limit)[0])

    images = [flat(i) for i in range(40)]
    kept = read(images)
    assert read([x if i in kept else b"no image" for i, x in enumerate(images)]) == kept
    with pytest.raises(DataError, match=r"row \d+: the image cannot be decoded"):
        read([b"no image"] * 40)


def test_without_stored_names_classes_are_numbered(tmp_path):
    names, *_ = parquet_splits(folder(tmp_path, names=None), "pets", SIZE)
    assert names == ("class 0", "class 1", "class 2")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A valid head that claims width x height pixels, and nearly no data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def wide_png():
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = flat(3)
SHORT = GOOD.index(b"IDAT")
SHORT = GOOD[: SHORT - 1] + b"\5" + GOOD[SHORT:]  # the data are said to have 5 bytes


@pytest.mark.parametrize(
    "bad, says",
    [
        (b"", "cannot be decoded"),
        (b"<html>not found</html>", "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot be decoded"),
        (None, "no image bytes"),
        (wide_png(), "8 bits a channel"),
        (bomb(100_000, 100_000), "exceeds limit"),
        (bomb(10_000, 10_000), "10000 x 10000"),
        (bomb(MAX_PIXELS + 1, 1), "pixels are decoded"),
        (bomb(0, 5), "cannot be decoded"),
        (SHORT, "cannot be decoded"),
        (GOOD[: len(GOOD) // 2], "cannot be decoded"),
    ],
)
def test_a_broken_image_is_refused_with_file_and_row(tmp_path, recwarn, bad, says):
    path = write(tmp_path / "train.parquet", [GOOD] * 9 + [bad, GOOD], [0] * 11)
    refused(path, says)
    refused(path, "row 9")
    assert not len(recwarn)


@pytest.mark.parametrize(
    "label, names, says",
    [
        (3, NAMES, "labels run from 0 to 2"),
        (-1, NAMES, "label -1"),
        (None, NAMES, "label None"),
        (2**40, NAMES, "labels run from 0 to 2"),
        (2**40, None, "label 1099511627776"),  # before so many names are made
    ],
)
def test_a_label_outside_its_range_is_refused_with_file_and_row(tmp_path, label, names, says):
    path = write(tmp_path / "train.parquet", [GOOD] * 9, [0] * 8 + [label], names=names)
    refused(path, says)
    refused(path, "row 8")


@pytest.mark.parametrize(
    "columns, says",
    [
        ([("label", [0])], "no column 'image' (or more than one) among label"),
        ([("image", [GOOD])], "no column 'label' (or more than one) among image"),
        (
            [("img", [GOOD]), ("label", [0])],
            "no column 'image' (or more than one) among img, label",
        ),
        ([("image", [GOOD]), ("label", [0]), ("label", [1])], "more than one"),
        ([("image", [GOOD]), ("label", ["cat"])], "column 'label' is string"),
        ([("image", [GOOD]), ("label", [0.0])], "column 'label' is double"),
        ([("image", ["a/b.png"]), ("label", [0])], "row 0: no image bytes"),
        ([("image", [{"path": "a.png"}]), ("label", [0])], "row 0: no image bytes"),
        ([("image", UNREADABLE), ("label", [0])], "row 0: no image bytes"),
    ],
)
def test_columns_that_are_missing_twice_there_or_of_another_type(tmp_path, columns, says):
    names, cells = zip(*columns, strict=True)
    pq.write_table(pa.table(list(map(pa.array, cells)), names), tmp_path / "train.parquet")
    refused(tmp_path / "train.parquet", says)


@pytest.mark.parametrize(
    "stored, says",
    [
        *[
            ({"names": names}, "label names are")
            for names in ([], ["a", "a"], ["a", ""], ["a", 3], "abc", {"a": 1})
        ],
        *[
            ({"names": None, "metadata": metadata}, "metadata cannot be read")
            for metadata in '{ [] {} {"info":{"features":{"label":3}}} {"info":null}'.split()
        ],
    ],
)
def test_label_names_that_name_nothing_or_cannot_be_read(tmp_path, stored, says):
    refused(write(tmp_path / "train.parquet", [GOOD], [0], **stored), says)


def test_files_that_are_no_parquet(tmp_path):
    path = write(tmp_path / "train.parquet", [flat(i) for i in range(40)], [0] * 40)
    good = path.read_bytes()
    for raw in (b"", b"PAR1", b"a,b\n1,2\n" * 9, good[: len(good) // 2], good[:-40] + bytes(40)):
        path.write_bytes(raw)
        refused(path, "cannot be read as Parquet")
    refused(write(path, [], []), "no rows")


def test_missing_folders_and_files_name_what_is_there(tmp_path):
    folder(tmp_path)
    with pytest.raises(DataError, match=r"Found pets beside it.*<image-dir>"):
        parquet_splits(tmp_path, "mnist", SIZE)
    (tmp_path / "pets" / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"No test\.parquet"):
        parquet_splits(tmp_path, "pets", SIZE)
    with pytest.raises(DataError, match="Found nothing"):
        parquet_splits(tmp_path / "nowhere", "pets", SIZE)


def test_halves_that_name_their_classes_differently_are_refused(tmp_path):
    folder(tmp_path)
    write(tmp_path / "pets" / "test.parquet", [GOOD] * 3, [0, 1, 2], names=["dog", "cat", "owl"])
    with pytest.raises(DataError, match="name their classes differently"):
        parquet_splits(tmp_path, "pets", SIZE)


def local_profile(image_dir):
    overrides = {
        "tasks.names": ["pets"],
        "tasks.source": "local",
        "tasks.image_dir": image_dir,
        "tasks.n_train": 12,
        "tasks.n_validation": 6,
        "tasks.n_test": 9,
        "encoder.image_size": SIZE,
    }
    return load_profile("real", overrides, "vision_a")


def test_a_task_as_the_profile_wants_it(tmp_path):
    profile = local_profile(str(folder(tmp_path)))
    task, again = load_task("pets", profile), load_task("pets", profile)
    splits = (task.train, task.validation, task.test)
    assert task.modality == "image" and [len(s) for s in splits] == [12, 6, 9]
    assert len(set().union(*map(values, splits))) == 27, "no image is in two splits"
    for split, shift in zip(splits, (0, 0, 100), strict=True):  # an image keeps its own label
        assert [(v - shift) % 3 for v in values(split)] == split.labels.tolist()
    for split, same in zip(splits, (again.train, again.validation, again.test), strict=True):
        assert split.digest == same.digest


def test_a_profile_without_a_folder_names_the_option():
    with pytest.raises(DataError, match="--image-dir"):
        load_task("pets", local_profile(""))


@pytest.mark.parametrize(
    "overrides, says",
    [
        ({"encoder.kind": "bert", "encoder.pretraining": None}, "does not encode images"),
        ({"tasks.modality": "text", "tasks.names": ["ag"]}, "does not encode texts"),
        ({"encoder.image_size": 0}, "image_size, patch_size"),
        ({"encoder.patch_size": 0}, "image_size, patch_size"),
    ],
)
def test_encoder_and_tasks_must_be_of_one_kind(overrides, says):
    with pytest.raises(ConfigError, match=says):
        load_profile("real", overrides, "vision_a")
