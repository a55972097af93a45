"""zoo.utils.report: pages are self-contained and escape their text; plots are PNGs that depend on their arguments."""

import base64
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from zoo.utils import report

HOSTILE = '<script>alert("1")</script> & \'"><img src=x onerror=y>'
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Tags with their attributes, the text, and the tags that are closed in the wrong order."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open, self.complaints = [], "", [], []
        self.feed(source)
        self.close()
        self.complaints += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.complaints.append(f"/{tag}")

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (288, 144), "red").save(path)
    return path


def blocks(text, png):
    """Every kind of block, with `text` as each of its texts."""
    return [
        report.section(text, report.paragraph(text)),
        report.tiles({text: text}),
        report.table([text, "n"], [[text, 1]]),
        report.figure(png, text),
        report.code(text),
        report.details(text, report.paragraph(text)),
    ]


def test_every_text_is_escaped(png):
    plain = Reader(report.page("word", *blocks("word", png), lead="word"))
    hostile = Reader(report.page(HOSTILE, *blocks(HOSTILE, png), lead=HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in hostile.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert hostile.text.count(HOSTILE) == plain.text.count("word")
    assert next(attrs["alt"] for tag, attrs in hostile.tags if tag == "img") == HOSTILE
    assert not hostile.complaints


def test_the_test_above_covers_every_kind_of_block(png):
    makers = {name for name, function in vars(report).items() if inspect.isfunction(function)}
    html = {name for name in makers if f"report.{name}(" in inspect.getsource(blocks)}
    returns_html = {"section", "paragraph", "tiles", "table", "figure", "code", "details"}
    assert html == returns_html <= makers
    assert all(block.startswith("<") for block in blocks("x", png))


def test_a_page_loads_nothing_else(png):
    source = report.page("title", *blocks("text", png))
    for tag, attrs in Reader(source).tags:
        assert tag not in {"link", "script", "iframe", "object", "base"}
        for name, value in attrs.items():
            assert name not in {"href", "srcset", "action", "onload", "style"}
            assert name != "src" or value.startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?:|//\w", source.replace("data:image/png;base64", ""))
    assert "default-src 'none'" in source


def test_a_figure_embeds_the_file_at_the_size_it_was_drawn_for(png):
    image = next(attrs for tag, attrs in Reader(report.figure(png, "red")).tags if tag == "img")
    data = base64.b64decode(image["src"].partition(",")[2], validate=True)
    assert data == png.read_bytes()
    assert report.png_size(data) == (288, 144)
    assert int(image["width"]) == 288 * report.CSS_PIXELS_PER_INCH / report.DPI


def test_a_figure_is_a_png(tmp_path):
    (tmp_path / "a.png").write_bytes(b"<svg></svg>")
    with pytest.raises(ValueError, match="not a PNG"):
        report.figure(tmp_path / "a.png", "caption")


def test_a_page_is_readable_in_light_and_dark():
    style = report.STYLE
    names = set(re.findall(r"var\((--\w+)\)", style))
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    for scheme in (light, dark):
        assert names <= set(re.findall(r"(--\w+):", scheme))
        colors = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", scheme))
        for text in ("--text", "--soft", "--accent"):
            for ground in ("--page", "--card"):
                assert contrast(colors[text], colors[ground]) >= 4.5, f"{text} on {ground}"  # WCAG 2.1, level AA


def contrast(one, other):
    """WCAG 2.1's ratio of the luminances of two colours, 1 to 21."""
    low, high = sorted(luminance(color) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_numbers_and_percentages_are_right_aligned():
    source = report.table(["name", "n", "share"], [["a", 1, "5.0 %"], ["b", 2.5, "10.0 %"]])
    cells = [attrs.get("class") for tag, attrs in Reader(source).tags if tag == "td"]
    assert cells == [None, "number", "number"] * 2


def test_numbers_with_units_are_right_aligned_and_words_are_not():
    source = report.table(["a", "b", "c"], [["5.0 ms", "1,024 MB", "12 monkeys"], ["–", "2.50×", "7 ms"]])
    cells = [attrs.get("class") for tag, attrs in Reader(source).tags if tag == "td"]
    assert cells == ["number", "number", None] * 2


def test_a_row_of_another_length_than_the_header_is_rejected():
    with pytest.raises(ValueError, match="2 cells; the header has 1"):
        report.table(["a"], [["b", "c"]])


def test_percent():
    assert report.percent(353 / 360) == "98.1 %"


def test_a_page_is_written_atomically(tmp_path):
    path = tmp_path / "report.html"
    report.write_page(path, "one")
    before = path.read_text(encoding="utf-8")
    assert before == report.page("one")
    with pytest.raises(TypeError):
        report.write_page(path, "two", None)
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def panel(**options):
    return report.Panel("t", [1, 2, 3], {"a": [1, 2, 3]}, **options)


PLOTS = {
    "panels": lambda path, _: report.plot_panels(path, [panel(), panel()]),
    "confusion": lambda path, _: report.plot_confusion(path, [[3, 1], [0, 4]], ["a", "b"]),
    "similarity": lambda path, image: report.plot_similarity(path, [[0.1, 0.9]], [image], ["a dog", "a cat"]),
    "sheet": lambda path, image: report.plot_sheet(path, [report.SheetRow("a dog", [image] * 3)]),
}


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_is_a_png_that_is_not_blank(plot, tmp_path, image):
    path = tmp_path / "plot.png"
    PLOTS[plot](path, image)
    data = path.read_bytes()
    with Image.open(BytesIO(data)) as image:
        assert image.format == "PNG" and image.size == report.png_size(data)
        assert min(image.size) > 100 and len(image.convert("L").getcolors()) > 5


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_depends_on_its_arguments_alone(plot, tmp_path, image):
    for name in ("one.png", "other.png"):
        PLOTS[plot](tmp_path / name, image)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def pixels(tmp_path, plot):
    plot(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        return image.size, image.convert("RGB").tobytes()


OPTIONS = {"levels": {"l": 2}, "marks": {"m": 2}, "xlabel": "x", "log_x": True, "percent": True}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_a_panel_changes_the_plot(option, tmp_path):
    plain = pixels(tmp_path, lambda path: report.plot_panels(path, [panel()]))
    assert plain != pixels(tmp_path, lambda path: report.plot_panels(path, [panel(**{option: OPTIONS[option]})]))


@pytest.mark.parametrize("option", [{"notes": ["n"]}, {"right": [True]}, {"right": np.array([False])}], ids=str)
def test_every_option_of_a_row_changes_the_plot(option, tmp_path, image):
    def plot(**options):
        return pixels(tmp_path, lambda path: report.plot_sheet(path, [report.SheetRow("t", [image], **options)]))

    assert plot() != plot(**option)


def test_one_error_in_a_hundred_is_visible_in_a_confusion_matrix(tmp_path):
    right, one_wrong = np.diag([100] * 30), np.diag([100] * 30)
    one_wrong[3, 4] = 1
    names = [str(i) for i in range(30)]
    plots = [pixels(tmp_path, lambda path, c=c: report.plot_confusion(path, c, names)) for c in (right, one_wrong)]
    assert plots[0] != plots[1]


def test_the_classes_and_names_that_are_drawn_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_CLASSES", 4)
    counts = np.diag([9] * 6)
    counts[4, 5], counts[0, 1] = 3, 1
    names = [str(i) for i in range(6)]
    draw = lambda path: report.plot_confusion(path, counts, names)  # noqa: E731
    part = [0, 1, 4, 5]  # those with errors
    few = lambda path: report.plot_confusion(path, counts[np.ix_(part, part)], [names[i] for i in part])  # noqa: E731
    assert pixels(tmp_path, draw) == pixels(tmp_path, few)
    monkeypatch.setattr(report, "MOST_NAMED", 3)
    assert pixels(tmp_path, draw) != pixels(tmp_path, lambda path: monkeypatch.undo() or few(path))


def test_a_dollar_is_not_mathematics(tmp_path):
    """By default matplotlib parses "$_$" as mathematics, and fails."""
    report.plot_confusion(tmp_path / "plot.png", np.eye(2, dtype=int), ["$_$", "$\\frac"])


@pytest.mark.parametrize(
    "plot",
    [
        lambda path: report.plot_confusion(path, np.eye(3), ["a", "b"]),
        lambda path: report.plot_similarity(path, np.eye(3), [np.zeros((8, 8, 3), np.uint8)] * 3, ["a", "b"]),
    ],
)
def test_a_wrong_number_of_names_is_rejected(plot, tmp_path):
    with pytest.raises(ValueError, match=r"has shape \(3, 3\)"):
        plot(tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_plots_do_not_change_settings_or_import_pyplot(tmp_path):
    """In a separate process: pyplot, which opens windows, must not be imported."""
    script = (
        "import sys, matplotlib; from zoo.utils import report; before = matplotlib.rcParams.copy()\n"
        "report.plot_confusion(sys.argv[1], [[1]], ['a'])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert [name for name in before if name != 'backend' and before[name] != matplotlib.rcParams[name]] == []"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "plot.png")], check=True, timeout=120)


def test_ticks_whose_labels_would_overlap_are_left_out():
    assert report.ticks_apart([1.1, 1.6, 2.7, 4.9, 8.9, 17, 31, 69]) == [1.1, 2.7, 4.9, 8.9, 17, 31, 69]
    assert report.ticks_apart([1, 2, 4, 8, 16, 32, 64]) == [1, 2, 4, 8, 16, 32, 64]
    assert report.ticks_apart([8]) == [8]


def test_matplotlib_is_not_imported_before_something_is_drawn():
    script = "import sys, zoo.utils.report; assert not {'matplotlib', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
