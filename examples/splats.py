"""An image as a sum of Gaussian splats. More are added during the fit: opt.replace() keeps the states of the others.

Needs NumPy alone; `python splats.py picture.png` also draws image and fit, with matplotlib: pip install matplotlib
"""

import sys

import numpy as np

import gradstep as gs

SIZE = 64
rng = np.random.default_rng(0)
place = np.linspace(0, 1, SIZE)
y, x = np.meshgrid(place, place, indexing="ij")
image = np.stack([0.2 + 0.6 * y, 0.3 + 0.3 * x * y, 0.6 - 0.4 * y])  # red, green and blue
image[:, np.hypot(y - 0.35, x - 0.4) < 0.22] = [[0.95], [0.75], [0.2]]  # a disk
image[:, abs(np.hypot(y - 0.6, x - 0.62) - 0.22) < 0.04] = [[0.9], [0.2], [0.25]]  # a ring


def new_splats(center, size):
    """Splats of color 0 around centers of shape (n, 2): y and x. Sizes along y and x are kept as logarithms."""
    return {"center": center, "size": np.full(center.shape, np.log(size)), "color": np.zeros((len(center), 3))}


def profiles(axis):
    """Distances of pixels and splats along one axis in units of the splat's size, and the Gaussian of them."""
    distance = (place[:, None] - splats["center"][:, axis]) / np.exp(splats["size"][:, axis])
    return distance, np.exp(-(distance**2) / 2)


splats = new_splats(rng.random((50, 2)), 0.1)
opt = gs.Adam(splats, lr=0.02, options={"center": {"lr": 0.002}})
for step in range(1000):
    (v, along_y), (u, along_x) = profiles(0), profiles(1)  # of shape (pixels, splats); a splat is their product
    color = splats["color"].T[:, None]
    fit = (color * along_y) @ along_x.T
    error = fit - image  # the gradient of half the sum of its squares follows
    by_row, by_column = error @ along_x, error.transpose(0, 2, 1) @ along_y
    slope_y, slope_x = v * along_y * (by_row * color).sum(axis=0), u * along_x * (by_column * color).sum(axis=0)
    grads = {
        "center": np.stack([slope_y.sum(axis=0), slope_x.sum(axis=0)], axis=1) / np.exp(splats["size"]),
        "size": np.stack([(slope_y * v).sum(axis=0), (slope_x * u).sum(axis=0)], axis=1),
        "color": (by_row * along_y).sum(axis=1).T,
    }
    opt.step(grads)
    if step in (250, 500, 750):  # 50 more splats where the error is large
        pixels = rng.choice(SIZE**2, 50, replace=False, p=((error**2).sum(axis=0) / (error**2).sum()).ravel())
        more = new_splats(np.stack(np.divmod(pixels, SIZE), axis=1) / (SIZE - 1), 0.04)
        for name, old in list(splats.items()):
            opt.replace(name, np.concatenate([old, more[name]]), rows=[*range(len(old)), *[-1] * 50])

rms = np.sqrt((error**2).mean())
print(f"{len(splats['color'])} splats, error: {rms:.4f}")
if len(sys.argv) > 1:
    from matplotlib.image import imsave

    imsave(sys.argv[1], np.dstack([image, fit]).transpose(1, 2, 0).clip(0, 1).repeat(4, 0).repeat(4, 1))
assert rms < 0.025
