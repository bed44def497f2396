"""Take the pictures of TensorBoard, light and dark: train as the demo does, serve the logs, and open them in a browser.

It needs the extra "examples", tensorboard, playwright, and a Chromium: ``python docs/figures/logged_means.py
--chromium /usr/bin/chromium``.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).parent
TAGS = "gc/(mean_pre|mean_post|removed_norm)$|gc/removed_norm"


def train(folder: Path) -> None:
    """The demo's run with the callback, each parameter logged by itself."""
    sys.path.insert(0, str(HERE.parents[1]))
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.loggers import TensorBoardLogger

    from examples.quickstart import LOG_EVERY, DigitsCNN, digits
    from lightning_gc import GradientCentralization

    seed_everything(1)
    trainer = Trainer(
        callbacks=[GradientCentralization(log_means="per_parameter")],
        accelerator="cpu",
        max_epochs=8,
        log_every_n_steps=LOG_EVERY,
        logger=TensorBoardLogger(str(folder), name="digits", version=""),
        enable_checkpointing=False,
    )
    trainer.fit(DigitsCNN(), *digits(1))


def photograph(port: int, chromium: str, picture: Path, dark: bool) -> None:
    """Show the values themselves, unsmoothed and all of them, and nothing but them."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"],
        )
        page = browser.new_page(viewport={"width": 1420, "height": 850})
        page.goto(
            f"http://localhost:{port}/?darkMode={str(dark).lower()}&smoothing=0&tagFilter={quote(TAGS)}#timeseries"
        )
        page.get_by_text("Enable step selection and data table").click()
        page.get_by_text("Ignore outliers in chart scaling").click()
        page.get_by_role("button", name="Settings").click()
        page.wait_for_timeout(30_000)  # the charts are drawn by workers of their own, slowly on a busy machine
        page.screenshot(path=picture, clip={"x": 286, "y": 64, "width": 1134, "height": 774})
        browser.close()


def main() -> None:
    """Train, serve, photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    parser.add_argument("--out", type=Path, default=HERE / "logged_means.png", help="where the light one goes")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", str(port)])
        try:
            wait_for(f"http://localhost:{port}/data/plugin/scalars/tags")
            photograph(port, options.chromium, options.out, dark=False)
            photograph(port, options.chromium, options.out.with_stem(options.out.stem + "_dark"), dark=True)
        finally:
            server.terminate()


def wait_for(url: str, seconds: float = 60) -> None:
    """Until the server has read the logs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url) as answer:
                if b"removed_norm" in answer.read():
                    return
        except OSError:
            pass
        time.sleep(1)
    raise TimeoutError(f"TensorBoard did not show any logged means within {seconds} s.")


if __name__ == "__main__":
    main()
