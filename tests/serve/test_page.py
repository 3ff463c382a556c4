"""The page in a real browser: playback, errors, voices, the keyboard, layout."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from serving import goes_idle, load_mini, ready, recording, running
from threads import soon

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: '.[serve-test]'")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium: apt-get install chromium")
LONG = "This is quite a long text, and the page plays it while the rest is still being made. " * 8
SHOTS = os.environ.get("PAGE_SHOTS")  # a folder for pictures to be looked at


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        server = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--mute-audio"])
        yield server
        server.close()


@pytest.fixture
def open_page(browser):
    """Opens the page; errors in its console and requests to other hosts fail the test."""
    complaints, contexts = [], []

    def opened(server, **how):
        context = browser.new_context(**how)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        own = server.url, "blob:"
        page.on("request", lambda request: request.url.startswith(own) or complaints.append(request.url))
        page.goto(server.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    answers = "status of 4", "status of 503"  # the browser's own lines, of refusals that tests provoke
    assert [text for text in complaints if not any(answer in text for answer in answers)] == []


def wait_for(page, condition):
    """Playwright's own wait_for_function evaluates strings inside the page, which its policy forbids."""
    assert soon(lambda: page.evaluate(condition), 60), condition


def state(page, name):
    return page.get_attribute("#progress", f"data-{name}")


def test_playback_starts_before_the_speech_is_complete(mini, open_page):
    page = open_page(mini)
    page.get_by_text("Ready: mini").wait_for()
    page.get_by_label("Text", exact=True).fill(LONG)
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "document.getElementById('progress').dataset.received > 0")
    assert state(page, "state") == "working"
    assert mini.model.stats()["calls"] == 1
    wait_for(page, "current.heard > 0.3")  # by the audio device's own clock
    assert state(page, "state") == "working"
    assert page.evaluate("current.peaks.some((peak) => peak > 0.05)")
    page.get_by_role("button", name="Stop").first.click()
    wait_for(page, "document.getElementById('progress').dataset.state == 'stopped'")
    assert goes_idle(mini.service)
    assert page.locator("#history li").count() == 1
    page.get_by_role("button", name="Hear again").click()  # what was made; Stop closed its audio context
    wait_for(page, "current.heard > 0.1")


def test_a_whole_speech(mini, open_page, tmp_path):
    from chatterbox_opt.audio.io import pcm16

    page = open_page(mini)
    page.get_by_text("Ready: mini").wait_for()
    page.get_by_label("Text", exact=True).fill("Hello there.")
    page.get_by_label("Seed").fill("3")
    page.get_by_text("Expression").click()
    page.get_by_label("Temperature").fill("0.5")
    page.keyboard.press("Control+Enter")
    wait_for(page, "document.getElementById('progress').dataset.state == 'done'")
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/spoken.png", full_page=True)
    with page.expect_download() as caught:
        page.get_by_role("link", name="Download").click()
    expected = b"".join(map(pcm16, mini.model.generate_stream("Hello there.", seed=3, temperature=0.5)))
    file = Path(caught.value.path()).read_bytes()
    assert file[44:] == expected
    assert file[40:44] == len(expected).to_bytes(4, "little")
    wait_for(page, "!current.sources.size")
    page.get_by_role("button", name="Hear again").click()
    wait_for(page, "current.heard > 0.1")
    page.get_by_role("button", name="Use the text").click()
    assert page.get_by_label("Text", exact=True).input_value() == "Hello there."


def test_only_the_beginning_and_the_end_are_read_out(mini, open_page):
    """A screen reader says whatever changes in a live region; the count changes several times a second."""
    page = open_page(mini)
    page.get_by_text("Ready: mini").wait_for()
    page.evaluate("""() => {
      globalThis.said = [];
      for (const live of document.querySelectorAll('[role=status], [role=alert], [aria-live]')) {
        const listen = () => live.textContent.trim() && said.push(live.textContent);
        new MutationObserver(listen).observe(live, { childList: true, characterData: true, subtree: true });
      }
      globalThis.counted = 0;
      const form = document.getElementById('speak');
      const count = () => { if (form.textContent.includes('s made, the first sound after')) counted += 1; };
      new MutationObserver(count).observe(form, { childList: true, subtree: true });
    }""")
    page.get_by_label("Text", exact=True).fill(LONG[:340])
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "document.getElementById('progress').dataset.state == 'done'")
    assert page.evaluate("counted") > 2
    first, last = page.evaluate("said")
    assert first == "Waiting for the first sound …"
    assert "s of speech in" in last
    assert not page.get_by_text("s made, the first sound after").is_visible()


def test_each_sound_of_the_history_has_a_name_of_its_own(mini, open_page):
    page = open_page(mini)
    page.get_by_text("Ready: mini").wait_for()
    for text in ("Hello there.", LONG[:100]):
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_role("button", name="Speak", exact=True).click()
        page.get_by_role("button", name=f"Use the text: {text[:40]}").wait_for()
        wait_for(page, "!document.getElementById('go').disabled")
    names = page.evaluate("""() => [...document.querySelectorAll('#history audio, #history button')]
        .map((e) => e.getAttribute('aria-label'))""")
    short = f"{LONG[:40]}…"
    assert names == [f"Speech: {short}", f"Use the text: {short}", "Speech: Hello there.", "Use the text: Hello there."]


def test_errors_are_shown(mini, open_page):
    page = open_page(mini)
    page.get_by_text("Ready: mini").wait_for()
    page.get_by_label("Text", exact=True).fill("x" * 100_001)
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_role("alert").get_by_text("100001 characters").wait_for()
    assert page.get_by_role("button", name="Speak", exact=True).is_enabled()
    assert page.get_by_text("This model speaks in its own voice only.").is_visible()
    assert not page.locator("#upload").is_visible()


def test_why_the_server_cannot_answer_is_said(tmp_path, open_page, monkeypatch):
    def unreachable(patience: float) -> None:
        raise OSError("the network is down")

    loaded = threading.Event()
    with running(tmp_path, lambda: loaded.wait(60) and load_mini()) as server:
        page = open_page(server)
        page.get_by_text("The model is being loaded").wait_for()
        loaded.set()
        ready(server)
        page.get_by_text("Ready: mini").wait_for()
        monkeypatch.setattr(server.service.voices, "refresh", unreachable)
        page.reload()
        page.get_by_text("The place where the voices are kept cannot be reached").wait_for()
        monkeypatch.undo()
        page.get_by_text("Ready: mini").wait_for()


def test_voices_and_conversion(tiny, open_page):
    page = open_page(tiny)
    page.get_by_text("Ready: english").wait_for()
    file = {"name": "anna.wav", "mimeType": "audio/wav", "buffer": recording()}
    page.get_by_label("Name of a new voice").fill("Anna <b>")
    page.get_by_label("Recording", exact=True).set_input_files(file)
    page.get_by_label("I may use this voice").check()
    page.get_by_role("button", name="Add voice").click()
    page.get_by_text("Anna <b> is there.").wait_for()
    assert page.locator("#voice option:checked").inner_text() == "Anna <b>"
    page.get_by_label("Text", exact=True).fill("Hello.")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "document.getElementById('progress').dataset.state == 'done'")
    page.get_by_label("Recording to speak again").set_input_files(file)
    page.get_by_label("In the voice").select_option(label="Anna <b>")
    page.get_by_role("button", name="Convert").click()
    page.get_by_text("Done.").wait_for()
    wait_for(page, "document.getElementById('converted').duration > 5")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete the voice Anna <b>").click()
    page.get_by_text("Anna <b> is deleted.").wait_for()
    assert page.locator("#voice option").filter(has_text="Anna").count() == 0
    assert page.evaluate("document.activeElement.id") == "voices"  # its button is gone


def test_a_failed_conversion_leaves_no_earlier_result(tiny, open_page):
    page = open_page(tiny)
    page.get_by_text("Ready: english").wait_for()
    page.evaluate("""() => {
      globalThis.revoked = [];
      const revoke = URL.revokeObjectURL;
      URL.revokeObjectURL = (url) => { revoked.push(url); revoke.call(URL, url); };
    }""")
    sound = {"name": "anna.wav", "mimeType": "audio/wav", "buffer": recording()}
    page.get_by_label("Recording to speak again").set_input_files(sound)
    page.get_by_role("button", name="Convert").click()
    page.get_by_text("Done.").wait_for()
    earlier = page.get_attribute("#converted", "src")
    assert page.locator("#converted").is_visible()
    page.get_by_label("Recording to speak again").set_input_files(sound | {"buffer": b"no sound"})
    page.get_by_role("button", name="Convert").click()
    page.locator("#convert-note.trouble").wait_for()
    assert not page.locator("#converted").is_visible()
    assert page.get_attribute("#converted", "src") is None
    assert earlier in page.evaluate("revoked")


def give_key(page, key):
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use it").click()


def test_a_key_is_asked_for(tmp_path, open_page):
    with running(tmp_path, load_mini, api_key="secret") as server:
        page = open_page(ready(server))
        assert page.get_by_role("dialog").get_by_role("alert").count() == 0
        give_key(page, "secret")
        page.get_by_text("Ready: mini").wait_for()


def test_a_key_is_asked_for_until_it_is_the_right_one(tmp_path, open_page):
    with running(tmp_path, load_mini, api_key="secret") as server:
        page = open_page(ready(server))
        dialog, again = page.get_by_role("dialog"), page.get_by_role("button", name="Key …")
        dialog.wait_for()
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        again.click()
        give_key(page, "wrong")
        dialog.get_by_role("alert").get_by_text("The key was not accepted.").wait_for()
        assert page.get_by_label("Key", exact=True).input_value() == ""
        page.keyboard.press("Escape")
        again.click()
        give_key(page, "secret")
        page.get_by_text("Ready: mini").wait_for()
        assert not again.is_visible()
        assert page.evaluate("document.activeElement.id") == "text"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_asking_for_a_key_fits_a_small_screen(tmp_path, open_page, theme):
    with running(tmp_path, load_mini, api_key="secret") as server:
        page = open_page(ready(server), viewport={"width": 375, "height": 900}, color_scheme=theme)
        give_key(page, "wrong")
        page.get_by_role("dialog").get_by_role("alert").wait_for()
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/key-{theme}.png", full_page=True)
        assert page.evaluate(CONTRAST) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Key …").wait_for()
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/no-key-{theme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.getElementById('status').offsetHeight") < 80  # the server's reason, in few lines


def test_a_key_that_no_header_can_carry(tmp_path, open_page):
    with running(tmp_path, load_mini, api_key="secret") as server:
        page = open_page(ready(server))
        give_key(page, "ключ")
        unsent = page.get_by_role("dialog").get_by_role("alert").get_by_text("characters that cannot be sent")
        unsent.wait_for()
        assert page.evaluate("sessionStorage.getItem('key')") is None
        page.reload()
        page.get_by_role("dialog").wait_for()
        assert not unsent.is_visible()
        give_key(page, "secret")
        page.get_by_text("Ready: mini").wait_for()


def test_the_keyboard_alone(mini, open_page):
    page = open_page(mini)
    page.get_by_text("Ready: mini").wait_for()
    named = page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea, canvas, a')]
        .filter((e) => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.id)""")
    assert named == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.type(LONG[:170])
    page.keyboard.press("Control+Enter")
    wait_for(page, "document.getElementById('progress').dataset.received > 0")
    page.keyboard.press("Escape")
    wait_for(page, "['stopped', 'done'].includes(document.getElementById('progress').dataset.state)")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_layout_and_contrast(tiny, open_page, theme, width):
    """No sideways scrolling, targets large enough for a finger, contrast of at least 4.5 for every text."""
    page = open_page(tiny, viewport={"width": width, "height": 900}, color_scheme=theme)
    page.get_by_text("Ready: english").wait_for()
    page.get_by_text("Expression").click()
    if SHOTS:
        page.get_by_label("Text", exact=True).fill("Hello there. This is what the page looks like.")
        page.screenshot(path=f"{SHOTS}/{theme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("""() => [...document.querySelectorAll('button, select, textarea, input:not([type=checkbox])')]
        .filter((e) => e.offsetParent && e.getBoundingClientRect().height < 28).map((e) => e.id)""") == []
    assert page.evaluate(CONTRAST) == []
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Change between light and dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll('p, h1, h2, label, button, a, summary, span, small, output')) {
    if (!e.offsetParent || !e.textContent.trim() || e.disabled || e.className === 'skip') continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(e.id || e.textContent);
  }
  return poor;
}"""
