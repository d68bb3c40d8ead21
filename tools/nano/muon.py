"""Muon: momentum whose update is orthogonalised, for the weight matrices of hidden layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration that drives singular values towards 1 (K. Jordan, Muon, 2024)."""


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix of `matrix`, roughly: singular values end up near 1."""
    a, b, c = QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    x = x.mT if matrix.shape[0] > matrix.shape[1] else x
    x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the step's size is lr * sqrt(max(1, rows / columns)).

    A parameter of more than two axes is a matrix of its first.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
                velocity.lerp_(parameter.grad, 1 - group["momentum"])
                direction = orthogonalise(parameter.grad.lerp(velocity, group["momentum"]).flatten(1))
                scale = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
                parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * scale)
