"""A loss among the items of one side: captions of one image, or photos of one class, belong together."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from xmodal.errors import ConfigError
from xmodal.losses.comparison import (
    Comparison,
    EmbeddedPairs,
    choice_faults,
    figures_of,
    require,
    within,
    zero_of,
)

CHOICES = {"side": ("image", "text")}


class WithinModality(nn.Module):
    """``loss`` over images with images, or texts with texts, rather than over images with texts.

    Texts match where they belong to the same image; with labels, texts (or images) match where they are of one label.
    An item is not compared with itself. ``anchor`` and ``siblings`` of the inner loss have no effect: every item is an
    anchor, and every match counts.

    Both sides' embeddings enter with a weight of 0. The other side's tower then has gradients of 0 instead of none,
    which DistributedDataParallel would wait for; and NaN in an embedding gives NaN, even of an item without a match.

    Args:
        loss: any of xmodal's losses: one with a method ``compare``.
        side: ``image`` or ``text``.

    Raises:
        ConfigError: an unknown side, or a loss without ``compare``; in ``forward``, images without labels: each
            image is one item, so that none would have a match.
    """

    def __init__(self, loss: nn.Module, side: str = "image") -> None:
        super().__init__()
        faults = choice_faults({"side": side}, CHOICES)
        if not callable(getattr(loss, "compare", None)):
            faults.append(
                f"loss.loss: {type(loss).__name__} has no method compare(comparisons), so it compares images with "
                "texts only. Choose triplet, contrastive, infonce or siglip: loss@loss.loss=triplet"
            )
        require(faults)
        self.loss = loss
        self.side = side

    def figures(self) -> dict[str, Tensor]:
        """Those of the inner loss."""
        return figures_of(self.loss)

    def forward(
        self,
        image: Float[Tensor, "B E"],
        text: Float[Tensor, "B E"],
        image_ids: Int[Tensor, "B"],
        labels: Int[Tensor, "B"] | None = None,
        memory: EmbeddedPairs | None = None,
    ) -> Float[Tensor, ""]:
        if self.side == "image" and labels is None:
            raise ConfigError("A loss among images needs labels, which say what images match: relevance=label.")
        found = self.compare([within(self.side, image, text, image_ids, labels, memory)])
        return found + zero_of(image, text)

    def compare(self, comparisons: Sequence[Comparison]) -> Float[Tensor, ""]:
        """What the inner loss makes of these comparisons."""
        loss: Tensor = self.loss.compare(comparisons)  # type: ignore[operator]  # checked above
        return loss
