"""The page of `zoo serve` in Chromium: what a user does, with screenshots in build/serve/, and what axe-core finds."""

import base64
import shutil
from pathlib import Path

import pytest
from serve_case import album_with_index, png, running, some_images, stub_pipeline

SCREENSHOTS = Path(__file__).resolve().parent.parent / "build" / "serve"
INSTALL = "no Chromium is installed; install it with: apt-get install -y chromium (Debian) or snap install chromium"
TOKEN = "a-token-of-several-letters"
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1100, "height": 800}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail(INSTALL)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def light():
    return stub_pipeline()


@pytest.fixture(scope="module")
def images():
    return some_images()


@pytest.fixture(scope="module")
def photos(tmp_path_factory, images, light):
    return album_with_index(tmp_path_factory.mktemp("photos"), images, "pair.safetensors", light)


@pytest.fixture(scope="module")
def service(light, photos):
    with running(light, index=photos / "index", name="pair") as client:
        yield f"http://127.0.0.1:{client.port}"


@pytest.fixture
def page(browser, service, request):
    """The open page; only the parameter may be in the console, and no violation of the CSP."""
    yield from opened(browser, service, getattr(request, "param", ()))


def opened(browser, address, allowed=(), **options):
    context = browser.new_context(viewport=DESK, **options)
    page, complaints = context.new_page(), []
    page.set_default_timeout(10_000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    yield page
    context.close()
    assert [text for text in complaints if not any(part in text for part in allowed)] == []


def check_accessibility(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    assert [(entry["id"], entry["impact"], entry["nodes"][0]["html"]) for entry in found] == []


def results(page, count):
    page.wait_for_function("count => document.querySelectorAll('#results li').length === count", arg=count)
    page.wait_for_function(
        "() => [...document.querySelectorAll('#results img')].every(image => image.naturalWidth > 0)"
    )
    return page.locator("#results .name").all_text_contents()


def drop(page, target, data, name="dropped.png", kind="image/png"):
    transfer = page.evaluate_handle(
        """([data, name, type]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name, kind],
    )
    page.dispatch_event(target, "drop", {"dataTransfer": transfer})


def test_search_by_text_image_and_filter(page, images, service):
    page.get_by_role("searchbox").fill("a seven")
    assert len(results(page, 7)) == 7
    assert page.url == f"{service}/?q=a+seven"
    assert "7 images in" in page.locator("#status").text_content()
    check_accessibility(page)
    page.screenshot(path=SCREENSHOTS / "search.png")

    page.get_by_role("combobox", name="kind").select_option(label="odd")
    assert sorted(results(page, 3)) == ["1.png", "3.png", "5.png"]
    page.get_by_role("spinbutton", name="Results").fill("2")
    results(page, 2)

    page.get_by_role("combobox", name="kind").select_option(label="any")
    drop(page, "#search-drop", png(images[4]))
    page.wait_for_selector("#search-image:visible")
    page.wait_for_function("() => document.querySelector('#results .name')?.textContent === '4.png'")
    assert page.locator("#results .score").first.text_content() == "1.000"
    page.screenshot(path=SCREENSHOTS / "search-by-image.png")

    page.locator("#results button").nth(1).click()  # more like the second
    page.wait_for_function("() => document.querySelector('#results .name')?.textContent !== '4.png'")
    page.get_by_role("button", name="Remove the image").click()
    results(page, 0)


@pytest.mark.parametrize("page", [["400"]], indirect=True, ids=["400"])  # the console names each failed request
def test_the_address_holds_the_query_and_errors_are_shown(page, service):
    page.goto(f"{service}/?q=a+three")
    results(page, 7)
    page.get_by_role("searchbox").fill("seven - seven")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "cancel each other" in alert.text_content()
    assert page.locator("#results li").count() == 0
    check_accessibility(page)
    page.screenshot(path=SCREENSHOTS / "error.png")
    drop(page, "#search-drop", b"text", "notes.txt", "text/plain")
    page.wait_for_function("() => document.querySelector('#error').textContent === 'notes.txt is not an image.'")


def test_classify_with_the_keyboard(page, images, tmp_path):
    page.get_by_role("tab", name="Search").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Classify").get_attribute("aria-selected") == "true"
    assert page.locator("#search").is_hidden()
    (tmp_path / "image.png").write_bytes(png(images[2]))
    page.get_by_label("Labels").fill("seven, three\n<img src=x onerror=alert(1)>")
    page.locator("#classify-file").set_input_files(tmp_path / "image.png")
    page.wait_for_function("() => document.querySelectorAll('#classes li').length === 3")
    assert "<img src=x onerror=alert(1)>" in page.locator("#classes .label").all_text_contents()
    assert page.locator("#classes img").count() == 0
    shares = [float(text.rstrip(" %")) for text in page.locator("#classes .value").all_text_contents()]
    widths = page.locator("#classes .bar").evaluate_all("bars => bars.map(bar => parseFloat(bar.style.width))")
    assert sum(shares) == pytest.approx(100, abs=0.2) and widths == pytest.approx(shares, abs=0.06)
    check_accessibility(page)
    page.screenshot(path=SCREENSHOTS / "classify.png")


def test_phone_width_and_dark_mode(browser, service):
    for page in opened(browser, service, color_scheme="dark"):
        page.set_viewport_size(PHONE)
        page.get_by_role("searchbox").fill("a seven")
        results(page, 7)
        check_accessibility(page)
        page.screenshot(path=SCREENSHOTS / "phone-dark.png")
        for tab in ("Classify", "Search"):
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, background[4:-1].split(","))) < 64


def test_the_token_is_asked_for_once(browser, light, photos):
    with running(light, ready=False, index=photos / "index", token=TOKEN) as client:
        client.wait_until_ready()
        for page in opened(browser, f"http://127.0.0.1:{client.port}/?q=seven", ["401"]):
            page.wait_for_selector("dialog[open]")
            check_accessibility(page)
            for token in ("wrong", TOKEN):
                page.get_by_role("textbox", name="Token").fill(token)
                page.get_by_role("button", name="Continue").click()
                if token == "wrong":
                    page.wait_for_function(
                        "() => document.querySelector('#ask-note').textContent.includes('not the right')"
                    )
            results(page, 7)
            page.reload()
            results(page, 7)
            assert page.locator("dialog[open]").count() == 0
