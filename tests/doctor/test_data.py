"""What is said of data sets that are there, absent, half there, and damaged."""

from collections.abc import Callable
from pathlib import Path

from xmodal.doctor.data import data_set, folder
from xmodal.doctor.finding import Finding

Seen = Callable[..., list[Finding]]


def test_a_sound_data_set_is_counted_by_split(flickr8k: Path, look: Seen) -> None:
    captions, photos = look("flickr8k")
    assert (captions.mark, photos.mark) == ("ok", "ok")
    assert captions.found == "6 images, 12 captions (train 3 / 6, val 2 / 4, test 1 / 2)"
    assert captions.values["splits"]["val"] == {"images": 2, "captions": 4}
    assert photos.found == "6 of 6 are there, 6 decoded"


def test_missing_and_damaged_photos_are_counted_and_named(flickr8k: Path, look: Seen) -> None:
    (flickr8k / "images" / "1.jpg").unlink()
    (flickr8k / "images" / "4.jpg").write_bytes(b"no photo")
    photos = look("flickr8k")[1]
    assert photos.mark == "fault"
    assert photos.found.startswith("2 of 6 can't be used: ")
    assert "doesn't exist: 1 found: 1.jpg" in photos.found
    assert "1 found: 4.jpg" in photos.found
    assert photos.advice == f"fetch them into {flickr8k / 'images'}; or data.on_error=skip"
    assert photos.values == {"photos": 6, "missing": 1, "damaged": 1, "decoded": 5}
    assert look("flickr8k", "data.on_error=skip")[1].mark == "warning"


def test_only_thorough_looks_decode_all_photos_and_remember_it(flickr8k: Path, look: Seen, tmp_path: Path) -> None:
    first = (flickr8k / "images" / "0.jpg").read_bytes()
    entries = (flickr8k / "dataset.json").read_text().partition("[")[2].rpartition("]")[0]
    copies = [entries.replace('.jpg"', f'-{copy}.jpg"').replace('id": ', f'id": {copy}00') for copy in range(1, 20)]
    (flickr8k / "dataset.json").write_text(f'{{"images": [{", ".join(copies)}]}}')
    for copy in range(1, 20):
        for number in range(6):
            (flickr8k / "images" / f"{number}-{copy}.jpg").write_bytes(first)
    (flickr8k / "images" / "1-1.jpg").write_bytes(first[:200])  # the second of 114, of which 32 are a sample
    sampled, thorough = look("flickr8k")[1], look("flickr8k", is_thorough=True)[1]
    assert (sampled.mark, sampled.found) == ("ok", "114 of 114 are there, 32 decoded")
    assert (thorough.mark, thorough.values["damaged"]) == ("fault", 1)
    assert "1-1.jpg" in thorough.found
    assert len((tmp_path / "outputs" / "cache" / "images.jsonl").read_text().split("\n\n")) == 113


def test_a_broken_file_is_told_in_its_own_words_on_one_line(flickr8k: Path, look: Seen) -> None:
    whole = (flickr8k / "dataset.json").read_text()
    (flickr8k / "dataset.json").write_text(whole[: len(whole) // 2])
    (finding,) = look("flickr8k")
    assert finding.mark == "fault"
    assert finding.found.startswith(f"{flickr8k}/dataset.json is no readable JSON file")
    assert "\n" not in finding.found
    assert finding.advice == "put it right, then: xmodal doctor data=flickr8k"


def test_a_data_set_without_val_is_one_that_no_run_takes(flickr8k: Path, look: Seen) -> None:
    (flickr8k / "dataset.json").write_text((flickr8k / "dataset.json").read_text().replace('"val"', '"dev"'))
    (finding,) = look("flickr8k")
    assert finding.mark == "fault"
    assert "no images for: val" in finding.found
    assert look("flickr8k", "data.splits.val=[dev]")[0].mark == "ok"


def test_absent_ones_are_needed_only_where_they_were_asked_for_or_begun(tmp_path: Path, look: Seen) -> None:
    (absent,) = look("coco")
    assert absent.mark == "optional"
    assert absent.found.endswith(f"doesn't exist: {tmp_path}/data/coco")
    assert "data.root=/path/to/coco" in absent.advice
    assert look("coco", is_needed=True)[0].mark == "missing"
    (tmp_path / "data" / "coco" / "images").mkdir(parents=True)
    assert look("coco")[0].mark == "missing"


def test_captions_without_photos_are_no_fault(flickr8k: Path, look: Seen) -> None:
    (flickr8k / "images").rename(flickr8k / "elsewhere")
    captions, photos = look("flickr8k")
    assert (captions.mark, photos.mark) == ("ok", "optional")
    assert str(flickr8k / "images") in photos.advice


def test_photos_are_needed_by_a_run_that_was_described_and_encodes_them(
    flickr8k: Path, look: Seen, tmp_path: Path
) -> None:
    photos = look("flickr8k", "image_encoder=timm", "data.image_folder=zzz", is_needed=True)[1]
    assert (photos.mark, photos.found) == ("missing", "none, and the image encoder reads photos")
    assert str(flickr8k / "zzz") in photos.advice
    given = ("image_encoder=precomputed", f"image_encoder.path={tmp_path}/x.npy", "data.image_folder=zzz")
    assert look("flickr8k", *given, is_needed=True)[1].mark == "optional"


def test_a_table_is_read_where_it_is_named(tmp_path: Path, look: Seen) -> None:
    table = tmp_path / "captions.csv"
    table.write_text("image,caption,split\na.jpg,a dog,train\nb.jpg,a cat,val\n")
    assert look("table")[0].mark == "optional"
    captions, photos = look("table", f"data.file={table}", is_needed=True)
    assert captions.found == "2 images, 2 captions (train 1 / 1, val 1 / 1, no test)"
    assert (photos.mark, photos.values["missing"]) == ("fault", 2)
    assert look("table", f"data.file={table}", "data.val_fraction=1.5")[0].mark == "fault"


def test_looking_renders_no_scenes(tmp_path: Path, look: Seen) -> None:
    (finding,) = look("scenes")
    assert finding.mark == "ok"
    assert "not rendered yet" in finding.found
    assert not (tmp_path / "outputs").exists()


def test_the_folder_is_missing_only_where_somebody_named_it(tmp_path: Path) -> None:
    (unstated,), (stated,) = folder(tmp_path / "no", is_stated=False), folder(tmp_path / "no", is_stated=True)
    assert (unstated.mark, stated.mark) == ("optional", "missing")
    assert "export XMODAL_DATA=" in stated.advice
    (tmp_path / "file").touch()
    (file,) = folder(tmp_path / "file", is_stated=True)
    assert (file.mark, file.found) == ("fault", f"{tmp_path}/file is a file, no folder")
    (tmp_path / "here").mkdir()
    (found,) = folder(tmp_path, is_stated=True)
    assert found.found == f"{tmp_path} holds here"


def test_real_data_is_counted(real_data: Path, tmp_path: Path) -> None:
    from xmodal.config.command_line import compose

    cfg = compose([f"paths.data_dir={real_data}", f"paths.output_dir={tmp_path}", "data=flickr8k"])
    captions, photos = data_set("flickr8k", cfg, is_needed=True, is_thorough=False)
    assert (captions.mark, captions.values["images"], captions.values["captions"]) == ("ok", 7000, 35000)
    assert (photos.mark, photos.values["photos"], photos.values["missing"]) == ("ok", 7000, 0)
    assert list(tmp_path.iterdir()) == []
