"The crappify lab in JupyterLab, in a real browser (Debian's chromium and chromedriver): what a hand does there, and what it sees"
import io, json, os, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import numpy as np, pytest
from PIL import Image

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
chromedriver = shutil.which('chromedriver')
if not (chromium and chromedriver):
    pytest.skip('the browser tests need chromium and chromedriver (Debian: apt install chromium chromium-driver)', allow_module_level=True)
pytest.importorskip('selenium', reason='the browser tests need selenium: install the extra [dev]')

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, ChromeOptions, ChromeService, Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from course_lib.crappify import apply, chain, downscale, jpeg, jpeg_bytes, parse_steps, text
from course_lib.lab import Bench
from course_lib.samples import photo_sources

root = Path(__file__).resolve().parent.parent
flags = '--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=1400,1300'.split()
token = 'tests-only'
start = chain(downscale(200), jpeg(10, 70), text())
cells = ['from course_lib.lab import *\nfrom course_lib.crappify import *',
         f'lab = crappify_lab({{k: photo_sources()[k][0] for k in ("cat", "coffee")}}, {start!r}, seed=1)\nlab']
cells[0] += '\nfrom course_lib.samples import photo_sources'


# a server and a browser, both gone in the end whatever happens

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def write_notebook(path):
    from nbformat.v4 import new_code_cell, new_notebook, writes
    nb = new_notebook(cells=list(map(new_code_cell, cells)), metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    path.parent.mkdir()
    path.write_text(writes(nb))


def server_env(home):
    "The environment of a JupyterLab that knows nothing of this machine's settings and asks nobody for news"
    news = home/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = dict(JUPYTER_RUNTIME_DIR='runtime', JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTERLAB_SETTINGS_DIR='settings',
               JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython', COURSE_DATA='course', COURSE_RUNS='runs')
    kept = {k: v for k,v in os.environ.items() if k not in ('IN_TEST', 'COURSE_PROFILE', 'JUPYTER_TOKEN', 'MPLBACKEND')}
    return {**kept, **{k: str(home/v) for k,v in own.items()}, 'JUPYTER_PREFER_ENV_PATH': '1', 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "JupyterLab on a folder with one small notebook: its address and the notebook"
    home, port = tmp_path_factory.mktemp('jupyter'), free_port()
    write_notebook(home/'nb'/'try.ipynb')
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
           f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={home/"nb"}', '--LabApp.expose_app_in_browser=True']
    with open(home/'log', 'w') as log:
        p = subprocess.Popen(cmd, env=server_env(home), stdout=log, stderr=subprocess.STDOUT, cwd=home, start_new_session=True)
    try:
        for _ in range(200):
            if p.poll() is not None: pytest.fail('JupyterLab did not start: ' + (home/'log').read_text()[-2000:])
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token={token}', timeout=5).close(); break
            except OSError: time.sleep(.2)
        else: pytest.fail('JupyterLab did not answer: ' + (home/'log').read_text()[-2000:])
        yield f'http://127.0.0.1:{port}', home/'nb'/'try.ipynb'
    finally: stop(p)


def stop(p):
    "End a server, and the kernels that it started: first asked, then told"
    for sig,wait in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(p.pid, sig)
            p.wait(wait)
        except ProcessLookupError: return
        except subprocess.TimeoutExpired: continue


@pytest.fixture(scope='module')
def driver(server, tmp_path_factory):
    "A browser that has the notebook open, with all of its cells run"
    options = ChromeOptions()
    options.binary_location = chromium
    for o in (*flags, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}'): options.add_argument(o)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    d = webdriver.Chrome(options=options, service=ChromeService(chromedriver))
    try:
        d.set_page_load_timeout(60)
        d.set_script_timeout(20)
        d.execute_cdp_cmd('Browser.grantPermissions', dict(permissions=['clipboardReadWrite', 'clipboardSanitizedWrite'], origin=server[0]))
        d.get(f'{server[0]}/lab/tree/try.ipynb?token={token}')
        until(d, lambda: d.execute_script(ready), 60, 'the kernel is not ready')
        run(d, 'notebook:run-all-cells')
        until(d, lambda: d.find_elements('css selector', '.cl-stage img'), 60, 'no panel')
        yield d
    finally: d.quit()


ready = '''const w = window.jupyterapp && jupyterapp.shell.currentWidget, k = w && w.sessionContext && w.sessionContext.session?.kernel;
return !!k && k.status == 'idle' && document.querySelectorAll('.jp-Notebook .jp-CodeCell').length > 1'''

def run(d, command): return d.execute_async_script(f'const done = arguments[0]; jupyterapp.commands.execute({command!r}).then(() => done(1), e => done(String(e)))')

def until(d, what, seconds=15, why='it did not happen'):
    return WebDriverWait(d, seconds, poll_frequency=.05, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: what(), why)


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
        return bytes(self.d.execute_async_script(js, self.one('.cl-stage img')) or b'')
    def promised(self, code=None):
        "The bytes that the code gives outside of the browser, and outside of its kernel"
        return jpeg_bytes(apply(parse_steps(code or self.code), Bench([photo_sources()[self.photo][0]]).photo, self.seed), 90)
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
    from course_lib import crappify
    fn = eval(page.d.execute_async_script(read), vars(crappify).copy())
    assert jpeg_bytes(apply(fn, Bench([photo_sources()['cat'][0]]).photo, page.seed), 90) == page.picture


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
        if 'oops' in s: until(page.d, lambda: "no step 'oops'" in page.one('.cl-lab > .cl-doc').text)
    page.wait_for('chain(greyscale(), downscale(40))')
    assert len(page.all('.cl-card')) == 2


def test_error_in_the_pictures_place(page):
    "A step that fails is told where the picture was; removed, the picture is back"
    kernel(page.d, 'def broken(im, rng): return im.nothing()\nlab.panel.load(chain(greyscale(), broken))')
    until(page.d, lambda: 'step 2, broken: AttributeError' in page.one('.cl-error').text)
    at, stage = page.one('.cl-error').rect, page.one('.cl-stage').rect
    assert at == stage and stage['width'] >= 380
    page.button(1, 2)
    page.wait_for('chain(greyscale())')
    assert not page.one('.cl-error').is_displayed()


def kernel(d, code):
    "Let the kernel run code, without waiting for it"
    d.execute_script('jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code: arguments[0]})', code)


def colourful(page):
    "How colourful each column of the stage is, from its screenshot: the photograph is, a grey picture is not"
    a = np.asarray(Image.open(io.BytesIO(page.one('.cl-stage').screenshot_as_png)).convert('RGB'), dtype=float)
    middle = a[len(a)//10:len(a)*4//10]
    return np.abs(middle[..., 0]-middle[..., 2]).mean(0)


def test_line(page):
    "Left of the line the photograph, right of it the damaged picture; the line follows the hand even while the kernel is busy"
    kernel(page.d, 'lab.panel.load(chain(greyscale()))')
    page.wait_for('chain(greyscale())')
    wide, line = page.one('.cl-stage').rect['width'], page.one('.cl-line .noUi-handle')
    assert wide >= 380
    kernel(page.d, 'import time; time.sleep(3)')
    for share in (.25, .75):
        x = line.rect['x'] + line.rect['width']/2 - page.one('.cl-stage').rect['x']
        ActionChains(page.d).drag_and_drop_by_offset(line, round(share*wide-x), 0).perform()
        until(page.d, lambda: abs(page.one('.cl-bar .progress-bar').rect['width']/wide - share) < .02, 2)
        c = colourful(page)
        at = round(share*len(c))
        assert c[5:at-25].min() > 8 and c[at+25:-5].max() < 4, (share, c)
    line.send_keys(Keys.ARROW_LEFT)
    until(page.d, lambda: page.one('.cl-bar .progress-bar').rect['width']/wide < .75, 2)
    until(page.d, lambda: page.d.execute_script(ready), 15)


def test_saved_notebook(page, server, tmp_path):
    "Saved, the notebook holds no state of widgets, and a page made of it shows the picture"
    import nbformat
    from course_lib.cli import write_page
    assert run(page.d, 'docmanager:save') == 1
    nb = until(page.d, lambda: next((o for o in [nbformat.read(server[1], as_version=4)] if o.cells[1].outputs), None))
    data = nb.cells[1].outputs[0].data
    assert {'image/jpeg', 'application/vnd.jupyter.widget-view+json'} <= set(data) and 'widgets' not in nb.metadata
    assert server[1].stat().st_size < 150_000
    write_page(nb, tmp_path/'page.html', tmp_path)
    html = (tmp_path/'page.html').read_text()
    assert data['image/jpeg'][:60] in html and json.dumps(data['application/vnd.jupyter.widget-view+json']['model_id']) not in html


def test_console(page):
    "The browser has no error to report"
    assert not [o['message'] for o in page.d.get_log('browser') if o['level'] == 'SEVERE']
