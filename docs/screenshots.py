"""Pictures of the report page for the README: `python docs/screenshots.py PAGE FOLDER`; needs the browser extra."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SHOTS = {
    "report-light": {"viewport": {"width": 1280, "height": 1160}, "color_scheme": "light"},
    "report-dark": {"viewport": {"width": 1280, "height": 1160}, "color_scheme": "dark"},
    "report-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


def main(page: Path, folder: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, options in SHOTS.items():
            tab = browser.new_page(**options)  # type: ignore[arg-type]
            tab.goto(page.resolve().as_uri())
            tab.screenshot(path=folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
