"""The pages that this project writes, in Chromium: on a telephone, a tablet and a desk, light, dark and on paper."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from small_runs import make_pages_small
from status_runs import START, failed, first_task, write_run

from dynammo_core.data.sheet.contact_sheet import contact_sheet
from dynammo_core.data.sheet.data_sheet import data_sheet
from server.report.report import write_report
from server.run_directory.run_files import RunFiles
from server.watch.lookout import Lookout
from server.watch.status_page import StatusServer
from simulations.attacks.audit import Audit, rows
from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import AttackResult, Finding
from simulations.attacks.page import page as audit_page
from simulations.comparisons.compare import METRICS, Group, Result
from simulations.comparisons.page import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from small_runs import Finished

SCREENS = [(width, scheme) for width in (420, 800, 1400) for scheme in ("light", "dark")]
PAPER = 688  # pixels between the margins of 14 mm of a page in A4
LEAST_CONTRAST = 4.5  # WCAG 2.2, success criterion 1.4.3
NAMES = ("pigmented benign keratosis", "dermatofibroma", "squamous cell carcinoma", "melanoma")
LONG = "of-Saint-Bartholomew-and-all-the-others-" * 2
FOCUSED = """() => {
  const own = document.activeElement, style = getComputedStyle(own);
  const place = [...document.querySelectorAll("*")].indexOf(own);
  return { place, tag: own.tagName, outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0 };
}"""
LOOK = (Path(__file__).with_name("page_checks.js")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    programs = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        pytest.skip("pages are looked at in Chromium, and there is none here")
    driver = pytest.importorskip("playwright.sync_api", reason="pages are looked at by Playwright, which is not here")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The address of one page of each kind, with long names, from runs that other tests share."""
    folder = tmp_path_factory.mktemp("pages")
    dynammo, replay = (_with_long_names(finished(method).path, folder / method) for method in ("dynammo", "replay"))
    report = write_report(dynammo)
    results = [Result(1, run, RunFiles.read(run).summary) for run in (dynammo, replay)]
    groups = [
        Group(f"setting {LONG}", f"row {LONG} {number}", finished(method).config.method, (result,))
        for number, (method, result) in enumerate(zip(("dynammo", "replay"), results, strict=True))
    ]
    with pytest.MonkeyPatch.context() as patch:
        make_pages_small(patch)
        comparison = write_page(
            folder / "compare", title=LONG, command=LONG, groups=groups, metric=METRICS["accuracy"], missing=[LONG]
        )
    dataset = finished("dynammo").experiment.dataset
    sheet = folder / "sheet.html"
    sheet.write_text(contact_sheet(dataset, data_sheet(dataset), LONG, per_class=2), encoding="utf-8")
    audited = Audit(
        AuditedRun.open(finished("dynammo").path),
        {
            f"membership {LONG}": AttackResult(
                [Finding(LONG, "exemplars", "AUC", "", 0.61, 0.5, 0.55, 0.67, 40, 60, LONG)]
            ),
            "inversion": AttackResult(skipped=f"its step sends no weights {LONG}"),
        },
    )
    audit = folder / "audit.html"
    audit.write_text(audit_page([audited], rows([audited]), LONG), encoding="utf-8")
    broken = {"bound": "worst_site", "points": 12.5, "limit": 2.0, "site": 0, "label": None}
    held = {"event": "gate_judged", "time": START + 60, "task": 0, "deployed": 0, "broken": [broken]}
    write_run(folder / "runs" / LONG, [*first_task(), held, *failed()[-1:]], 17)
    with StatusServer(Lookout(lambda: [folder / "runs" / LONG], lambda: []), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield {
            "report": report.as_uri(),
            "comparison": comparison.as_uri(),
            "contact sheet": sheet.as_uri(),
            "privacy audit": audit.as_uri(),
            **{f"status /{path}": server.url + quote(path) for path in ("", f"run/{LONG}", "nothing")},
        }
        server.shutdown()
        thread.join()


def _with_long_names(run: Path, copy: Path) -> Path:
    """Copy a run, and give its classes and sites names as long as people do."""
    shutil.copytree(run, copy)
    classes = {str(label): f"{name} of the skin" for label, name in enumerate(NAMES)}
    log = [json.loads(line) for line in (copy / "events.jsonl").read_text().splitlines()]
    for event in log:
        if event["event"] == "run_started":
            event["tasks"] = [[classes[name] for name in task] for task in event["tasks"]]
            event["site_names"] = [f"University Hospital {LONG}", "county", "mercy"]
    (copy / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in log))
    rows = [line.split(",") for line in (copy / "confusion_matrix.csv").read_text().splitlines()]
    renamed = [",".join([*row[:2], *(classes.get(name, name) for name in row[2:4]), *row[4:]]) for row in rows]
    (copy / "confusion_matrix.csv").write_text("\n".join(renamed) + "\n")
    return copy


def test_nothing_is_cut_off_and_all_can_be_read_on_every_screen(browser: Browser, pages: dict[str, str]) -> None:
    problems = []
    for width, scheme in SCREENS:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        for name, address in pages.items():
            page = context.new_page()
            page.goto(address)
            problems += [f"{name}, {width} {scheme}: {what}" for what in page.evaluate(LOOK, LEAST_CONTRAST)]
            page.close()
        context.close()
    assert problems == []


def test_paper_shows_all_that_a_screen_can_scroll_to(browser: Browser, pages: dict[str, str]) -> None:
    problems = []
    page = browser.new_page(viewport={"width": PAPER, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print")
    for name, address in pages.items():
        page.goto(address)
        problems += [f"{name}: {what}" for what in page.evaluate(LOOK, LEAST_CONTRAST)]
        assert page.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).every(part => part < 64)"), name
    page.close()
    assert problems == []


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(browser: Browser, pages: dict[str, str]) -> None:
    page = browser.new_page(viewport={"width": 420, "height": 900})
    for name, address in pages.items():
        page.goto(address)
        controls = page.evaluate("document.querySelectorAll('a[href], [tabindex=\"0\"]').length")
        reached = set()
        for _ in range(controls):
            page.keyboard.press("Tab")
            found = page.evaluate(FOCUSED)
            assert found["outlined"], (name, found)
            reached.add(found["place"])
        assert len(reached) == controls, name
    page.close()


def test_a_refresh_leaves_the_keyboard_where_it_is(browser: Browser, pages: dict[str, str]) -> None:
    page = browser.new_page()
    page.clock.install()
    page.goto(pages["status /"])
    page.focus("footer a")
    page.evaluate("document.querySelector('main').dataset.before = 'yes'")
    page.clock.run_for(3100)
    page.wait_for_function("!('before' in document.querySelector('main').dataset)")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "/status.json"
    page.goto(pages[f"status /run/{LONG}"])
    assert "held back" in page.inner_text("main")
    page.close()
