"""The studio in a real browser: somebody annotates while a song plays, reloads, adapts, looks, rates and exports.

A sample is taken every 45 ms unless the page is busy: positions agree within 0.1 s, and 0.2 s would
be a gap.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zipfile

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra [studio] is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from data_prep.deam import read_deam  # noqa: E402 (after what decides to skip)
from dsaml_jax.cli import main  # noqa: E402
from dsaml_jax.studio import serving  # noqa: E402
from tests.studies import Person, running, song_named  # noqa: E402

pytestmark = pytest.mark.slow

PASSWORD = "correct horse"
CLOCK_ERROR = 0.060
"""Seconds by which a sample's time may differ from the position of the sound."""


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    arguments = ["--mute-audio", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def studio(knowing_run, songs, tmp_path_factory):
    config = serving.Settings(
        checkpoint=knowing_run, songs=songs, study=tmp_path_factory.mktemp("study"), password=PASSWORD, ratings=2,
    )  # fmt: skip
    with running(config) as served:
        served[1].modelling.wait_until_warm()
        yield served


@pytest.fixture
def person(studio):
    return Person(*studio)


@pytest.fixture
def page(browser):
    context = browser.new_context()
    opened = context.new_page()
    complaints = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None)  # fmt: skip
    yield opened
    context.close()
    assert not complaints


def until(page, expression, seconds=20.0):
    """Waits; Playwright's own way needs `eval`, which the pages' policy refuses."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def position(page):
    return page.evaluate("document.getElementById('audio').currentTime")


def play(page):
    until(page, "!document.getElementById('play').disabled")
    page.click("#play")
    until(page, "document.getElementById('audio').currentTime > 0 && !document.getElementById('audio').paused")  # fmt: skip


def move(page, arousal, valence):
    """The pointer to a place on the plane."""
    box = page.locator("#plane").bounding_box()
    inner = 0.88
    page.mouse.move(
        box["x"] + box["width"] * (0.5 + inner * valence / 2),
        box["y"] + box["height"] * (0.5 - inner * arousal / 2),
    )


def draw_until(page, end):
    """Moves along with the song: high arousal and low valence, rising and falling."""
    while (at := position(page)) < end:
        move(page, 0.6 + 0.3 * np.sin(at), -0.5 + 0.3 * np.cos(2 * at))
        time.sleep(0.02)


def recorded(study, person, song):
    """Seconds, arousal, valence of the samples of the latest take; what was erased is NaN."""
    take = study.store.row("SELECT max(id) AS id FROM take WHERE participant = ? AND song = ?", person.who.id, song.number)  # fmt: skip
    return np.array(study.store.entries(take["id"]), float).reshape(-1, 4)[:, :3]


def test_from_a_song_to_a_model_and_a_corpus(page, person, studio, tmp_path):
    address, study = studio
    support, other = song_named(study, "one"), song_named(study, "two")

    # Annotate, with a reload in the middle.
    page.goto(person.page)
    page.get_by_role("button", name="I know how it works").click()
    page.locator("#songs li", has_text=re.compile("^one ")).get_by_role(
        "link", name="Annotate"
    ).click()
    until(page, "!document.getElementById('play').disabled")
    page.evaluate("""() => {
      const seek = document.getElementById('seek');
      seek.value = 12;
      seek.dispatchEvent(new Event('change'));
    }""")
    play(page)
    draw_until(page, 20.0)
    page.reload()
    until(page, "!document.getElementById('play').disabled")
    kept = recorded(study, person, support)[-1, 0]
    assert kept >= 19.9  # nothing of what was drawn before is lost
    assert position(page) == pytest.approx(kept, abs=0.1)  # and it goes on from there
    play(page)
    draw_until(page, 26.0)
    page.click("#done")
    page.wait_for_url(person.page)

    entries = recorded(study, person, support)
    entries = entries[np.isfinite(entries[:, 1])]
    steps = np.diff(entries[:, 0])
    assert (steps > 0).sum() >= len(steps) - 1  # but for the reload
    assert np.quantile(steps, 0.95) <= 0.1  # 10 Hz or more
    labels = study.modelling.labels(person.who, support)
    known = np.isfinite(labels).all(axis=1)
    assert known[26:51].all() and not known[:23].any()

    # Adapt: the first curve within 5 s.
    page.get_by_role("button", name="Adapt").click()
    pressed = time.monotonic()
    page.get_by_role("link", name="See your curves").wait_for(timeout=15_000)
    assert time.monotonic() - pressed < 5.0
    page.get_by_role("link", name="See your curves").click()
    page.select_option("#song", str(other.number))
    until(page, "document.getElementById('chart').dataset.lines?.includes('yours after')")

    curves = person.get(f"/songs/{other.number}/curves").json()
    shown = page.evaluate("document.getElementById('chart').data.map(({name, y}) => [name, y])")
    assert [y for name, y in shown if name == "yours after"] == [list(x) for x in zip(*curves["after"], strict=True)]  # fmt: skip
    moved = np.mean(curves["after"], axis=0) - np.mean(curves["before"], axis=0)
    general = study.modelling.curve("before", support)
    wanted = np.nanmean(labels - general, axis=0)
    assert (np.sign(moved) == np.sign(wanted)).all() and wanted[0] > 0 > wanted[1]
    page.evaluate("document.getElementById('audio').play()")
    until(page, "document.getElementById('chart').layout.shapes[0].x0 > 0.5")

    # Rate.
    page.get_by_role("link", name="Rate").click()
    for number in ("1 of 2", "2 of 2"):
        page.locator("#position", has_text=number).wait_for()
        until(page, "document.getElementById('chart-right').data?.length === 2")
        for name, value in (("fit_left", 6), ("fit_right", 3), ("chosen", "left")):
            page.check(f"input[name={name}][value='{value}']")
        page.fill("#comment", "<b>fine</b>")
        page.get_by_role("button", name="Next").click()
    page.get_by_text("That was all").wait_for()
    assert [(trial["chosen_side"], trial["fit_left"], trial["fit_right"]) for trial in study.store.trials(person.who)] == [("left", 6, 3)] * 2  # fmt: skip

    # The owner exports; the next model can be trained on it.
    for name in ("two", "three"):
        person.annotate(song_named(study, name).number, 0.3, 0.3)
    page.goto(f"{address}/owner")
    page.fill("#key", PASSWORD)
    page.get_by_role("button", name="Come in").click()
    page.get_by_text("the adapted curve was chosen").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="corpus.zip").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    corpus = read_deam(tmp_path / "deam")
    song = next(song for song in corpus.songs if song.song_id == str(support.number))
    mine = next(r for r in song.ratings if r.annotator_id == f"listener{person.who.id:03d}")
    np.testing.assert_allclose(mine.arousal[:22], labels[30:52, 0], atol=1e-4)  # four decimals
    assert main(["prepare", "deam", "--root", str(tmp_path / "deam"), "--out", str(tmp_path / "data"), "--features", "tiny", "--embedding", "spectral", "--quiet"]) == 0  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_three_songs_and_what_is_known_of_somebody(browser, person, studio, tmp_path, scheme):
    """The suggested song each time; after each the words say more songs, and the band is narrower; then they are deleted."""
    address, study = studio
    study.modelling.wait_until_warm()
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1000, "height": 900})
    page = context.new_page()
    page.goto(person.page)
    page.get_by_role("button", name="I know how it works").click()
    widths = []
    for count in (1, 2, 3):
        row = page.locator("#songs li", has_text="suggested next")
        row.wait_for()
        suggested = person.state()["suggested"]
        assert row.count() == 1 and row.locator(f"#annotate-{suggested}").count() == 1
        if count == 1:  # by hand; the others as a browser would send them
            row.get_by_role("link", name="Annotate").click()
            play(page)
            draw_until(page, 6.0)
            page.click("#done")
            page.wait_for_url(person.page)
        else:
            person.annotate(suggested, 0.6, -0.5)
            page.reload()
        page.locator(f"#adapt-{suggested}").click()
        words = f"before your {count} song"
        page.locator("#adaptation-words", has_text=words).wait_for(timeout=20_000)
        page.locator("#adaptation-text", has_text="song that you drew" if count == 1 else f"{count} songs that you drew").wait_for()  # fmt: skip
        other = person.state()["suggested"]
        page.goto(f"{person.page}/curves?song={other}")
        until(page, "document.getElementById('chart').dataset.lines?.includes('yours after')")
        page.locator("#about", has_text="You hear this music").wait_for(timeout=20_000)
        low, high = page.evaluate("document.getElementById('chart').data.filter(({name, yaxis}) => name === 'you, probably' && yaxis === 'y').map(({y}) => y)")  # fmt: skip
        widths.append(np.median(np.subtract(high, low)))
        page.screenshot(path=tmp_path / f"curves{count}-{scheme}.png")
        if count == 3:  # a song that was drawn has an overlay
            page.goto(f"{person.page}/curves?song={suggested}")
            until(page, "document.getElementById('chart').dataset.lines?.includes('what you drew')")
            page.screenshot(path=tmp_path / f"drawn-{scheme}.png")
        page.goto(person.page)
    page.screenshot(path=tmp_path / f"home-{scheme}.png", full_page=True)
    assert widths[0] > widths[1] > widths[2]
    page.get_by_text("What is kept").click()
    assert page.get_by_text("The owner can delete all that is yours").is_visible()

    page.goto(f"{address}/owner?key={study.key}")
    page.on("dialog", lambda dialog: dialog.accept())
    name = f"listener{person.who.id:03d}"
    page.get_by_role("button", name=f"Delete {name}").click()
    page.get_by_role("cell", name=name, exact=True).wait_for(state="detached")
    page.screenshot(path=tmp_path / f"owner-{scheme}.png", full_page=True)
    assert person.get("/state").status_code == 404
    context.close()


def test_samples_carry_the_position_of_the_sound(page, person, studio):
    """Also after a pause, a jump, and while the page is busy drawing."""
    _, study = studio
    song = song_named(study, "three")
    page.goto(f"{person.page}/annotate/{song.number}?draw=both")
    page.evaluate("""() => {
      const audio = document.getElementById('audio');
      window.moves = [];
      document.getElementById('plane').addEventListener('pointermove', (event) => {
        if (audio.paused) return; // a mouse that passes by draws nothing
        const box = event.target.getBoundingClientRect();
        window.moves.push([audio.currentTime, (0.5 - (event.clientY - box.top) / box.height) * 2 / 0.88]);
      }, { capture: true });
      setInterval(() => { const end = performance.now() + 60; while (performance.now() < end); }, 250); // slow
    }""")
    levels = np.random.RandomState(0).uniform(-0.9, 0.9, 200)

    def jump_about(end):
        number = 0
        while position(page) < end:
            move(page, levels[number], 0.0)
            number += 1
            time.sleep(0.15)

    play(page)
    jump_about(4.0)
    page.click("#play")  # pause
    page.wait_for_timeout(700)
    move(page, 0.0, 0.0)
    play(page)
    jump_about(7.0)
    page.evaluate("document.getElementById('audio').currentTime = 20")
    page.wait_for_timeout(200)
    jump_about(24.0)
    page.click("#play")
    page.wait_for_timeout(800)  # the last ones are sent
    moves = np.array(page.evaluate("window.moves"))
    entries = recorded(study, person, song)
    entries = entries[np.isfinite(entries[:, 1])]
    assert len(entries) > 100
    inside = [(at, value) for at, value, _ in entries if 0.3 < at < 6.5 or 20.5 < at < 23.8]
    assert len(inside) > 80
    for at, value in inside:
        # What the pointer showed at some time within the allowed error of the sample's.
        known = np.flatnonzero(moves[:, 0] <= at - CLOCK_ERROR)
        first = known[-1] if len(known) else 0
        shown = moves[first:][moves[first:, 0] <= at + CLOCK_ERROR, 1]
        # A pixel of the plane is about 0.004.
        assert np.abs(shown - value).min() < 0.01, (at, value)


def test_closing_the_tab_loses_nothing(page, person, studio):
    song = song_named(studio[1], "four")
    page.goto(f"{person.page}/annotate/{song.number}?draw=both")
    play(page)
    draw_until(page, 2.0)
    last = position(page)
    page.close(run_before_unload=False)
    time.sleep(0.5)
    assert recorded(studio[1], person, song)[-1, 0] >= last - 0.1


def test_a_server_that_does_not_answer(page, person, studio):
    song = song_named(studio[1], "five")
    page.goto(f"{person.page}/annotate/{song.number}?draw=both")
    play(page)
    draw_until(page, 1.0)
    page.context.set_offline(True)
    draw_until(page, 2.5)
    page.get_by_text("The server does not answer").wait_for()
    page.context.set_offline(False)
    page.get_by_text("Everything is saved").wait_for()
    page.click("#play")
    page.wait_for_timeout(800)
    assert np.diff(recorded(studio[1], person, song)[:, 0]).max() < 0.2


def test_by_keyboard(page, person, studio):
    song = song_named(studio[1], "one")
    page.goto(f"{person.page}/annotate/{song.number}?draw=both")
    until(page, "!document.getElementById('play').disabled")
    page.focus("#plane")
    page.keyboard.press("Space")
    until(page, "document.getElementById('audio').currentTime > 0.5")
    for _ in range(10):
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowLeft")
    until(page, "document.getElementById('audio').currentTime > 1.5")
    page.keyboard.press("Space")
    until(page, "document.getElementById('audio').paused")
    assert page.input_value("#arousal") == "0.4" and page.input_value("#valence") == "-0.4"
    page.wait_for_timeout(600)
    # float64.
    np.testing.assert_allclose(recorded(studio[1], person, song)[-1, 1:], [0.4, -0.4], atol=1e-6)
    page.click("#back")
    page.wait_for_timeout(600)
    assert np.isnan(recorded(studio[1], person, song)[-1, 1:]).all()  # erased
    page.get_by_role("slider", name="Valence: unpleasant to pleasant").fill("0.25")
    assert page.input_value("#valence") == "0.25"


def test_practice_comes_first_and_is_not_used(page, person, studio):
    page.goto(person.page)
    assert not page.locator("#songs").is_visible()
    page.get_by_role("button", name="Practise").click()
    page.wait_for_url("**/annotate/**")
    play(page)
    draw_until(page, 2.0)
    page.click("#done")
    page.wait_for_url(person.page)
    page.locator("#songs li").first.wait_for()
    assert page.get_by_role("button", name="Adapt").count() == 0


def test_a_second_window_takes_over(page, person, studio):
    song = song_named(studio[1], "two")
    page.goto(f"{person.page}/annotate/{song.number}")
    play(page)
    draw_until(page, 1.0)
    other = page.context.new_page()
    other.goto(f"{person.page}/annotate/{song.number}")
    until(other, "!document.getElementById('play').disabled")
    move(page, 0.1, 0.1)
    page.get_by_role("alert").get_by_text("another window").wait_for()
    assert page.evaluate("document.getElementById('audio').paused")
    play(other)
    draw_until(other, 2.0)
    other.click("#play")
    other.wait_for_timeout(600)
    assert recorded(studio[1], person, song)[-1, 0] >= 1.9


def test_by_touch(browser, person, studio):
    song = song_named(studio[1], "three")
    context = browser.new_context(has_touch=True, viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(f"{person.page}/annotate/{song.number}")
    until(page, "!document.getElementById('play').disabled")
    page.tap("#play")
    until(page, "document.getElementById('audio').currentTime > 0.3")
    page.locator("#plane").scroll_into_view_if_needed()
    box = page.locator("#plane").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.1)
    page.wait_for_timeout(900)
    last = recorded(studio[1], person, song)[-1]
    # A few pixels: a touch is at whole ones.
    np.testing.assert_allclose(last[1:], [0.8 / 0.88, 0.8 / 0.88], atol=0.03)
    context.close()


def test_one_dimension_after_the_other(page, person, studio):
    song = song_named(studio[1], "one")
    page.goto(person.page)
    page.get_by_label("first arousal, then valence").check()
    page.get_by_role("button", name="I know how it works").click()
    page.locator("#songs li", has_text=re.compile("^one ")).get_by_role(
        "link", name="Annotate"
    ).click()
    for dimension in ("arousal", "valence"):
        page.wait_for_url(f"**/annotate/{song.number}?draw={dimension}")
        play(page)
        draw_until(page, 6.0)
        page.click("#done")
    page.wait_for_url(person.page)
    page.get_by_role("button", name="Adapt").wait_for()
    labels = studio[1].modelling.labels(person.who, song)
    assert np.isfinite(labels[1:11]).all() and np.nanmean(labels[:, 0]) > 0 > np.nanmean(labels[:, 1])  # fmt: skip


@pytest.mark.parametrize("dimension", ["arousal", "valence"])
def test_a_model_of_one_dimension_asks_for_it_alone(page, small_run, songs, tmp_path, dimension):
    shutil.copytree(small_run, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text()) | {"dimensions": [dimension]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    config = serving.Settings(
        checkpoint=tmp_path / "run", everyone=tmp_path / "run", songs=songs, study=tmp_path / "study", password=PASSWORD
    )  # fmt: skip
    with running(config) as (address, study):
        study.modelling.wait_until_warm()
        person = Person(address, study)
        song = song_named(study, "one")
        page.goto(person.page)
        page.get_by_role("button", name="I know how it works").click()
        page.locator("#songs li", has_text=re.compile("^one ")).get_by_role(
            "link", name="Annotate"
        ).click()
        page.wait_for_url(f"**/annotate/{song.number}?draw={dimension}")
        play(page)
        draw_until(page, 6.0)
        page.click("#done")
        page.wait_for_url(person.page)
        assert not page.get_by_label("first arousal, then valence").is_visible()
        page.get_by_role("button", name="Adapt").click()
        page.get_by_text("Take it with you").wait_for()
        page.goto(f"{person.page}/curves?song={song.number}")
        until(page, "document.querySelector('#chart').dataset.lines?.includes('yours after')")
        titles = page.evaluate("[...document.querySelectorAll('#chart .ytitle, #chart .y2title')].map((x) => x.textContent)")  # fmt: skip
        assert titles == [dimension]
        words = page.text_content("#words") + page.text_content("#quarters")
        other = {"arousal": "valence", "valence": "arousal"}[dimension]
        assert dimension in words and other not in words and "NaN" not in words
        page.screenshot(path=tmp_path / "curves.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_screens_and_names_for_everything(browser, person, studio, scheme):
    address, study = studio
    song = song_named(study, "<img src=x onerror=alert(1)>")
    person.annotate(song.number, 0.2, 0.2)
    person.adapt(song.number)
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{address}/owner?key={study.key}")
    for path in ("/owner", *(f"/p/{person.who.token}{rest}" for rest in ("", f"/annotate/{song.number}", "/curves", "/rate"))):  # fmt: skip
        page.goto(address + path)
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        unnamed = page.evaluate("""() => [...document.querySelectorAll('input, select, textarea, button, audio[controls]')]
          .filter((x) => !x.hidden && x.type !== 'hidden')
          .filter((x) => !x.labels?.length && !x.textContent.trim() && !x.ariaLabel && !x.title).map((x) => x.outerHTML)""")
        assert not unnamed, path
        faint = page.evaluate(_CONTRAST)
        assert not faint, (path, json.dumps(faint))
    context.close()


_CONTRAST = """() => {
  // Text against the nearest background: WCAG's 4.5 to 1.
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((x) => x / 255).map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (x) => { for (; x; x = x.parentElement) { const c = parse(getComputedStyle(x).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
  return [...document.querySelectorAll('h1, h2, p, label, a, button, legend, td, th, span')]
    .filter((x) => x.textContent.trim() && x.offsetParent && !x.disabled && !x.closest('.chart'))
    .map((x) => { const [a, b] = [light(parse(getComputedStyle(x).color)), light(behind(x))].sort((p, q) => q - p);
                  return [x.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)]; })
    .filter(([, ratio]) => ratio < 4.5);
}"""
