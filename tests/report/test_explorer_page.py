"""The interactive page in a browser: what hovering, clicking, filtering, sorting and the keyboard do."""

from __future__ import annotations

import numpy as np
import pytest
from browser import chromium, prefer, resize
from explorer_cases import HOSTILE, MIXED, fill

from qresearch.report import front, points_of, write_explorer

pytestmark = pytest.mark.slow

POINTS = '#front g[class*="trace"] path.point'
DRAWN = """return document.getElementById('front').data.filter(t => t.meta === arguments[0])
    .flatMap(t => Array.from(t.x, (x, i) => [x, t.y[i], t.customdata?.[i]]))"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("plotly", reason="needs Plotly: pip install 'qresearch[report]'")
    return fill(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def points(run):
    return points_of(run.records().records)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser, run):
    """The page, opened anew; whatever a test does to it, it says nothing on the console and loads nothing."""
    path = run.path / "explorer.html"
    assert write_explorer([run], path) == str(path)
    resize(browser, 1280)
    prefer(browser, "light")
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.title == run.path.name


def drawn(page, meta="points"):
    return page.execute_script(DRAWN, meta)


def find(page, selector):
    return page.find_elements("css selector", selector)


def row_of(page, text):
    (row,) = [row for row in find(page, "#points tbody tr") if row.text.startswith(text)]
    return row


def marker(page, index):
    """The mark of the point with this index, as it is drawn."""
    script = """const front = document.getElementById('front');
    for (const trace of front.querySelectorAll('.scatterlayer .trace')) {
        const own = trace.__data__[0].trace, i = own.customdata?.indexOf(arguments[0]) ?? -1;
        if (i >= 0) return trace.querySelectorAll('path.point')[i];
    }"""
    return page.execute_script(script, index)


def at(page, element):
    from selenium.webdriver import ActionChains

    return ActionChains(page).move_to_element(element)


def wait(page, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 5, 0.05).until(lambda _: condition())


def choose(page, identifier, value):
    (option,) = find(page, f"#{identifier} option[value='{value}']")
    option.click()


def index_of(points, allocator):
    (index,) = [i for i, point in enumerate(points) if point.allocator == allocator]
    return index


def test_every_point_is_drawn_at_its_records_numbers_and_has_a_row(page, points):
    found = {index: (x, y) for x, y, index in drawn(page)}
    assert len(found) == len(points) == len(find(page, "#points tbody tr"))
    assert len(find(page, POINTS)) == len(points) + len(drawn(page, "front"))
    for index, point in enumerate(points):
        x, y = found[index]
        assert y == pytest.approx(point.test.mean)
        assert x == ("float" if point.flow == "float" else pytest.approx(point.costs["average_bits"]))
    expected = sorted((points[i].costs["average_bits"], points[i].test.mean) for i in front(points))
    np.testing.assert_allclose(sorted(pair[:2] for pair in drawn(page, "front")), expected)


def test_hovering_tells_the_allocation(page, points):
    at(page, marker(page, index_of(points, "exact"))).perform()
    text = wait(page, lambda: " ".join(e.text for e in find(page, ".hoverlayer .hovertext")))
    for part in (
        "ptq lsq exact average_bits 4",
        "Conv_0: W8 A8",
        "Conv_1: W4 A4",
        "Dense_0: W2 A4",
        "0.9300",
        "seed 0",
    ):
        assert part in text


def test_a_click_fills_the_details(page, points):
    assert not any(box.is_displayed() for box in find(page, "#pictures figure"))
    at(page, marker(page, index_of(points, "exact"))).click().perform()
    wait(page, lambda: find(page, "#details h3"))
    text = find(page, "#details")[0].text
    assert text.startswith("ptq lsq exact average_bits 4")
    assert "score 0.9300, loss 0.07" in text
    assert all(box.is_displayed() for box in find(page, "#pictures figure"))
    bars = page.execute_script("return document.getElementById('bits').data.map(t => t.x)")
    assert bars == [[pair[0] for pair in MIXED], [pair[1] for pair in MIXED]]
    heat, dots = page.execute_script("return document.getElementById('heat').data.map(t => t.z ?? [t.x, t.y])")
    assert heat[0][0] is None
    np.testing.assert_allclose(heat[1], [-1, -2, -3])
    assert dots == [["W8A8", "W4A4", "W2A4"], [0, 1, 2]]
    shares = page.execute_script("return document.getElementById('shares').data.map(t => [t.name, t.x[0]])")
    assert shares == [["W2A4", 0.25], ["W4A4", 0.35], ["W8A8", 0.4]]
    (chosen,) = find(page, "#points tr.chosen")
    assert chosen.text.startswith("ptq lsq exact")
    assert len(drawn(page, "selected")) == 1


def test_filters_change_what_is_drawn_and_its_means(page, points):
    def toggle(kind, text):
        (box,) = [e for e in find(page, f"fieldset[data-kind={kind}] label") if text in e.text]
        box.find_element("css selector", "input").click()

    toggle("series", "qat lsq uniform")
    assert len(drawn(page)) == len(find(page, "#points tbody tr")) == len(points) - 3
    toggle("series", "qat lsq uniform")
    toggle("model", "mlp")
    assert len(drawn(page)) == len(points) - 1
    toggle("seed", "0")
    wide = {x: y for x, y, _ in drawn(page)}
    assert wide[2] == pytest.approx(0.515)  # of the seeds 1 and 2
    assert 0.93 not in wide.values()  # of seed 0 alone
    (all_methods, none) = find(page, "fieldset[data-kind=series] button")
    none.click()
    assert drawn(page) == []
    all_methods.click()
    assert len(drawn(page)) == 4


def test_axes_change_what_is_drawn(page, points):
    choose(page, "x", "bops")
    choose(page, "y", "size")
    quantized = {index: (x, y) for x, y, index in drawn(page) if x != "float"}
    for index, (x, y) in quantized.items():
        assert (x, y) == pytest.approx((points[index].costs["bops"], points[index].costs["size"]))
    titles = [find(page, f"#front .{axis}title")[0].text for axis in ("x", "y")]
    assert titles == ["bops (Mbops)", "size (kB)"]
    assert drawn(page, "band")  # of the three seeds
    choose(page, "y", "validation_loss")
    before = len(drawn(page, "band"))
    find(page, "#bands")[0].click()
    assert before > len(drawn(page, "band")) == 0
    find(page, "#log")[0].click()
    assert page.execute_script("return document.getElementById('front').layout.xaxis.type") == "log"


def test_the_table_sorts_both_ways(page, points):
    (button,) = [e for e in find(page, "#points th button") if e.text == "size (kB)"]
    column = [e.text for e in find(page, "#points th")].index("size (kB)")
    for sign, state in ((1, "ascending"), (-1, "descending")):
        button.click()
        shown = [float(row.find_elements("css selector", "td")[column].text) for row in find(page, "#points tbody tr")]
        assert shown == sorted((point.costs["size"] for point in points), reverse=sign < 0)
        assert find(page, "#points th")[column].get_attribute("aria-sort") == state


def test_the_keyboard_reaches_everything(page, points):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(60):
        page.switch_to.active_element.send_keys(Keys.TAB)
        active = page.switch_to.active_element
        reached.append(active.get_attribute("id") or active.text or active.get_attribute("type"))
    for name in ("theme", "x", "y", "log", "close", "bands", "checkbox", "none", "front", "curve", "trial", "config"):
        assert name in reached
    assert [point.label in reached for point in points] == [True] * len(points)
    (chart,) = find(page, "#front")
    titles = []
    chart.send_keys(Keys.HOME)
    for _ in points:
        titles.append(find(page, "#details h3")[0].text)
        chart.send_keys(Keys.RIGHT)
    assert sorted(titles) == sorted(point.label for point in points)
    assert wait(page, lambda: find(page, ".hoverlayer .hovertext"))
    row_of(page, "ptq lsq exact").find_element("css selector", "button").send_keys(Keys.ENTER)
    assert find(page, "#details h3")[0].text == "ptq lsq exact average_bits 4"


def test_curves_are_those_of_the_trainings(page, points):
    curves = page.execute_script("return document.getElementById('curves').data.map(t => t.y)")
    assert len(curves) == 9
    assert [0.4, 0.5] in curves
    choose(page, "curve", "train_loss")
    assert page.execute_script("return document.getElementById('curves').data[0].y") == [1, 0.5]


def test_a_hostile_text_is_a_text(page, points):
    row = row_of(page, f"qat {HOSTILE}")
    row.find_element("css selector", "button").click()
    assert find(page, "#details h3")[0].text.startswith(f"qat {HOSTILE}")
    at(page, marker(page, next(i for i, p in enumerate(points) if HOSTILE in p.label))).perform()
    wait(page, lambda: any(HOSTILE[:30] in e.text for e in find(page, ".hoverlayer .hovertext")))
    assert find(page, "img") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_the_colours_of_the_system_and_a_switch(page, scheme):
    def lightness():
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    prefer(page, scheme)
    wait(page, lambda: (lightness() > 380) == (scheme == "light"))
    (button,) = find(page, "#theme")
    assert wait(page, lambda: button.text != scheme.capitalize())
    button.click()
    assert (lightness() > 380) == (scheme == "dark")
    tick = page.execute_script("return getComputedStyle(document.querySelector('#front .xtick text')).fill")
    assert (tick == "rgb(27, 27, 27)") == (scheme == "dark")


def test_at_400_pixels_nothing_is_wider_than_the_page(page, points):
    resize(page, 400)
    page.refresh()
    row_of(page, "ptq lsq exact").find_element("css selector", "button").click()
    assert page.execute_script("return document.documentElement.scrollWidth") == 400
    for chart in find(page, ".chart"):
        assert chart.rect["x"] + chart.rect["width"] <= 400
    assert find(page, "#front")[0].rect["width"] > 350
