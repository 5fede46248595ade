"""A notebook in JupyterLab, and a browser in front of it: a server of its own, without network or anyone's settings."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
from ipykernel.kernelspec import write_kernel_spec
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from experiments.files import write_json

ROOT = Path(__file__).resolve().parent.parent
#: Pixels of a small laptop's screen.
LAPTOP = {"width": 1366, "height": 768}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser_path() -> str:
    """The browser to drive.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed: `make browser`, or apt-get install chromium")


def copied(notebook: Path, folder: Path) -> Path:
    """A copy of a notebook without its outputs, under ``folder/notebooks``."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    copy = folder / "notebooks" / notebook.name
    copy.parent.mkdir(exist_ok=True)
    nbformat.write(content, copy)
    return copy


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Callable[[Path], str]]:
    """JupyterLab on ``folder/notebooks``; yields a function from a notebook to the address that opens it.

    The server logs to ``folder/lab.log``; on exit, also after an error, server and kernels are stopped.
    """
    (folder / "experiments").symlink_to(ROOT / "experiments")  # the setup cell looks for it above the notebook
    write_kernel_spec(folder / "data" / "kernels" / "python3")  # of this interpreter, found before any other
    server_settings = {"open_browser": False, "allow_root": True, "root_dir": str(folder / "notebooks")}
    quiet = {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
        # A page that is loaded slowly asks for the kernel, although the notebook names it.
        "@jupyterlab/notebook-extension:tracker": {"autoStartDefaultKernel": True},
    }
    for name, content in (
        ("jupyter_lab_config", {"ServerApp": server_settings, "LabApp": {"extension_manager": "readonly"}}),
        ("labconfig/default_setting_overrides", quiet),
    ):
        write_json(folder / "config" / f"{name}.json", content)
    variables = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_CONFIG_PATH": "",
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_PATH": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab"], env=os.environ | variables, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        told = _told(folder / "runtime" / f"jpserver-{server.pid}.json", server)
        yield lambda notebook: f"{told['url']}lab/tree/{notebook.name}?token={told['token']}"
    finally:
        _stopped(server)


@contextlib.contextmanager
def browsed(address: str, folder: Path) -> Iterator[tuple[Page, list[str]]]:
    """A page at an address; yields it, and a list that its errors are added to as they come.

    Raises:
        AssertionError: what was done with the page failed; it names the screenshot that was kept in ``folder``.
    """
    path = browser_path()
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path) as browser:
        page, errors = browser.new_page(viewport=LAPTOP), []

        def noted(message: ConsoleMessage) -> None:
            if message.type == "error" and "widget" in message.text + message.location.get("url", ""):
                errors.append(message.text)

        page.on("console", noted)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            page.goto(address)
            yield page, errors
        except Exception as error:
            page.screenshot(path=folder / "failed.png")
            raise AssertionError(f"{error}\nSee {folder / 'failed.png'} and {folder / 'lab.log'}") from error


def _told(path: Path, server: subprocess.Popen, seconds: float = 120) -> dict:
    """What a server says of itself, once it listens."""
    ending = time.monotonic() + seconds
    while time.monotonic() < ending:
        if server.poll() is not None:
            break
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # not yet, not yet whole
            return json.loads(path.read_text())
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start; see {path.parent.parent / 'lab.log'}")


def _stopped(server: subprocess.Popen) -> None:
    """End a server, which ends its kernels, and what of them is left after that."""
    family = [server]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += psutil.Process(server.pid).children(recursive=True)
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(20)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait()
