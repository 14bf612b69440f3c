"""Word vectors of captions as a table and codes: rate of the look-up, and size beside one vector per word."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from alternation import alternate, seconds
from parts.inputs import Inputs, new_store, prepared

from xmodal.data.karpathy import KarpathyData
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.encoders.word_vectors import WordVectors
from xmodal.features.store import FeatureStore
from xmodal.features.word_codes import extract_words
from xmodal.tokens import tokenize

MIB = 2**20


def measure(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """A line of rates, and one of sizes per type of number."""
    captions = read_captions(options, folder)
    encoder = prepared(table_of(captions, options.word_width), captions, options, folder)
    sentences = [encoder.preprocess(caption) for caption in captions]

    def ours() -> float:
        return len(captions) / seconds(lambda: coded(encoder, captions, folder, "float16"), options.device)

    def bare() -> float:
        return len(captions) / seconds(lambda: look_up(encoder, sentences), options.device)

    ours()
    yield alternate(ours, bare, options.repeats).line(f"words, {len(captions)} captions", "captions/s")
    ragged = sum(map(len, sentences)) * options.word_width * 4
    for dtype in ("float16", "float32"):
        path = coded(encoder, captions, folder, dtype)
        require_the_same(encoder, captions, sentences, path)
        size = path.stat().st_size
        yield (
            f"  table in {dtype} and codes: {size / MIB:.2f} MiB on disk; one float32 vector per word: "
            f"{ragged / MIB:.2f} MiB, {ragged / size:.1f} times as much"
        )


def read_captions(options: argparse.Namespace, folder: Path) -> list[str]:
    """All of ``--captions-file``, else those of the other parts."""
    file = options.captions_file
    if file is None:
        return Inputs.read(options, folder).captions
    items = KarpathyData("captions", file.parent, file.name, on_empty_caption="drop", on_captionless="keep").load()
    return [caption.text for caption in items.captions]


def table_of(captions: list[str], width: int) -> FastTextEncoder:
    """A random vector for every word of the captions."""
    words = tuple(dict.fromkeys(word for caption in captions for word in tokenize(caption)))
    vectors = np.random.default_rng(0).standard_normal((len(words), width), np.float32)
    encoder = FastTextEncoder()
    encoder.restore({"table": WordVectors(words, vectors).state(), "path": "random"})
    return encoder


def coded(encoder: FastTextEncoder, captions: list[str], folder: Path, dtype: str) -> Path:
    """The file of table and codes, made from the beginning."""
    return extract_words(
        encoder,
        captions,
        range(len(captions)),
        store=new_store(folder),
        data_name="benchmark",
        encoder_name="fasttext",
        data_fingerprint="benchmark",
        dtype=dtype,
    )


def look_up(encoder: FastTextEncoder, sentences: list[list[str]]) -> None:
    """The table's own look-up of words that are cut apart already, batch by batch; what comes out is dropped."""
    for start in range(0, len(sentences), encoder.batch_size):
        encoder.table.lookup(sentences[start : start + encoder.batch_size])


def require_the_same(encoder: FastTextEncoder, captions: list[str], sentences: list[list[str]], path: Path) -> None:
    """Some captions read back are what the table says."""
    stored = FeatureStore(path.parents[1]).read(path)
    for row in range(0, len(captions), max(1, len(captions) // 100)):
        expected, _ = encoder.table.lookup([sentences[row]])
        if not np.array_equal(stored[row], expected.astype(stored.values.dtype)):
            raise SystemExit(f"The stored vectors of caption {row}, {captions[row]!r}, are not the table's.")
