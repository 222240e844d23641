"""States that are no transformer: so that nothing is tuned to one trajectory.

Each input trains something small but real, or makes an extreme, and yields `CHECKPOINTS` states.
Training data is drawn from a fixed teacher, so that losses fall and weights move as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CHECKPOINTS = 6
STEPS_BETWEEN = 8

States = Iterator[tuple[int, Any]]


def all_inputs() -> dict[str, Callable[[bool], States]]:
    """Return the inputs by name; each takes `quick` and yields (step, state)."""
    return {
        "convolutional network, SGD with momentum": convolutional,
        "recommender, sparse embeddings": recommender,
        "LoRA on a frozen base": lora,
        "SGD without state": plain_sgd,
        "GAN, two optimizers": gan,
        "fp16 weights with a scaler": half_precision,
        "int8 weights": int8,
        "random bytes": random_bytes,
        "random bytes, larger": more_random_bytes,
        "zeros": zeros,
        "100,000 tensors": many,
        "one state of 4 GB": large,
    }


def convolutional(quick: bool) -> States:
    """A small residual network on images of a fixed random teacher."""
    torch.manual_seed(1)
    width = 32 if quick else 160
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.BatchNorm2d(4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    labels = torch.randn(3, 10)

    def loss() -> torch.Tensor:
        images = torch.randn(8, 3, 16, 16)
        return functional.cross_entropy(model(images), (images.mean((2, 3)) @ labels).argmax(1))

    yield from _trained(loss, {"model": model, "optimizer": optimizer}, [optimizer])


def recommender(quick: bool) -> States:
    """Embeddings of users and items, of which a batch touches few rows."""
    torch.manual_seed(2)
    count = 10_000 if quick else 150_000
    tables = nn.ModuleDict(
        {name: nn.Embedding(count, 32, sparse=True) for name in ("user", "item")}
    )
    head = nn.Linear(64, 1)
    sparse = torch.optim.SparseAdam(list(tables.parameters()), 0.01)
    dense = torch.optim.Adam(head.parameters(), 0.01)

    def loss() -> torch.Tensor:
        # Few are popular: a power law, as of real logs.
        ids = (count * torch.rand(2, 512) ** 4).long()
        rows = torch.cat([tables["user"](ids[0]), tables["item"](ids[1])], 1)
        wanted = ((ids[0] * 7 + ids[1] * 3) % 5).float() / 4
        return functional.mse_loss(head(rows).squeeze(1), wanted)

    state = {"tables": tables, "head": head, "sparse": sparse, "dense": dense}
    yield from _trained(loss, state, [sparse, dense])


def lora(quick: bool) -> States:
    """A base that never changes, and adapters of rank 8 that do."""
    torch.manual_seed(3)
    width = 256 if quick else 1024
    base = nn.ModuleList(nn.Linear(width, width) for _ in range(6)).requires_grad_(False)
    down = nn.ParameterList(torch.randn(width, 8) / width**0.5 for _ in base)
    up = nn.ParameterList(torch.zeros(8, width) for _ in base)
    optimizer = torch.optim.AdamW([*down, *up], 1e-3)
    teacher = torch.randn(width, width) / width**0.5

    def loss() -> torch.Tensor:
        inputs = value = torch.randn(64, width)
        for layer, a, b in zip(base, down, up, strict=True):
            value = torch.relu(layer(value) + value @ a @ b) + value
        return functional.mse_loss(value, inputs @ teacher)

    yield from _trained(
        loss, {"base": base, "down": down, "up": up, "optimizer": optimizer}, [optimizer]
    )


def plain_sgd(quick: bool) -> States:
    """A perceptron whose optimizer keeps nothing: only weights are saved."""
    torch.manual_seed(4)
    width = 256 if quick else 1400
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    teacher = torch.randn(width, width) / width**0.5

    def loss() -> torch.Tensor:
        inputs = torch.randn(64, width)
        return functional.mse_loss(model(inputs), inputs @ teacher)

    yield from _trained(loss, {"model": model, "optimizer": optimizer}, [optimizer])


def gan(quick: bool) -> States:
    """A generator and a discriminator, each with its Adam, trained against each other."""
    torch.manual_seed(5)
    width = 128 if quick else 700
    generator = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width))
    judge = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1))
    makers = torch.optim.Adam(generator.parameters(), 2e-4, betas=(0.5, 0.999))
    judges = torch.optim.Adam(judge.parameters(), 2e-4, betas=(0.5, 0.999))
    basis = torch.randn(8, width)

    def loss() -> torch.Tensor:
        real, fake = torch.randn(64, 8) @ basis, generator(torch.randn(64, 64))
        judged = functional.softplus(-judge(real)).mean()
        judged = judged + functional.softplus(judge(fake.detach())).mean()
        return judged + functional.softplus(-judge(fake)).mean()

    state = {"generator": generator, "judge": judge, "makers": makers, "judges": judges}
    yield from _trained(loss, state, [makers, judges])


def half_precision(quick: bool) -> States:
    """Weights in float16 beside the scale of their gradients; what is computed with is float32."""
    for step, state in plain_sgd(quick):
        weights = {name: value.half() for name, value in state["model"].items()}
        yield step, {"model": weights, "scaler": {"scale": 65536.0, "_growth_tracker": step}}


def int8(quick: bool) -> States:
    """Weights rounded to 8 bits, with a scale per row."""
    for step, state in plain_sgd(quick):
        packed: dict[str, Any] = {}
        for name, value in state["model"].items():
            rows = value if value.dim() == 2 else value.unsqueeze(0)
            scale = rows.abs().amax(1, keepdim=True) / 127
            packed[name] = {"scale": scale, "bits": (rows / scale).round().to(torch.int8)}
        yield step, {"model": packed}


def random_bytes(quick: bool, length: int = 16 << 20) -> States:
    """Nothing repeats and nothing compresses: what bookkeeping costs at the worst."""
    generator = torch.Generator().manual_seed(6)
    length = (1 << 20) if quick else length
    for step in range(CHECKPOINTS):
        values = torch.randint(0, 256, (length,), dtype=torch.uint8, generator=generator)
        yield step, {"noise": values}


def more_random_bytes(quick: bool) -> States:
    """The same, eight times as much: what of that cost grows with the bytes."""
    yield from random_bytes(quick, 128 << 20)


def zeros(quick: bool) -> States:
    """A state that was allocated and not touched."""
    for step in range(CHECKPOINTS):
        yield step, {"empty": torch.zeros((1 << 20) if quick else (16 << 20)), "step": step}


def many(quick: bool) -> States:
    """So many small tensors that what is said about each weighs as much as its bytes."""
    generator = torch.Generator().manual_seed(7)
    count = 1_000 if quick else 100_000
    tensors = list(torch.randn(count, 64, generator=generator))
    for step in range(2):
        yield step, {f"layer.{number}.bias": tensor for number, tensor in enumerate(tensors)}
        tensors = [tensor * 1.000001 for tensor in tensors]


def large(quick: bool) -> States:
    """Weights and a moment of each: one checkpoint, since it is the size that is looked at."""
    generator = torch.Generator().manual_seed(8)
    count = 1 if quick else 128
    weights = [0.02 * torch.randn(4 << 20, generator=generator) for _ in range(count)]
    yield 0, {"weights": weights, "moments": [weight * weight for weight in weights]}


def _trained(
    loss: Callable[[], torch.Tensor], parts: dict[str, Any], optimizers: list[Any]
) -> States:
    """Train, and yield copies of all parts' state dicts every `STEPS_BETWEEN` steps."""
    for step in range(1, CHECKPOINTS * STEPS_BETWEEN + 1):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss().backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % STEPS_BETWEEN == 0:
            yield step, {name: _copied(part.state_dict()) for name, part in parts.items()}


def _copied(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copied(value) for value in tree)
    return tree
