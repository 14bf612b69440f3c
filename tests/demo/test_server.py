"""The page over real HTTP, without a browser: photos that are sent, paths that are tried, many users at once."""

import contextlib
import http.client
import io
import json
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from xmodal.errors import ConfigError
from xmodal.search.engine import SearchEngine


def ids(shown: str) -> list[str]:
    return re.findall(r'data-ask="item" data-item="([^"]*)" data-of="\d"(?: data-caption="\d+")? data-number', shown)


def said(shown: str) -> str:
    """Why there is no result."""
    found = re.search(r'class="fault" role="alert">([^<]*)<', shown)
    return found[1] if found else ""


def refusal(visitor: Any, path: str) -> str:
    """What is said of a path that is claimed to have been sent, by the page or by Gradio, which is asked first."""
    try:
        return said(visitor.use("send", ["images", "all", 12, None], {"path": path, "name": "x"})[-1])
    except RuntimeError as error:
        return str(error)


def preview(shown: str) -> Image.Image:
    """The photo that the page shows as the query."""
    import base64

    found = re.search(r'class="asked" src="data:image/jpeg;base64,([^"]*)"', shown)
    assert found is not None, shown
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


def photo_of(engine: SearchEngine, item: Any) -> Path:
    return Path(engine.path_of(item.file) or "")


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes, whose header says that it is huge."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def status(address: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> int:
    """Of a request whose path nothing tidies up on its way."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        return connection.getresponse().status


def test_a_sentence_finds_its_photo_first(site: str, visit: Any, engine: SearchEngine, learnt: Any) -> None:
    visitor = visit(site)
    for item in learnt[:6]:
        shown = visitor.type(item.captions[2], k=5, split="train")
        assert ids(shown)[0] == item.id
        assert len(ids(shown)) == 5
        assert "Right at rank 1</strong> of 16" in shown
        assert re.search(r"5 of 16 photos\s+in train\s+· encoded in [\d.]+ ms · searched in [\d.]+ ms", shown)


def test_a_photo_that_is_sent_finds_its_captions(site: str, visit: Any, engine: SearchEngine, learnt: Any) -> None:
    shown = visit(site).send(photo_of(engine, learnt[4]).read_bytes())
    assert ids(shown)[0] == learnt[4].id
    assert "captions" in shown


def test_settings_keep_a_photo_that_was_sent(site: str, visit: Any, engine: SearchEngine, learnt: Any) -> None:
    visitor = visit(site)
    visitor.send(photo_of(engine, learnt[4]).read_bytes())
    shown = visitor.use("change", ["", "images", "train", 3, None])[-1]
    assert ids(shown)[0] == learnt[4].id
    assert len(ids(shown)) == 3
    other = visit(site)  # what one visitor sends is nothing to the next
    assert "Type a sentence" in other.use("change", ["", "images", "train", 3, None])[-1]


def test_a_rotated_photo_is_turned(site: str, visit: Any, engine: SearchEngine, learnt: Any) -> None:
    upright = Image.open(photo_of(engine, learnt[5])).convert("RGB").resize((60, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    lying = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    visitor = visit(site)
    shown, plain = visitor.send(lying), visitor.send(saved(upright, "PNG"))
    assert preview(shown).size == (60, 96)
    assert ids(shown) == ids(plain)
    difference = np.asarray(preview(shown), dtype=float) - np.asarray(preview(plain), dtype=float)
    assert abs(difference).max() == 0


@pytest.mark.parametrize("kind", ["CMYK", "animation", "grey", "transparent", "webp"])
def test_photos_of_other_kinds(site: str, visit: Any, engine: SearchEngine, learnt: Any, kind: str) -> None:
    photo = Image.open(photo_of(engine, learnt[1])).convert("RGB")
    sent = {
        "CMYK": lambda: saved(photo.convert("CMYK"), "JPEG"),
        "animation": lambda: saved(photo, "GIF", save_all=True, append_images=[Image.new("RGB", photo.size)] * 3),
        "grey": lambda: saved(photo.convert("L"), "PNG"),
        "transparent": lambda: saved(photo.convert("RGBA"), "PNG"),
        "webp": lambda: saved(photo, "WEBP", quality=95),
    }
    shown = visit(site).send(sent[kind]())
    assert said(shown) == ""
    assert preview(shown).size == photo.size
    if kind in ("transparent", "webp"):
        assert ids(shown)[0] == learnt[1].id


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (png_that_claims(30_000, 30_000), "bomb.png", "has far more than the 50 million pixels that are taken"),
        (png_that_claims(9_000, 9_000), "large.png", "has 9,000 × 9,000 pixels, more than the 50 million"),
        (b"This is a text.", "text.jpg", "no image in a known format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "a.svg", "no image in a known"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.jpg", "no image in a known format"),
        (b"", "empty.jpg", "is empty (0 bytes)"),
        (png_that_claims(30, 30), "broken.png", "can&#39;t be decoded"),
    ],
)
def test_what_is_no_photo_gets_a_sentence(site: str, visit: Any, content: bytes, name: str, expected: str) -> None:
    visitor = visit(site)
    assert expected in said(visitor.send(content, name))
    assert "12 of 24 photos" in visitor.type("a disc")  # and all goes on


def test_a_truncated_photo_gets_a_sentence(site: str, visit: Any, engine: SearchEngine, learnt: Any) -> None:
    whole = photo_of(engine, learnt[0]).read_bytes()
    assert "truncated" in said(visit(site).send(whole[: len(whole) // 2]))


def test_a_file_that_is_too_large_is_not_taken(site: str, visit: Any) -> None:
    visitor = visit(site)
    with pytest.raises(Exception, match="413"):
        visitor.send(bytes(21 * 2**20))
    assert "no image in a known format" in said(visitor.send(bytes(20 * 2**20)))
    assert status(site, "/gradio_api/upload", "POST", b"x", **{"Content-Length": str(10**12)}) == 413
    assert status(site, "/gradio_api/upload", "POST", iter([b"x"])) == 411  # of a length that is not said


def test_a_path_that_was_not_sent_is_not_read(site: str, visit: Any, engine: SearchEngine, learnt: Any) -> None:
    visitor = visit(site)
    for path in (str(photo_of(engine, learnt[0])), "/etc/passwd", "../../etc/passwd", "", "/"):
        assert re.search("no photo that was sent|did not arrive|not in the cache", refusal(visitor, path)), path
    assert photo_of(engine, learnt[0]).exists()  # what is sent is removed


def test_what_was_sent_is_removed(site: str, visit: Any, engine: SearchEngine, learnt: Any) -> None:
    visitor = visit(site)
    content = {"files": ("p.jpg", photo_of(engine, learnt[0]).read_bytes())}
    (path,) = visitor.http.post("gradio_api/upload", files=content).json()
    assert Path(path).exists()
    visitor.use("send", ["images", "all", 12, None], {"path": path, "name": "p.jpg"})
    assert not Path(path).exists()


FORBIDDEN = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file/etc/passwd",
    "/gradio_api/file=%2Fetc%2Fpasswd",
    "/file=/etc/passwd",
    "/static/../../../../etc/passwd",
    "/static/..%2f..%2f..%2fetc/passwd",
    "/assets/%2e%2e/%2e%2e/config.py",
    "//etc/passwd",
    "/photo/../../etc/passwd",
    "/photo/0/../../../etc/passwd?id=0",
    "/photo/0?id=/etc/passwd",
    "/photo/0?id=../0",
    "/photo/9?id=0",
    "/gradio_api/proxy=http://127.0.0.1/",
    "/gradio_api/info",
    "/gradio_api/openapi.json",
    "/gradio_api/runs",
    "/gradio_api/mcp/sse",
    "/monitoring",
    "/docs",
    "/openapi.json",
    "/login",
]


@pytest.mark.parametrize("path", FORBIDDEN)
def test_paths_that_lead_elsewhere(site: str, path: str) -> None:
    assert status(site, path) in (404, 422)


def test_links_that_leave_the_folders_are_not_followed(
    site: str, visit: Any, engine: SearchEngine, learnt: Any, tmp_path: Path
) -> None:
    """Neither by Gradio, from where it keeps what was sent, nor by an id that looks like a file."""
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (9, 9)).save(secret)
    link = Path(engine.root) / "link.jpg"
    link.symlink_to(secret)
    try:
        for path in (f"/gradio_api/file={link}", f"/photo/0?id={quote(str(link))}", "/photo/0?id=link.jpg"):
            assert status(site, path) == 404
        assert re.search("no photo that was sent|not in the cache", refusal(visit(site), str(link)))
    finally:
        link.unlink()


@pytest.mark.parametrize("way", ["/gradio_api/run/type", "/gradio_api/call/type", "/gradio_api/vibe-edit", "/config"])
def test_other_ways_to_ask_are_closed(site: str, way: str) -> None:
    assert status(site, way, "POST", b"{}", **{"Content-Type": "application/json"}) == 404


@pytest.mark.parametrize("marker", ["gradio.FileData", "gradio.\\u0046ileData"])
def test_an_event_can_not_make_the_server_fetch_or_copy_files(site: str, marker: str) -> None:
    body = (
        '{"data": [{"path": "http://127.0.0.1:9/x.jpg", "meta": {"_type": "MARKER"}}, "images", "all", 12, null], '
        '"fn_index": 0, "session_hash": "x"}'.replace("MARKER", marker)
    )
    assert status(site, "/gradio_api/queue/join", "POST", body.encode(), **{"Content-Type": "application/json"}) == 400
    huge = b'{"data": ["' + b"x" * 70_000 + b'"]}'
    assert status(site, "/gradio_api/queue/join", "POST", huge, **{"Content-Type": "application/json"}) == 413


def test_photos_are_small_jpegs_that_can_be_kept(site: str, visit: Any, learnt: Any) -> None:
    answer = visit(site).http.get("photo/0", params={"id": learnt[0].id})
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "max-age" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.content)).size == (96, 96)
    assert visit(site).http.get("photo/0", params={"id": learnt[0].id, "size": "x"}).status_code == 404


def test_the_page_names_no_other_host(site: str, visit: Any) -> None:
    answer = visit(site).http.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="([^"]*)"', answer.text)
    assert [one for one in loaded if "//" in one] == []
    config = visit(site).http.get("config").json()
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []


def test_the_map_names_every_point(site: str, visit: Any, engine: SearchEngine) -> None:
    drawn = visit(site).http.get("map/0").json()
    assert {len(column) for column in drawn.values()} == {24 + 120}
    assert max(map(abs, drawn["x"] + drawn["y"])) == pytest.approx(1)
    for side, number, place, text in zip(drawn["side"], drawn["number"], drawn["caption"], drawn["text"], strict=True):
        item = engine.items.at(engine.items.row(side, number))
        assert (place is None) == (side == "images")
        assert item.captions[place or 0].startswith(text)


def test_an_address_reproduces_what_was_shown(site: str, visit: Any, learnt: Any) -> None:
    query = f"?q={quote(learnt[0].captions[0])}&find=captions&split=train&k=7"
    text, target, split, k, shown = visit(site).visit(query)
    assert (text, target, split, k) == (learnt[0].captions[0], "captions", "train", 7)
    assert ids(shown) == ids(visit(site).type(learnt[0].captions[0], "captions", "train", 7))
    assert "data-address" in shown
    clicked = visit(site).ask(item=learnt[3].id)
    text, target, *_, shown = visit(site).visit(f"?item={learnt[3].id}")
    assert (text, target, ids(shown)) == ("", "captions", ids(clicked))
    caption = visit(site).ask(item=learnt[3].id, caption="1")
    text, target, *_, shown = visit(site).visit(f"?item={learnt[3].id}&caption=2")
    assert (text, target, ids(shown)) == (learnt[3].captions[1], "images", ids(caption))


def test_eight_users_at_once_get_their_own_answers(site: str, visit: Any, learnt: Any) -> None:
    visitors = [visit(site) for _ in range(8)]

    def ask(place: int) -> list[tuple[str, str]]:
        own = learnt[place::8]
        return [(item.id, ids(visitors[place].type(item.captions[0], split="train"))[0]) for item in own * 4]

    with ThreadPoolExecutor(8) as pool:
        pairs = [pair for found in pool.map(ask, range(8)) for pair in found]
    assert len(pairs) == 64
    assert all(wanted == got for wanted, got in pairs)


def test_words_are_shown_as_they_are_and_never_run(
    serve: Any, visit: Any, words_only: SearchEngine, hostile: Any
) -> None:
    with serve(words_only) as address:
        visitor = visit(address)
        for shown in (
            visitor.type(hostile[0], "captions"),
            visitor.visit("")[-1],
            visitor.visit(f"?q={hostile[1]}")[-1],
        ):
            assert "<script" not in shown
            assert "<img src=x" not in shown
            assert "&lt;img src=x onerror=alert(1)&gt;" in shown
        drawn = visitor.http.get("map/0").json()
        assert set(drawn["text"]) <= set(hostile)
        assert "holds no images" in said(visitor.visit("?q=x&find=images")[-1]) or ids(visitor.visit("?q=x")[-1])


def test_an_index_of_photos_alone_whose_files_are_gone(
    serve: Any, visit: Any, studio: Any, by_heart: Path, engine: SearchEngine, learnt: Any, tmp_path: Path
) -> None:
    for item in learnt[:5]:
        (tmp_path / item.file).write_bytes(photo_of(engine, item).read_bytes())
    photos = SearchEngine.open(studio.index(by_heart, "photos", "--images", str(tmp_path)), device="cpu")
    first, second, *_ = sorted(tmp_path.iterdir())
    first.unlink()
    second.write_bytes(b"no photo any more")
    with serve(photos) as address:
        visitor = visit(address)
        shown = visitor.type(learnt[0].captions[0])
        assert len(ids(shown)) == 5
        assert shown.count("its photo is not on this disk") == 1
        assert shown.count("<img") == 4
        gone, broken = (next(one for one in photos.items.ids if photos.items.item(one).file == path.name)
                        for path in (first, second))  # fmt: skip
        assert visitor.http.get("photo/0", params={"id": broken}).headers["content-type"] == "image/jpeg"  # a grey tile
        assert len(ids(visitor.ask(item=gone))) == 5  # its embedding is still there
        assert len(ids(visitor.send(photo_of(engine, learnt[2]).read_bytes()))) == 5


def test_an_encoder_that_reads_no_new_photos_says_so(
    serve: Any, visit: Any, studio: Any, engine: SearchEngine, learnt: Any
) -> None:
    every = [engine.items.item(one) for one in engine.items.ids]
    photos = [np.asarray(Image.open(photo_of(engine, item)).convert("RGB").resize((6, 6))).ravel() for item in every]
    np.save(studio.root / "features.npy", np.stack(photos).astype(np.float32) / 255)
    encoder = ("image_encoder=precomputed", f"image_encoder.path={studio.root / 'features.npy'}")
    run = studio.train("precomputed", *encoder, "trainer.max_epochs=1")
    precomputed = SearchEngine.open(studio.index(run, "precomputed", "--split=all"), device="cpu")
    with serve(precomputed, engine) as address:  # two runs side by side
        visitor = visit(address)
        assert len(ids(visitor.type("a disc", k=5))) == 10
        shown = visitor.send(photo_of(engine, learnt[2]).read_bytes())
        assert "made_by" in said(shown)
        assert ids(shown)[0] == learnt[2].id  # the other run can
        assert len(ids(shown)) == 12
        assert len(ids(visitor.ask(item=learnt[0].id))) == 24


def test_a_port_that_is_taken_is_told_of(site: str) -> None:
    from xmodal.demo.server import bound

    port = int(urlsplit(site).netloc.split(":")[1])
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1, port {port} \(.*in use\).*--port {port + 1}"):
        bound("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"203\.0\.113\.7"):
        bound("203.0.113.7", 0)


def test_a_port_is_claimed_before_it_is_served() -> None:
    """Two that start at once: both load their models first, and only then serve."""
    from xmodal.demo.server import bound

    with bound("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} \(.*in use\)"):
            bound("127.0.0.1", port)
    bound("127.0.0.1", port).close()


def test_an_event_is_private_to_its_session(site: str, visit: Any) -> None:
    """Nothing of one session is in the configuration that every visitor gets."""
    visitor = visit(site)
    visitor.type("a secret sentence")
    assert "a secret sentence" not in json.dumps(visit(site).http.get("config").json())
