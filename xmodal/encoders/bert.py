"""BERT and its kin: one caption → one vector, or a set of one vector per token."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub import constants
from jaxtyping import Bool, Float
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from xmodal.encoders.weights import (
    PRETRAINED,
    UNREADABLE,
    StateDict,
    check_probe,
    digest,
    first_line,
    freeze,
    frozen_state,
    load_strictly,
    seeded,
    three_ways_on,
    unreachable,
)
from xmodal.errors import ConfigError, WeightsError
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

CHOICES = {"pooling": ("cls", "mean", "tokens")}
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_KEY = "text_encoder"
_UNREADABLE = (*UNREADABLE, ImportError)  # a tokenizer may need a package that is not there


class BertEncoder:
    """Last hidden layer of a Hugging Face text encoder (BERT: Devlin et al., 2019).

    Args:
        model: name of the model that ``weights=pretrained`` stands for.
        weights: ``pretrained``, a Hugging Face folder or name, or None: a small BERT with random weights and a
            WordPiece vocabulary learned from the training captions.
        pooling: ``cls`` (vector of the first token) and ``mean`` (of all tokens) give a set of one, ``tokens`` a
            set with the vector of every token, special ones included, padding not.
        max_length: tokens per caption, special ones included; the rest is cut off.
        seed: of random weights.
        hidden_size: D of the random BERT.
        num_layers: its layers.
        num_heads: its attention heads.
        vocab_size: most word pieces in its vocabulary.
        batch_size: captions per forward pass.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "text"

    def __init__(
        self,
        model: str = "bert-base-uncased",
        weights: str | None = None,
        pooling: str = "cls",
        max_length: int = 64,
        seed: int = 0,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        vocab_size: int = 8000,
        batch_size: int = 64,
    ) -> None:
        positive = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "batch_size": batch_size,
        }
        faults = [f"{_KEY}.{name} must be positive, found {value}." for name, value in positive.items() if value < 1]
        if pooling not in CHOICES["pooling"]:
            faults.append(f"{_KEY}.pooling must be one of {', '.join(CHOICES['pooling'])}, found {pooling}.")
        if max_length < 3:
            faults.append(f"{_KEY}.max_length must be at least 3 (two are special tokens), found {max_length}.")
        if vocab_size < 100:
            faults.append(f"{_KEY}.vocab_size must be at least 100, found {vocab_size}.")
        if num_heads > 0 and hidden_size % num_heads:
            faults.append(f"{_KEY}.hidden_size must be a multiple of num_heads, found {hidden_size} and {num_heads}.")
        if faults:
            raise ConfigError(faults)
        self.model = model
        self.weights = weights
        self.pooling = pooling
        self.max_length = max_length
        self.seed = seed
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.vocab_size = vocab_size
        self.batch_size = batch_size
        self._prepared: tuple[Any, Any] | None = None  # network and tokenizer
        self._from_folder = False  # then a checkpoint carries everything: the folder may go

    @property
    def feature_dim(self) -> int:
        return self.network.config.hidden_size

    @property
    def network(self) -> Any:
        """The transformer; known after ``prepare`` or ``restore``."""
        return self._parts()[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; known after ``prepare`` or ``restore``."""
        return self._parts()[1]

    def check(self) -> list[str]:
        if self.weights is None or not _looks_like_path(self.weights) or Path(self.weights).expanduser().is_dir():
            return []
        return [
            f"{_KEY}.weights: no folder {self.weights}; give a folder with config.json, weights and tokenizer, "
            "a Hugging Face name, pretrained, or null (random weights)."
        ]

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load network and tokenizer, or make them: vocabulary from the captions, weights from the seed.

        Raises:
            WeightsError: they can't be had, or are not a text encoder's.
            ConfigError: ``max_length`` is more than the network has positions for.
        """
        if self._prepared is None:
            vocabulary = train_vocabulary(captions, self.vocab_size) if self.weights is None else []
            self._set(self._obtain(vocabulary))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "encoder": "BertEncoder",
            "pooling": self.pooling,
            "max_length": self.max_length,
            "config": _sha256(_architecture(self.network.config)),
            "tokenizer": _sha256(_tokenizer_settings(self.tokenizer)),
            "weights": digest(self.network.state_dict()),
        }

    @staticmethod
    def preprocess(item: str) -> str:
        """The caption itself; the tokenizer works on whole batches."""
        return item

    @torch.inference_mode()
    def encode(self, batch: list[str]) -> list[FeatureSet]:
        inputs = self.tokenizer(
            batch, padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.network.device)
        hidden = self.network(**inputs).last_hidden_state.float().cpu()
        return _pool(hidden, inputs["attention_mask"].cpu().bool(), self.pooling)

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def state(self) -> dict[str, Any]:
        state = frozen_state(self.network, embed=self._from_folder)
        if self._from_folder:
            state["files"] = _files(self.network, self.tokenizer)
        elif self.weights is None:
            pieces = self.tokenizer.get_vocab()
            state["vocabulary"] = sorted(pieces, key=pieces.__getitem__)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        self._from_folder = "files" in state
        if self._from_folder:
            parts = _from_files(state["files"], state["weights"])
        else:
            parts = self._obtain(state.get("vocabulary", []))
        check_probe(parts[0], state, f"{_KEY} {self.weights or 'bert'}")
        self._set(parts)

    def _parts(self) -> tuple[Any, Any]:
        if self._prepared is None:
            raise RuntimeError("BertEncoder has no weights yet: call prepare() or restore() first")
        return self._prepared

    def _set(self, parts: tuple[Any, Any]) -> None:
        positions = getattr(parts[0].config, "max_position_embeddings", None)
        if positions is not None and self.max_length > positions:
            raise ConfigError(
                f"{_KEY}.max_length must be at most {positions} for this network, found {self.max_length}."
            )
        self._prepared = parts

    def _obtain(self, vocabulary: list[str]) -> tuple[Any, Any]:
        if self.weights is None:
            log.info(
                f"BERT uses random weights (seed {self.seed}) and {len(vocabulary)} word pieces learned from the "
                f"training captions, because {_KEY}.weights=null."
            )
            return self._random(vocabulary)
        for fault in self.check():
            raise WeightsError(fault)
        folder = Path(self.weights).expanduser()
        self._from_folder = folder.is_dir()
        if self._from_folder:
            return _load_folder(folder, self.seed)
        return _load_by_name(self.model if self.weights == PRETRAINED else self.weights, self.seed)

    def _random(self, vocabulary: list[str]) -> tuple[Any, Any]:
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=4 * self.hidden_size,
            max_position_embeddings=max(512, self.max_length),
        )
        with seeded(self.seed):
            network = BertModel(config, add_pooling_layer=False)
        return freeze(network), wordpiece_tokenizer(vocabulary)


def train_vocabulary(captions: Sequence[str], vocab_size: int) -> list[str]:
    """Word pieces (Wu et al., 2016) of the captions, special ones first; the same captions always give the same list.

    Raises:
        WeightsError: no caption has any text.
    """
    normal = _normalizer()
    letters = sorted({letter for caption in captions for letter in normal.normalize_str(caption) if letter.strip()})
    if not letters:
        raise WeightsError(f"Can't learn word pieces: none of the {len(captions)} training captions has any text.")
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normal
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner = [f"##{letter}" for letter in letters]  # named here, because the trainer numbers them in a random order
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(_SPECIAL) + 2 * len(letters)),
        special_tokens=_SPECIAL + inner,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    pieces = learner.get_vocab()
    return sorted(pieces, key=pieces.__getitem__)


def wordpiece_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """BERT's lower-casing tokenizer with these word pieces."""
    rows = {piece: row for row, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(rows, unk_token="[UNK]"))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", rows["[SEP]"]), ("[CLS]", rows["[CLS]"]))
    names = {f"{piece.strip('[]').lower()}_token": piece for piece in _SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=True)


def _pool(hidden: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], pooling: str) -> list[FeatureSet]:
    if pooling == "tokens":
        return [vectors[kept] for vectors, kept in zip(hidden, mask, strict=True)]
    if pooling == "mean":
        kept = hidden.masked_fill(~mask.unsqueeze(-1), 0.0)
        return list((kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(1))
    first = mask.int().argmax(dim=1)  # not 0: some tokenizers pad on the left
    return list(hidden[torch.arange(len(hidden)), first].unsqueeze(1))


def _looks_like_path(name: str) -> bool:
    """A Hugging Face name is ``model`` or ``owner/model``."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _load(source: str, seed: int, local: bool = True) -> tuple[Any, Any]:
    """Network and tokenizer of a folder, or of a name in the Hub's cache, or (not ``local``) in the Hub.

    Raises:
        OSError, ValueError, ImportError: absent or unreadable.
        WeightsError: not a text encoder.
    """
    config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if hasattr(config, "text_config"):
        raise WeightsError(
            f"{_KEY}.weights: {source} is a {config.model_type} model of several parts; expected a text encoder."
        )
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if tokenizer.pad_token is None:
        raise WeightsError(f"{_KEY}.weights: the tokenizer of {source} has no padding token; expected a text encoder.")
    with seeded(seed):  # a part that the file lacks (often the pooler) is random
        network = AutoModel.from_pretrained(source, config=config, local_files_only=local, trust_remote_code=False)
    return _frozen(network), tokenizer


def _frozen(network: Any) -> Any:
    encoder = network.get_encoder() if network.config.is_encoder_decoder else network
    return freeze(encoder.float())


def _load_folder(folder: Path, seed: int) -> tuple[Any, Any]:
    try:
        return _load(str(folder), seed)
    except _UNREADABLE as error:
        raise WeightsError(
            f"{_KEY}.weights: can't load {folder}: {first_line(error)}; expected a folder that save_pretrained() "
            "wrote, with config.json, model.safetensors and the tokenizer's files."
        ) from error


def _load_by_name(name: str, seed: int) -> tuple[Any, Any]:
    """From the Hub's cache where it is complete, else from the Hub."""
    try:
        return _load(name, seed)
    except _UNREADABLE:
        fault = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if fault is None:
        try:
            return _load(name, seed, local=False)
        except _UNREADABLE as error:
            fault = first_line(error)
    network = f"start once with a network; the files stay in {constants.HF_HUB_CACHE} (HF_HOME moves this folder)"
    what = f"The Hugging Face model {name} ({_KEY}.weights)"
    raise three_ways_on(what, f"not in {constants.HF_HUB_CACHE}, and {fault}", network, "/path/to/folder", _KEY)


def _files(network: Any, tokenizer: Any) -> dict[str, Tensor]:
    """Configuration and tokenizer as the bytes of the files that ``save_pretrained`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        network.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        written = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}
    return {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in written.items()}


def _from_files(files: dict[str, Tensor], weights: StateDict) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content.numpy().tobytes())
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with seeded(0):
        network = _frozen(AutoModel.from_config(config))
    load_strictly(network, weights, "The checkpoint's text encoder")
    return network, tokenizer


def _architecture(config: Any) -> str:
    """Settings that shape the network, without those that only tell where it came from."""
    settings = json.loads(config.to_json_string(use_diff=True))
    told = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    return json.dumps({key: value for key, value in settings.items() if key not in told}, sort_keys=True)


def _tokenizer_settings(tokenizer: Any) -> str:
    """What the tokenizer does to a text, apart from truncation and padding, which every call sets anew."""
    if not tokenizer.is_fast:
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**settings, "truncation": None, "padding": None}, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
