"""State dicts and files made of arbitrary bytes: each is loaded wholly, or refused with nothing changed.

`state_dict` and `file` take the bytes of one input. `python -m tests.fuzz.run` fuzzes them by coverage, and
tests/test_fuzz_seeds.py runs the inputs in tests/fuzz/seeds.
"""

import copy
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

import gradstep as gs
from gradstep import _files
from tests.table import schedule, snapshot


class Choices:
    """Numbers and entries that the bytes of an input choose; zeros where these have ended."""

    def __init__(self, data):
        self._data, self._place = data, 0

    def below(self, n):
        """An integer from 0 to n - 1, of at most 65536."""
        wide = 1 if n <= 256 else 2
        taken = self._data[self._place : self._place + wide]
        self._place += wide
        return int.from_bytes(taken, "little") % max(n, 1)

    def one_of(self, entries):
        return entries[self.below(len(entries))]

    def rest(self):
        return self._data[self._place :]


def _params(dtype):
    return {"a": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3).astype(dtype), "b": {"c": np.ones(300, dtype)}}


MAKERS = [
    lambda: gs.Adam(_params("float32"), amsgrad=True, clip_norm=1.0),
    lambda: gs.Nadam(_params("float64"), ema=0.5, ema_correction=True, lr=schedule),
    lambda: gs.RMSProp(_params("float32"), state_dtype="q8", min_8bit_size=0, momentum=0.5),
    lambda: gs.AdaGrad(_params(ml_dtypes.bfloat16), state_dtype="bfloat16", master=True, stochastic_rounding=3),
    lambda: gs.Momentum(
        [{"params": _params("float16")}, {"params": np.ones(5), "lr": 0.5}],
        on_nonfinite="skip",
        loss_scale=gs.LossScale(4.0),
    ),
    lambda: gs.SGD(np.ones((2, 2), "float32"), options={"": {"lr": gs.schedules.plateau(0.1)}}),
]


def _grads(opt):
    return opt._engine.tree.build([np.full_like(p, 0.25) for p in opt._params.values()])


def made(choices):
    """An optimizer after a step, and with accumulated gradients in every second case."""
    opt = choices.one_of(MAKERS)()
    opt.step(_grads(opt))
    if choices.below(2):
        opt.accumulate(_grads(opt))
    return opt


def _unusual(choices, value, own):
    """A value in place of another in a state dict."""
    array = value if isinstance(value, np.ndarray) else np.arange(4.0)
    return choices.one_of(
        [
            lambda: None,
            lambda: True,
            lambda: -1,
            lambda: choices.below(65536),
            lambda: 2 ** (choices.below(80)),
            lambda: 10**400,
            lambda: choices.below(256) / 128,
            lambda: float("nan"),
            lambda: float("inf"),
            lambda: "",
            lambda: choices.one_of(["a", "b.c", "adam", "q8", "skip", "\ud800", "momentum_buffer"]),
            lambda: b"bytes",
            lambda: [],
            lambda: {},
            lambda: [value],
            lambda: {"a": value},
            lambda: {1: value},
            lambda: (value, value),
            lambda: abs,
            lambda: object(),
            lambda: np.float64(0.5),
            lambda: np.array(3),
            lambda: array.astype(choices.one_of(["float64", "float32", "float16", "int8", "uint8", "complex64", "O"])),
            lambda: array.reshape(-1),
            lambda: array[..., None],
            lambda: array.ravel()[: choices.below(array.size + 1)],
            lambda: np.broadcast_to(array.dtype.type(choices.below(3)), array.shape),
            lambda: array.astype(array.dtype.newbyteorder()),
            lambda: np.asfortranarray(array)[::-1],
            lambda: np.ma.masked_array(array),
            lambda: np.negative(array.astype("float32")).astype(array.dtype),
            lambda: (
                np.frombuffer((choices.rest() + bytes(array.nbytes))[: array.nbytes], array.dtype)[
                    : array.size
                ].reshape(array.shape)
                if array.dtype != object
                else array
            ),
            lambda: own,
            lambda: array.tolist(),
        ]
    )()


def _places(tree):
    """All containers and keys in nested dicts and lists."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    found = []
    for key in keys:
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)) and len(found) < 5000:
            found += _places(tree[key])
    return found


def mutate(choices, tree, own):
    """Changes a few entries of nested dicts and lists, in place."""
    for _ in range(1 + choices.below(4)):
        places = _places(tree)
        if not places:
            return
        container, key = places[choices.below(len(places))]
        other, other_key = places[choices.below(len(places))]
        kind = choices.below(6)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[choices.one_of(["step", "a", "accumulated", "params", "lr", "format", 7, None, ""])] = _unusual(
                choices, container[key], own
            )
        elif kind == 2:
            container[key] = copy.deepcopy(other[other_key])
        else:
            container[key] = _unusual(choices, container[key], own)


def _check(opt, load, errors):
    """Loads; where that is refused nothing has changed, and otherwise what was loaded can be saved and stepped."""
    before = snapshot(opt)
    try:
        load()
    except errors:
        assert snapshot(opt) == before, "a refused load has changed something"
        return
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    assert snapshot(opt)[0] == snapshot(opt, saved)[0], "what was loaded is not what is saved"
    opt.step(_grads(opt))


def state_dict(data):
    """A state dict of which a few entries are others."""
    choices = Choices(data)
    opt = made(choices)
    saved = opt.state_dict()
    own = choices.one_of(list(opt._kept.values()))
    mutate(choices, saved, next(iter(own.values()), None))
    strict = choices.below(2) == 0
    _check(opt, lambda: opt.load_state_dict(saved, strict=strict), (TypeError, ValueError))


def file(data):
    """A file of any bytes; or a complete one of which some entries, but not the checksum, are wrong."""
    choices = Choices(data)
    opt = made(choices)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        kind = choices.below(3)
        if kind == 0:
            path.write_bytes(choices.rest())
        else:
            gs.save(path, opt, opt.params if choices.below(2) else None)
            whole = bytearray(path.read_bytes())
            if kind == 1:
                for _ in range(1 + choices.below(8)):
                    whole[choices.below(min(len(whole), 65536))] = choices.below(256)
                path.write_bytes(whole[: len(whole) - choices.below(2) * choices.below(256)])
            else:
                _rewrite(choices, path)
        _check(opt, lambda: gs.load(path, opt), (TypeError, ValueError, OSError))


def _rewrite(choices, path):
    """Changes the JSON or the tensors of a file, whose checksum is then that of the new content."""
    with safetensors.safe_open(path, framework="numpy") as opened:
        content = json.loads(opened.metadata()[_files.CONTENT])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no dict
    if choices.below(2):
        mutate(choices, content, None)
    if tensors and choices.below(2):
        name = choices.one_of(sorted(tensors))
        other = choices.one_of(sorted(tensors))
        tensors[name] = choices.one_of([tensors[other], tensors[name][..., None], -tensors[name].astype("float32")])
    if tensors and choices.below(4) == 0:
        tensors.pop(choices.one_of(sorted(tensors)))
    text = json.dumps(content, default=repr, skipkeys=True)
    ordered = [np.ascontiguousarray(tensors[name]) for name in sorted(tensors)]
    if choices.below(4):  # in the order in which they are read
        try:
            data, params = _files._check_layout(json.loads(text))
            names = [
                _files._tensor_name("state", name, path)
                for path, entries in data["state"].items()
                for name, value in entries.items()
                if isinstance(value, dict)
            ] + [_files._tensor_name("params", path) for path in params or {}]
            ordered = [np.ascontiguousarray(tensors[name]) for name in names]
        except (KeyError, ValueError):
            pass
    metadata = {_files.CONTENT: text, _files.CHECKSUM: _files._checksum(text, ordered)}
    safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, path, metadata)


TARGETS = {"state_dict": state_dict, "file": file}
