"The crappify lab in JupyterLab, in a real browser: what a hand does there, and what it sees"
import io, json, time
import pytest
from PIL import Image
from browser import browsing, jupyterlab, open_and_run, run, until, write_notebook # skips where there is no browser
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.ui import Select
from course_lib.crappify import crappify_photo, chain, parse_steps
from course_lib.apps.lab import CrappifyLab, shown_bytes
from course_lib.samples.photos import photo_sources
from course_lib.steps import downscale, jpeg, text

start = chain(downscale(200), jpeg(10, 70), text())
cells = ['from course_lib.apps.lab import *\nfrom course_lib.crappify import *\nfrom course_lib.steps import *',
         f'lab = CrappifyLab({{k: photo_sources()[k][0] for k in ("cat", "coffee")}}, {start!r}, seed=1)\nlab']
cells[0] += '\nfrom course_lib.samples.photos import photo_sources'


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "JupyterLab on a folder with one small notebook: its address and the notebook"
    home = tmp_path_factory.mktemp('jupyter')
    write_notebook(home/'nb'/'try.ipynb', cells)
    with jupyterlab(home, home/'nb') as address: yield address, home/'nb'/'try.ipynb'


@pytest.fixture(scope='module')
def driver(server, tmp_path_factory):
    "A browser that has the notebook open, with all of its cells run"
    with browsing(tmp_path_factory.mktemp('chromium')) as d:
        d.execute_cdp_cmd('Browser.grantPermissions', dict(permissions=['clipboardReadWrite', 'clipboardSanitizedWrite'], origin=server[0]))
        open_and_run(d, server[0], 'try.ipynb', 'img.cl-after')
        yield d


class Page:
    "The panel as a hand finds it"
    def __init__(self, d): self.d = d
    def all(self, css): return self.d.find_elements('css selector', css)
    def one(self, css): return self.d.find_element('css selector', css)
    def press(self, name): self.d.find_element('xpath', f'//div[contains(@class, "cl-lab")]//button[contains(., "{name}")]').click()
    def in_card(self, i, css, k, do):
        "Do something with the k-th part of card i; the cards are drawn anew now and then, so it may take a second try"
        until(self.d, lambda: [do(self.all('.cl-card')[i].find_elements('css selector', css)[k])])
    def slide(self, i, k, *keys): self.in_card(i, '.noUi-handle', k, lambda o: o.send_keys(*keys))
    def button(self, i, k): self.in_card(i, 'button', k, lambda o: o.click())
    @property
    def code(self): return self.one('.cl-code textarea').get_property('value')
    @property
    def seed(self): return int(self.one('.cl-lab input[type=number]').get_property('value'))
    @property
    def photo(self): return Select(self.one('.cl-lab select')).first_selected_option.text
    @property
    def picture(self):
        "The bytes of the damaged picture that the browser shows"
        js = 'fetch(arguments[0].src).then(r => r.arrayBuffer()).then(b => arguments[1](Array.from(new Uint8Array(b))), () => arguments[1](null))'
        return bytes(self.d.execute_async_script(js, self.one('img.cl-after')) or b'')
    def promised(self, code=None):
        "The bytes that the code gives outside of the browser, and outside of its kernel"
        photo = CrappifyLab([photo_sources()[self.photo][0]]).photo
        return shown_bytes(photo, crappify_photo(parse_steps(code or self.code), photo, self.seed))
    def wait_for(self, code=None, seed=None):
        "Until the panel shows this chain and seed; then the picture has to be the promised one"
        code, seed = code or self.code, self.seed if seed is None else seed
        until(self.d, lambda: (self.code, self.seed) == (code, seed), why=f'not {code}, seed {seed}')
        want = self.promised(code)
        until(self.d, lambda: self.picture == want, why='another picture than the code gives')
        return want


@pytest.fixture
def page(driver):
    "The panel as it was in the beginning"
    p = Page(driver)
    box = p.one('.cl-lab input[type=number]')
    box.send_keys(Keys.CONTROL, 'a')
    box.send_keys('1', Keys.TAB)
    Select(p.one('.cl-lab select')).select_by_visible_text('cat')
    old = p.all('.cl-card')
    p.press('start again')
    until(driver, lambda: not any(o in p.all('.cl-card') for o in old) and len(p.all('.cl-card')) == 3, why='the cards stay')
    p.wait_for(repr(start), 1)
    return p


def test_slider(page):
    "A slider moved by the keyboard changes the picture, to what the code then says"
    first = page.picture
    page.slide(1, 0, *[Keys.ARROW_RIGHT]*3)
    now = page.wait_for(repr(chain(downscale(200), jpeg(13, 70), text())))
    assert now != first and Image.open(io.BytesIO(now)).size == (301, 200)


def test_slider_dragged(page):
    "A handle dragged by the mouse: many events, and the last one counts"
    page.in_card(1, '.noUi-handle', 1, lambda o: ActionChains(page.d).drag_and_drop_by_offset(o, -25, 0).perform())
    until(page.d, lambda: page.code != repr(start))
    time.sleep(.5)
    lo, hi = parse_steps(page.code).children[1].args['quality']
    assert lo == 10 < hi < 70
    page.wait_for()


def test_how_often(page):
    "The last slider of a card wraps its step"
    page.slide(2, -1, Keys.ARROW_LEFT)
    page.wait_for(repr(chain(downscale(200), jpeg(10, 70))).removesuffix(')') + f', sometimes(0.95, {text()!r}))')


def test_copy_as_code(page):
    "What lands in the clipboard gives exactly the picture, evaluated as Python"
    page.press('copy as code')
    read = 'navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))'
    until(page.d, lambda: page.d.execute_async_script(read) == page.code == repr(start), why='the clipboard has something else')
    from course_lib import crappify, steps
    fn, photo = eval(page.d.execute_async_script(read), {**vars(steps), **vars(crappify)}), CrappifyLab([photo_sources()['cat'][0]]).photo
    assert shown_bytes(photo, crappify_photo(fn, photo, page.seed)) == page.picture


def test_new_seed(page):
    first = page.picture
    page.press('new seed')
    assert page.wait_for(repr(start), 2) != first


def test_another_photograph(page):
    Select(page.one('.cl-lab select')).select_by_visible_text('coffee')
    until(page.d, lambda: page.photo == 'coffee')
    assert Image.open(io.BytesIO(page.wait_for())).size == (300, 200)


def test_move_remove_add(page):
    "The buttons of a card, and the menu of steps"
    page.button(0, 1)
    page.wait_for(repr(chain(jpeg(10, 70), downscale(200), text())))
    page.button(2, 0)
    page.wait_for(repr(chain(jpeg(10, 70), text(), downscale(200))))
    page.button(0, 2)
    page.wait_for(repr(chain(text(), downscale(200))))
    Select(page.all('.cl-lab select')[1]).select_by_visible_text('colour: greyscale')
    page.press('add')
    page.wait_for(repr(parse_steps(f'{text()!r} downscale(200) greyscale')))
    assert len(page.all('.cl-card')) == 3


def test_code_typed(page):
    "A chain written into the field makes cards; a mistake is told below it"
    field = page.one('.cl-code textarea')
    for s in ('greyscale oops', 'greyscale downscale(40)'):
        field.send_keys(Keys.CONTROL, 'a')
        field.send_keys(s, Keys.TAB)
        if 'oops' in s: until(page.d, lambda: "no step 'oops'" in page.one('.cl-lab').text)
    page.wait_for('chain(greyscale(), downscale(40))')
    assert len(page.all('.cl-card')) == 2


def test_error_in_the_pictures_place(page):
    "A step that fails is told under the place of the picture; removed, the picture is back"
    kernel(page.d, 'def broken(im, rng): return im.nothing()\nlab.panel.load(chain(greyscale(), broken))')
    until(page.d, lambda: 'step 2, broken: AttributeError' in page.one('.cl-said').text)
    page.button(1, 2)
    page.wait_for('chain(greyscale())')
    assert 'broken' not in page.one('.cl-said').text


def kernel(d, code):
    "Let the kernel run code, without waiting for it"
    d.execute_script('jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code: arguments[0]})', code)


def test_before_and_after(page):
    "Side by side, of one size, and large enough to look at"
    a, b = page.one('img.cl-before').rect, page.one('img.cl-after').rect
    assert a['width'] >= 300 and abs(a['width']-b['width']) < 2 and abs(a['height']-b['height']) < 4 and a['x'] + a['width'] <= b['x']


def test_saved_notebook(page, server, tmp_path):
    "Saved, the notebook holds no state of widgets, and a page made of it shows the picture"
    import nbformat
    from course_lib.runner import page_of
    assert run(page.d, 'docmanager:save') == 1
    nb = until(page.d, lambda: next((o for o in [nbformat.read(server[1], as_version=4)] if o.cells[1].outputs), None))
    data = nb.cells[1].outputs[0].data
    assert {'image/jpeg', 'application/vnd.jupyter.widget-view+json'} <= set(data) and 'widgets' not in nb.metadata
    assert server[1].stat().st_size < 150_000
    html = page_of(nb, 'page', tmp_path)
    assert data['image/jpeg'][:60] in html and json.dumps(data['application/vnd.jupyter.widget-view+json']['model_id']) not in html


def test_console(page):
    "The browser has no error to report"
    assert not [o['message'] for o in page.d.get_log('browser') if o['level'] == 'SEVERE']
