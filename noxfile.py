"""The sections of CI as nox sessions: `nox -s static cpp`. Their commands stand in .ci/run, once."""

import subprocess
from pathlib import Path

import nox

RUN = str(Path(__file__).parent / ".ci" / "run")

nox.options.sessions = ["static"]


def add_session(name: str, title: str) -> None:
    def session(session: nox.Session) -> None:
        session.run(RUN, name, external=True)

    session.__doc__ = title
    nox.session(session, name=name, venv_backend="none")  # the script makes its own environments


for section in subprocess.run([RUN, "--list"], check=True, capture_output=True, text=True).stdout.splitlines():
    add_session(*section.split(": ", 1))
