"The page for restoring photographs in a real browser, in JupyterLab and by itself: upload, compare, take home"
import base64, io
import pytest, torch
from PIL import Image
from browser import browsing, jupyterlab, open_and_run, serving, until, write_notebook # skips where there is no browser
from selenium.webdriver.support.ui import Select
from course_lib.pictures import file_bytes
from course_lib.apps.page import Photo, example, examples
from course_lib.kept_weights import load_network
from course_lib.restore import box_file

cells = ['from course_lib.apps.page import restore_page', 'restore_page()']


@pytest.fixture(scope='module', params=['jupyterlab', 'voila'])
def driver(request, tmp_path_factory):
    "A browser with the page open, in a notebook or served alone"
    home, profile = (tmp_path_factory.mktemp(o) for o in (request.param, 'chromium'))
    write_notebook(home/'nb'/'page.ipynb', cells)
    lab = request.param == 'jupyterlab'
    with jupyterlab(home, home/'nb') if lab else serving(home, 'voila', home/'nb'/'page.ipynb', '--no-browser', '--Voila.ip=127.0.0.1') as address:
        with browsing(profile) as d:
            if lab: open_and_run(d, address, 'page.ipynb', '.cl-page img.cl-after')
            else: d.get(address)
            until(d, lambda: d.find_elements('css selector', '.cl-page a'), 60, 'no page')
            yield d


class Page:
    "The page as a hand finds it"
    def __init__(self, d): self.d = d
    def one(self, css): return self.d.find_element('css selector', '.cl-page '+css)
    def until(self, what, why): return until(self.d, what, 30, why)
    @property
    def link(self):
        "The name of the file to take home, and its bytes"
        found = self.d.find_elements('css selector', '.cl-page a')
        return (found[0].get_attribute('download'), base64.b64decode(found[0].get_attribute('href').split(',')[1])) if found else ('', b'')
    @property
    def said(self): return self.one('.cl-said').text
    def upload(self, file):
        "Press the button; the input that would open the system's dialog, which no test can reach, is put into the page instead"
        self.d.execute_script("HTMLInputElement.prototype.click = function() { this.className = 'chosen'; document.body.append(this) }")
        self.press('your photograph')
        self.d.find_element('css selector', 'input.chosen').send_keys(str(file))
        self.d.execute_script("document.querySelector('input.chosen').remove()")
    def press(self, name): self.d.find_element('xpath', f'//div[contains(@class, "cl-page")]//button[contains(., "{name}")]').click()


@pytest.fixture(autouse=True)
def one_thread():
    "As many as the page's kernel has: another number rounds otherwise, and files are compared to the byte"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture
def page(driver): return Page(driver)


def test_example(page):
    "Another example: the file to take home is the one that the package makes of it"
    name = [*examples][2]
    Select(page.one('select')).select_by_visible_text(name)
    page.until(lambda: page.link[0] == 'somebody-wrote-on-a-portrait-restored.jpg', 'another example')
    assert page.link[1] == file_bytes(Photo(example(name), load_network(box_file())[0]).after, page.link[0])


def test_upload_and_enlarge(page, tmp_path):
    "A photograph from the disk, as large as it is and twice as large; what is shown has its shape"
    example([*examples][0]).crop((0, 0, 120, 80)).save(tmp_path/'my cup.png')
    page.upload(tmp_path/'my cup.png')
    page.until(lambda: page.link[0] == 'my-cup-restored.jpg', 'the upload')
    assert Image.open(io.BytesIO(page.link[1])).size == (120, 80)
    page.press('twice as large')
    def large(): # asked once: the link goes while the page computes
        data = page.link[1]
        return data and Image.open(io.BytesIO(data)).size == (240, 160)
    page.until(large, 'twice as large')
    shape = page.one('img.cl-after').rect
    assert abs(shape['width']/shape['height'] - 1.5) < .02 and shape['width'] >= 240


def test_no_photograph(page, tmp_path):
    "What is no picture is named in one line, and there is nothing to take home; the next file is restored"
    (tmp_path/'a<b>.txt').write_text('words')
    page.upload(tmp_path/'a<b>.txt')
    page.until(lambda: page.said, 'a word about the file')
    assert page.said == 'a<b>.txt: not a picture. Expected a photograph, such as a JPEG or PNG file' and not page.link[1]
    Image.new('RGB', (40, 30)).save(tmp_path/'black.png')
    page.upload(tmp_path/'black.png')
    page.until(lambda: page.link[0] == 'black-restored.jpg' and not page.said, 'the next file')


def test_console(page):
    "The browser has no error to report, but that the icons which Voilà fetches from elsewhere may be missing"
    assert not [o['message'] for o in page.d.get_log('browser') if o['level'] == 'SEVERE' and '/@fortawesome/' not in o['message']]
