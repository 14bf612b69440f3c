"""Photos of every colour mode that PIL writes, broken files, and the memory of what was checked."""

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal.data import images
from xmodal.data.images import check_images, examine_images, read_image
from xmodal.errors import DataError, XmodalError


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def jpeg(path: Path, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, quality=95)
    return path


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    red, clear, half = pixels(tmp_path / "a.png")[0]
    assert red.tolist() == [255, 0, 0]
    assert clear.tolist() == [255, 255, 255]
    assert half == pytest.approx([127, 127, 127], abs=1)


def test_a_transparent_palette_and_grey_with_alpha(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixels(tmp_path / "p.png")[0].tolist() == [[255, 255, 255], [0, 200, 0]]
    Image.new("LA", (1, 1), (10, 0)).save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_has_three_equal_channels(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4), 1 if mode == "1" else 77).save(tmp_path / "a.png")
    assert np.unique(pixels(tmp_path / "a.png")).tolist() == [255 if mode == "1" else 77]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 100, 255]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = pixels(tmp_path / "a.jpg")[8, 8]
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)],
)
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turn: Image.Transpose) -> None:
    plain = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "a.png"), np.asarray(plain.transpose(turn)))


def broken_files(folder: Path) -> dict[Path, str]:
    """A file for each way of being no photo, and what is to be said of it."""
    whole = jpeg(folder / "whole.jpg").read_bytes()
    written = {
        "half.jpg": (whole[: len(whole) // 2], r"can't be decoded \(.*truncated.*\)"),
        "almost.jpg": (whole[:-20], r"can't be decoded \(.*truncated.*\)"),
        "empty.jpg": (b"", r"is empty \(0 bytes\)"),
        "page.jpg": (b"<html>404</html>", r"can't be decoded \(no image in a known format\)"),
    }
    for name, (content, _) in written.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    others = {"folder.jpg": "is a folder", "loop.jpg": r"can't be read \(.+\)", "gone.jpg": "doesn't exist"}
    said = {name: pattern for name, (_, pattern) in written.items()} | others
    return {folder / name: pattern for name, pattern in said.items()}


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    broken = broken_files(tmp_path)
    for path, pattern in broken.items():
        with pytest.raises(DataError, match=rf"The image {path} {pattern}\. Fetch it again"):
            read_image(path)
    found = examine_images([tmp_path / "whole.jpg", *broken], tmp_path / "memo.jsonl", progress=False)
    assert list(found.digests) == [tmp_path / "whole.jpg"]
    assert list(found.faults) == list(broken)
    for path, pattern in broken.items():
        assert re.fullmatch(pattern + r".*", found.faults[path]), found.faults[path]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to the superuser")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    jpeg(tmp_path / "a.jpg").chmod(0)
    found = examine_images([tmp_path / "a.jpg"], tmp_path / "memo.jsonl", progress=False)
    assert found.faults == {tmp_path / "a.jpg": "can't be read (Permission denied)"}


@pytest.mark.parametrize(("file_format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})])
def test_the_check_at_small_scale_finds_what_full_decoding_finds(
    tmp_path: Path, file_format: str, options: dict[str, bool]
) -> None:
    values = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "whole", file_format, **options)
    content = (tmp_path / "whole").read_bytes()
    draw = np.random.default_rng(1)
    paths, is_bad = [], []
    for number in range(150):
        damaged = bytearray(content)
        if number % 2:
            damaged = damaged[: draw.integers(len(content))]
        else:
            damaged[draw.integers(len(content))] = draw.integers(256)
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(damaged)
        try:
            read_image(paths[-1])
            is_bad.append(False)
        except DataError:
            is_bad.append(True)
    assert 0 < sum(is_bad) < len(paths)
    found = examine_images(paths, tmp_path / "memo.jsonl", progress=False)
    assert [path in found.faults for path in paths] == is_bad


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    paths = [jpeg(tmp_path / f"{n}.jpg", n) for n in range(5)]
    expected = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert check_images([*paths, paths[0]], tmp_path / "memo" / "checked.jsonl", progress=False) == expected
    assert check_images([], tmp_path / "memo" / "checked.jsonl") == {}


def test_all_missing_and_broken_photos_come_at_once(tmp_path: Path) -> None:
    good = [jpeg(tmp_path / f"{n}.jpg", n) for n in range(3)]
    for name in ("bad0.jpg", "bad1.jpg"):
        (tmp_path / name).write_bytes(good[0].read_bytes()[:-200])
    gone = [tmp_path / f"gone{n}.jpg" for n in range(7)]
    wanted = [*gone, *good, tmp_path / "bad0.jpg", tmp_path / "bad1.jpg"]
    with pytest.raises(DataError) as caught:
        check_images(wanted, tmp_path / "memo.jsonl", progress=False)
    message = str(caught.value)
    assert "9 of 12 images" in message
    assert "doesn't exist: 7 found" in message
    assert "(2 more)" in message
    assert "can't be decoded: 2 found" in message
    assert "bad1.jpg" in message
    assert "data.on_error=skip" in message
    assert "every later figure of the run too; with xmodal evaluate and xmodal extract, of that call alone" in message
    assert len((tmp_path / "memo.jsonl").read_text().split()) >= 3  # the good ones are not decoded again


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every path that is really looked at from now on."""
    seen: list[Path] = []
    real = images._content
    monkeypatch.setattr(images, "_content", lambda path: (seen.append(path), real(path))[1])
    return seen


def test_only_what_changed_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [jpeg(tmp_path / f"{n}.jpg", n) for n in range(4)]
    memo = tmp_path / "memo.jsonl"
    seen = decoded(monkeypatch)
    first = check_images(paths, memo, progress=False)
    assert sorted(seen) == sorted(paths)
    seen.clear()
    assert check_images(paths, memo, progress=False) == first
    assert seen == []
    jpeg(paths[2], seed=9)
    os.utime(paths[3], ns=(1, 1))
    second = check_images(paths, memo, progress=False)
    assert sorted(seen) == [paths[2], paths[3]]
    assert second[paths[2]] != first[paths[2]]
    assert second[paths[3]] == first[paths[3]]


def test_a_memo_with_a_torn_line_is_read_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [jpeg(tmp_path / f"{n}.jpg", n) for n in range(3)]
    memo = tmp_path / "memo.jsonl"
    check_images(paths, memo, progress=False)
    lines = memo.read_text().split("\n")
    kept = [line for line in lines if line]
    memo.write_text("\n".join([*kept[:2], kept[2][:20]]))  # killed in the middle of the third line
    seen = decoded(monkeypatch)
    check_images(paths, memo, progress=False)
    assert len(seen) == 1
    seen.clear()
    check_images(paths, memo, progress=False)
    assert seen == []


def test_a_memo_of_another_form_is_no_obstacle(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "a.jpg")
    memo = tmp_path / "memo.jsonl"
    memo.write_bytes(b'\xff\xfe\n{"a": 1}\n[1, 2]\nnull\n[["x"], 1, 2, 3]\n')
    assert list(check_images([path], memo, progress=False)) == [path]


def test_runs_side_by_side_share_a_memo(tmp_path: Path) -> None:
    paths = [jpeg(tmp_path / f"{n}.jpg", n) for n in range(20)]
    memo = tmp_path / "memo.jsonl"
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: check_images(paths, memo, progress=False), range(4)))
    assert all(result == results[0] for result in results)
    for line in memo.read_text().splitlines():
        assert not line or len(json.loads(line)) == 4


def test_real_photos_are_checked(real_data: Path, tmp_path: Path) -> None:
    paths = sorted((real_data / "flickr8k" / "images").iterdir())[:100]
    assert len(check_images(paths, tmp_path / "memo.jsonl", progress=False)) == 100


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full, which Linux has, is always full")
def test_a_full_disk_is_named_by_the_folder_and_its_setting(tmp_path: Path) -> None:
    with pytest.raises(XmodalError, match=r"No space left for /dev .* another disk: paths\.cache_dir="):
        examine_images([jpeg(tmp_path / "a.jpg")], Path("/dev/full"), progress=False)


def test_a_photo_of_a_stranger_is_read_like_any_other(tmp_path: Path) -> None:
    path = jpeg(tmp_path / "a.jpg")
    assert np.array_equal(np.asarray(images.read_untrusted(path.read_bytes(), 32 * 48)), pixels(path))


def test_a_photo_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    content = jpeg(tmp_path / "a.jpg").read_bytes()
    with pytest.raises(DataError, match=r"This photo has 48 × 32 pixels, more than the 0 million that are taken\."):
        images.read_untrusted(content[:700], 32 * 48 - 1)  # of which nothing could be decoded


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"text"])
def test_only_photos_of_strangers_are_read(content: bytes) -> None:
    with pytest.raises(DataError, match=r"no image in a known format\)\. Send another: JPEG, PNG"):
        images.read_untrusted(content, 100)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_small_photo_keeps_its_shape(tmp_path: Path, file_format: str) -> None:
    Image.new("RGB", (400, 200), "teal").save(tmp_path / "a", file_format)
    small = images.read_small(tmp_path / "a", 50)
    assert small.size == (50, 25)
    assert np.abs(np.asarray(small, dtype=int) - (0, 128, 128)).max() <= 3


def test_a_pipe_is_no_photo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="is no file"):
        images.read_small(tmp_path / "pipe.jpg", 50)
    with pytest.raises(DataError, match=r"x{200}"):
        images.read_small(Path("x" * 5000), 50)
