"The crappify lab without a browser: its state, its code, its pictures, its panel, and what is shown where nobody can move a slider"
import base64, io, json, random
from types import SimpleNamespace
import numpy as np, pytest
from PIL import Image

from course_lib.apps import lab as mod
from course_lib.core import CourseError
from course_lib.crappify import crappify_photo, chain, one_of, parse_steps, sometimes
from course_lib.apps.lab import CrappifyLab, shown_bytes, watched
from course_lib.steps import downscale, greyscale, jpeg, steps, text


def waves(w=60, h=40, k=1):
    "A small picture with colours and edges"
    y, x = np.mgrid[:h, :w]
    a = np.stack([128+100*np.sin(k*x/5), 128+100*np.cos(y/7), (x*y*k) % 255], -1)
    return Image.fromarray(a.astype(np.uint8))


@pytest.fixture
def photos(): return {'one': waves(), 'two': waves(30, 50, 3)}

@pytest.fixture
def panel(photos): return CrappifyLab(photos, chain(downscale(24), jpeg(10, 70), text()), seed=5).panel

def promised(panel):
    "The picture's bytes as anybody would make them from what the panel shows: code, photograph and seed"
    im = panel.lab.opened[panel.name.value]
    return shown_bytes(im, crappify_photo(parse_steps(panel.code.value), im, panel.seed.value))

def failing(panel): return not panel.view.after.value


# photographs

def test_photographs_of_all_kinds(tmp_path):
    "Transparent, 16-bit, turned by EXIF and large ones come upright, in RGB and small; other files are passed over"
    waves(50, 20).convert('RGBA').save(tmp_path/'alpha.png')
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(tmp_path/'deep.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    waves(50, 20).save(tmp_path/'turned.jpg', exif=exif)
    waves(1600, 400).save(tmp_path/'large.png')
    (tmp_path/'notes.txt').write_text('no picture')
    b, sizes = CrappifyLab(tmp_path), {}
    for b.name in b.photos: sizes[b.name] = (b.photo.mode, *b.photo.size)
    assert sizes == {'alpha': ('RGB', 50, 20), 'deep': ('RGB', 30, 20), 'turned': ('RGB', 20, 50), 'large': ('RGB', 512, 128)}


def test_not_a_photograph(tmp_path):
    "One clear line: for an empty folder, for nothing, and for a file that is no picture"
    for o in (tmp_path, [], {}):
        with pytest.raises(CourseError, match='there is no picture'): CrappifyLab(o)
    (tmp_path/'bad.png').write_bytes(b'no picture')
    with pytest.raises(CourseError, match='bad.png: not a picture that can be read'): CrappifyLab(tmp_path)


def test_a_bad_photograph_among_good_ones(photos, tmp_path):
    "Chosen in the menu, it is told in the picture's place, and the next one is shown"
    (tmp_path/'bad.png').write_bytes(b'no picture')
    panel = CrappifyLab({**photos, 'bad': tmp_path/'bad.png'}, chain(greyscale())).panel
    panel.name.value = 'bad'
    assert failing(panel) and 'not a picture that can be read' in panel.view.said.value
    assert 'image/jpeg' in CrappifyLab({**photos, 'bad': tmp_path/'bad.png'})._repr_mimebundle_()
    panel.name.value = 'two'
    assert not failing(panel) and panel.view.after.value == promised(panel)


def test_photographs_are_left_alone(photos):
    "A crappifier that writes into the picture it is given does not spoil the photograph"
    def draws(im, rng):
        im.paste('red', (0, 0, 20, 20))
        return im
    before = photos['one'].tobytes()
    lab = CrappifyLab(photos, chain(greyscale(), draws))
    for fn in (lab.fn, chain(draws), draws):
        lab.fn = fn
        assert lab.make()[1].tobytes() != before
    assert photos['one'].tobytes() == lab.photo.tobytes() == before


# state and pictures

@pytest.mark.parametrize('code', ['chain()', 'chain(greyscale())', 'chain(downscale(24, filter="box"), sometimes(0.3, jpeg(5)), text())',
    'chain(one_of(greyscale(), jpeg(5)), sometimes(0.2, chain(greyscale(), text())))', 'chain(jpeg(10, 70, written=True), text(0.1, what="word"))'])
def test_apart_and_together(photos, code):
    "A chain taken apart into cards and put together is the same chain; chains in it are opened"
    fn = parse_steps(code)
    assert CrappifyLab(photos, fn).panel.lab.fn == fn == CrappifyLab(photos, chain(chain(*fn.children[:1]), chain(*fn.children[1:]))).panel.lab.fn


def test_a_failing_step(photos):
    "The error names the step and shows the line; a mended chain goes on"
    def broken(im, rng): raise ZeroDivisionError('by nothing')
    lab = CrappifyLab(photos, chain(greyscale(), broken, text()))
    with pytest.raises(CourseError, match=r'^step 2, broken: ZeroDivisionError: by nothing; line \d+: def broken'): lab.make()
    lab.fn = chain(greyscale(), text())
    assert lab.make()[1].size == photos['one'].size


@pytest.mark.parametrize('res,why', [(None, 'None'), (3, 'a int'), (Image.new('L', (5,5)), 'mode L')])
def test_not_a_picture(photos, res, why):
    def gives(im, rng): return res
    with pytest.raises(CourseError, match=f'step 1, gives: gives: gave back .*{why}'): CrappifyLab(photos, chain(gives)).make()


# the panel

@pytest.mark.parametrize('seed', range(4))
def test_any_edits_keep_the_promise(panel, seed):
    "Whatever is pressed and moved, in whatever order, the code with the seed makes the picture that is shown, to the byte"
    r, seen = random.Random(seed), set()
    def slide():
        ws = [w for c in panel.cards for w in (*c.controls.values(), c.often)]
        if not ws: return
        w = r.choice(ws)
        if hasattr(w, 'options'): w.value = r.choice(w.options)
        elif not hasattr(w, 'min'): w.value = not w.value
        else:
            vals = sorted(w.min + w.step*r.randint(0, round((w.max-w.min)/w.step)) for _ in range(2))
            w.value = tuple(vals) if isinstance(w.value, tuple) else vals[0]
    def add():
        panel.menu.value = r.choice([v for _,v in panel.menu.options])
        panel.plus.click()
    def press(i):
        if panel.cards: r.choice(panel.cards).buttons[i].click()
    acts = [slide]*8 + [add]*2 + [lambda: press(0), lambda: press(1), lambda: press(2), panel.new_seed.click,
                                  lambda: setattr(panel.name, 'value', r.choice(['one', 'two']))]
    for _ in range(40):
        r.choice(acts)()
        assert not failing(panel), panel.view.said.value
        assert panel.view.after.value == promised(panel), panel.code.value
        assert panel.code.value == repr(panel.lab.fn) and len(panel.rows.children) == len(panel.cards)
        seen.add(panel.view.after.value)
    assert len(seen) > 15


@pytest.mark.parametrize('name', list(steps))
def test_ends_of_every_control(photos, name):
    "Every slider can go to both of its ends, every choice can be made, and what is shown is what the code says"
    panel = CrappifyLab(photos, chain(steps[name]())).panel
    card, = panel.cards
    assert list(card.controls) == list(steps[name].params)
    for w in card.controls.values():
        one = [w.min, w.max] if hasattr(w, 'min') else list(w.options) if hasattr(w, 'options') else [True, False]
        for v in one:
            w.value = (v, v) if isinstance(w.value, tuple) else v
            assert not failing(panel), (panel.code.value, panel.view.said.value)
            assert panel.view.after.value == promised(panel)


def test_move_at_the_ends(panel):
    "The first step cannot go up, the last cannot go down"
    fn = panel.lab.fn
    panel.cards[0].buttons[0].click()
    panel.cards[-1].buttons[1].click()
    assert panel.lab.fn == fn
    panel.cards[0].buttons[1].click()
    assert panel.lab.fn == chain(jpeg(10, 70), downscale(24), text())


def test_how_often(panel):
    "The slider wraps the step, never makes it never, always makes it bare"
    for p,fn in ((.5, sometimes(.5, downscale(24))), (0, sometimes(0, downscale(24))), (1, downscale(24))):
        panel.cards[0].often.value = p
        assert panel.lab.fn.children[0] == fn and panel.view.after.value == promised(panel)


def test_values_beyond_the_slider(photos):
    "A number in pixels may lie beyond the panel's reach; the slider reaches further then"
    panel = CrappifyLab(photos, chain(downscale(900))).panel
    assert panel.cards[0].controls['size'].max == 900 and panel.lab.fn == chain(downscale(900))


def test_new_seed_and_start_again(panel):
    first, fn = panel.view.after.value, panel.lab.fn
    panel.new_seed.click()
    assert panel.seed.value == 6 and panel.view.after.value != first
    panel.cards[0].buttons[2].click()
    panel.seed.value = 5
    panel.again.click()
    assert (panel.lab.fn, panel.view.after.value) == (fn, first)


def test_widgets_end(panel):
    "Cards that are gone leave no widgets behind in the kernel"
    from ipywidgets.widgets.widget import _instances
    n = len(_instances)
    for _ in range(3):
        panel.plus.click()
        panel.cards[-1].buttons[2].click()
        panel.again.click()
    assert len(_instances) == n


def test_a_function_of_ones_own(photos):
    "It has a card without sliders, moves and is removed like the others"
    def mine(im, rng): return im.rotate(90, expand=True)
    panel = CrappifyLab(photos, chain(mine, one_of(greyscale(), jpeg()), text())).panel
    assert [len(o.controls) for o in panel.cards] == [0, 0, 3] and 'mine' in panel.cards[0].title.value
    panel.cards[0].buttons[1].click()
    panel.cards[1].often.value = .5
    assert panel.code.value == 'chain(one_of(greyscale(), jpeg(10, 70)), sometimes(0.5, mine), ' + repr(text()) + ')'
    assert panel.view.after.value == shown_bytes(photos['one'], crappify_photo(panel.lab.fn, photos['one']))


def test_errors_in_the_pictures_place(photos):
    "Also at the very beginning, escaped; gone when the step is removed"
    def broken(im, rng): raise ValueError('1 < 2')
    panel = CrappifyLab(photos, chain(greyscale(), broken)).panel
    assert failing(panel) and 'step 2, broken: ValueError: 1 &lt; 2' in panel.view.said.value
    panel.cards[1].buttons[2].click()
    assert not failing(panel) and panel.view.after.value == promised(panel)


def test_code_is_read(panel):
    "A chain or its shorthand, pasted into the field, makes cards"
    for s in ('chain(downscale(20, filter="box"), sometimes(0.25, greyscale()))', 'downscale(20, filter="box") sometimes(.25, greyscale)'):
        panel.again.click()
        panel.code.value = s
        assert panel.lab.fn == chain(downscale(20, filter='box'), sometimes(.25, greyscale()))
        assert panel.code.value == repr(panel.lab.fn) and panel.view.after.value == promised(panel)


@pytest.mark.parametrize('s', ['chain(downscail(20))', 'chain(', 'jpeg(900)', '<b>', '__import__("os").system("touch broken-in")'])
def test_code_that_is_wrong(panel, tmp_path, s):
    "Told in one line below the field; nothing else changes, and nothing is run"
    fn, shown = panel.lab.fn, panel.view.after.value
    panel.code.value = s
    assert panel.said.value and '<b>' not in panel.said.value and '\n' not in panel.said.value
    assert (panel.lab.fn, panel.view.after.value, panel.code.value) == (fn, shown, s)
    assert not (tmp_path/'broken-in').exists()
    panel.new_seed.click()
    assert panel.code.value == repr(fn) and not panel.said.value


def test_copy_sends_the_code(panel):
    "The script for the clipboard holds the code as a JavaScript string"
    panel.code.value = 'chain(downscale(20, filter="box"))'
    panel.copy.click()
    js = panel.clip.outputs[0]['data']['application/javascript']
    start = js.index('(')+1
    assert json.JSONDecoder().raw_decode(js[start:])[0] == panel.code.value == repr(panel.lab.fn)
    assert f'seed={panel.seed.value}' in panel.said.value


# what is shown where nobody watches

def kernel(allow): return SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda: {'content': {'allow_stdin': allow}}))

def test_watched(monkeypatch):
    "Somebody watches where questions may be asked; nobody in a test, in a plain process, or where a program runs the cells"
    monkeypatch.delenv('IN_TEST', raising=False)
    for shell,expected in ((None, False), (SimpleNamespace(), False), (kernel(False), False), (kernel(True), True)):
        monkeypatch.setattr(mod, 'get_ipython', lambda: shell)
        assert watched() is expected
    monkeypatch.setenv('IN_TEST', '1')
    assert not watched()


def test_bundle(photos, monkeypatch):
    "A picture for all; the panel for who watches, and no widget is made before"
    lab = CrappifyLab(photos)
    monkeypatch.setattr(mod, 'watched', lambda: False)
    b = lab._repr_mimebundle_()
    assert set(b) == {'image/jpeg', 'text/plain'} and 'panel' not in vars(lab) and repr(lab.fn) in b['text/plain']
    im = Image.open(io.BytesIO(base64.b64decode(b['image/jpeg'])))
    assert im.format == 'JPEG' and min(im.size) > 300
    monkeypatch.setattr(mod, 'watched', lambda: True)
    b = lab._repr_mimebundle_()
    assert b['application/vnd.jupyter.widget-view+json']['model_id'] == lab.panel.box.model_id and 'image/jpeg' in b


def test_bundle_of_a_failing_chain(photos):
    "A failing step is no reason to show nothing"
    def broken(im, rng): raise ValueError('no')
    assert 'image/jpeg' in CrappifyLab(photos, chain(broken))._repr_mimebundle_()


def test_default_is_the_lectures(photos): assert CrappifyLab(photos).fn == chain(downscale(96), jpeg(10, 70, written=True))


cells = '''from PIL import Image
from course_lib.apps.lab import CrappifyLab
CrappifyLab(Image.new('RGB', (40, 30), 'teal'), seed=3)'''

def test_run_by_a_program(tmp_path):
    "In a notebook that a program runs the panel leaves a picture, which its page shows, and no state of widgets"
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    from course_lib.runner import LiveLine, run_one
    nbformat.write(new_notebook(cells=[new_code_cell(cells)]), tmp_path/'try.ipynb')
    res = run_one(tmp_path/'try.ipynb', 'sample', tmp_path/'out', LiveLine())
    assert res['status'] == 'ok', res['said']
    data = res['nb'].cells[0].outputs[0].data
    assert set(data) == {'image/jpeg', 'text/plain'} and 'seed 3' in data['text/plain'] and 'widgets' not in res['nb'].metadata
    assert data['image/jpeg'][:60] in (tmp_path/'out'/'try.html').read_text()


def test_restore_page_without_its_weights(monkeypatch):
    "It says so, and another photograph can still be chosen"
    from course_lib.apps import page
    def missing(*args): raise CourseError('no weights here')
    monkeypatch.setattr(page, 'load_network', missing)
    made = page.RestorePage()
    assert 'no weights here' in made.said.value and not made.upload.disabled and not made.sample.disabled
