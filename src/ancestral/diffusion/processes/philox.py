"""Random streams that are drawn where they are needed: Philox4x32-10 in torch's int64 (Salmon et al. 2011).

A block of four words is a function of the key, (seed, purpose), and of the counter, (the number of the image, the
number of the block), so that image n meets the same words alone or in any batch, on every device. Uniform numbers are
the same too; normal ones, by Box and Muller in float32, are to the rounding of log, cos and sin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ancestral.diffusion.processes.normal import widest
from ancestral.diffusion.processes.streams import Streams, key

ROUNDS = 10
WORD = 0xFFFFFFFF
# Less 2^32, so that their product with a word fits int64; the word itself is then added to the high half.
MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
WEYL = (0x9E3779B9, 0xBB67AE85)


@lru_cache(maxsize=256)
def _constants(keyed: int, device: torch.device) -> tuple[Tensor, ...]:
    """The multipliers and the keys of all rounds, in the order in which `words` meets them, copied to a device once."""
    parts = tuple(zip((keyed & WORD, keyed >> 32), WEYL, strict=True))
    keys = [[(part + r * step) & WORD for part, step in parts] for r in range(ROUNDS)]
    return torch.tensor([MULTIPLIERS[::-1], *keys])[:, :, None, None].to(device).unbind()


def words(keyed: int, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """The block of each counter, as words 0 and 2, and 1 and 3.

    Args:
        keyed: 64 bits.
        even: words 0 and 2 of the counters, int64 (2, ...) of two more axes.
        odd: words 1 and 3.
    """
    multipliers, *keys = _constants(keyed, even.device)
    for one in keys:
        crossed = even.flip(0)
        product = crossed * multipliers
        # Bits above 32 are cleared once, where all parts have met.
        even = (product >> 32).add_(crossed).bitwise_xor_(odd).bitwise_xor_(one).bitwise_and_(WORD)
        odd = product
    return even, odd & WORD


class PhiloxStreams(Streams):
    """`Streams` on a device. A draw begins with the next whole block of each stream.

    Args:
        seed: of the run.
        purpose: of the numbers.
        numbers: of the images.
        device: on which they are drawn, and stay.
        first: block of each.
    """

    def __init__(
        self, seed: int, purpose: str, numbers: Sequence[int], device: torch.device | str = "cpu", first: int = 0
    ) -> None:
        self._seed, self._purpose, self._numbers, self._device = seed, purpose, numbers, torch.device(device)
        self._block = first  # that comes next

    def _draw(self, count: int, used: int) -> tuple[Tensor, Tensor]:
        """Pairs of words for so many numbers an image, `used` of them from a block: int64 (B, blocks, 2) each."""
        numbers, blocks = self._numbers, -(-count // used)
        if isinstance(numbers, range):
            image = torch.arange(numbers.start, numbers.stop, numbers.step, device=self._device)
        else:
            image = torch.as_tensor(list(numbers), dtype=torch.int64, device=self._device)
        block = torch.arange(self._block, self._block + blocks, device=self._device).expand(len(image), -1)
        image = image[:, None].expand(-1, blocks)
        self._block += blocks
        even, odd = words(
            key(self._seed, self._purpose),
            torch.stack([block & WORD, image & WORD]),
            torch.stack([block >> 32, image >> 32]),
        )
        return even.permute(1, 2, 0), odd.permute(1, 2, 0)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 values, shape (B, *shape)."""
        count = math.prod(shape)
        first, second = self._draw(count, 4)
        radius = ((first + 1).float() * 2.0**-32).log_().mul_(-2).sqrt_()
        angle = (second - 2**31).float().mul_(math.pi * 2.0**-31)
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
        return pairs.flatten(1)[:, :count].reshape(-1, *shape)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Uniform values in [0, 1), shape (B, *shape): 53 bits in float64, on MPS the first 24 of these in float32."""
        count, wide = math.prod(shape), widest(self._device)
        first, second = self._draw(count, 2)
        if wide == torch.float64:
            values = ((first << 21) + (second >> 11)).to(wide) * 2.0**-53
        else:
            values = (first >> 8).to(wide) * 2.0**-24
        return values.flatten(1)[:, :count].reshape(-1, *shape)

    def soon(self, shape: Sequence[int]) -> Callable[[slice], Tensor]:
        """The rows of `normal`, drawn when they are needed: nothing of it is the host's."""
        seed, purpose, numbers, device, first = self._seed, self._purpose, self._numbers, self._device, self._block
        self._block += -(-math.prod(shape) // 4)
        return lambda part: PhiloxStreams(seed, purpose, numbers[part], device, first).normal(shape)
