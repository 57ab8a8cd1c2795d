"""The loaded CUDA module, with or without a driver: it does nothing until it is used."""

import subprocess
import sys

import pytest

import gradstep as gs

COUNT = """
import gradstep._cuda
try:
    print(gradstep._cuda.device_count())
except RuntimeError as error:
    print(error)
"""


def output(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_gradstep_is_imported_without_it():
    assert output("import sys, gradstep; print('gradstep._cuda' in sys.modules)") == "False\n"


def test_what_is_missing_is_said_in_one_line():
    cuda = gs.show_config(mode="dicts")["cuda"]
    assert cuda["available"] or len(cuda["reason"].splitlines()) == 1


def test_to_import_it_loads_no_driver():
    pytest.importorskip("gradstep._cuda", reason="built without the CUDA backend")
    loaded = output("import gradstep._cuda; print(open('/proc/self/maps').read())")
    assert "_cuda." in loaded
    assert "libcuda." not in loaded


def test_a_child_counts_devices_after_its_parent_imported_it():
    """CUDA does not work in a child of a process that has initialized it."""
    pytest.importorskip("gradstep._cuda", reason="built without the CUDA backend")
    assert output(f"import gradstep._cuda, os\nif os.fork(): os._exit(os.wait()[1])\n{COUNT}") == output(COUNT)
