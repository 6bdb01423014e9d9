"""Takes the pictures of docs/: every view over recorded runs, light and dark, wide and narrow.

python tests/dashboards/shots.py FOLDER [--views run,compare] [--colors light,dark] [--widths 1440,390]
"""

import argparse
import tempfile
from pathlib import Path

from chromium import launch
from playwright.sync_api import Page, sync_playwright
from recorded import FIRST, JOB, SECOND, keep_jobs, served

HEIGHTS = {1440: 900, 390: 844}
VIEWS = {
    "runs": "/",
    "run": f"/runs/{FIRST}",
    "policies": f"/runs/{FIRST}?tab=policies",
    "changes": f"/runs/{FIRST}?tab=changes",
    "ranks": f"/runs/{FIRST}?tab=ranks",
    "compare": f"/compare?runs={FIRST},{SECOND},vision-9d01",
    "jobs": "/jobs",
    "submit": "/jobs",
    "job": f"/jobs/{JOB}",
    "cluster": "/cluster",
}
DRAWN_MS = 2500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", default=",".join(VIEWS))
    parser.add_argument("--colors", default="light,dark")
    parser.add_argument("--widths", default="1440,390")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, served(Path(home)) as shown, sync_playwright() as playwright:
        browser = launch(playwright)
        keep_jobs(shown)
        for colors in options.colors.split(","):
            for width in map(int, options.widths.split(",")):
                size = {"width": width, "height": HEIGHTS[width]}
                page = browser.new_page(viewport=size, color_scheme=colors)  # type: ignore[arg-type]
                page.goto(shown.door)
                page.get_by_test_id("runs").wait_for()
                for view in options.views.split(","):
                    take(page, shown.url + VIEWS[view], options.folder / f"{view}-{colors}-{width}.png")
                page.close()
        browser.close()


def take(page: Page, url: str, path: Path) -> None:
    page.goto(url)
    page.locator("main h1").first.wait_for()
    if path.name.startswith("submit-"):
        page.get_by_test_id("job-new").click()
    page.wait_for_timeout(DRAWN_MS)
    page.screenshot(path=path)


if __name__ == "__main__":
    main()
