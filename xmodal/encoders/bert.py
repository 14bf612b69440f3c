"""BERT and its kin: one caption → one vector, or a set of one vector per token."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from xmodal.encoders.bert_files import from_files, identity, load_by_name, load_folder
from xmodal.encoders.bert_tail import BertFront, BertTail, WholeBert, blocks_of, is_faithful, without_last
from xmodal.encoders.hub import kept_state, missing_folder, published_model, saved_files, token_counts
from xmodal.encoders.portable import PortableEncoder
from xmodal.encoders.protocol import TrainableLayers
from xmodal.encoders.published import Published
from xmodal.encoders.trainable import marked, range_faults, trainable
from xmodal.encoders.weights import PRETRAINED, check_probe, freeze, seeded
from xmodal.encoders.wordpiece import train_vocabulary, vocabulary_of, wordpiece_tokenizer
from xmodal.errors import ConfigError, WeightsError
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

CHOICES = {"pooling": ("cls", "mean", "tokens")}
_KEY = "text_encoder"


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
        trainable_layers: N blocks, counted from the end, that are trained; a set is then all hidden states (n, D) that
            the first of them takes, whatever the pooling. ``all`` trains the embeddings too: a set is the token ids
            (n, 1).
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
        trainable_layers: TrainableLayers = 0,
        batch_size: int = 64,
    ) -> None:
        positive = {
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "batch_size": batch_size,
        }
        faults = [f"{_KEY}.{name} must be positive, found {value}." for name, value in positive.items() if value < 1]
        faults += range_faults(trainable_layers, num_layers if weights is None else None, _KEY)
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
        self.trainable_layers = trainable_layers
        self.batch_size = batch_size
        self._prepared: tuple[Any, Any] | None = None  # network and tokenizer
        self._frozen_part: Any = None  # what of the network `encode` runs
        self._end: nn.Module | None = None  # what comes behind, sharing the network's layers
        self._from_folder = False  # then a checkpoint carries everything: the folder may go

    @property
    def feature_dim(self) -> int:
        return 1 if self.trainable_layers == "all" else self.network.config.hidden_size

    @property
    def needs_float32(self) -> bool:
        """Whether sets hold token ids, of which float16 would confuse those above 2048."""
        return self.trainable_layers == "all"

    @property
    def network(self) -> Any:
        """The transformer; known after ``prepare`` or ``restore``."""
        return self._parts()[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; known after ``prepare`` or ``restore``."""
        return self._parts()[1]

    def check(self) -> list[str]:
        return missing_folder(self.weights, _KEY, "a folder with config.json, weights and tokenizer")

    def published(self) -> Published | None:
        return published_model(self.weights, self.model, "text")

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
        settings = {"encoder": "BertEncoder", "pooling": self.pooling, "max_length": self.max_length}
        return marked({**settings, **identity(self.network, self.tokenizer)}, self.trainable_layers)

    @staticmethod
    def preprocess(item: str) -> str:
        """The caption itself; the tokenizer works on whole batches."""
        return item

    def sizes(self, items: Sequence[str]) -> list[int]:
        """Tokens of each caption, special ones included."""
        return token_counts(self.tokenizer, items, self.max_length)

    def most_vectors(self, items: Sequence[str]) -> int:
        return len(items) if self.trainable_layers == 0 and self.pooling != "tokens" else sum(self.sizes(items))

    def collate(self, batch: list[str]) -> dict[str, Tensor]:
        """Token ids and masks, padded to the longest caption of the batch."""
        limits = {"truncation": True, "max_length": self.max_length}
        return dict(self.tokenizer(batch, padding="longest", return_tensors="pt", **limits))

    @torch.inference_mode()
    def encode(self, batch: list[str] | Mapping[str, Tensor]) -> list[FeatureSet]:
        inputs = batch if isinstance(batch, Mapping) else self.collate(batch)
        mask = inputs["attention_mask"].bool()
        if self.trainable_layers == "all":
            x, kept = inputs["input_ids"].float().unsqueeze(2), mask
        else:
            x, kept = self._hidden({name: tensor.to(self.network.device) for name, tensor in inputs.items()})
        return list(x[kept].float().cpu().split(kept.sum(dim=1).tolist()))

    def tail(self) -> nn.Module:
        """The last blocks, or the whole network, and the pooling, with weights of their own."""
        self._parts()
        assert self._end is not None
        return trainable(self._end)

    def portable(self) -> PortableEncoder:
        names = ("input_ids", "attention_mask")
        tokenizer = self.tokenizer  # says what to do where there is none yet
        return PortableEncoder(
            BertFront(self._frozen_part, self._end if self.trainable_layers == 0 else None),
            dict.fromkeys(names, ("batch", "length")),
            lambda batch: tuple(self.collate(batch)[name] for name in names),
            {"tokenizer": "text_tokenizer", "padding": "longest", "truncation": True, "max_length": self.max_length},
            {f"text_tokenizer/{name}": content for name, content in saved_files(tokenizer).items()},
        )

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def state(self) -> dict[str, Any]:
        learned = {} if self._from_folder or self.weights else {"vocabulary": vocabulary_of(self.tokenizer)}
        return kept_state(self.network, self.tokenizer, self._from_folder) | learned

    def restore(self, state: dict[str, Any]) -> None:
        self._from_folder = "files" in state
        if self._from_folder:
            parts = from_files(state["files"], state["weights"])
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
        self._frozen_part, self._end = self._cut(*parts)
        self._prepared = parts

    def _cut(self, network: Any, tokenizer: Any) -> tuple[Any, nn.Module]:
        """What stays frozen (None: nothing), and what comes behind it.

        Raises:
            ConfigError: more trainable layers than there are, or a network that can't be cut.
        """
        ids = tokenizer("a")["input_ids"] * 3
        if self.trainable_layers == 0:
            return self._uncut(network, ids)
        if self.trainable_layers == "all":
            whole = WholeBert(without_last(network, 0), tokenizer.pad_token_id, self.pooling)
            if not is_faithful(None, whole, network, ids, self.pooling):
                raise self._refusal(network, "it needs more than token ids", "0")
            return None, whole
        blocks = blocks_of(network)
        if blocks is None:
            raise self._refusal(network, "its blocks are not network.encoder.layer", "0 or all")
        for fault in range_faults(self.trainable_layers, len(blocks), _KEY):
            raise ConfigError(fault)
        front = without_last(network, self.trainable_layers)
        for first_alone in (True, False):
            tail = BertTail(blocks[-self.trainable_layers :], network.config, self.pooling, first_alone)
            if is_faithful(front, tail, network, ids, self.pooling):
                return front, tail
        raise self._refusal(network, "its blocks take more than hidden states and a mask", "0 or all")

    def _uncut(self, network: Any, ids: list[int]) -> tuple[Any, nn.Module]:
        """All of the network, or, where only the first token is asked for, with a last block that works on it alone."""
        blocks = blocks_of(network)
        if blocks is not None and len(blocks) and self.pooling == "cls":
            front, last = without_last(network, 1), BertTail(blocks[-1:], network.config, "cls", first_alone=True)
            if is_faithful(front, last, network, ids, "cls"):
                return front, last
        return without_last(network, 0), BertTail([], network.config, self.pooling)

    def _refusal(self, network: Any, why: str, choices: str) -> ConfigError:
        return ConfigError(
            f"{_KEY}.trainable_layers={self.trainable_layers}: a {network.config.model_type} network can't be cut "
            f"there, because {why}. Type {_KEY}.trainable_layers={choices}."
        )

    def _hidden(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Vectors (B, L, D) and mask (B, L): at the cut, or what the whole encoder gives."""
        assert self._end is not None
        hidden = self._frozen_part(**inputs).last_hidden_state
        mask = inputs["attention_mask"].bool()
        return (hidden, mask) if self.trainable_layers else self._end(hidden.float(), mask)

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
            return load_folder(folder, self.seed)
        return load_by_name(self.model if self.weights == PRETRAINED else self.weights, self.seed)

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
