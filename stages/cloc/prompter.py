"""What CLOC trains beside boxes as prompts: a phrase as a prompt, and the box that is read off what is answered.

Legend: B images, P tokens of an image, M prompts of an image, W width of the image encoder, D dimensions of the shared
space.
"""

from torch import Tensor, nn

from stages.promptable import PrompterSizes
from stages.prompter import Prompter


class PhrasePrompter(Prompter):
    """A Prompter that phrases can ask as well: where what is said lies."""

    def __init__(self, width: int, sizes: PrompterSizes) -> None:
        """Builds it for an image encoder of this width."""
        super().__init__(width, sizes)
        self.text_prompt = nn.Linear(sizes.embedding_size, width)

    def by_phrases(self, image_BPW: Tensor, phrases_BMD: Tensor) -> Tensor:
        """Asks for what is said, by its embedding in the shared space: B x M x D, of any length."""
        asked: Tensor = self(image_BPW, self.text_prompt(phrases_BMD)[:, :, None])
        return asked


class BoxHead(nn.Module):
    """Reads a box off the embedding that a phrase was answered with: xyxy in units of the square (0..1)."""

    def __init__(self, embedding_size: int) -> None:
        """Builds two layers; the paper names no width for the hidden one: it is as wide as the embedding."""
        super().__init__()
        self.hidden, self.out = nn.Linear(embedding_size, embedding_size), nn.Linear(embedding_size, 4)

    def forward(self, embedded_BMD: Tensor) -> Tensor:
        """Returns B x M x 4."""
        boxes_BM4: Tensor = self.out(nn.functional.gelu(self.hidden(embedded_BMD)))
        return boxes_BM4
