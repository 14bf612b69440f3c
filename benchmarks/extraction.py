"""From photos and captions to features, to batches and to trained layers: xmodal beside other ways to the same end.

    python benchmarks/extraction.py
    python benchmarks/extraction.py --part bert --data path/to/flickr8k --captions 2000
    python benchmarks/extraction.py --part words --captions-file path/to/flickr30k/dataset.json.gz

xmodal's path begins with files and sentences and ends with a new file of features: it decodes, scales, tokenises,
sorts, encodes, checks and writes. Only the digest of the weights, which a run takes once, is taken before the clock
starts.

vgg, frcnn  beside the network's forward pass over the same batches, ready as tensors; what comes out is dropped.
bert        beside the same; beside what a course taught (the five captions of an image padded to 64 tokens and run
            together); and beside sentence_transformers (pip install "xmodal[benchmarks]").
words       word vectors as a table and codes: look-ups beside the table's bare look-up, and the size of the file.
finetune    training BERT's last layers on what is stored at the cut, beside computing the frozen layers in each step.
reading     a file with checksums into memory beside a plain one, and batches from a file beside batches from memory.

Weights are random (except BERT's), which does not change the work of a layer; an untrained Faster R-CNN fills all of
its 36 regions, as a trained one does on busy photos.
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from alternation import choose_device, describe
from parts import bert, finetune, photos, reading, words

Part = Callable[[argparse.Namespace, Path], Iterator[str]]  # options and an empty folder → lines of figures

PARTS: dict[str, Part] = {
    "vgg": photos.vgg,
    "frcnn": photos.faster_rcnn,
    "bert": bert.measure,
    "words": words.measure,
    "finetune": finetune.measure,
    "reading": reading.measure,
}


def main() -> None:
    """Measure every chosen part and print its lines."""
    options = _parser().parse_args()
    quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.device = choose_device(options.device)
    print(f"on {describe(options.device)}")
    for name in options.part or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for line in PARTS[name](options, Path(folder)):
                print(line, flush=True)


def quiet() -> None:
    """Only figures on the screen."""
    warnings.filterwarnings("ignore")
    logging.getLogger("xmodal").setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Extraction, storage and fine-tuning, beside other ways to the same.")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="which (repeatable); default: all")
    parser.add_argument("--data", type=Path, help="folder with dataset.json and images/; default: rendered scenes")
    parser.add_argument("--limit", type=int, default=64, help="most photos")
    parser.add_argument("--captions", type=int, default=1000, help="most captions")
    parser.add_argument("--captions-file", type=Path, help="all captions of this dataset.json(.gz) for the part words")
    parser.add_argument("--repeats", type=int, default=3, help="alternations")
    parser.add_argument("--workers", type=int, help="threads that decode photos ahead; default: xmodal's choice")
    parser.add_argument("--threads", type=int, help="threads of the networks; default: PyTorch's choice")
    parser.add_argument("--precision", default="auto", help="of the networks: auto, float32, bfloat16 or float16")
    parser.add_argument("--min-size", type=int, help="shorter side of photos in Faster R-CNN, in pixels; default: 224")
    parser.add_argument("--bert", type=Path, help="a Hugging Face folder; default: the one that a pip package brings")
    parser.add_argument("--word-width", type=int, default=300, help="width of the word vectors")
    parser.add_argument("--layers", type=int, default=2, help="layers of BERT to fine-tune")
    parser.add_argument("--reading-images", type=int, default=1000, help="images of the part reading, 190 KiB each")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


if __name__ == "__main__":
    main()
