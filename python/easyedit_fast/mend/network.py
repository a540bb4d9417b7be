"""The editor network of MEND (Mitchell et al., arXiv 2110.11309, section 3).

The gradient of a weight is a sum over tokens of δ xᵀ, x being a token's input and δ the gradient
of its output. The network turns each x and δ into others, so that the update is low-rank as the
gradient is, and never needs a matrix of the weight's shape.

Modules and parameters have the names of EasyEdit's checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from easyedit_fast.errors import ModelError
from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.processes import gathered

_DTYPE = torch.float32
_EPSILON = 1e-7  # of a deviation, as in MEND's code


class LowRankLinear(nn.Module):
    """``act(scale_m ∘ (u v x + bias) + shift_m)``, and x added to it where it starts as identity.

    Attributes:
        u: ``[d, r]``.
        v: ``[r, d]``.
        bias: ``[d]``.
        mode_scale: ``[modes, d]``, one row an edited weight.
        mode_shift: ``[modes, d]``.
    """

    def __init__(
        self, size: int, rank: int, init: str, modes: int | None, generator: torch.Generator
    ) -> None:
        """Makes a layer of ``size`` inputs and outputs; no modes where it serves one weight."""
        super().__init__()
        rank = min(rank, size)
        self.u = nn.Parameter(torch.zeros(size, rank, dtype=_DTYPE))
        self.v = nn.Parameter(torch.randn(rank, size, dtype=_DTYPE, generator=generator))
        if init == "xavier":
            gain = nn.init.calculate_gain("relu")
            nn.init.xavier_uniform_(self.u, gain=gain, generator=generator)
            nn.init.xavier_uniform_(self.v, generator=generator)
        self.bias = nn.Parameter(torch.zeros(size, dtype=_DTYPE))
        if modes is not None:
            zeros = torch.zeros(modes, size, dtype=_DTYPE)
            self.mode_shift = nn.Embedding(modes, size, _weight=zeros)
            self.mode_scale = nn.Embedding(modes, size, _weight=torch.ones_like(zeros))
        self._shared = modes is not None
        self._residual = init == "id"

    def forward(self, inputs: Tensor, modes: Tensor) -> Tensor:
        """Transforms inputs ``[tokens, d]`` of the modes ``[tokens]``."""
        hidden = inputs @ self.v.T @ self.u.T + self.bias
        if self._shared:
            hidden = torch.addcmul(self.mode_shift(modes), hidden, self.mode_scale(modes))
        # relu, but for the gradient at 0, which is 1 here: an identity begins there, and would
        # never learn. (MEND's clamp had that gradient too, until torch made it 0.)
        active = hidden * (hidden >= 0)
        return active + inputs if self._residual else active


class IDMLP(nn.Module):
    """Layers of one size, each low-rank."""

    def __init__(
        self,
        size: int,
        hparams: MENDHyperParams,
        modes: int | None,
        generator: torch.Generator,
    ) -> None:
        """Makes ``n_hidden + 1`` layers."""
        super().__init__()
        self.layers = nn.ModuleList(
            LowRankLinear(size, hparams.rank, hparams.init, modes, generator)
            for _ in range(hparams.n_hidden + 1)
        )

    def forward(self, inputs: Tensor, modes: Tensor) -> Tensor:
        """Transforms inputs ``[tokens, d]`` of the modes ``[tokens]``."""
        for layer in self.layers:
            inputs = layer(inputs, modes)
        return inputs


class GradientTransform(nn.Module):
    """Transforms the x and δ of all weights of one shape.

    Attributes:
        u_mean: ``[d_in]``, running mean of x; ``u_s`` the sum of squared deviations, ``u_std``
            the deviation.
        v_mean: ``[d_out]``, the same of δ, with ``v_s`` and ``v_std``.
        k: ``[1]``, number of tokens in them; NaN before the first.
        norm: Whether inputs are normalised by them.
    """

    u_mean: Tensor
    u_std: Tensor
    v_mean: Tensor
    v_std: Tensor
    k: Tensor

    def __init__(
        self,
        sizes: tuple[int, int],
        hparams: MENDHyperParams,
        modes: int | None,
        generator: torch.Generator,
    ) -> None:
        """Makes the networks.

        Args:
            sizes: (d_in, d_out) of the weights.
            hparams: The hyperparameters.
            modes: How many weights share them; None for one that has them for itself.
            generator: Of their first weights.
        """
        super().__init__()
        for name, size in zip("uv", sizes, strict=True):
            for part in ("mean", "std", "s"):
                self.register_buffer(f"{name}_{part}", torch.full((size,), torch.nan, dtype=_DTYPE))
        self.register_buffer("k", torch.full((1,), torch.nan, dtype=_DTYPE))
        self._sizes = sizes
        self.norm = hparams.norm
        if hparams.combine:
            self.mlp = IDMLP(sum(sizes), hparams, modes, generator)
        else:
            x_too, delta_too = _sides(hparams, *sizes)
            self.mlp1 = IDMLP(sizes[0], hparams, modes, generator) if x_too else None
            self.mlp2 = IDMLP(sizes[1], hparams, modes, generator) if delta_too else None
        self._combine = hparams.combine

    def forward(self, x: Tensor, delta: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Transforms the factors of the weights' gradients.

        In training the running mean and deviation take the tokens in first, weight by weight.

        Args:
            x: ``[tokens, d_in]`` float32, the tokens of the first weight first.
            delta: ``[tokens, d_out]`` float32.
            counts: Tokens of each weight.
        """
        normalised = self._normalised(x, delta, counts)
        inputs = normalised if self.norm else (x, delta)
        modes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(x.device)
        if self._combine:
            first, second = self.mlp(torch.cat(inputs, -1), modes).split(self._sizes, -1)
            return first, second
        return _through(self.mlp1, inputs[0], modes), _through(self.mlp2, inputs[1], modes)

    def _normalised(self, x: Tensor, delta: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        if not self.training:
            return (
                (x - self.u_mean) / (self.u_std + _EPSILON),
                (delta - self.v_mean) / (self.v_std + _EPSILON),
            )
        known = float(self.k.nan_to_num())
        new_x, tokens = self._take_in("u", x, counts, known)
        new_delta, _ = self._take_in("v", delta, counts, known)
        self.k.fill_(tokens)
        return new_x, new_delta

    @torch.no_grad()
    def _take_in(
        self, name: str, rows: Tensor, counts: Sequence[int], known: float
    ) -> tuple[Tensor, float]:
        """Takes each weight's tokens in, and normalises them by what is known then.

        Chan's rule of joining two sets gives what Welford's gives token by token. Tokens of other
        processes are taken in as this one's are.

        Returns:
            The normalised rows, and how many tokens are known now.
        """
        mean = getattr(self, f"{name}_mean").nan_to_num()
        squares = getattr(self, f"{name}_s").nan_to_num()
        normalised = []
        own_rows = rows.split(list(counts))
        for own, everywhere in zip(own_rows, _moments_everywhere(own_rows), strict=True):
            for tokens, own_mean, own_squares in everywhere:
                share = tokens / (known + tokens)
                step = own_mean - mean
                squares = squares + own_squares + step.square() * known * share
                mean = mean + step * share
                known += tokens
            deviation = (squares / max(1, known - 1)).sqrt()  # of one token: 0, as its distance
            normalised.append((own - mean) / (deviation + _EPSILON))
        getattr(self, f"{name}_mean").copy_(mean)
        getattr(self, f"{name}_s").copy_(squares)
        getattr(self, f"{name}_std").copy_(deviation)
        return torch.cat(normalised), known


def _moments_everywhere(
    parts: Sequence[Tensor],
) -> Iterator[list[tuple[float, Tensor, Tensor]]]:
    """For each weight, of each process that has tokens: their number, mean and squared deviations.

    Args:
        parts: This process's ``[tokens, d]`` of each weight.
    """
    means = torch.stack([part.sum(0) / max(1, len(part)) for part in parts])
    squares = [(part - mean).square().sum(0) for part, mean in zip(parts, means, strict=True)]
    moments = gathered(torch.stack([means, torch.stack(squares)]))
    own_counts = torch.tensor([len(part) for part in parts], dtype=torch.float64)
    counts = [own.tolist() for own in gathered(own_counts.to(means.device))]
    for weight in range(len(parts)):
        yield [
            (own[weight], both[0, weight], both[1, weight])
            for own, both in zip(counts, moments, strict=True)
            if own[weight]
        ]


class EditorNetwork(nn.Module):
    """All transforms of an editor, and the learned step size of each edited weight.

    Attributes:
        edit_lrs: ``[weights]``, in the order of ``inner_params``.
        mend: The transforms, by shape ``(d_in, d_out)`` or, where none is shared, by weight.
    """

    def __init__(self, hparams: MENDHyperParams, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Makes an untrained editor.

        Args:
            hparams: The hyperparameters.
            sizes: (d_in, d_out) of each edited weight, in the order of ``inner_params``.
        """
        super().__init__()
        self._groups = _groups(sizes, shared=hparams.shared)
        self._places = {name: place for place, name in enumerate(sizes)}
        self._lr_scale = hparams.lr_scale
        self.edit_lrs = nn.Parameter(torch.full((len(sizes),), hparams.edit_lr, dtype=_DTYPE))
        generator = torch.Generator().manual_seed(hparams.seed)
        self.mend = nn.ModuleDict(
            {
                key: GradientTransform(
                    sizes[names[0]], hparams, len(names) if hparams.shared else None, generator
                )
                for key, names in self._groups.items()
            }
        )

    def require_trained(self) -> None:
        """Checks that inputs can be normalised.

        Raises:
            ModelError: A transform has seen less than two tokens.
        """
        for transform in self.mend.values():
            assert isinstance(transform, GradientTransform)
            if transform.norm and not float(transform.k) >= 2:
                raise ModelError(
                    "the editor is not trained: it has no mean and deviation of its inputs; give "
                    "a trained one as archive, or switch norm off"
                )

    def forward(
        self, factors: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Turns the factors of the gradients into those of the updates.

        Args:
            factors: By weight, x ``[tokens, d_in]`` and δ ``[tokens, d_out]``.

        Returns:
            By weight, x̃ ``[tokens, d_in]`` and the step size times δ̃ ``[tokens, d_out]``: the
            update is the sum over tokens of δ̃ x̃ᵀ.
        """
        made: dict[str, tuple[Tensor, Tensor]] = {}
        place = self.edit_lrs.device  # those of a model that is spread come from several
        for key, names in self._groups.items():
            x, delta = (
                torch.cat([factors[name][side].to(place, _DTYPE) for name in names])
                for side in (0, 1)
            )
            counts = [len(factors[name][0]) for name in names]
            parts = (side.split(counts) for side in self.mend[key](x, delta, counts))
            for name, new_x, new_delta in zip(names, *parts, strict=True):
                rate = self.edit_lrs[self._places[name]] * self._lr_scale
                made[name] = new_x, rate * new_delta
        return {name: made[name] for name in self._places}


def _through(network: IDMLP | None, inputs: Tensor, modes: Tensor) -> Tensor:
    """What the network makes of the inputs; they themselves where there is none."""
    made: Tensor = inputs if network is None else network(inputs, modes)
    return made


def _groups(sizes: Mapping[str, tuple[int, int]], *, shared: bool) -> dict[str, Sequence[str]]:
    """The weights that share a transform, by its name in EasyEdit's checkpoints."""
    if not shared:
        return {name.replace(".", "#"): [name] for name in sizes}
    groups: dict[str, list[str]] = {}
    for name, size in sizes.items():
        groups.setdefault(str(tuple(size)), []).append(name)
    return dict(groups)


def _sides(hparams: MENDHyperParams, x_size: int, delta_size: int) -> tuple[bool, bool]:
    """Which of x and δ are transformed."""
    if hparams.one_sided:
        return x_size <= delta_size, x_size > delta_size
    return not hparams.delta_only, not hparams.x_only
