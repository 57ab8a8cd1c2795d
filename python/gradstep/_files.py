"""Checkpoints as files in the safetensors format: arrays as its tensors, all else as JSON in its metadata.

A file is replaced as a whole: a reader, also after a crash, finds the old file or the new one. Nothing is pickled.
"""

from __future__ import annotations

import importlib
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ._libraries import library_of, numpy_dtype
from ._types import Array

if TYPE_CHECKING:
    from ._optimizer import Optimizer

FORMAT: Final = 2
"""The version of the layout that is written, and the only one that is read."""
LAYOUT: Final = {"rule": str, "step_count": int, "options": dict, "groups": list, "state": dict}
"""The entries of a state dict besides its format, and their types."""
CODES: Final = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "uint8": "U8"}
"""The dtypes of arrays, and their names in the safetensors format."""
CONTENT: Final = "gradstep"
"""The key of the JSON in the metadata."""
CHECKSUM: Final = "crc32"
"""The key of the checksum in the metadata: of the JSON, then of the arrays in its order."""


def save(path: str | os.PathLike[str], opt: Optimizer, params: Any = None) -> None:
    """Save an optimizer's state, and parameters, in a file of the safetensors format.

    A file at `path` is replaced only when the new one is complete and on the disk, so that one of the two is whole
    whatever happens. The new file has the permissions of the old one. Needs `gradstep[safetensors]`.

    Parameters
    ----------
    path : str or path-like
        The file. A symbolic link is followed. The new file is first written in a directory beside it, `.<name>.tmp`.
    opt : Optimizer
        The optimizer, of which `state_dict()` is saved.
    params : the structure of the optimizer's params
        Parameters to save beside the state. By default none are saved.

    Raises
    ------
    ModuleNotFoundError
        Without the package safetensors.
    OSError
        Where the file cannot be written. An existing file stays as it is.
    """
    with opt._engine.lock:
        data = opt.state_dict()
        named = None if params is None else {n: _as_numpy(a) for n, a in opt._named_params(params).items()}
        write(path, data, named)


def load(path: str | os.PathLike[str], opt: Optimizer) -> None:
    """Load what `save` wrote: an optimizer's state, and its parameters where the file has them, in place.

    All is checked before anything changes. Needs `gradstep[safetensors]`.

    Raises
    ------
    ValueError
        For a file that `save` did not write, or that is incomplete or altered; for the state or the parameters of
        another optimizer.
    TypeError
        For states or parameters of other dtypes. Nothing is cast or broadcast.
    ModuleNotFoundError
        Without the package safetensors, or ml_dtypes where the file has bfloat16 arrays.
    OSError
        Where the file cannot be read.
    """
    data, params = read(path)
    with opt._engine.lock:
        try:
            own = {} if params is None else opt._named_params()
            _check_params(params or {}, own)
            opt.load_state_dict(data)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{os.fspath(path)}: {error}") from error
        for name, array in own.items():
            library_of(array).from_numpy(array, (params or {})[name])
        opt._engine.wait()


def write(path: str | os.PathLike[str], data: Mapping[str, Any], params: Mapping[str, Array] | None) -> None:
    """Writes a state dict, and parameters by path. An existing file is replaced when the new one is on the disk."""
    library = _library()
    tensors: dict[str, Array] = {}
    state = {
        param: {
            name: _add(tensors, _tensor_name("state", name, param), value) if isinstance(value, np.ndarray) else value
            for name, value in entries.items()
        }
        for param, entries in data["state"].items()
    }
    named = None if params is None else {p: _add(tensors, _tensor_name("params", p), a) for p, a in params.items()}
    text = json.dumps({"data": {**data, "state": state}, "params": named})
    metadata = {CONTENT: text, CHECKSUM: _checksum(text, tensors.values())}
    with _replacing(Path(path)) as new:
        try:
            library.numpy.save_file(tensors, new, metadata)
        except library.SafetensorError as error:
            raise OSError(f"{os.fspath(path)} cannot be written: {error}") from error


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array] | None]:
    """The state dict, and the parameters by path or None, as they were given to `write`, with lists for tuples.

    Raises ValueError, which names the file, where it is incomplete, altered, or was not written by `write`.
    """
    library = _library()
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    with path.open("rb"):  # raises an error with the reason, which the library does not give
        pass
    try:
        with library.safe_open(path, framework="numpy") as file:
            return _content(file)
    except library.SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: its metadata is nested too deeply") from None


def _library() -> Any:
    """The package safetensors, with its module for NumPy."""
    try:
        importlib.import_module("safetensors.numpy")
        return importlib.import_module("safetensors")
    except ModuleNotFoundError as error:
        words = 'saving and loading files needs the package safetensors: pip install "gradstep[safetensors]"'
        raise ModuleNotFoundError(words, name=error.name) from error


def _tensor_name(*parts: str) -> str:
    """A tensor's name in the file. The path is the last part, so that it may contain any characters.

    Lone surrogates, which UTF-8 does not have, are escaped, and so are backslashes, to keep names distinct.
    """
    return ":".join(parts).replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()


def _add(tensors: dict[str, Array], name: str, array: Array) -> dict[str, Any]:
    """Adds an array to the tensors, and returns what stands for it in the JSON."""
    if array.dtype.name not in CODES or not array.dtype.isnative:
        raise TypeError(f"{name} has dtype {array.dtype}, which cannot be saved")
    tensors[name] = np.asarray(array, order="C")
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def _checksum(text: str, arrays: Iterable[Array]) -> str:
    value = zlib.crc32(text.encode())
    for array in arrays:
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"


def _content(file: Any) -> tuple[dict[str, Any], dict[str, Array] | None]:
    """What an open file holds. Raises ValueError where that is not what `write` writes."""
    metadata = file.metadata() or {}
    if CONTENT not in metadata:
        raise ValueError("the file was not written by gradstep")
    content = json.loads(metadata[CONTENT])
    data, params = _check_layout(content)
    expected = {  # each array's place, its key there, and the description that is replaced by it
        _tensor_name("state", name, path): (entries, name, value)
        for path, entries in data["state"].items()
        for name, value in entries.items()
        if isinstance(value, dict)
    }
    expected |= {_tensor_name("params", path): (params, path, value) for path, value in (params or {}).items()}
    if set(expected) != set(file.keys()):
        name = min(set(expected) ^ set(file.keys()))
        raise ValueError(f"the file {'lacks the' if name in expected else 'has an unknown'} tensor {name!r}")
    dtypes = {code: name for name, code in CODES.items()}
    arrays = []
    for name, (_, _, description) in expected.items():
        stored = file.get_slice(name)
        dtype, shape = dtypes.get(stored.get_dtype()), stored.get_shape()
        if dtype is None or description != {"dtype": dtype, "shape": shape}:
            raise ValueError(f"the tensor {name!r} has another dtype or shape than the metadata says")
        numpy_dtype(dtype)  # raises where bfloat16 is missing
        arrays.append(file.get_tensor(name))
    if _checksum(metadata[CONTENT], arrays) != metadata.get(CHECKSUM):
        raise ValueError("the file was altered: its checksum differs")
    for (place, key, _), array in zip(expected.values(), arrays, strict=True):
        place[key] = array
    return data, params


def _check_layout(content: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The state dict and the parameters of the JSON. Raises ValueError where their layout is wrong."""
    if not isinstance(content, dict) or set(content) != {"data", "params"}:
        raise ValueError("its metadata is not that of a checkpoint")
    data, params = content["data"], content["params"]
    if not isinstance(data, dict) or type(data.get("format")) is not int:
        raise ValueError("its metadata has no format")
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']}, but this version of gradstep reads format {FORMAT}")
    for key, kind in LAYOUT.items():
        if type(data.get(key)) is not kind:
            raise ValueError(f"its metadata must have {key!r}, of type {kind.__name__}")
    for group in data["groups"]:
        names = group.get("params") if isinstance(group, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its metadata has a group without the list of its params")
    if not all(isinstance(entries, dict) for entries in data["state"].values()):
        raise ValueError("its metadata has a state that is not a dict")
    if params is not None and not isinstance(params, dict):
        raise ValueError("its metadata has params that are not a dict")
    return data, params


def _check_params(given: Mapping[str, Array], own: Mapping[str, Array]) -> None:
    """Raises where the names, dtypes or shapes of the saved parameters differ from those of the optimizer's."""
    if set(given) != set(own):
        name = min(set(given) ^ set(own))
        raise ValueError(f"the saved parameters {'lack' if name in own else 'have an unknown'} {name!r}")
    for name, array in own.items():
        dtype, shape = library_of(array).dtype(array), tuple(array.shape)
        if given[name].dtype.name != dtype:
            raise TypeError(f"the saved parameter {name!r} has dtype {given[name].dtype}, but here it is {dtype}")
        if given[name].shape != shape:
            raise ValueError(f"the saved parameter {name!r} has shape {given[name].shape}, but here it is {shape}")
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"the parameter {name!r} is read-only")


def _as_numpy(array: Array) -> Array:
    return array if isinstance(array, np.ndarray) else library_of(array).to_numpy(array)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """The path of a file to write, which then replaces that at `path`. On an error nothing is replaced."""
    target = Path(os.path.realpath(path))
    mode = _mode(target)
    parent = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        directory = target.with_name(f".{target.name}.tmp")
        with _locked(directory):
            new = directory / target.name
            new.touch()
            if mode is None:
                mode = stat.S_IMODE(new.stat().st_mode)  # from the umask; the library may create a new file
            yield new
            with new.open("rb") as file:
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            new.replace(target)
        with suppress(OSError):  # not every file system can flush a directory
            os.fsync(parent)
    finally:
        os.close(parent)


def _mode(target: Path) -> int | None:
    """The permissions of an existing file; None if it does not exist. Raises OSError if it cannot be written."""
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(mode):
        raise OSError(f"{target} is not a regular file")
    return stat.S_IMODE(mode)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """A directory for temporary files, empty and locked: another writer of the same file waits.

    Its name is always the same, so that files of killed processes do not accumulate.
    """
    descriptor = _lock(directory)
    try:
        _empty(directory)
        try:
            yield
        finally:
            with suppress(OSError):
                _empty(directory)
                directory.rmdir()
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    """The descriptor of a directory, created where it is missing, with an exclusive lock."""
    import fcntl  # not available on every system

    while True:
        with suppress(FileExistsError):
            directory.mkdir(0o700)  # the file that is replaced may be private
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed by another writer
            continue
        try:
            with suppress(OSError):  # the file system has no locks: the caller must ensure that there is one writer
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), directory.stat()):
                return descriptor
        except FileNotFoundError:  # removed by the writer that held the lock
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _empty(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
