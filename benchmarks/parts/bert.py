"""BERT over captions: xmodal's extraction beside a course's procedure, sentence_transformers and the bare network.

On a GPU xmodal computes in bfloat16 where it can, the course and sentence_transformers in float32 as they come;
``--precision float32`` lets all of them compute alike. The bare network runs in xmodal's precision.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alternation import Comparison, gpu_memory, seconds, take_turns
from parts.forwards import TokenCount, recorded, replay
from parts.inputs import Inputs, bert_folder, into_new_store, prepared

from xmodal.encoders.bert import BertEncoder
from xmodal.features.store import FeatureStore

MAX_LENGTH = 64
THEIR_BATCH_SIZE = 32  # what sentence_transformers takes unless told
AGREEMENT = 0.02  # most that vectors may differ, as a share of the largest value: room for float16 and bfloat16

Way = Callable[[], object]  # encodes all captions once


def measure(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """One line per other way, then the padding of each and how many captions are distinct."""
    weights = bert_folder(options, folder)
    inputs = Inputs.read(options, folder)
    captions = inputs.captions
    encoder = prepared(BertEncoder(weights=str(weights), max_length=MAX_LENGTH), captions, options, folder)
    with recorded(encoder.network.get_input_embeddings()) as passes:
        path = into_new_store(encoder, captions, options, folder)
    theirs = sentence_transformer(weights, options.device)
    ways: dict[str, Way] = {
        "xmodal": lambda: into_new_store(encoder, captions, options, folder),
        "bare": lambda: replay(partial(whole_network, encoder), passes),
        "course": lambda: padded_by_image(encoder, inputs.groups, options.device),
        f"sentence_transformers in batches of {encoder.batch_size}": lambda: theirs.encode(
            captions, batch_size=encoder.batch_size, show_progress_bar=False
        ),
        f"sentence_transformers in batches of {THEIR_BATCH_SIZE}": lambda: theirs.encode(
            captions, batch_size=THEIR_BATCH_SIZE, show_progress_bar=False
        ),
    }
    paddings = padding_of(ways, [encoder.network, theirs[0].model], encoder.tokenizer.pad_token_id, path)
    rates = take_turns({name: rate(way, len(captions), options.device) for name, way in ways.items()}, options.repeats)
    for name in list(ways)[1:]:
        yield line(name, Comparison(rates["xmodal"], rates[name]), len(captions))
    distinct = f"{len(set(captions))} of {len(captions)}"
    yield f"  distinct captions: {distinct}; the course and sentence_transformers encode them all"
    yield "  padding, share of the tokens: " + ", ".join(f"{name} {share:.1%}" for name, share in paddings.items())
    yield from gpu_memory(ways["xmodal"], options.device)


def whole_network(encoder: BertEncoder, ids: torch.Tensor) -> object:
    """The plain forward pass of all layers over padded token ids."""
    return encoder.network(input_ids=ids, attention_mask=(ids != encoder.tokenizer.pad_token_id).long())


def line(way: str, comparison: Comparison, count: int) -> str:
    """``way`` is one word, and perhaps how it is set."""
    other, _, setting = way.partition(" ")
    return comparison.line(f"bert, {count} captions{', ' if setting else ''}{setting}", "captions/s", other)


def rate(way: Way, count: int, device: torch.device) -> Callable[[], float]:
    return lambda: count / seconds(way, device)


@torch.inference_mode()
def padded_by_image(encoder: BertEncoder, groups: Sequence[Sequence[str]], device: torch.device) -> np.ndarray:
    """Every image's captions padded to ``MAX_LENGTH`` and run together, the first token's vector kept as float32."""
    vectors = []
    for group in groups:
        tokens = encoder.tokenizer(
            list(group), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        )
        vectors.append(encoder.network(**tokens.to(device)).last_hidden_state[:, 0].float().cpu().numpy())
    return np.concatenate(vectors)


def sentence_transformer(weights: Path, device: torch.device) -> Any:
    """The same network with the same pooling."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        raise SystemExit(
            'The part bert needs sentence_transformers, version 6 or later: pip install "xmodal[benchmarks]".'
        ) from None
    network = Transformer(str(weights), max_seq_length=MAX_LENGTH)
    pooling = Pooling(network.get_embedding_dimension(), pooling_mode="cls")
    return SentenceTransformer(modules=[network, pooling], device=str(device))


def padding_of(ways: dict[str, Way], networks: list[Any], padding_id: int, path: Path) -> dict[str, float]:
    """Run every way once, compare its vectors with the stored ones, and count the padding in its batches."""
    counts = [TokenCount(network.get_input_embeddings(), padding_id) for network in networks]
    stored = FeatureStore(path.parents[1]).read(path).values.astype(np.float32)
    shares = {}
    for name, way in ways.items():
        found = way()
        if isinstance(found, np.ndarray):
            require_agreement(name, stored, found)
        seen = [count.padding for count in counts]
        shares[name] = next(share for share in seen if share == share)
    for count in counts:
        count.stop()
    return shares


def require_agreement(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """All ways are to give the same vectors, or their times can't be compared."""
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference <= AGREEMENT:
        raise SystemExit(f"xmodal and {name} disagree: vectors differ by {difference:.3f} of the largest value.")
