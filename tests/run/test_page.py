"""The chat page in a real browser, against a real server: what a person does, and what must not happen.

The server's models say always the same (a chain of characters), so that what is on the screen is known. Where
a model should say something wicked, the browser is given a reply of our own in place of the server's.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from chain_runs import chain_run
from serving import Served, serving

from pilgrim.serve.history import Chats
from pilgrim.serve.settings import ServeSettings

sync_api = pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install "pilgrim[test]"')
Page = Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SAID, OTHER = "Hi, dear!", "Not I."  # of the models `first` and `second`; no character comes twice

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
    # Playwright's own: it leaves its pipes to the collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "first": chain_run(folder / "first", SAID, ["pretrain", "sft"]),
        "second": chain_run(folder / "second", OTHER),
        "endless": chain_run(folder / "endless", "abc", ends=False, context=16_384),
    }


def address(served: Served) -> str:
    return f"http://{served.host}:{served.port}/"


@pytest.fixture
def chats(tmp_path: Path) -> Chats:
    return Chats(tmp_path / "chats.sqlite")


@pytest.fixture
def site(runs: dict[str, Path], chats: Chats) -> Iterator[str]:
    with serving(runs, ServeSettings(port=0, chats=chats.file)) as served:
        yield address(served)


@pytest.fixture
def page(browser: Any, site: str) -> Iterator[Page]:
    """A window on the page, as it is at the first time. No test may leave an error in it."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, errors = context.new_page(), list[str]()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(site)
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()
    assert errors == []


def say(page: Page, text: str) -> None:
    """Send a message and wait until the reply is complete."""
    before = page.locator(".message.assistant .actions").count()
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.locator(".message.assistant .actions").nth(before).wait_for()


def begin_an_endless_reply(page: Page, text: str) -> None:
    """Until its first words are on the screen."""
    page.select_option("#model", "endless")
    page.evaluate("document.getElementById('dial-max_tokens').max = 16000")
    page.click("#open-dials")
    page.locator("#dial-max_tokens").fill("16000")
    page.fill("#say", text)
    page.press("#say", "Enter")
    page.locator(".draft .text", has_text="abc").wait_for()


def texts(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".message .text").all_inner_texts()]


def streamed(*deltas: dict[str, Any]) -> str:
    """A reply as the server would stream it."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": d, "finish_reason": None} for d in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    chunks = [{"choices": [choice]} for choice in choices]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def instead(page: Page, *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """Let the page get these in place of the model's words; returns what it asks, as it comes."""
    asked: list[dict[str, Any]] = []

    def fulfil(route: Any) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(body=streamed(*deltas), content_type="text/event-stream")

    page.route("**/v1/chat/completions", fulfil)
    return asked


def test_a_chat_is_streamed_kept_and_found_again(page: Page, site: str, chats: Chats) -> None:
    say(page, "Hello <b>there</b>\nfriend")
    assert texts(page) == ["Hello <b>there</b>\nfriend", SAID]
    assert re.search(r"\d+ tokens in \d+\.\d s", page.locator(".facts").inner_text())
    (kept,) = chats.listed()
    assert kept["title"] == "Hello <b>there</b> friend"
    page.reload()
    page.get_by_role("button", name=kept["title"], exact=True).click()
    page.locator(".message.assistant").wait_for()
    assert texts(page) == ["Hello <b>there</b>\nfriend", SAID]
    page.fill("#search", "dear")
    page.locator(".snippet", has_text=SAID).wait_for()
    page.fill("#search", "nowhere")
    page.get_by_text("Nothing found.").wait_for()


def test_asking_again_and_editing_make_branches(page: Page, chats: Chats) -> None:
    say(page, "One")
    page.get_by_role("button", name="Ask for another reply").click()
    page.get_by_text("2/2").wait_for()
    page.get_by_role("button", name="The one before").click()
    page.get_by_text("1/2").wait_for()
    user = page.locator(".message.user")
    user.get_by_role("button", name="Write it anew").click()
    page.get_by_role("textbox", name="The message").fill("Two")
    page.get_by_role("textbox", name="The message").press("Control+Enter")
    page.locator(".message.user", has_text="Two").wait_for()
    page.locator(".message.assistant .actions").wait_for()
    assert texts(page) == ["Two", SAID]
    user.get_by_role("button", name="The one before").click()
    page.locator(".message.user", has_text="One").wait_for()
    chat = chats.read(chats.listed()[0]["id"])
    assert [m["role"] for m in chat["messages"]] == ["user", "assistant", "assistant", "user", "assistant"]


def test_why_a_reply_was_cut_off_is_told(page: Page) -> None:
    page.select_option("#model", "endless")
    page.click("#open-dials")
    page.locator("#dial-max_tokens").fill("16")
    say(page, "Go on")
    assert page.locator(".facts").inner_text().endswith("cut off at the longest reply")
    page.evaluate("document.getElementById('dial-max_tokens').max = 99000")
    page.locator("#dial-max_tokens").fill("99000")
    page.fill("#say", "x" * 16_200)
    page.press("#say", "Enter")
    page.locator(".facts", has_text="cut off where the model's context ends").wait_for()


def test_a_reply_can_be_stopped_and_what_was_said_stays(page: Page, chats: Chats) -> None:
    begin_an_endless_reply(page, "Go on for ever")
    page.keyboard.press("Escape")
    page.locator(".message.assistant .actions").wait_for()
    assert "stopped" in page.locator(".facts").inner_text()
    (kept,) = chats.listed()
    said = chats.read(kept["id"])["messages"][-1]["content"]
    assert said and set(said) <= set("abc")
    assert page.locator("#send").is_visible() and page.locator("#stop").is_hidden()


def test_two_models_answer_side_by_side(page: Page, chats: Chats) -> None:
    page.click("#compare")
    page.select_option("#other", "second")
    page.fill("#say", "Who are you?")
    page.press("#say", "Enter")
    page.locator(".side-by-side .actions").nth(1).wait_for()
    beside = page.locator(".side-by-side .message")
    assert [text.strip() for text in beside.locator(".text").all_inner_texts()] == [SAID, OTHER]
    with page.expect_response(lambda response: response.request.method == "PATCH"):
        beside.nth(1).get_by_role("button", name="The chat goes on with this reply").click()
    page.locator(".side-by-side .message.passive", has_text=SAID).wait_for()
    (kept,) = chats.listed()
    chat = chats.read(kept["id"])
    assert next(m for m in chat["messages"] if m["id"] == chat["leaf"])["about"]["model"] == "second"


def test_a_reply_asked_for_again_can_be_compared_with_two_side_by_side(page: Page) -> None:
    page.click("#compare")
    page.select_option("#other", "second")
    page.fill("#say", "Who are you?")
    page.press("#say", "Enter")
    page.locator(".side-by-side .actions").nth(1).wait_for()
    page.click("#compare")
    page.locator(".message:not(.passive)").get_by_role("button", name="Ask for another reply").click()
    page.get_by_text("2/2").wait_for()
    assert page.locator(".side-by-side").count() == 0
    page.get_by_role("button", name="The one before").click()
    page.get_by_text("1/2").wait_for()
    assert page.locator(".side-by-side .message").count() == 2
    page.get_by_role("button", name="The next one").click()
    page.get_by_text("2/2").wait_for()
    assert texts(page) == ["Who are you?", SAID]


def test_a_base_model_only_continues(page: Page) -> None:
    page.select_option("#model", "first:pretrain")
    page.get_by_text("only continues a text").wait_for()
    say(page, "H")
    assert texts(page)[1].startswith("i, dear!")


def test_tokens_show_what_else_was_likely(page: Page) -> None:
    say(page, "Hello")
    page.get_by_role("button", name="See how likely each token was").click()
    token = page.locator(".token").first
    assert token.inner_text() == SAID[0]
    token.hover()
    tip = page.locator("#token-tip")
    assert tip.locator(".chosen").inner_text().split() == [SAID[0], "100%"]
    assert tip.locator("div").count() == 5
    page.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.shown").inner_text() == SAID[1]
    assert page.get_by_role("tooltip").is_visible()


def test_what_a_model_writes_is_shown_and_never_run(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    wicked = (
        "**bold** <script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>\n\n"
        "![i](http://elsewhere.invalid/seen.png) [a](javascript:window.hurt=1) [b](https://example.org/)\n\n"
        "```python\nprint('<b>')\n```\n\n<svg onload='window.hurt = 1'><style>*{display:none}</style>\n\n"
        "<iframe src='http://elsewhere.invalid/'></iframe>\n"
    )
    instead(page, {"content": wicked})
    say(page, "Be wicked")
    shown = page.locator(".message.assistant .text")
    assert shown.locator("strong").inner_text() == "bold"
    assert "<script>window.hurt = 1</script>" in shown.inner_text()
    assert shown.locator("script, img, svg, style, iframe").count() == 0
    hrefs = [link.get_attribute("href") for link in shown.locator("a").all()]
    assert hrefs == [None, "https://example.org/"]
    assert "noopener" in shown.locator("a").nth(1).get_attribute("rel")
    assert page.evaluate("window.hurt") is None
    assert not [url for url in requests if "elsewhere" in url]
    shown.get_by_role("button", name="Copy the code").click()
    assert page.evaluate("navigator.clipboard.readText()") == "print('<b>')\n"


def test_calls_of_tools_are_shown_where_they_stand(page: Page, chats: Chats) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "calculator", "arguments": '{"expression": "9*2"}'},
        "result": "<i>18</i>",
        "offset": 6,
    }
    asked = instead(
        page, {"content": "😀 is "}, {"executed_calls": [{**call, "offset": 5}]}, {"content": "so."}
    )
    page.click("#open-dials")
    page.check("#tools")
    say(page, "Twice 9?")
    assert page.locator(".call").inner_text() == "calculator 9*2 → <i>18</i>"
    assert texts(page)[1].startswith("😀 is calculator")
    assert asked[0]["run_tools"] == ["calculator"]
    say(page, "And?")
    told = asked[1]["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "assistant", "user"]
    assert told[1]["content"] == "😀 is " and told[1]["tool_calls"][0]["id"] == "call_1"
    assert told[2] == {"role": "tool", "tool_call_id": "call_1", "content": "<i>18</i>"}


def test_dials_go_into_the_request_and_stay_with_the_chat(page: Page) -> None:
    asked = instead(page, {"content": "x"})
    page.click("#open-dials")
    page.locator("#dial-temperature").fill("0.3")
    page.locator("#dial-top_k").fill("7")
    page.fill("#system", "Be kind.")
    say(page, "Hello")
    assert (asked[0]["temperature"], asked[0]["top_k"]) == (0.3, 7)
    assert "min_p" not in asked[0]  # off: the server's word counts
    assert asked[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    page.click("#new-chat")
    page.click("#reset-dials")
    page.get_by_role("button", name="Hello", exact=True).click()
    page.locator(".message.assistant").wait_for()
    assert page.locator("#dial-temperature").input_value() == "0.3"


def test_a_chat_that_shall_not_be_kept_is_not(page: Page, chats: Chats) -> None:
    page.click("#open-dials")
    page.check("#temporary")
    say(page, "Between us")
    say(page, "And this")
    assert len(texts(page)) == 4 and chats.listed() == []


def test_what_is_not_kept_stands_side_by_side_in_the_same_order(page: Page) -> None:
    page.click("#open-dials")
    page.check("#temporary")
    page.click("#compare")
    page.select_option("#other", "second")
    page.fill("#say", "Who are you?")
    page.press("#say", "Enter")
    page.locator(".side-by-side .actions").nth(1).wait_for()
    assert texts(page)[1:] == [SAID, OTHER]


def test_a_chat_can_be_deleted_while_it_is_answered(page: Page, chats: Chats) -> None:
    begin_an_endless_reply(page, "One")
    page.locator(".entry").hover()
    assert page.locator("#stop").is_visible()
    page.get_by_role("button", name="Delete One").click()
    page.locator("#send").wait_for()
    page.get_by_text("No chats yet.").wait_for()
    assert page.get_by_role("alert").is_hidden() and chats.listed() == []


def test_a_chat_that_is_open_goes_on_if_it_is_opened_again(page: Page) -> None:
    begin_an_endless_reply(page, "One")
    page.get_by_role("button", name="One", exact=True).click()
    assert page.locator("#stop").is_visible()
    page.keyboard.press("Escape")
    page.locator(".message.assistant .actions").wait_for()
    assert len(texts(page)) == 2


def test_a_new_chat_gets_nothing_of_the_reply_that_was_being_written(page: Page, chats: Chats) -> None:
    begin_an_endless_reply(page, "One")
    page.click("#new-chat")
    page.locator("#send").wait_for()
    page.select_option("#model", "first")
    page.locator(".welcome").wait_for()
    say(page, "Two")
    assert texts(page) == ["Two", SAID]
    old, new = chats.read(1)["messages"], chats.read(2)["messages"]
    assert [message["content"] for message in new] == ["Two", SAID]
    assert old[0]["content"] == "One" and old[1]["content"].startswith("abc")


def test_whether_a_chat_is_kept_is_settled_by_its_first_message(page: Page, chats: Chats) -> None:
    page.click("#open-dials")
    page.check("#temporary")
    say(page, "One")
    assert page.is_disabled("#temporary")
    say(page, "Two")
    assert chats.listed() == []
    page.click("#new-chat")
    page.uncheck("#temporary")
    say(page, "Three")
    assert page.is_disabled("#temporary")
    assert len(chats.listed()) == 1


def test_a_message_that_cannot_be_kept_stays_in_its_field(page: Page) -> None:
    page.route("**/api/chats", lambda route: route.abort())
    page.fill("#say", "Hello")
    page.press("#say", "Enter")
    page.locator("#problem", has_text="does not answer").wait_for()
    assert page.input_value("#say") == "Hello"


def test_export_and_import(page: Page, chats: Chats, tmp_path: Path) -> None:
    say(page, "Keep me")
    files = {}
    for name in ("Export", "JSONL"):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        files[name] = tmp_path / name
        download.value.save_as(files[name])
    row = json.loads(files["JSONL"].read_text())
    assert [message["content"] for message in row["messages"]] == ["Keep me", SAID]
    chats.delete(chats.listed()[0]["id"])
    page.set_input_files("#import-file", files["Export"])
    page.get_by_role("button", name="Keep me", exact=True).click()
    page.locator(".message.assistant").wait_for()
    assert texts(page) == ["Keep me", SAID]
    bad = tmp_path / "bad.json"
    bad.write_text("no JSON")
    page.set_input_files("#import-file", bad)
    page.get_by_role("alert").get_by_text("bad.json is no JSON").wait_for()


def test_what_goes_wrong_is_said_and_nothing_is_lost(page: Page) -> None:
    say(page, "Hello")
    page.fill("#say", "x" * 5000)
    page.press("#say", "Enter")
    page.get_by_role("alert").wait_for()
    assert "context" in page.get_by_role("alert").inner_text()
    assert "begin a new chat" in page.get_by_role("alert").inner_text()
    assert len(texts(page)) == 3 and texts(page)[2] == "x" * 5000  # to be edited
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.locator(".message.assistant").get_by_role("button", name="Ask for another reply").click()
    page.get_by_role("alert").get_by_text("does not answer").wait_for()


def test_a_message_without_a_reply_is_asked_again_or_replaced(page: Page, chats: Chats) -> None:
    """Turns alternate: a model is never shown two messages of the user in a row, nor are they trained on."""
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#say", "One")
    page.press("#say", "Enter")
    page.get_by_role("alert").get_by_text("does not answer").wait_for()
    page.unroute("**/v1/chat/completions")
    asked = instead(page, {"content": "Yes."})
    say(page, "Two")
    assert texts(page) == ["Two", "Yes."]
    assert [message["content"] for message in asked[0]["messages"]] == ["Two"]
    page.locator(".message.user").get_by_role("button", name="The one before").click()
    page.get_by_role("button", name="Ask for a reply").click()
    page.locator(".message.assistant .actions").wait_for()
    assert texts(page) == ["One", "Yes."]
    assert [message["role"] for message in chats.training_rows()[0]["messages"]] == ["user", "assistant"]


def test_a_reply_that_breaks_off_is_not_taken_for_a_whole_one(page: Page) -> None:
    half = streamed({"content": "Half a"}).partition("data: [DONE]")[0]
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=half, content_type="text/event-stream")
    )
    say(page, "Hello")
    page.get_by_role("alert").get_by_text("broke off before the reply was complete").wait_for()
    assert texts(page) == ["Hello", "Half a"]  # what has come stays


def test_pressing_twice_sends_once(page: Page, chats: Chats) -> None:
    say(page, "One")
    page.locator(".message.user").get_by_role("button", name="Write it anew").click()
    field = page.get_by_role("textbox", name="The message")
    field.fill("Two")
    field.evaluate(
        "field => [1, 2].forEach(() => field.dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'Enter', ctrlKey: true })))"
    )
    page.locator(".message.user", has_text="Two").wait_for()
    page.locator(".message.assistant .actions").wait_for()
    assert len(chats.read(chats.listed()[0]["id"])["messages"]) == 4


def test_who_reads_further_up_is_not_disturbed(page: Page) -> None:
    instead(page, {"content": "Line.\n\n" * 60})
    for text in ("One", "Two"):
        say(page, text)
    page.locator(".message.user").first.get_by_role("button", name="Write it anew").click()
    page.keyboard.press("Escape")
    page.locator(".edit").wait_for(state="detached")
    assert page.locator("#log").evaluate("log => log.scrollTop") < 100
    page.locator("#log").evaluate("log => log.scrollTop = 200")
    again = page.locator(".message.assistant").last.get_by_role("button", name="Ask for another reply")
    again.evaluate("button => button.click()")  # without scrolling to it
    page.get_by_text("2/2").wait_for(state="attached")
    assert page.locator("#log").evaluate("log => log.scrollTop") == 200


def test_over_plain_http_from_another_machine_nothing_is_missing(browser: Any, site: str) -> None:
    """There a browser has neither a clipboard nor random ids."""
    context = browser.new_context()
    context.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "Object.defineProperty(crypto, 'randomUUID', { value: undefined });"
    )
    page = context.new_page()
    page.goto(site)
    page.wait_for_selector("#model option", state="attached")
    page.click("#compare")
    page.select_option("#other", "second")
    say(page, "Who are you?")
    page.locator(".side-by-side .actions").nth(1).wait_for()
    assert texts(page)[1:] == [SAID, OTHER]
    page.get_by_role("button", name="Copy the message").last.click()
    page.get_by_text("Copied").wait_for()
    page.focus("#say")
    page.keyboard.press("Control+v")
    assert page.input_value("#say") == OTHER
    context.close()


def test_a_server_without_models_says_so(page: Page, site: str) -> None:
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}))
    page.reload()
    page.get_by_role("alert").get_by_text("The server has no model").wait_for()
    page.unroute("**/v1/models")
    say(page, "Hello")  # they are looked for again
    assert texts(page) == ["Hello", SAID]


def test_a_server_with_a_key_asks_for_it(browser: Any, runs: dict[str, Path], chats: Chats) -> None:
    settings = ServeSettings(port=0, chats=chats.file)
    with serving(runs, settings.with_key("secret")) as served:
        unlock(browser, address(served))


def unlock(browser: Any, site: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    page.get_by_label("API key").fill("wrong")
    with page.expect_response(lambda response: response.status == 401):
        page.get_by_role("button", name="Go on").click()
    page.locator("#key-dialog[open]").wait_for()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.keyboard.press("Escape")
    page.locator("#key-dialog:not([open])").wait_for(state="attached")
    page.evaluate("fetch('/health').then((response) => response.status)")
    assert asked == [site + "health"]  # who does not want to give one is left alone
    page.reload()
    page.get_by_label("API key").fill("secret")
    page.get_by_role("button", name="Go on").click()
    page.wait_for_selector("#model option", state="attached")
    say(page, "Hello")
    assert texts(page)[1] == SAID
    context.close()


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(browser: Any, site: str, width: int, scheme: str) -> None:
    """No sideways scrolling, every control has a name, text stands out from its ground (WCAG: 4.5 to 1)."""
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(site)
    page.wait_for_selector("#model option", state="attached")
    say(page, "Hello")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(FAINT) == []
    context.close()


NAMELESS = """() => [...document.querySelectorAll('button, input, select, textarea, a')]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.getAttribute('aria-label') || one.innerText?.trim() || one.labels?.length))
  .map((one) => one.outerHTML)"""

FAINT = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(colour).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('.who span, .text, .hint, .facts, button, .title')]
    .filter((one) => one.checkVisibility() && one.innerText.trim() && !one.disabled)
    .filter((one) => {
      const [a, b] = [light(getComputedStyle(one).color), light(ground(one))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5;
    })
    .map((one) => one.outerHTML.slice(0, 120));
}"""


def test_it_can_be_used_from_the_keyboard(page: Page) -> None:
    assert page.evaluate("document.activeElement.id") == "say"
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    page.locator(".message.assistant .actions").wait_for()
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Control+Shift+O")
    page.get_by_text("Say something to begin.").wait_for()
    assert page.evaluate("document.activeElement.id") == "say"


def test_other_pages_get_nothing(site: str) -> None:
    """A foreign page that makes a browser ask is refused, and our page loads nothing from elsewhere."""
    with urlopen(site + "api/chats") as found:
        assert found.status == 200
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        with pytest.raises(HTTPError) as refused, urlopen(Request(site + "api/chats", headers=headers)):
            pass
        assert refused.value.code == 403 and "this server's own page" in refused.value.read().decode()
        refused.value.close()
    with urlopen(site) as found, urlopen(site + "page/index.html") as same:
        policy = found.headers["Content-Security-Policy"]
        assert same.headers["Content-Security-Policy"] == policy  # by whichever address
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
