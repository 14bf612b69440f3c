"""Word pieces learned from captions, and the tokenizer that cuts sentences into them."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from xmodal.errors import WeightsError

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


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
    return vocabulary_of(learner)


def wordpiece_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """BERT's lower-casing tokenizer with these word pieces."""
    rows = {piece: row for row, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(rows, unk_token="[UNK]"))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", rows["[SEP]"]), ("[CLS]", rows["[CLS]"]))
    names = {f"{piece.strip('[]').lower()}_token": piece for piece in _SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def vocabulary_of(tokenizer: Tokenizer | PreTrainedTokenizerFast) -> list[str]:
    """Its word pieces in the order of their numbers."""
    pieces = tokenizer.get_vocab()
    return sorted(pieces, key=pieces.__getitem__)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=True)
