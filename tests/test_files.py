"""Files of checkpoints: what is written is read, a killed process leaves a whole file, and no other file is taken."""

import json
import os
import re
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradstep import _files

safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = [np.dtype(dtype) for dtype in ("f8", "f4", "f2", ml_dtypes.bfloat16, "i1", "u1")]
NUMBERS = st.floats() | st.integers(-(2**62), 2**62) | st.booleans() | st.none() | st.text()
PATHS = st.text(st.characters())  # lone surrogates too


@st.composite
def arrays(draw):
    """An array of any bits, strides and shape, 0-d and empty ones among them."""
    dtype = draw(st.sampled_from(DTYPES))
    bits = draw(hnp.arrays(f"u{dtype.itemsize}", hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
    array = bits.view(dtype)
    return draw(st.sampled_from([array, array.T, array[..., ::-2]])) if array.ndim else array


def state_dicts():
    entries = st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), NUMBERS | arrays(), max_size=4)
    group = st.builds(
        lambda options, params: {**options, "params": params},
        st.dictionaries(st.text(), NUMBERS | st.tuples(st.floats(), st.floats()), max_size=3),
        st.lists(PATHS, max_size=3),
    )
    return st.fixed_dictionaries(
        {
            "format": st.just(2),
            "rule": st.text(),
            "step_count": st.integers(0, 2**62),
            "options": st.dictionaries(st.text(), NUMBERS, max_size=3),
            "groups": st.lists(group, max_size=3),
            "state": st.dictionaries(PATHS, entries, max_size=3),
        }
    )


def same(a, b):
    """Whether two values have the same types and bits; a tuple is a list."""
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def checkpoint(number=1, size=5):
    """A state dict and parameters with that number everywhere."""
    array = np.full(size, number, np.float32)
    state = {"step": number, "exp_avg": array.astype(np.int8), "exp_avg_scale": array, "mu_product": -0.0}
    groups = [{"lr": 1e-3, "betas": [0.9, 0.999], "params": ["w", ""]}]
    data = {"format": 2, "rule": "adam", "step_count": number, "options": {"clip_norm": None}, "groups": groups}
    params = {"w": array.astype(ml_dtypes.bfloat16), "": np.array(number, np.float32)}
    return {**data, "state": {"w": state, "": {"step": 0}}}, params


def refused(path, words=""):
    """Reading this file is an error that names it and has these words."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        _files.read(path)
    assert words in str(error.value)


def names(directory):
    """What is in a directory."""
    return sorted(file.name for file in directory.iterdir())


@pytest.fixture
def path(tmp_path):
    """A file of `checkpoint()`."""
    path = tmp_path / "a.safetensors"
    _files.write(path, *checkpoint())
    return path


# What is written is read.


@given(state_dicts(), st.none() | st.dictionaries(PATHS, arrays(), max_size=3))
def test_everything_comes_back(tmp_path_factory, data, params):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    _files.write(path, data, params)
    read_data, read_params = _files.read(path)
    assert same(data, read_data)
    assert same(params, read_params)


def test_files_are_those_of_other_safetensors_readers(path):
    data, params = checkpoint()
    tensors = safetensors.numpy.load_file(path)
    assert same(tensors["state:exp_avg:w"], data["state"]["w"]["exp_avg"])
    assert same(tensors["params:w"], params["w"])
    assert tensors.keys() == {"state:exp_avg:w", "state:exp_avg_scale:w", "params:w", "params:"}


@pytest.mark.live
def test_torch_reads_the_same_bits(path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tensor = load_file(path)["params:w"]
    assert tensor.dtype is torch.bfloat16
    assert same(tensor.view(torch.int16).numpy(), checkpoint()[1]["w"].view(np.int16))


def test_names_of_arrays_are_distinct(tmp_path):
    paths = ["\\ud800", "\ud800", "a:b", ":", "", "state:exp_avg:w", "__metadata__", "\0", "/", "..", "é w"]
    data, _ = checkpoint()
    arrays = {name: np.array([number]) for number, name in enumerate(paths)}
    _files.write(tmp_path / "a", data, {name: array.astype(np.int8) for name, array in arrays.items()})
    assert {name: int(array[0]) for name, array in _files.read(tmp_path / "a")[1].items()} == {
        name: number for number, name in enumerate(paths)
    }


@pytest.mark.parametrize("dtype", ["i8", "?", "c8", "O", "U3", ">f4"])
def test_other_dtypes_are_not_written(path, dtype):
    before = path.read_bytes()
    with pytest.raises(TypeError, match="params:w has dtype"):
        _files.write(path, checkpoint()[0], {"w": np.zeros(3, dtype)})
    assert path.read_bytes() == before


# Files and their names.


def test_paths_may_be_strings_and_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _files.write("é w", *checkpoint())
    assert same(list(_files.read("é w")), list(checkpoint()))
    assert names(tmp_path) == ["é w"]


def test_a_new_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    old = os.umask(0o027)
    try:
        _files.write(tmp_path / "a", *checkpoint())
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_replaced_file_keeps_its_permissions(path, mode):
    path.chmod(mode)
    _files.write(path, *checkpoint(2))
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_followed(tmp_path, exists):
    link, target = tmp_path / "link", tmp_path / "there" / "file"
    target.parent.mkdir()
    link.symlink_to("there/file")
    if exists:
        target.write_bytes(b"old")
    _files.write(link, *checkpoint())
    assert link.is_symlink()
    assert not target.is_symlink()
    assert _files.read(target)[0]["step_count"] == 1
    assert names(target.parent) == ["file"]


def test_what_is_no_ordinary_file_is_neither_written_nor_read(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    paths = {"loop": True, "fifo": True, ".": True, "/dev/null": True, "missing/a": True, "missing": False}
    before = names(tmp_path)
    for name, written in paths.items():
        if written:
            with pytest.raises(OSError, match=name.partition("/a")[0]):
                _files.write(tmp_path / name, *checkpoint())
        with pytest.raises(OSError, match=name):
            _files.read(tmp_path / name)
    assert names(tmp_path) == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everything")
def test_a_read_only_file_is_not_replaced_and_an_unreadable_one_not_read(path):
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        _files.write(path, *checkpoint(2))
    assert _files.read(path)[0]["step_count"] == 1
    path.chmod(0)
    with pytest.raises(PermissionError, match=str(path)):
        _files.read(path)


@pytest.mark.parametrize(("module", "name"), [(os, "fsync"), (os, "fchmod"), (Path, "replace")])
def test_an_error_leaves_the_old_file_alone(path, monkeypatch, module, name):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, name, fails)
    with pytest.raises(OSError, match="No space left"):
        _files.write(path, *checkpoint(2))
    monkeypatch.undo()
    assert names(path.parent) == [path.name]
    assert _files.read(path)[0]["step_count"] == 1


def test_a_full_disk_leaves_the_old_file_alone(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{path} cannot be written"):
            _files.write(path, *checkpoint(2, size=50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(path.parent) == [path.name]
    assert _files.read(path)[0]["step_count"] == 1


def test_what_a_killed_process_left_is_removed(path):
    left = path.parent / ".a.safetensors.tmp"
    left.mkdir()
    (left / ".tmpABC").write_bytes(b"left")
    (left / path.name).write_bytes(b"left")
    _files.write(path, *checkpoint(2))
    assert names(path.parent) == [path.name]
    assert _files.read(path)[0]["step_count"] == 2


def test_the_file_is_on_the_disk_before_it_is_renamed(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor):
        calls.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def recorded_replace(source, target):
        assert source.stat().st_size == path.stat().st_size
        assert stat.S_IMODE(source.parent.stat().st_mode) == 0o700
        calls.append((str(source), str(target)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    _files.write(path, *checkpoint(2))
    temporary = str(path.parent / ".a.safetensors.tmp" / path.name)
    assert calls == [temporary, (temporary, str(path)), str(path.parent)]


def test_threads_that_write_one_file_take_turns(path):
    failed = []

    def writes(number):
        try:
            for _ in range(10):
                _files.write(path, *checkpoint(number, size=number * 1000))
                data, params = _files.read(path)
                assert same([data, params], list(checkpoint(data["step_count"], data["step_count"] * 1000)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=writes, args=[number]) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert names(path.parent) == [path.name]


KILLED = """
import os, signal, sys, time
from pathlib import Path
from gradstep import _files
from tests.test_files import checkpoint, same

path, size = Path(sys.argv[1]), 200_000

def kill_at(module, name, call):
    "Makes this call of a function kill the process."
    function, calls = getattr(module, name), []

    def counted(*arguments):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    setattr(module, name, counted)

def killed(number, delay=None, at=None):
    "The number in the file after a process is killed that saves this number and those that follow."
    child = os.fork()
    if not child:
        try:
            if at:
                kill_at(*at)
            while True:
                _files.write(path, *checkpoint(number, size))
                number += 1
        finally:
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    data, params = _files.read(path)
    assert same([data, params], list(checkpoint(data["step_count"], size)))
    assert set(os.listdir(path.parent)) <= {path.name, f".{path.name}.tmp"}
    return data["step_count"]

start = time.perf_counter()
_files.write(path, *checkpoint(1, size))
duration = time.perf_counter() - start
number = 1
for moment in range(50):
    found = killed(number + 1, delay=duration * moment / 16)
    assert found >= number
    number = found
calls = (os, "open", 1), (os, "open", 2), (os, "open", 3), (Path, "touch", 1), (os, "fchmod", 1), (os, "fsync", 1)
for at in (*calls, (Path, "replace", 1)):
    assert killed(number + 1, at=at) == number, at
for at in ((Path, "rmdir", 1), (os, "fsync", 2)):  # after the file was replaced
    number += 1
    assert killed(number, at=at) == number, at
_files.write(path, *checkpoint(number, size))
assert os.listdir(path.parent) == [path.name]
print("whole", number)
"""


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    """At 50 moments of saves, and right before calls of the system."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "a.safetensors"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert run.stdout.startswith("whole"), run.stderr


# Other files.


def test_a_truncated_file_is_refused_at_every_length(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


def test_every_altered_byte_is_noticed(path):
    """Or is one of the header's spaces, which another space may replace."""
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(0)
    spaces = 0
    for place in range(len(whole)):
        altered = whole.copy()
        altered[place] ^= 1 << int(random.integers(8))
        path.write_bytes(altered)
        if chr(whole[place]) in " " and chr(altered[place]) in " \t\n\r":
            spaces += 1
        else:
            refused(path)
    assert spaces < 8


def rewrite(path, edit=None, drop=(), **add):
    """Writes the file again with a valid checksum: its JSON edited, tensors dropped or added."""
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        content = json.loads(file.metadata()[_files.CONTENT])
    if edit:
        edited = edit(content)
        content = content if edited is None else edited
    tensors = {name: array for name, array in {**tensors, **add}.items() if name not in drop}
    order = ["state:exp_avg:w", "state:exp_avg_scale:w", "params:w", "params:"]
    text = content if isinstance(content, str) else json.dumps(content)
    checksum = _files._checksum(text, [tensors[name] for name in order if name in tensors])
    safetensors.numpy.save_file(tensors, path, {_files.CONTENT: text, _files.CHECKSUM: checksum})


def test_a_rewritten_file_is_read(path):
    rewrite(path)
    assert same(list(_files.read(path)), list(checkpoint()))


@pytest.mark.parametrize("key", ["format", "rule", "step_count", "options", "groups", "state"])
@pytest.mark.parametrize("value", ["lacks", 1.5, None, True, [], {"w": 3}, [{"lr": 1}], [{"params": [1]}]])
def test_metadata_of_another_layout_is_refused(path, key, value):
    if key == "options" and value == {"w": 3}:
        return  # which it may be

    def edit(content):
        content["data"].pop(key) if value == "lacks" else content["data"].update({key: value})

    if key == "groups" and value == []:
        rewrite(path, edit)
        assert _files.read(path)[0]["groups"] == []
    else:
        rewrite(path, edit)
        refused(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", "null", "[]", '"a"', "{}", '{"data": {}}', '{"data": [], "params": 1}', "[" * 10**5, "9" * 10**4],
    ids=lambda text: text[:9],
)
def test_json_that_is_no_checkpoint_is_refused(path, text):
    rewrite(path, lambda _: text)
    refused(path)


def test_a_later_format_is_refused(path):
    rewrite(path, lambda content: content["data"].update(format=3))
    refused(path, "its format is 3, but this version of gradstep reads format 2")


def test_params_of_another_layout_are_refused(path):
    rewrite(path, lambda content: content.update(params=[]))
    refused(path, "params that are not a dict")


def test_tensors_are_those_of_the_metadata(path):
    whole = path.read_bytes()
    for words, change in {
        "lacks the tensor 'params:w'": {"drop": ["params:w"]},
        "unknown tensor 'x'": {"x": np.zeros(2)},
        "'params:w' has another dtype": {"params:w": np.zeros(5, np.float16)},
        "'params:' has another dtype or shape": {"params:": np.zeros(5, np.float32)},
        "'state:exp_avg:w' has another dtype": {"state:exp_avg:w": np.zeros(5, np.int64)},
        "its checksum differs": {"state:exp_avg:w": np.zeros(5, np.int8)},
    }.items():
        path.write_bytes(whole)
        rewrite(path, **change)
        if words == "its checksum differs":  # of the old content
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = {**file.metadata(), _files.CHECKSUM: "00000000"}
            safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)
        refused(path, words)


def test_files_of_others_are_refused(tmp_path):
    foreign = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}, {_files.CHECKSUM: "0"}):
        safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, foreign, metadata)
        refused(foreign, "was not written by gradstep")
    np.savez(foreign.with_suffix(".npz"), np.zeros(3))
    refused(foreign.with_suffix(".npz"), "not a complete safetensors file")


@pytest.mark.live
def test_files_of_torch_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "a", {"format": "pt"})
    refused(tmp_path / "a", "was not written by gradstep")
    torch.save({"w": torch.zeros(3)}, tmp_path / "b")
    refused(tmp_path / "b")


@pytest.mark.parametrize("module", ["safetensors", "safetensors.numpy"])
def test_what_to_install_is_said(path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: _files.read(path), lambda: _files.write(path, *checkpoint())):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "gradstep\[safetensors\]"'):
            call()


def test_gradstep_alone_does_not_import_the_package():
    code = "import gradstep, gradstep._files, sys; assert 'safetensors' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Optimizers.


class Fake:
    """What `save` and `load` need of an optimizer."""

    def __init__(self, number=1):
        self.data, self.params = checkpoint(number)
        self._engine = SimpleNamespace(lock=threading.RLock(), wait=lambda: None)

    def state_dict(self):
        return self.data

    def load_state_dict(self, saved):
        if saved["rule"] != self.data["rule"]:
            raise ValueError("another rule")
        self.data = saved

    def _named_params(self, params=None):
        return self.params if params is None else params


def test_an_optimizer_and_its_parameters_come_back_in_place(tmp_path):
    saved, opt = Fake(1), Fake(2)
    opt.params["w"] = np.zeros((5, 2), ml_dtypes.bfloat16)[:, 0]
    arrays = dict(opt.params)
    _files.save(tmp_path / "a", saved, saved.params)
    _files.load(tmp_path / "a", opt)
    assert same(opt.data, saved.data)
    assert same(opt.params, saved.params)
    assert all(opt.params[name] is array for name, array in arrays.items())


def test_parameters_are_saved_only_where_they_are_given(tmp_path):
    opt = Fake(2)
    _files.save(tmp_path / "a", Fake(1))
    _files.load(tmp_path / "a", opt)
    assert opt.data["step_count"] == 1
    assert same(opt.params, checkpoint(2)[1])


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda opt: opt.params.pop("w"), ValueError, "unknown 'w'"),
        (lambda opt: opt.params.update(b=np.zeros(1)), ValueError, "lack 'b'"),
        (lambda opt: opt.params.update(w=np.zeros(5, np.float16)), TypeError, "'w' has dtype bfloat16, .* float16"),
        (lambda opt: opt.params.update(w=opt.params["w"][1:]), ValueError, r"'w' has shape \(5,\), .* \(4,\)"),
        (lambda opt: opt.params.update(w=frozen(opt.params["w"])), ValueError, "'w' is read-only"),
        (lambda opt: opt.data.update(rule="sgd"), ValueError, "another rule"),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path, change, error, words):
    opt, saved = Fake(2), Fake(1)
    _files.save(tmp_path / "a", saved, saved.params)
    change(opt)
    data, params = opt.data, {name: array.copy() for name, array in opt.params.items()}
    with pytest.raises(error, match=f"{tmp_path / 'a'}: .*{words}"):
        _files.load(tmp_path / "a", opt)
    assert opt.data is data
    assert same(opt.params, params)
