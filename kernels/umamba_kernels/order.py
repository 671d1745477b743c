"""In which order a sequence op visits the positions in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """A scan order: a map from token t to its address, i.e. its position along the last axis of a tensor of length L.

    With ``slices = s`` token t visits address ``(t mod s) * (L / s) + t div s``: the s × L/s matrix in memory is read
    column by column. ``reverse`` visits the same addresses from the last to the first. Reversal and slicing commute, so
    there is no question of which comes first. The default is memory order.

    Sources: forward, reverse and slices (s = depth) are the three directions of SegMamba (arXiv:2401.13560); the four
    of VMamba's cross scan (arXiv:2401.10166) are s = 1 and s = height, each with its reverse.

    Args:
        reverse: Visit the addresses from the end.
        slices: Number of equal slices whose tokens are interleaved; divides L.

    Raises:
        ValueError: ``slices`` is below 1.
    """

    reverse: bool = False
    slices: int = 1

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise ValueError(f"Order: slices = {self.slices}, wanted 1 or more")

    def index(self, length: int, device: torch.device | str | None = None) -> Tensor:
        """Address of every token, (length,) int64.

        Raises:
            ValueError: ``slices`` does not divide ``length``.
        """
        return self.gather(torch.arange(length, device=device))

    def gather(self, x: Tensor) -> Tensor:
        """Bring (..., L) from memory order into scan order: token t of the result is ``x[..., index(L)[t]]``.

        The default order returns ``x`` itself.

        Raises:
            ValueError: ``slices`` does not divide L.
        """
        self.check("Order", x.shape[-1])
        # A transposed copy, as the gradient of an index lookup would be a slow scatter-add. With L slices of one token
        # the order in memory stays.
        if 1 < self.slices < x.shape[-1]:
            x = x.unflatten(-1, (self.slices, -1)).transpose(-1, -2).flatten(-2)
        return x.flip(-1) if self.reverse else x

    def scatter(self, x: Tensor) -> Tensor:
        """Bring (..., L) from scan order back into memory order; the inverse of :meth:`gather`.

        Raises:
            ValueError: ``slices`` does not divide L.
        """
        length = x.shape[-1]
        self.check("Order", length)
        return Order(self.reverse, max(1, length // self.slices)).gather(x)  # slices = L / s undoes slices = s

    def check(self, where: str, length: int) -> None:
        """Refuse a length that ``slices`` does not divide.

        Args:
            where: Start of the message.
            length: Number of tokens.

        Raises:
            ValueError: ``slices`` does not divide ``length``; the message names the nearest divisors.
        """
        if self.slices == 1 or length % self.slices == 0:
            return
        divisors = [n for n in range(1, length + 1) if length % n == 0]
        below = max(n for n in divisors if n < self.slices)
        above = [str(n) for n in divisors if n > self.slices][:1]
        raise ValueError(
            f"{where}: slices = {self.slices} does not divide the length {length}; "
            f"its nearest divisors: {', '.join([str(below), *above])}"
        )
