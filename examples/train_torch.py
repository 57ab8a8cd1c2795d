"""torch's optimizers and gradstep's, from the same seed: a small GPT and a small ResNet. Needs torch.

The GPT learns the source of a Python module, character by character; the ResNet classifies shapes that are drawn here.
`--plot FILE` draws the losses; it needs matplotlib.
"""

import argparse
import inspect

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradstep.torch

TEXT = torch.tensor(list(inspect.getsource(argparse).encode("ascii", "ignore")))  # characters as numbers below 128
SHAPES = ["disk", "square", "diamond", "ring"]


class GPT(nn.Module):
    """Predicts each next character from the ones before it."""

    def __init__(self, width=64, layers=3, context=64):
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, width), nn.Embedding(context, width)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 4 * width, **options) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, x):
        x = self.tokens(x) + self.places.weight
        for block in self.blocks:
            x = block(x, self.mask, is_causal=True)
        return self.head(self.norm(x)).transpose(1, 2)


class Residual(nn.Module):
    """Two convolutions, with a shortcut around them."""

    def __init__(self, inner, outer):
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(inner, outer, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.shortcut = nn.Conv2d(inner, outer, 1, 2, bias=False)

    def forward(self, x):
        return torch.relu(self.way(x) + self.shortcut(x))


def resnet():
    """Classifies pictures."""
    widths = [16, 32, 64]
    first = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Residual(inner, outer) for inner, outer in zip([16, *widths], widths, strict=False)]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(SHAPES)))


def text(batch=16, context=64):
    """Random pieces of the text, and for each of their characters the one that follows it."""
    pieces = TEXT[torch.randint(len(TEXT) - context, (batch, 1)) + torch.arange(context + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def pictures(batch=64, size=24):
    """Shapes with random colors and places, with noise."""
    labels = torch.randint(len(SHAPES), (batch, 1, 1))
    radius, top, left = (low + (high - low) * torch.rand(batch, 1, 1) for low, high in ((5, 8), (8, 16), (8, 16)))
    y, x = (torch.arange(size).view(shape) for shape in ((1, size, 1), (1, 1, size)))
    y, x = (y - top).abs() / radius, (x - left).abs() / radius
    round = (y * y + x * x).sqrt()
    inside = torch.stack([round < 1, torch.maximum(y, x) < 0.85, y + x < 1.2, (round < 1) & (round > 0.55)])
    drawn = inside.gather(0, labels.expand(1, batch, size, size)).squeeze(0)
    color = torch.rand(batch, 3, 1, 1) + 0.5
    return drawn.unsqueeze(1) * color + 0.5 * torch.randn(batch, 3, size, size), labels.flatten()


def train(library, steps, model, batches, name, **options):
    """The losses of a training run with one of the library's optimizers."""
    torch.manual_seed(0)
    net = model()
    opt = getattr(library, name)(net.parameters(), **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    losses = []
    for _ in range(steps):
        x, y = batches()
        loss = cross_entropy(net(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
        losses.append(loss.item())
    return losses


RUNS = {
    "GPT with AdamW": (GPT, text, "AdamW", {"lr": 3e-3}),
    "ResNet with SGD": (resnet, pictures, "SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}),
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=200, help="of each model [200]")
parser.add_argument("--plot", metavar="FILE", help="draw the losses")
args = parser.parse_args()
torch.set_num_threads(1)  # models as small as these gain nothing from more

curves = {}
for title, (model, batches, name, options) in RUNS.items():
    libraries = {"torch": torch.optim, "gradstep": gradstep.torch}
    run = {who: train(library, args.steps, model, batches, name, **options) for who, library in libraries.items()}
    curves[title] = run
    print(f"{title}\n{'steps':>7}{'torch':>10}{'gradstep':>10}")
    size = max(1, args.steps // 10)
    for end in range(size, args.steps + 1, size):  # means of the losses since the previous line
        print(f"{end:>7}" + "".join(f"{sum(losses[end - size : end]) / size:>10.4f}" for losses in run.values()))

if args.plot:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(10, 4), layout="constrained")
    for ax, (title, run) in zip(axes, curves.items(), strict=True):
        for (who, losses), style in zip(run.items(), ("-", "--"), strict=True):
            ax.plot(losses, style, label=who, linewidth=1)
        ax.set(title=title, xlabel="step", ylabel="loss")
        ax.legend()
    figure.savefig(args.plot)
