"""Makes `.venv` and keeps it current; `make` runs it before every target. Standard library only, no third party needed.

The environment is current when its mark holds the digest of what decides its content: the two pyproject.toml, the
constraints, this checkout's path and the Python version. Anything else installs again, which is quick when little
changed. The mark is written last, so an interrupted installation is taken up again. Exact versions come from
constraints.txt.

It must stay readable for old Pythons up to the version check, and must not touch anything outside `.venv`, except for
installing Debian's python3-venv when it may.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
MARK = VENV / "antiphon-installed"
DECIDING = ("pyproject.toml", "sdk/python/pyproject.toml", "constraints.txt")
OLDEST = (3, 11)


def digest() -> str:
    """What the mark of a current environment holds."""
    content = hashlib.sha256(f"{ROOT} {sys.version_info[:2]}".encode())
    for name in DECIDING:
        content.update((ROOT / name).read_bytes())
    return content.hexdigest()


def is_current() -> bool:
    return MARK.is_file() and MARK.read_text() == digest() and (VENV / "bin/python").exists()


def ensure_venv_module() -> None:
    """Debian ships venv without the part that installs pip; the package that brings it is installed as root."""
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise SystemExit(f"antiphon: Python has no venv module; run: sudo apt-get install {package}") from None
        print(f"antiphon: installing {package} with apt-get", flush=True)
        subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL)
        if subprocess.run(["apt-get", "install", "-y", "-q", package], stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"antiphon: apt-get cannot install {package}; install it, then run make again") from None


def install() -> None:
    """Bring `.venv` to what the files ask for. Raises SystemExit with a remedy."""
    if not (VENV / "bin/python").exists() or not runs_here():
        ensure_venv_module()
        if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)]).returncode:
            raise SystemExit(f"antiphon: cannot make {VENV}; see above, then run make again")
    # The constraints reach the isolated builds of the two distributions only through the environment.
    constraints = str(ROOT / "constraints.txt")
    environ = {**os.environ, "PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    command = [str(VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    packages = ["--editable", f"{ROOT / 'sdk/python'}[cli]", "--editable", f"{ROOT}[dev]"]
    if subprocess.run([*command, *packages], env=environ).returncode:
        raise SystemExit(
            "antiphon: the installation failed (is the package index reachable?); see above, run make again"
        )
    MARK.write_text(digest())


def runs_here() -> bool:
    """Whether `.venv` belongs to this checkout and its Python is of the version we run with."""
    probe = "import sys; print(sys.prefix, *sys.version_info[:2])"
    answer = subprocess.run([str(VENV / "bin/python"), "-c", probe], capture_output=True, text=True)
    return answer.stdout.split() == [str(VENV), *(str(number) for number in sys.version_info[:2])]


def main() -> int:
    if sys.version_info[:2] < OLDEST:
        raise SystemExit("antiphon: needs Python 3.11 or newer; install one, then run: make PYTHON=/path/to/python3.11")
    if is_current():
        return 0
    with open(ROOT / "pyproject.toml") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two makes at once: the second waits, and finds it done
        if not is_current():
            print("antiphon: installing the Python environment into .venv (about a minute, once) …", flush=True)
            install()
            print("antiphon: the environment is ready", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
