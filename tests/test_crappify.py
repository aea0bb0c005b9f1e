"Crappifiers: every step on every picture, chains and their text, folders of pairs whatever happens, and functions that are kept"
import errno, inspect, io, json, os, pickle, signal, struct, subprocess, sys, time, zlib
from pathlib import Path
import numpy as np, pytest
from PIL import Image, ImageFilter, ImageOps
from conftest import patience
from course_lib import crappify as C
from course_lib import old_prints as P, steps as S
from course_lib.core import CourseError, lesson_settings
from course_lib.files import code_key
from course_lib.crappify import (Crappify, chain, crappifiers_home, crappify_folder, crappify_photo, crappy_block, explain,
    lecture, load_crappifier, old_family, one_of, parse_steps, preview, rng_for, smallest_read, sometimes)
from course_lib.metrics import psnr
from course_lib.pictures import as_rgb, crappy_name, open_photo
from course_lib.old_prints import dust, fold, scratches
from course_lib.steps import (Step, cutout, defocus, downscale, gaussian_blur, gaussian_noise, greyscale, jpeg,
    jpeg_bytes, motion_blur, salt_pepper, shot_noise, steps, text)

combine = 'chain', 'sometimes', 'one_of'


def photo(w=96, h=72, seed=0):
    "A picture with edges, colours and a little noise"
    rng, (ys, xs) = np.random.default_rng(seed), np.mgrid[:h, :w]
    a = np.stack([255*xs/w, 255*ys/h, 128+100*np.sin(xs/5+ys/9)], -1) + rng.normal(0, 5, (h, w, 3))
    return Image.fromarray(a.clip(0, 255).astype(np.uint8))


def pixels(im): return np.asarray(im).astype(int)
def rms(a, b): return np.sqrt(np.mean((pixels(a)-pixels(b))**2))


# Steps

sizes = {'tiny': (1, 1), 'wide': (5000, 1), 'high': (1, 5000), 'odd': (33, 20)}
modes = 'RGB', 'L', 'RGBA', 'P', 'CMYK', '1'

@pytest.mark.parametrize('size', sizes.values(), ids=sizes)
@pytest.mark.parametrize('name', steps)
def test_every_step(name, size):
    "An RGB picture of the input's size, the same for the same seed, and the input as it was"
    f, im = steps[name](), photo(*size)
    before = im.tobytes()
    a, b = (f(im, rng_for(3, 'x')) for _ in range(2))
    want = tuple(max(1, round(o*min(1, 96/min(size)))) for o in size) if name == 'downscale' else size
    assert (a.mode, a.size) == ('RGB', want) and isinstance(a, Image.Image)
    assert a.tobytes() == b.tobytes() and im.tobytes() == before


@pytest.mark.parametrize('mode', modes)
@pytest.mark.parametrize('name', steps)
def test_every_mode(name, mode):
    im = photo(40, 30).convert(mode)
    before = im.tobytes()
    res = steps[name]()(im, rng_for(1, ''))
    assert (res.mode, res.size, im.mode) == ('RGB', (40, 30), mode) and im.tobytes() == before


@pytest.mark.parametrize('name', sorted(set(steps)-{'downscale', 'greyscale', 'line_drawing', 'banding', 'jpeg', 'faded', 'gaussian_blur', 'defocus'}))
def test_chance(name):
    "What has chance in it, besides its strength, differs from seed to seed"
    f = steps[name](**{k: p.default[1] for k,p in steps[name].params.items() if not p.options})
    assert len({crappify_photo(f, photo(), s).tobytes() for s in range(6)}) > 1


def extremes(f):
    "A step at the lowest and at the highest strengths, and with each of its choices"
    ranges = {k: (p.lo, p.hi) for k,p in f.params.items() if not p.options}
    yield from (f(**{k: v[i] for k,v in ranges.items()}) for i in (0, 1))
    for k,p in f.params.items(): yield from (f(**{k: o}) for o in p.options)


@pytest.mark.parametrize('name', steps)
def test_extremes(name):
    for f in extremes(steps[name]):
        for size in ((48, 36), (1, 1), (7, 90)):
            res = crappify_photo(f, photo(*size), 5)
            assert res.mode == 'RGB' and (res.size == size or name == 'downscale'), f
        assert parse_steps(repr(f)) == chain(f)


@pytest.mark.parametrize('f', [gaussian_noise(0), gaussian_blur(0), defocus(0), motion_blur(1), salt_pepper(0), fold(0), dust(0), scratches(0),
    S.vignette(0), S.colour_cast(0), S.faded(0, yellow=0), S.discolour(0), P.crinkle(0), S.film_grain(0), downscale(500)], ids=lambda f: f.name)
def test_no_strength_no_damage(f): assert rms(crappify_photo(f, photo(), 1), photo()) < .6


def test_parameters_for_a_panel():
    "Every parameter has what a control needs, and its default is a value that it takes"
    groups = {'geometry', 'compression', 'blur', 'noise', 'colour', 'old print', 'overlay'}
    assert {f.group for f in steps.values()} == groups and len(steps) >= 23
    for name,f in steps.items():
        assert f.__name__ == name and '\n' not in f.__doc__ and list(f().args) == list(f.params)
        for k,p in f.params.items():
            assert p.help
            if p.options: assert p.default in p.options
            else: assert p.lo <= p.default[0] <= p.default[1] <= p.hi and p.step > 0
            assert f(**{k: p.default}) == f()


def test_repr_is_code():
    assert repr(jpeg(10, 70)) == 'jpeg(10, 70)' and repr(downscale(96)) == 'downscale(96)' and repr(gaussian_blur((.5, 2))) == 'gaussian_blur(0.5, 2)'
    assert repr(jpeg(50, written=True)) == 'jpeg(50, written=True)' and repr(fold(1, torn=(1, 2))) == 'fold(1, strength=(0.4, 0.9), torn=(1, 2))'
    assert repr(sometimes(.5, chain(text(.1), greyscale()))) == 'sometimes(0.5, chain(text(0.1), greyscale()))'


def test_equal_and_immutable():
    assert jpeg(10, 70) == jpeg((10, 70)) == jpeg(quality=[10, 70]) == jpeg() and hash(jpeg()) == hash(jpeg(10, 70))
    assert jpeg(10) != jpeg(11) and jpeg(10) != 'jpeg(10)' and len({jpeg(1), jpeg(1), jpeg(2)}) == 2
    s = jpeg(10)
    for k,v in (('name', 'text'), ('quality', (1, 1)), ('new', 1)):
        with pytest.raises(AttributeError): setattr(s, k, v)
    for f in (chain(s), sometimes(.5, s), one_of(s)):
        with pytest.raises(AttributeError): f.children = ()
    s.args['quality'] = (1, 1)
    assert s.args == {'quality': (10, 10), 'written': False}


@pytest.mark.parametrize('call, said', [(lambda: jpeg(0, 70), 'from 1 to 100'), (lambda: jpeg(70, 10), 'lower end'), (lambda: jpeg(1.5), 'whole numbers'),
    (lambda: jpeg('much'), "quality = 'much'"), (lambda: jpeg(True), 'whole numbers'), (lambda: gaussian_blur(float('nan')), 'numbers from 0'),
    (lambda: downscale(96, filter='best'), "one of 'bilinear'"), (lambda: downscale(96, back=1), 'False, True'), (lambda: greyscale(1), 'too many'),
    (lambda: jpeg(1, 2, 3), 'too many'), (lambda: jpeg(10, quality=20), 'too many'), (lambda: jpeg(quantity=20), "no 'quantity'"),
    (lambda: gaussian_blur(10**9), 'to 20000'), (lambda: chain(jpeg), 'not called'), (lambda: chain(3), '3 is no crappifier'),
    (lambda: sometimes(.5), 'sometimes'), (lambda: sometimes(2, jpeg()), 'from 0 to 1'), (lambda: sometimes(.5, jpeg(), jpeg()), 'sometimes'), (
    lambda: sometimes((.2, .5), jpeg()), 'sometimes'), (lambda: chain(greyscale), 'not called')])
def test_wrong_arguments(call, said):
    with pytest.raises(CourseError, match=said): call()


def test_what_was_asked_for():
    "A look at what single steps do"
    im, flat = photo(), Image.new('RGB', (256, 256), (128, 128, 128))
    assert len(set(map(tuple, pixels(crappify_photo(greyscale(), im)).reshape(-1, 3)[:, :2]))) < 257
    assert crappify_photo(downscale(36), im).size == (48, 36) and crappify_photo(downscale(36, back=True), im).size == im.size
    assert np.allclose(pixels(crappify_photo(gaussian_noise(20), flat, 1)).std(), 20, atol=1)
    dark, bright = (pixels(crappify_photo(shot_noise(50), Image.new('RGB', (99, 99), (o,)*3), 1)).std() for o in (30, 200))
    assert dark > bright, 'in a file the noise of light is strongest in the dark'
    share = np.mean(pixels(crappify_photo(salt_pepper(.1), flat, 1)) != 128)
    assert .08 < share < .12
    assert (pixels(crappify_photo(cutout(.5), Image.new('RGB', (64, 64), 'white'), 2)) == 0).any()
    a = pixels(crappify_photo(fold(1, strength=1, torn=0), flat, 5))[..., 0]
    assert a.max() > 170 and a.min() < 90 and abs(a.mean()-128) < 3, 'light on one side, shadow on the other'
    assert (pixels(crappify_photo(fold(1, strength=0, torn=3), flat, 5)) > 200).any(), 'bare paper'
    halves = [pixels(crappify_photo(P.halftone(6, colour='newspaper'), Image.new('L', (90, 90), o))).mean() for o in (60, 128, 200)]
    assert halves == sorted(halves) and halves[0] < 110 < halves[2]


def test_quality_range():
    "A step draws from its whole range, and one drawn at 30 is the one made at 30"
    q = {jpeg.params['quality'].draw((10, 13), rng_for(1, str(i))) for i in range(99)}
    assert q == {10, 11, 12, 13}
    assert crappify_photo(jpeg(30), photo()).tobytes() == Image.open(io.BytesIO(jpeg_bytes(photo(), 30))).tobytes()


# Chains

def random_step(rng, depth=0):
    "A step with strengths at random, or, not too deep, a combinator with some in it"
    if depth < 3 and rng.random() < .35:
        name, kids = combine[rng.integers(3)], [random_step(rng, depth+1) for _ in range(rng.integers(1, 4))]
        return sometimes(round(float(rng.random()), 3), kids[0]) if name == 'sometimes' else getattr(C, name)(*kids)
    f = list(steps.values())[rng.integers(len(steps))]
    return f(**{k: random_value(rng, p) for k,p in f.params.items()})


def random_value(rng, p):
    if p.options: return p.options[rng.integers(len(p.options))]
    lo, hi = sorted(p.lo + rng.random(2)*(min(p.hi, 64)-p.lo))
    return (int(lo), int(hi)) if p.whole else (float(lo), float(hi))


@pytest.mark.parametrize('seed', range(60))
def test_random_chains(seed):
    "Text and back, pickled and back, the same picture each time, RGB, of the input's size unless something scales it down"
    rng = np.random.default_rng(seed)
    f, im = chain(*[random_step(rng) for _ in range(rng.integers(0, 4))]), photo(*rng.integers(1, 70, 2).tolist())
    before, res = im.tobytes(), crappify_photo(f, im, seed)
    assert parse_steps(repr(f)) == f and eval(repr(f), {**vars(P), **vars(S), **vars(C)}) == f
    assert pickle.loads(pickle.dumps(f)) == f and hash(pickle.loads(pickle.dumps(f))) == hash(f)
    assert crappify_photo(parse_steps(repr(f)), im, seed).tobytes() == res.tobytes() == crappify_photo(f, im, seed).tobytes()
    assert res.mode == 'RGB' and im.tobytes() == before
    assert res.size == im.size or 'downscale' in repr(f)


def test_parts_do_not_disturb_each_other():
    "What one part draws, and how much, changes nothing for those beside it"
    im = Image.new('RGB', (120, 90), 'gray')
    with_blur = [crappify_photo(chain(gaussian_blur(o), dust(50)), im, 3).tobytes() for o in (.5, 3, (1, 2))]
    with_more = [crappify_photo(chain(f, dust(50)), im, 3).tobytes() for f in (downscale(500), sometimes(0, gaussian_noise(9)), chain())]
    assert len(set(with_blur + with_more)) == 1


def test_combinators():
    im, ran = photo(), []
    def note(k):
        def f(im, rng): ran.append(k); return im
        return f
    crappify_photo(chain(note(1), note(2), note(3)), im)
    assert ran == [1, 2, 3]
    ran.clear()
    for s in range(300): crappify_photo(sometimes(.25, note('s')), im, s)
    assert 50 < len(ran) < 100
    ran.clear()
    for s in range(300): crappify_photo(one_of(*map(note, 'abc')), im, s)
    assert all(70 < ran.count(o) < 130 for o in 'abc')
    assert crappify_photo(chain(), im).tobytes() == crappify_photo(one_of(), im).tobytes() == im.tobytes()
    assert repr(chain(note(1), jpeg(9))) == 'chain(f, jpeg(9))' and len(chain(note(1), jpeg()).children) == 2


def test_lecture():
    "Shorter side 96, a JPEG of quality 10 to 70, and that number in the upper left"
    for s in range(8):
        im = photo(500, 375, seed=s)
        res = crappify_photo(lecture, im, s)
        assert res.size == (128, 96)
    black = [pixels(crappify_photo(lecture, Image.new('RGB', (200, 200)), s)) for s in range(60)]
    assert all((o[:66, :66] > 120).any() and not (o[70:, 70:] > 100).any() for o in black)


def test_parse():
    assert parse_steps('downscale(96) jpeg(10,70) text') == chain(downscale(96), jpeg(10, 70), text())
    for o in ('downscale(96), jpeg (10, 70) ; text()', '\n downscale(96)\n\tjpeg(quality=(10, 70)) text', 'chain(downscale(96), jpeg(10, 70), text)'):
        assert parse_steps(o) == chain(downscale(96), jpeg(10, 70), text())
    assert parse_steps('sometimes(.3, one_of(text, jpeg(5)))') == chain(sometimes(.3, one_of(text(), jpeg(5))))
    assert parse_steps("text(what='date') text(.1, what=\"word\")") == chain(text(what='date'), text(.1, what='word'))


@pytest.mark.parametrize('s, said', [('downscale(96) jepg(1)', "character 15: there is no step 'jepg'. Expected one of downscale"), (
    'jpeg(10', 'character 8: .*not understood'),
    ('jpeg(10))', 'character 9: .*not understood'), ('jpeg(10,700)', 'character 1: jpeg: quality'), ('', 'a text of 0'), ('   ', 'a text of 3'), (
    '1', 'is no step'), ('jpeg(1)(2)', 'is no step'),
    ('text jpeg(x)', "character 11: there is no step 'x'"), ('jpeg(*[1,2])', 'is no step'), ('jpeg(**{})', 'must be strings'), (
    'text] + [jpeg', 'no list of steps'), ('jpeg(1) + text', 'is no step'), ('"text"', 'is no step'),
    ('sometimes(p=.5)', 'something like sometimes'), ('sometimes()', 'missing'), ('jpeg(9) text jepg', 'character 14: there is no step'), (
    ' text,\n jepg', 'character 9: there is no step'), ('a'*30000, 'a text of 30,000'), ('('*9000, 'not understood'), (
    'chain('*300+')'*300, 'not understood'), ("text(what='", 'not understood')])
def test_parse_errors(s, said):
    with pytest.raises(CourseError, match=said): parse_steps(s)


@pytest.mark.parametrize('s', ['__import__("pathlib").Path("done").touch()', 'jpeg(__import__("pathlib").Path("done").touch())', 'text(what=open("done","w"))',
    '(lambda: open("done","w"))()', '[open("done","w") for _ in (1,)]'])
def test_text_is_never_run(s, tmp_path):
    with pytest.raises(CourseError): parse_steps(s)
    assert not (tmp_path/'done').exists()


# Pictures

def test_as_rgb():
    "16 bits to 8, the transparent on white, everything to RGB"
    full = lambda v, dtype: Image.fromarray(np.full((2, 3), v, dtype))
    got = lambda im: as_rgb(im).getpixel((0, 0))
    assert got(full(100*257, np.uint16)) == got(full(100*257, np.int32)) == got(full(100, np.int32)) == (100,)*3
    assert got(full(100/255, np.float32)) == got(full(100, np.float32)) == (100,)*3
    assert got(Image.new('RGBA', (2, 2), (0, 0, 255, 0))) == (255,)*3 and got(Image.new('LA', (2, 2), (0, 128)))[0] in (126, 127, 128)
    p = Image.new('P', (2, 2)); p.putpalette([9, 9, 9]); p.info['transparency'] = 0
    assert got(p) == (255,)*3
    for m in ('1', 'L', 'P', 'CMYK', 'YCbCr', 'HSV', 'RGBX', 'RGBa', 'I;16'): assert as_rgb(Image.new(m, (3, 2))).mode == 'RGB'


def test_apply():
    "Upright, RGB, the input left alone, and a clear word on what is no picture"
    im = photo(20, 10)
    exif = Image.Exif(); exif[0x0112] = 6
    f = io.BytesIO(); im.save(f, 'PNG', exif=exif)
    assert crappify_photo(chain(), Image.open(f)).size == (10, 20)
    def scribble(im, rng): im.paste('red', (0, 0, 9, 9)); return im
    assert crappify_photo(scribble, im).tobytes() != im.tobytes() == photo(20, 10).tobytes()
    for bad,said in ((lambda im, rng: None, 'None'), (lambda im, rng: im.convert('L'), 'mode L'), (lambda im, rng: pixels(im), 'ndarray')):
        with pytest.raises(CourseError, match=said): crappify_photo(bad, im)
        with pytest.raises(CourseError, match=said): crappify_photo(chain(jpeg(), bad), im)


def test_rng():
    "The same on every machine; a file's own"
    assert rng_for(42, 'cats/1.jpg').integers(1000, size=4).tolist() == [944, 195, 423, 62]
    assert rng_for(1, 'a').random() != rng_for(2, 'a').random() != rng_for(1, 'b').random() and rng_for(1, '\udcff').random() > 0


@pytest.fixture
def shown(monkeypatch):
    "What is displayed, as if in a notebook"
    import IPython, IPython.display, matplotlib.pyplot
    matplotlib.pyplot.switch_backend('agg') # before there seems to be a notebook
    res = []
    monkeypatch.setattr(IPython, 'get_ipython', lambda: True)
    monkeypatch.delitem(globals(), '__file__') # a notebook's cells have none
    monkeypatch.setattr(IPython.display, 'display', lambda o, raw=False: res.append(o))
    return res


def test_preview(shown, tmp_path):
    "A picture as soon as the function is there, from pictures, a file or a folder; the function stays itself"
    photo().save(tmp_path/'a.jpg')
    def f(im, rng): return im
    for o in ([photo(), photo(50, 80)], tmp_path/'a.jpg', tmp_path, photo().convert('L')): assert preview(o)(f) is f
    assert len(shown) == 4
    for o in shown: assert Image.open(io.BytesIO(o.data)).format == 'JPEG' and len(o.data) < 150_000


def test_preview_of_a_mistake(shown):
    "In the pictures' place, short, with the line, also inside a chain"
    def f(im, rng):
        x = 0
        return im.resize((1/x, 1))
    line = f.__code__.co_firstlineno+2
    for fn in (f, chain(jpeg(), sometimes(1, f))):
        assert preview(photo())(fn) is fn
        said = shown.pop()['text/plain']
        assert 'ZeroDivisionError: division by zero' in said and f'line {line}: return im.resize((1/x, 1))' in said and '\n' not in said
    preview(photo())(lambda im, rng: None)
    assert 'is there a return?' in shown.pop()['text/plain']


def test_preview_outside_notebooks():
    def f(im, rng): raise RuntimeError
    assert preview(photo())(f) is f


def test_preview_above_a_step(shown, monkeypatch):
    "A step is shown at its usual strengths, also bare, on the sample's photographs, and text too; what a module defines is not"
    def of_text(im, rng, wide=S.span(1, 9, (2, 4), 1, 'px', 'of the stripe')): return im.copy()
    try:
        for how in (preview([photo()]), preview):
            stripe = how(S.step('overlay')(of_text))
            assert stripe is steps['of_text'] and chain(stripe(3)).children[0].wide == (3, 3)
        preview([photo()])('of_text(3) jpeg(10)')
        assert len(shown) == 3 and all(Image.open(io.BytesIO(o.data)).format == 'JPEG' for o in shown)
        monkeypatch.setitem(globals(), '__file__', 'a module')
        assert preview(stripe) is stripe and preview([photo()])(stripe) is stripe and len(shown) == 3
    finally: steps.pop('of_text', None)


# Fewer pixels while decoding

@pytest.mark.parametrize('size', [(500, 375), (375, 500), (1001, 753), (2000, 1501), (4000, 3000)])
@pytest.mark.parametrize('filter', ['bilinear', 'bicubic', 'lanczos'])
def test_draft(tmp_path, size, filter):
    "Within 2/255 RMS of the plain way on the photographs of the sample, and of the same size"
    from course_lib.samples.photos import photo_sources
    shrink, f = downscale(96, filter=filter), tmp_path/'a.jpg'
    for p,_ in photo_sources().values() if max(size) < 1000 else [photo_sources()['cat']]:
        ImageOps.fit(Image.open(p).convert('RGB'), size).save(f, quality=90)
        im, _ = open_photo(f, smallest_read(shrink))
        plain, ours = shrink(Image.open(f), rng_for(0, '')), shrink(im, rng_for(0, ''))
        assert min(im.size) < min(size)/1.9 and ours.size == plain.size and 'drafted' not in ours.info
        assert rms(ours, plain) < 2, p
    assert downscale(96, filter=filter, back=True)(im, rng_for(0, '')).size == size


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('size', [(800, 600), (501, 377)])
def test_draft_and_orientation(tmp_path, orientation, size):
    exif = Image.Exif(); exif[0x0112] = orientation
    photo(*size).save(tmp_path/'a.jpg', quality=92, exif=exif)
    plain = downscale(96)(ImageOps.exif_transpose(Image.open(tmp_path/'a.jpg')), rng_for(0, ''))
    ours = downscale(96)(open_photo(tmp_path/'a.jpg', 96)[0], rng_for(0, ''))
    assert ours.size == plain.size and rms(ours, plain) < 2


def test_draft_only_where_it_is_safe(tmp_path):
    photo(800, 600).save(tmp_path/'a.jpg'); photo(800, 600).save(tmp_path/'a.png')
    assert smallest_read(chain(chain(downscale(64, 96)), jpeg())) == 96
    for fn in (downscale(96, filter='box'), downscale(96, filter='nearest'), jpeg(), chain(), chain(jpeg(), downscale(9)),
            sometimes(.5, downscale(9)), lambda im, rng: im):
        assert smallest_read(fn) is None
    assert open_photo(tmp_path/'a.png', 96)[0].size == open_photo(tmp_path/'a.jpg', 400)[0].size == (800, 600)


# Folders

@pytest.fixture
def src(tmp_path):
    "Twelve photographs, some in folders"
    for i in range(12):
        f = tmp_path/'src'/('', 'cats', 'cats/young')[i%3]/f'{i}.{("jpg", "png", "JPG", "jpeg")[i%4]}'
        f.parent.mkdir(parents=True, exist_ok=True)
        photo(90+i, 70, seed=i).save(f, format='PNG' if f.suffix == '.png' else 'JPEG')
    return tmp_path/'src'


def results(dst): return {o.relative_to(dst).as_posix(): o.read_bytes() for o in sorted(Path(dst).rglob('*')) if o.is_file() and '.crappify' not in o.parts}

def counts(rep): return rep.made, rep.kept, len(rep.left_out)


def test_folder(src, tmp_path):
    "The same names in the same folders, the pictures that `apply` gives, whatever the workers"
    assert counts(crappify_folder(lecture, src, tmp_path/'a', seed=7, workers=1)) == (12, 0, 0)
    crappify_folder('lecture', src, tmp_path/'b', seed=7, workers=5)
    got = results(tmp_path/'a')
    assert got == results(tmp_path/'b') and set(got) == {o.relative_to(src).as_posix() for o in src.rglob('*.*')}
    for rel,data in got.items():
        want = crappify_photo(lecture, Image.open(src/rel), 7, rel)
        assert Image.open(io.BytesIO(data)).tobytes() == want.tobytes() and (rel.endswith('.png') or data == want.info['jpeg'])
    assert crappify_folder(lecture, src, tmp_path/'c', seed=8).made == 12 and not set(results(tmp_path/'c').values()) & set(got.values())


def test_order_does_not_matter(src, tmp_path):
    "A file gives the same result alone, later, and among others"
    crappify_folder(old_family, src, tmp_path/'all', seed=1)
    alone, rel = tmp_path/'alone', 'cats/4.jpg'
    (alone/'cats').mkdir(parents=True); (alone/rel).write_bytes((src/rel).read_bytes())
    crappify_folder(old_family, alone, tmp_path/'one', seed=1)
    assert results(tmp_path/'one')[rel] == results(tmp_path/'all')[rel]


def test_without_a_jpeg_at_the_end(src, tmp_path):
    "PNG files hold the very pixels; JPEG files are close to them"
    crappify_folder(fold(1), src, tmp_path/'a')
    for rel,data in results(tmp_path/'a').items():
        want, got = crappify_photo(fold(1), Image.open(src/rel), 0, rel), Image.open(io.BytesIO(data))
        assert rms(got, want) == 0 if rel.endswith('.png') else got.format == 'JPEG' and rms(got, want) < 3


def test_result_that_was_drawn_on(tmp_path):
    "A JPEG that somebody has drawn on, or changed in size, is no longer the file it came from"
    def drawn(im, rng): im.paste('red', (0, 0, 20, 20)); return im
    (tmp_path/'src').mkdir(); photo().save(tmp_path/'src'/'a.jpg')
    for fn in (chain(jpeg(20), drawn), chain(jpeg(20), lambda im, rng: im.resize((30, 30)))):
        crappify_folder(fn, tmp_path/'src', tmp_path/'a')
        got, want = Image.open(tmp_path/'a'/'a.jpg'), crappify_photo(fn, Image.open(tmp_path/'src'/'a.jpg'), 0, 'a.jpg')
        assert got.size == want.size and rms(got, want) < 4


def test_only_what_changed(src, tmp_path):
    run = lambda fn=lecture, **kw: counts(crappify_folder(fn, src, tmp_path/'a', **kw))
    assert (run(), run()) == ((12, 0, 0), (0, 12, 0))
    photo(50, 50).save(src/'0.jpg')                             # a changed source
    assert run() == (1, 11, 0) and Image.open(tmp_path/'a'/'0.jpg').size == (50, 50)
    photo().save(src/'new.jpg'); assert run() == (1, 12, 0)     # a new one
    (tmp_path/'a'/'cats'/'1.png').unlink(); assert run() == (1, 12, 0)
    (tmp_path/'a'/'9.png').write_bytes(b''); assert run() == (1, 12, 0) # what a crash of the machine leaves
    (tmp_path/'a'/'9.png').write_bytes(b'changed since'); assert run() == (0, 12, 1); (tmp_path/'a'/'9.png').unlink(); assert run() == (1, 12, 0)
    assert run(seed=1) == (13, 0, 0) and run(jpeg(9), seed=1) == (13, 0, 0)
    (src/'0.jpg').write_bytes(b'no picture'); assert run(jpeg(9), seed=1) == (0, 12, 1)
    assert not (tmp_path/'a'/'0.jpg').exists(), 'no result without its photograph'


def test_redone_when_the_function_changes(src, tmp_path):
    "Its source, a value it closes over, a global, a default, a helper's value, a step inside it"
    def of(sigma):
        def f(im, rng): return im.filter(ImageFilter.GaussianBlur(sigma))
        return f
    run = lambda fn: crappify_folder(fn, src, tmp_path/'a').made
    assert [run(of(2)), run(of(2)), run(of(3)), run(chain(of(3))), run(chain(of(3))), run(chain(of(4)))] == [12, 0, 12, 12, 0, 12]
    space = dict(Image=Image, ImageFilter=ImageFilter)
    def cell(code):
        import linecache
        name = f'<cell {abs(hash(code))}>'
        linecache.cache[name] = len(code), None, code.splitlines(True), name
        exec(compile(code, name, 'exec'), space)
        return space['f']
    f = cell('k = 3\ndef helper(im): return im.filter(ImageFilter.GaussianBlur(k))\ndef f(im, rng): return helper(im)\n')
    marks = [code_key(f)]
    space['k'] = 4; marks.append(code_key(f))
    cell('def helper(im): return im.filter(ImageFilter.BoxBlur(k))\n'); marks.append(code_key(f))
    marks.append(code_key(cell('def f(im, rng, a=1): return helper(im)\n')))
    marks.append(code_key(cell('def f(im, rng, a=2): return helper(im)\n')))
    assert len(set(marks)) == 5 and code_key(f) == marks[2]
    space['k'] = np.arange(3); a = code_key(f)
    space['k'] = np.arange(4); assert code_key(f) != a
    assert code_key(lambda im, rng: im) and code_key(eval('lambda im, rng: im')) != code_key(eval('lambda im, rng: None'))


def test_key_of_a_cell_and_of_its_module():
    "Compiled beside the import or apart from it, the same function has one key; what stands within the `if` and what after it are two"
    def key(*sources):
        space = {'__name__': '__main__'}
        for o in sources: exec(compile(o, 'a cell', 'exec'), space)
        return code_key(space['f'])
    first, f = 'import numpy as np\n', 'def f(x):\n    y = 1\n    if x: y = np.exp(np.asarray(x))\n    y = np.log(y)\n    return y\n'
    assert key(first, f) == key(first+f)
    assert key(first, f) != key(first, f.replace('\n    y = np.log(y)', '; y = np.log(y)'))


def test_dst_inside_src(src):
    "A destination inside the source is not read again; a hidden file is no photograph"
    (src/'.hidden.jpg').write_bytes(b'x')
    for _ in range(2): assert sum(counts(crappify_folder(lecture, src, src/'small-96'))) == 12
    assert len(results(src/'small-96')) == 12


@pytest.mark.parametrize('a, b, said', [('src', 'src', 'photographs lie in it'), ('src/cats', 'src', 'photographs lie in it'), (
    'nowhere', 'a', 'no such folder'), ('src', 'src/1.png/a', 'cannot be written')])
def test_wrong_folders(src, tmp_path, a, b, said):
    before = results(tmp_path)
    (src/'1.png').touch()
    with pytest.raises(CourseError, match=said): crappify_folder(lecture, tmp_path/a, tmp_path/b)
    assert {k: v for k,v in results(tmp_path).items() if k in before} == before


def test_names():
    assert [crappy_name(o) for o in ('a/b.jpg', 'B.JPEG', 'c.png', 'd.gif', 'e.tar.tif')] == ['a/b.jpg', 'B.JPEG', 'c.png', 'd.gif.png', 'e.tar.tif.png']


def test_strange_names(tmp_path):
    (tmp_path/'src').mkdir()
    names = ['ä ö.jpg', "it's 100%.jpg", '日本.png', 'a|b.jpg', '-x.jpg', 'a\nb.jpg']
    if sys.platform != 'darwin': names.append(os.fsdecode(b'\xff.jpg')) # a Mac's file system has no such names
    for o in names: photo(20, 20).save(tmp_path/'src'/o)
    for want in ((len(names), 0, 0), (0, len(names), 0)): assert counts(crappify_folder(lecture, tmp_path/'src', tmp_path/'a')) == want
    assert set(os.listdir(tmp_path/'a')) == {*names, '.crappify'}


def png(w, h, data=b''):
    "A PNG file that says it is so large"
    chunk = lambda k, d: struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k+d))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


def bad_files(d):
    "One file of each kind; gives what should become of it: None (made, nothing said), a word of the note, or '-' and a word for what is left out"
    im, exif = photo(120, 80), Image.Exif()
    exif[0x0112] = 6
    def put(name, **kw): im.save(d/name, **kw)
    put('fine.jpg'); put('whole.png'); put('turned.jpg', exif=exif); put('film.gif', save_all=True, append_images=[im.rotate(90), im.rotate(180)])
    put('pages.tif', save_all=True, append_images=[im]); put('two.webp')
    im.convert('CMYK').save(d/'cmyk.jpg'); im.convert('L').save(d/'grey.jpg'); im.quantize(16).save(d/'palette.png'); im.convert('1').save(d/'fax.tif')
    im.quantize(16).save(d/'holes.gif', transparency=0); im.convert('RGBA').save(d/'alpha.png'); Image.new('LA', (50, 40), (0, 0)).save(d/'clear.png')
    Image.fromarray(np.full((40, 50), 100*257, np.uint16)).save(d/'deep.png'); Image.fromarray(np.full((40, 50), .5, np.float32)).save(d/'float.tif')
    whole = (d/'fine.jpg').read_bytes()
    (d/'cut.jpg').write_bytes(whole[:len(whole)//2]); (d/'cut.png').write_bytes((d/'whole.png').read_bytes()[:300]); (d/'head.jpg').write_bytes(whole[:20])
    (d/'empty.jpg').touch(); (d/'notes.txt').write_text('buy milk'); (d/'fake.jpg').write_text('no picture'); (d/'noise.png').write_bytes(os.urandom(999))
    (d/'bomb.png').write_bytes(png(60000, 60000)); (d/'large.png').write_bytes(png(10000, 10000))
    (d/'zero.png').write_bytes(png(0, 0)); (d/'thin.png').write_bytes(png(0, 40))
    (d/'zero.ppm').write_bytes(b'P6 0 0 255\n'); (d/'dir.jpg').mkdir(); (d/'gone.jpg').symlink_to(d/'nowhere.jpg'); os.mkfifo(d/'pipe.jpg')
    (d/'as.png').write_bytes(whole) # a JPEG under another name
    return {'fine.jpg': None, 'whole.png': None, 'turned.jpg': 'turned', 'film.gif': 'frames', 'pages.tif': 'frames', 'two.webp': None,
        'cmyk.jpg': 'CMYK', 'grey.jpg': None,
        'palette.png': 'palette', 'fax.tif': None, 'holes.gif': 'transparent', 'alpha.png': 'transparent', 'clear.png': 'transparent',
        'deep.png': '16 bits', 'float.tif': 'floats',
        'cut.jpg': '-cut off', 'cut.png': '-cut off', 'head.jpg': '-not a picture|cut off|cannot', 'empty.jpg': '-not a picture',
        'notes.txt': '-not a picture', 'fake.jpg': '-not a picture',
        'noise.png': '-not a picture', 'bomb.png': '-too many pixels', 'large.png': '-too many pixels', 'zero.png': '-pixels|not a picture',
        'thin.png': '-pixels|not a picture',
        'zero.ppm': '-pixels|not a picture', 'gone.jpg': '-plain file', 'pipe.jpg': '-plain file', 'as.png': None}


def test_bad_files(tmp_path, recwarn):
    "Handled or left out, each with a word about it, and none stops the run; the second run says the same"
    (tmp_path/'zoo').mkdir()
    want = bad_files(tmp_path/'zoo')
    for fn in (downscale(30), greyscale()):
        dst = tmp_path/fn.name
        for again in (False, True):
            rep = crappify_folder(fn, tmp_path/'zoo', dst, workers=3)
            notes = {f: (what, done) for f,what,done in rep.notes}
            assert set(notes) == {k for k,v in want.items() if v}, set(notes) ^ {k for k,v in want.items() if v}
            for f,w in want.items():
                if w: assert any(o in notes[f][0] for o in w.lstrip('-').split('|')), (f, notes[f])
                assert (f in notes and notes[f][1] == 'left out') == bool(w and w[0] == '-') == (not (dst/crappy_name(f)).exists()), f
            good = [k for k,v in want.items() if not (v and v[0] == '-')]
            assert (rep.kept if again else rep.made) == len(good) and len(rep.left_out) == len(want) - len(good)
            assert sum(r[2] for r in rep.rows()) == len(rep.notes) and repr(rep) in rep._repr_markdown_()
            assert '| cut off or damaged | left out | 2 |' in rep._repr_markdown_()
    got = lambda f: Image.open(tmp_path/'greyscale'/crappy_name(f)).convert('RGB')
    assert got('turned.jpg').size == (80, 120) and got('deep.png').getpixel((5, 5)) == (100,)*3 and got('clear.png').getpixel((5, 5)) == (255,)*3
    assert abs(got('float.tif').getpixel((5, 5))[0] - 128) < 2 and psnr(got('cmyk.jpg'), got('fine.jpg')) > 25 and psnr(got('film.gif'), got('fine.jpg')) > 20
    assert not [str(o.message) for o in recwarn.list]


def test_function_that_fails(src, tmp_path):
    "On some files: they are in the table. On all: an error, soon, with the line"
    tried = tmp_path/'tried'
    def sometimes_not(im, rng):
        if im.width % 3 == 0: raise ValueError('I do not like this one')
        return im
    rep = crappify_folder(sometimes_not, src, tmp_path/'a')
    assert counts(rep) == (8, 0, 4) and 'ValueError: I do not like this one' in rep.left_out[0][1] and 'line ' in rep.left_out[0][1]
    def broken(im, rng):
        with open(tried, 'a') as f: f.write('x')
        return im.no_such_thing()
    for i in range(90): photo(9, 9).save(src/f'more{i}.png')
    said = 'broken fails on every photograph so far. On .*: AttributeError.*line .*no_such_thing'
    with pytest.raises(CourseError, match=said): crappify_folder(broken, src, tmp_path/'b', workers=2)
    assert 5 <= len(tried.read_text()) < 40
    with pytest.raises(CourseError, match='None'): crappify_folder(lambda im, rng: None, src, tmp_path/'c')


def test_nothing_there(tmp_path):
    (tmp_path/'src').mkdir()
    assert counts(crappify_folder(lecture, tmp_path/'src', tmp_path/'a')) == (0, 0, 0)


def full_after(room):
    "`Path.write_bytes` on a disk that is full after some bytes"
    write = Path.write_bytes
    def _f(path, data):
        nonlocal room
        write(path, data[:max(0, room)])
        room -= len(data)
        if room < 0: raise OSError(errno.ENOSPC, 'No space left on device')
    return _f


def test_full_disk(src, tmp_path, monkeypatch):
    "One clear line, no half-written file, nothing lost; with room again the next run goes on"
    whole = tmp_path/'whole'
    crappify_folder(lecture, src, whole, seed=1)
    room = sum(map(len, results(whole).values()))//3
    with monkeypatch.context() as m:
        m.setattr(Path, 'write_bytes', full_after(room))
        with pytest.raises(CourseError, match='the disk is full.*What was finished is kept: run it again') as e:
            crappify_folder(lecture, src, tmp_path/'a', seed=1, workers=2)
    assert '\n' not in str(e.value)
    there = results(tmp_path/'a')
    assert 0 < len(there) < 12 and there.items() <= results(whole).items() and not list((tmp_path/'a'/'.crappify'/'new').iterdir())
    rep = crappify_folder(lecture, src, tmp_path/'a', seed=1)
    assert rep.made + rep.kept == 12 and results(tmp_path/'a') == results(whole)


def test_real_full_disk(src, tmp_path, small_disk):
    crappify_folder(jpeg(95), src, tmp_path/'whole')
    a = small_disk(48)/'a'
    with pytest.raises(CourseError, match='the disk is full'): crappify_folder(jpeg(95), src, a, workers=2)
    there = results(a)
    assert 0 < len(there) < 12 and there.items() <= results(tmp_path/'whole').items() and not list((a/'.crappify'/'new').iterdir())


def test_read_only(src, tmp_path):
    "Where nothing can be written, one line says so and what to change; something in the way of some results is told, and the rest is made"
    (tmp_path/'a').mkdir(); (tmp_path/'a'/'cats').write_text('a file where a folder should be')
    rep = crappify_folder(lecture, src, tmp_path/'a')
    assert counts(rep) == (4, 0, 8) and all('cannot be written (' in why for _,why in rep.left_out) and (tmp_path/'a'/'cats').is_file()
    (tmp_path/'b').mkdir(); (tmp_path/'b'/'.crappify').write_text('where our list should be')
    with pytest.raises(CourseError, match='cannot be written to .*another DST') as e: crappify_folder(lecture, src, tmp_path/'b')
    assert '\n' not in str(e.value)


# What is not ours

def test_what_it_has_not_made_is_left(src, tmp_path):
    "A photograph in the destination, or a link to one, is never written over: reported, and the rest is made"
    dst = tmp_path/'a'
    (dst/'cats').mkdir(parents=True)
    photo(31, 30).save(dst/'0.jpg')                       # from another camera, with the same name
    (dst/'3.jpeg').symlink_to(src/'3.jpeg')               # a link to the photograph itself
    os.link(src/'6.JPG', dst/'6.JPG')                     # the photograph itself, under a second name
    (dst/'9.png').symlink_to(tmp_path/'nowhere.png')      # a link that leads nowhere
    (dst/'cats'/'young').symlink_to(src/'cats'/'young')   # the folder itself
    def state(): # not when they were last read
        return {o: [getattr((dst/o).lstat(), f'st_{k}') for k in ('mode', 'ino', 'size', 'mtime_ns')] for o in ('0.jpg', '3.jpeg', '6.JPG', '9.png')}
    before, there = results(src), state()
    rep = crappify_folder(lecture, src, dst)
    why = dict(rep.left_out)
    assert counts(rep) == (4, 0, 8) and results(src) == before and state() == there
    assert 'not made here' in why['0.jpg'] and 'not made here' in why['9.png']
    assert all('a photograph that is read' in why[o] for o in why if o not in ('0.jpg', '9.png'))


def test_a_photograph_in_the_place_of_a_result(src, tmp_path):
    "Somebody has put a photograph where a result was: it is left, whatever becomes of the function and of the source; our own is made again or taken away"
    dst = tmp_path/'a'
    assert crappify_folder(lecture, src, dst).made == 12
    photo(55, 44).save(dst/'0.jpg'); mine = (dst/'0.jpg').read_bytes()
    for fn in (lecture, jpeg(9)):
        rep = crappify_folder(fn, src, dst)
        assert [o for o,_ in rep.left_out] == ['0.jpg'] and (dst/'0.jpg').read_bytes() == mine
    for o in ('0.jpg', '3.jpeg'): (src/o).write_bytes(b'no photograph any more')
    rep = crappify_folder(lecture, src, dst)
    assert counts(rep) == (10, 0, 2) and (dst/'0.jpg').read_bytes() == mine and not (dst/'3.jpeg').exists()


def test_a_short_file_that_no_reader_knows(src, tmp_path):
    "Smaller than our result and no picture that we can read: still somebody's"
    dst = tmp_path/'a'
    crappify_folder(lecture, src, dst)
    (dst/'0.jpg').write_bytes(b'....ftypheic, from a telephone')
    rep = crappify_folder(lecture, src, dst)
    assert [o for o,_ in rep.left_out] == ['0.jpg'] and (dst/'0.jpg').read_bytes() == b'....ftypheic, from a telephone'


def test_crash_after_the_file_is_in_its_place(src, tmp_path, monkeypatch):
    "A line is written first: what was put into its place and never noted as finished is still ours"
    dst, put = tmp_path/'a', os.replace
    def stop(tmp, path):
        put(tmp, path)
        if str(path).endswith('6.JPG'): raise KeyboardInterrupt
    crappify_folder(jpeg(9), src, dst)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', stop)
        with pytest.raises(KeyboardInterrupt): crappify_folder(lecture, src, dst, workers=1)
    assert len(crappify_folder(lecture, src, dst).left_out) == 0
    crappify_folder(lecture, src, tmp_path/'b')
    assert results(dst) == results(tmp_path/'b')


# No file stops the run

def test_long_names(tmp_path):
    "Up to the limit of the file system; where .png would be one byte too many, a line"
    (tmp_path/'src').mkdir()
    names = ['x'*(n-4)+'.png' for n in (250, 254, 255)] + ['y'*(n-4)+'.gif' for n in (250, 251, 252, 255)] + ['ä'*125+'.png']
    for o in names: photo(20, 20).save(tmp_path/'src'/o)
    rep = crappify_folder(lecture, tmp_path/'src', tmp_path/'a')
    assert counts(rep) == (6, 0, 2) and {len(o) for o,_ in rep.left_out} == {252, 255} and 'too long' in rep.left_out[0][1]


def test_what_a_format_cannot_hold(tmp_path):
    "A JPEG has at most 65,535 pixels a side: that file is left out, and it is no fault of the function"
    (tmp_path/'src').mkdir()
    Image.new('RGB', (70_000, 2)).save(tmp_path/'src'/'a.png'); (tmp_path/'src'/'a.png').rename(tmp_path/'src'/'a.jpg')
    for _ in range(2):
        rep = crappify_folder(lambda im, rng: im, tmp_path/'src', tmp_path/'dst')
        assert counts(rep) == (0, 0, 1) and 'cannot hold the result, 70,000×2' in rep.left_out[0][1]


def test_one_name_for_two(tmp_path):
    (tmp_path/'src').mkdir()
    for o in ('a.gif', 'a.gif.png', 'b.png'): photo(20, 20).save(tmp_path/'src'/o)
    for want in ((2, 0, 1), (0, 2, 1)):
        rep = crappify_folder(lecture, tmp_path/'src', tmp_path/'dst')
        assert counts(rep) == want and rep.left_out == [('a.gif.png', 'its result would have the name of that of a.gif')]


def test_linked_folders(src, tmp_path):
    "A folder that a link leads to is read once, and its files where they really lie, if that is in the source; circles end"
    (tmp_path/'more').mkdir(); photo().save(tmp_path/'more'/'z.png'); (tmp_path/'more'/'back').symlink_to(src)
    links = {'a link': tmp_path/'more', 'another': tmp_path/'more', 'aaa': src/'cats', 'circle': src, 'dst': tmp_path/'dst'}
    for name,to in links.items(): (src/name).symlink_to(to)
    (tmp_path/'dst').mkdir(); photo().save(tmp_path/'dst'/'old.png')
    want = {o.relative_to(src).as_posix() for o in src.rglob('*.*') if not any(p.is_symlink() for p in o.parents)} | {'a link/z.png'}
    assert counts(crappify_folder(lecture, src, tmp_path/'dst')) == (13, 0, 0) and set(results(tmp_path/'dst')) == want | {'old.png'}


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() == 0, reason='nothing is closed to root')
def test_closed_folder(src, tmp_path):
    (src/'cats').chmod(0)
    try: rep = crappify_folder(lecture, src, tmp_path/'a')
    finally: (src/'cats').chmod(0o755)
    assert counts(rep) == (4, 0, 1) and rep.left_out == [('cats', 'a folder that cannot be opened')]


def test_report_can_be_shown_anywhere(tmp_path):
    "Names that are not in UTF-8 do not spoil the report"
    (tmp_path/'src').mkdir()
    (tmp_path/'src'/os.fsdecode(b'\xff.txt')).write_text('no photograph')
    rep = crappify_folder(lecture, tmp_path/'src', tmp_path/'a')
    assert '\\xff.txt' in rep._repr_markdown_() and str(rep.rows()).encode('utf-8') and rep._repr_markdown_().encode('utf-8')


@pytest.mark.parametrize('size', [(1000, 12), (12, 1000), (3, 900)])
def test_strips(tmp_path, size):
    "A strip goes through the lecture's crappifier and the old family like any photograph, and comes out as a strip"
    (tmp_path/'src').mkdir(); photo(*size).save(tmp_path/'src'/'a.png')
    for fn in (lecture, old_family, *(steps[o]() for o in steps)):
        rep = crappify_folder(fn, tmp_path/'src', tmp_path/fn.name, workers=1)
        assert counts(rep) == (1, 0, 0), (fn, rep.left_out)


def test_pairs_without_the_bad_ones(src, tmp_path, monkeypatch, capsys):
    "Lesson 04's pairs: a line for each photograph that cannot be used, and pairs of the rest; also where its name is not in UTF-8"
    from course_lib import pairs as P
    (src/'cut.png').write_bytes((src/'9.png').read_bytes()[:200])
    photo(40, 30).save(src/os.fsdecode(b'\xff.png'))
    monkeypatch.setattr(P, 'get_data', lambda *args: src)
    cfg = lesson_settings('04', 'sample', files='*.png', variants=2, crappifier='downscale(20)')
    root, pairs = P.make_pairs(cfg, 'trial')
    assert sorted(o.name for o in pairs) == ['9.png', os.fsdecode(b'\xff.png')] and capsys.readouterr().out == 'cut.png: cut off or damaged. Left out\n'
    from course_lib.tensors import image_cache
    for o in pairs: P.held_out(o, root)
    assert len(image_cache(list(pairs), P.SquarePhoto.create, (16, 16))) == 2


# Workers

@pytest.fixture
def at_once(monkeypatch):
    "Workers from the second batch on, and never by a copy of this process"
    monkeypatch.setattr(C, '_soon', 0)
    def fork(): raise RuntimeError('a fork')
    monkeypatch.setattr(os, 'fork', fork)


def who(im, rng): # the process that has made it
    im = im.copy(); im.putpixel((0, 0), tuple(os.getpid().to_bytes(3, 'big')))
    return im


def test_workers(src, tmp_path, at_once):
    "Other processes do it, and the results are those of one"
    for i in range(30): photo(30, 20, seed=i).save(src/f'more{i}.png')
    crappify_folder(who, src, tmp_path/'who', workers=2)
    assert {Image.open(o).getpixel((0, 0)) for o in (tmp_path/'who').glob('*.png')} - {tuple(os.getpid().to_bytes(3, 'big'))}
    for fn in (lecture, old_family):
        for n in (1, 3): crappify_folder(fn, src, tmp_path/f'{fn.name}{n}', seed=7, workers=n)
        assert results(tmp_path/f'{fn.name}1') == results(tmp_path/f'{fn.name}3')


def test_workers_with_torch(src, tmp_path, at_once):
    "A crappifier that uses torch, after this process has used it too"
    import torch
    net = torch.nn.Conv2d(3, 3, 3, padding=1)
    def through(im, rng):
        with torch.no_grad(): y = net(torch.from_numpy(np.array(im)).permute(2, 0, 1)[None]/255)
        return who(Image.fromarray((y[0].sigmoid()*255).byte().permute(1, 2, 0).numpy()), rng)
    for i in range(8): photo(30, 20, seed=i).save(src/f'more{i}.png')
    through(photo(), None)
    assert counts(crappify_folder(through, src, tmp_path/'a', workers=2)) == (20, 0, 0)
    assert {Image.open(o).getpixel((0, 0)) for o in (tmp_path/'a').rglob('*.png')} - {tuple(os.getpid().to_bytes(3, 'big'))}


def test_workers_know_what_this_process_knows(src, tmp_path, at_once, monkeypatch):
    "The learner's steps, and the learner's modules as they are now, not as they lie on the disk"
    (tmp_path/'my_damage.py').write_text('k = 1\ndef helper(im): return im.point(lambda v: k)\n')
    monkeypatch.syspath_prepend(tmp_path)
    import my_damage
    my_damage.k = 77
    def f(im, rng): return who(my_damage.helper(im), rng)
    try:
        @S.step('overlay')
        def stripe(im, rng): im = im.copy(); im.paste('red', (0, 0, 2, 2)); return im
        assert counts(crappify_folder(chain(f, stripe()), src, tmp_path/'a', workers=2)) == (12, 0, 0)
    finally: steps.pop('stripe', None)
    for o in (tmp_path/'a').rglob('*.png'): assert Image.open(o).getpixel((5, 5)) == (77,)*3 and Image.open(o).getpixel((0, 0)) == (255, 0, 0)


def test_what_cannot_be_sent_is_done_here(src, tmp_path, at_once):
    import threading
    lock = threading.Lock()
    def f(im, rng):
        with lock: return who(im, rng)
    assert counts(crappify_folder(f, src, tmp_path/'a', workers=2)) == (12, 0, 0)


def test_worker_that_dies(src, tmp_path, at_once):
    here = os.getpid()
    def f(im, rng): return im if os.getpid() == here else os._exit(3)
    with pytest.raises(CourseError, match='a worker has died'): crappify_folder(f, src, tmp_path/'a', workers=2)
    assert counts(crappify_folder(lecture, src, tmp_path/'a')) == (12, 0, 0)


# What a function leads to

helpers = '''
k = 3
class Pen:
    wide = 2
    def __init__(self, colour): self.colour = colour
    def draw(self, im): im.paste(self.colour, (0, 0, self.wide, self.wide)); return im
def helper(im): return im.rotate(k)
'''
uses = '''
import functools, my_helpers, PIL.Image
from my_helpers import Pen
def f(im, rng): return my_helpers.helper(im)
def inside(im, rng):
    from my_helpers import helper
    return helper(im)
def pen(im, rng): return Pen('red').draw(im)
class Callable:
    def __init__(self, pen): self.pen = pen
    def __call__(self, im, rng): return self.pen.draw(im)
def two(im, rng, n=1): return im.rotate(n)
fns = [f, inside, pen, Callable(Pen('red')), Callable(Pen('red')).__call__, functools.partial(two, n=5), functools.partial(f)]
'''
marks = 'import sys; sys.path.insert(0, sys.argv[1]); from uses import fns; from course_lib.files import code_key; print(*map(code_key, fns))'

@pytest.mark.parametrize('old, new, changed', [('', '', []), ('k = 3', 'k = 4', [0, 1, 6]), ('im.rotate(k)', 'im.rotate(-k)', [0, 1, 6]), (
    'wide = 2', 'wide = 3', [0, 2, 3, 4, 6]),
    ('im.paste(self', 'im.paste(2*self', [2, 3, 4]), ('n=5', 'n=6', [5]), ("Callable(Pen('red'))", "Callable(Pen('blue'))", [3, 4]), (
    'return im.rotate(n)', 'return im.rotate(n+1)', [5]), ('# a remark', '', [])])
def test_what_changes_a_key(tmp_path, python, old, new, changed):
    "Helpers and constants of the learner's modules, methods, classes, instances, partials: the same in another session, another one where they change"
    def of(a, b):
        (tmp_path/'my_helpers.py').write_text('# a remark\n'*(not b) + helpers.replace(a or '?', b)); (tmp_path/'uses.py').write_text(uses.replace(a or '?', b))
        res = python(marks, tmp_path, PYTHONDONTWRITEBYTECODE='1', PYTHONHASHSEED=str(len(a)))
        assert not res.returncode, res.stderr
        return res.stdout.split()
    a, b = of('', ''), of(old, new)
    got = {i for i in range(len(a)) if a[i] != b[i]}
    assert got >= set(changed) and (changed or not got)


def test_what_cannot_be_looked_into_is_made_anew(src, tmp_path):
    import threading
    class Holds:
        def __init__(self): self.lock = threading.Lock()
        def __call__(self, im, rng): return im
    fn = Holds()
    assert [crappify_folder(fn, src, tmp_path/'a').made for _ in range(2)] == [12, 12]


slow = '''
import sys, time
from course_lib.crappify import *
from course_lib.old_prints import *
from course_lib.steps import *
def slowly(im, rng):
    time.sleep(.05)
    return chain(gaussian_noise(9), jpeg(50))(im, rng)
print('go', flush=True)
print(crappify_folder(slowly, sys.argv[1], sys.argv[2], seed=3, workers=2))
'''

@pytest.fixture
def start(tmp_path):
    "Start the slow run in a process of its own"
    (tmp_path/'slow.py').write_text(slow)
    procs = []
    def _f(*args):
        procs.append(subprocess.Popen([sys.executable, tmp_path/'slow.py', *map(str, args)], stdout=subprocess.PIPE, text=True))
        return procs[-1]
    yield _f
    for p in procs: p.kill(); p.wait()


def wait_for(what, seconds=patience):
    end = time.time()+seconds
    while not what():
        assert time.time() < end, 'it did not come'
        time.sleep(.01)


def test_kill_in_the_middle(tmp_path, start):
    "kill -9: whatever is there is whole; the next run keeps it and makes the rest, and the end is as if nothing had happened"
    (tmp_path/'many').mkdir()
    for i in range(60): photo(60, 50, seed=i).save(tmp_path/'many'/f'{i:02d}.jpg')
    p = start(tmp_path/'many', tmp_path/'a')
    wait_for(lambda: len(results(tmp_path/'a')) >= 10)
    p.send_signal(signal.SIGKILL); p.wait()
    there = results(tmp_path/'a')
    assert 10 <= len(there) < 60
    (tmp_path/'a'/'.crappify'/'new'/'123').write_bytes(b'half of a')
    with open(tmp_path/'a'/'.crappify'/'made.jsonl', 'a') as f: f.write('\n["59.jpg", "ab') # and a line that was cut off
    out = start(tmp_path/'many', tmp_path/'a').communicate(timeout=patience)[0]
    made, kept = (int(out.split(' ' + o)[0].split()[-1]) for o in ('made', 'kept'))
    assert made + kept == 60 and kept > 0
    start(tmp_path/'many', tmp_path/'b').wait(timeout=patience)
    assert there.items() <= results(tmp_path/'a').items() and results(tmp_path/'a') == results(tmp_path/'b')
    assert not list((tmp_path/'a'/'.crappify'/'new').iterdir())


def test_two_at_once(src, tmp_path, start):
    "The second waits, says so, and finds everything done"
    procs = [start(src, tmp_path/'a') for _ in range(2)]
    outs = [p.communicate(timeout=patience)[0] for p in procs]
    assert [p.returncode for p in procs] == [0, 0]
    assert sorted(o.splitlines()[-1] for o in outs) == ['0 made, 12 kept from before, 0 left out', '12 made, 0 kept from before, 0 left out'], outs
    start(src, tmp_path/'b').wait(timeout=patience)
    assert results(tmp_path/'a') == results(tmp_path/'b')


# On the fly

@pytest.fixture
def dls(src):
    from fastai.vision.all import DataBlock, ImageBlock, RandomSplitter, Resize, get_image_files
    def _f(fn=lecture, **kw):
        block = DataBlock((crappy_block(fn, src, 5), ImageBlock), get_items=lambda p: get_image_files(p).sorted(),
            splitter=RandomSplitter(.25, seed=1), item_tfms=Resize(48))
        return block.dataloaders(src, bs=4, **kw)
    return _f


def test_new_in_training_fixed_in_validation(dls, src, tmp_path):
    import torch
    d = dls(num_workers=0)
    xb, yb = d.one_batch()
    assert xb.shape == yb.shape == (4, 3, 48, 48) and not torch.equal(xb, yb)
    first, again = ([o[0] for o in d.valid] for _ in range(2))
    assert all(torch.equal(a, b) for a,b in zip(first, again))
    t = d.train_ds
    assert t[0][0].tobytes() != t[0][0].tobytes() and t[0][1].tobytes() == t[0][1].tobytes()
    crappify_folder(lecture, src, tmp_path/'a', seed=5)
    for f,(x,_) in zip(d.valid_ds.items, d.valid_ds): assert np.array_equal(x, Image.open(tmp_path/'a'/f.relative_to(src)).convert('RGB'))


def test_workers_draw_differently(src):
    "Two workers of a loader, and two epochs, see different damage to the same file; the seed decides all of it"
    import torch
    from fastai.vision.all import DataLoader, TfmdLists, ToTensor
    f = sorted(src.rglob('*.jpg'))[0]
    def epochs():
        torch.manual_seed(3)
        dl = DataLoader(TfmdLists([f]*8, [Crappify(gaussian_noise(20), src), ToTensor()], splits=[range(8), []]).train, bs=2, num_workers=2)
        return [bytes(o.numpy().tobytes()) for _ in range(2) for b in dl for o in b]
    a = epochs()
    assert len(set(a)) == 16


def test_crappify_takes_pictures_too(src):
    from fastai.vision.core import PILImage
    im, f = photo(), sorted(src.rglob('*.png'))[0]
    t = Crappify('downscale(30) jpeg(20)', seed=2)
    assert isinstance(t(PILImage.create(np.asarray(im))), PILImage) and t(str(f)).size == t(f).size and min(t(im).size) == 30
    assert np.array_equal(t(f, split_idx=1), crappify_photo(t.fn, Image.open(f), 2, f.name))


# Keeping

mine = """from PIL import ImageFilter
from course_lib.crappify import chain, sometimes
from course_lib.old_prints import fold
from course_lib.steps import jpeg
strength = 2
def helper(im, k=strength): return im.filter(ImageFilter.GaussianBlur(k))
def blur(im, rng): return helper(im, float(rng.uniform(1, strength)))
{} = chain(blur, jpeg(60), sometimes(.5, fold(1)))
"""

def kept(name, code):
    "A crappifier of one's own, in the folder of them"
    crappifiers_home().mkdir(parents=True, exist_ok=True)
    (crappifiers_home()/f'{name}.py').write_text(code)
    return crappifiers_home()/f'{name}.py'


def test_a_file_of_ones_own(python, data_folder, src, tmp_path, at_once):
    "The same damage here, in a Python that has seen nothing of it, and by workers; another key when the file changes"
    assert kept('one', mine.format('one')).is_relative_to(data_folder)
    kept('two', mine.format('crappifier')) # as the first version of the course kept them
    fn, key = load_crappifier('one'), code_key(load_crappifier('one'))
    want = crappify_photo(fn, photo(), 4).tobytes()
    assert crappify_photo(load_crappifier('two'), photo(), 4).tobytes() == want and code_key(load_crappifier('one')) == key
    photo().save('p.png')
    res = python('from course_lib.crappify import *; import sys; sys.stdout.write(crappify_photo(load_crappifier("one"), "p.png", 4).tobytes().hex())')
    assert res.stdout == want.hex(), res.stderr
    for n in (1, 2): crappify_folder('one', src, tmp_path/f'by{n}', workers=n)
    assert results(tmp_path/'by1') == results(tmp_path/'by2') and len(results(tmp_path/'by1')) == 12
    kept('one', mine.format('one').replace('strength = 2', 'strength = 3'))
    assert crappify_folder('one', src, tmp_path/'by1').made == 12 and code_key(load_crappifier('one')) != key


def test_a_line_of_ones_own_file():
    "What is wrong in it is told with its line"
    kept('broken', 'def broken(im, rng):\n    return im.nothing()\n')
    try: crappify_photo(load_crappifier('broken'), photo())
    except Exception as e: assert explain(e).endswith('line 2: return im.nothing()')


def test_load_errors():
    for name,said in (('nosuch', "no step 'nosuch'. Expected one of .*lecture"), ('../../x', 'steps'), ('nosuch(1)', "no step 'nosuch'"),
            ('lecture(3)', 'missing')):
        with pytest.raises(CourseError, match=said): load_crappifier(name)
    for code,said in (('edited = 1/0', 'ZeroDivisionError'), ('x = 3', 'defines no edited'), ('edited = 3', 'defines no edited'), ('def f(', 'SyntaxError')):
        kept('edited', code)
        with pytest.raises(CourseError, match=said): load_crappifier('edited')
    kept('jpeg', 'jpeg = 3')
    assert load_crappifier('jpeg') == chain(jpeg()), 'the name of a step means the step'


@pytest.mark.skipif(os.name != 'posix', reason='modes of files')
def test_only_the_readers_own_text_is_run(tmp_path, monkeypatch):
    "A crappifier's file that leads elsewhere, or that others may write to, is not run"
    f, other = kept('shared', 'from course_lib.steps import jpeg\nshared = jpeg(3)'), tmp_path/'other.py'
    assert load_crappifier('shared') == chain(jpeg(3))
    other.write_text(f'open({str(tmp_path/"done")!r}, "w"); shared = None')
    def of_another():
        f.write_text(other.read_text())
        monkeypatch.setattr(os, 'getuid', lambda: f.stat().st_uid+1)
        if os.geteuid() == 0: os.chown(f, 12345, -1)
    def writable(): f.write_text(other.read_text()); f.chmod(0o666)
    for how in (lambda: f.symlink_to(other), writable, of_another):
        f.unlink(); how()
        with pytest.raises(CourseError, match='so it is not run'): load_crappifier('shared')
    assert not (tmp_path/'done').exists()
    f.unlink()


def test_by_name(src, tmp_path):
    "A name stands for a crappifier wherever one is wanted, as `crappifier = …` in the settings does"
    kept('mine_too', 'from course_lib.crappify import *; from course_lib.steps import *; mine_too = chain(downscale(40), jpeg(30))')
    assert lesson_settings('03', 'sample').crappifier == 'lecture' and load_crappifier('lecture') == lecture
    assert lesson_settings('03', 'full', crappifier='mine_too').dataset == 'pets'
    crappify_folder('mine_too', src, tmp_path/'a'); crappify_folder('downscale(40) jpeg(30)', src, tmp_path/'b')
    assert results(tmp_path/'a') == results(tmp_path/'b') and Crappify('mine_too').fn == chain(downscale(40), jpeg(30))


def cells_of_the_lesson():
    from course_lib.core import clone_root
    return {c['id']: ''.join(c['source']) for c in json.loads((clone_root()/'nbs'/'03_crappify.ipynb').read_text(encoding='utf-8'))['cells']}


in_cells = """import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for o in json.loads(sys.argv[1]): shell.run_cell(o).raise_error()"""

def test_keep_a_previewed_step(python, src, monkeypatch):
    "Lesson 03's `keep` takes a step with a preview above it; its name, with strengths, is then text that lesson 04 makes its pairs by"
    from course_lib import pairs as P
    cells = cells_of_the_lesson()
    start = """import inspect, re, numpy as np
from PIL import Image
from course_lib.crappify import crappifiers_home, preview
from course_lib.files import write_atomic
from course_lib.steps import span, step
photos = [Image.new('RGB', (40, 30), 'white')]*3"""
    res = python(in_cells, json.dumps([start, cells['281b483a'], cells['3464e63e']]))
    assert not res.returncode and res.stdout.count('Image object') == 1, res.stdout + res.stderr
    text = (crappifiers_home()/'coffee_ring.py').read_text()
    assert 'preview' not in text and '@step' in text
    monkeypatch.setattr(P, 'get_data', lambda *args: src)
    try:
        pairs = P.make_pairs(lesson_settings('04', 'sample', files='*.png', variants=1, crappifier='coffee_ring(.2, .3) downscale(20)'), 'rings')[1]
        assert pairs and {min(Image.open(o).size) for o in pairs.values()} == {20}
        assert load_crappifier('coffee_ring').children[0].radius == (.2, .4)
        (crappifiers_home()/'coffee_ring.py').write_text(text.replace('(.2, .4)', '(.3, .5)'))
        assert load_crappifier('coffee_ring').children[0].radius == (.3, .5), 'an edited file is read again'
    finally: steps.pop('coffee_ring', None), (crappifiers_home()/'coffee_ring.py').unlink()


def test_export_of_a_previewed_step(python, tmp_path):
    "A module may hold a step with a bare preview above it: nothing is shown when a notebook imports it"
    (tmp_path/'exported.py').write_text("from course_lib.crappify import preview\nfrom course_lib.steps import span, step\n"
        "@preview\n@step('overlay')\ndef same_again(im, rng, n=span(1, 3, 2, 1, '', '')): return im.copy()\n")
    cells = ['import exported', 'from course_lib.crappify import *', "print(parse_steps('same_again(3)'))"]
    res = python(in_cells, json.dumps(cells), PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert res.stdout == 'chain(same_again(3))\n', res.stdout + res.stderr


def test_text_wherever_a_crappifier_is_taken(src, tmp_path):
    from course_lib.apps.lab import CrappifyLab
    from course_lib.damage import damage_of
    said, im = 'downscale(20) jpeg(10)', photo()
    fn = parse_steps(said)
    assert crappify_photo(said, im, 3).tobytes() == crappify_photo(fn, im, 3).tobytes() and smallest_read(said) == 20
    assert chain(said, fold(1)) == chain(fn, fold(1)) and one_of(said) == one_of(fn) and sometimes(.5, said) == sometimes(.5, fn)
    assert Crappify(said).fn == CrappifyLab(im, said).fn == fn
    files = sorted(src.rglob('*.png'))[:2]
    assert damage_of(said, files) == damage_of(fn, files) and damage_of('chain', files)['psnr'] == float('inf')
    with pytest.raises(CourseError, match="no step 'jepg'"): chain('jepg(3)')


def test_step_of_ones_own():
    "A new step is in the library, in text, and has a signature of its own"
    try:
        @S.step('overlay')
        def stripe(im, rng, wide=S.span(1, 9, (2, 4), 1, 'px', 'of the stripe'), colour=S.choice(['red', 'blue'], 'of the stripe')):
            "A red stripe"
            im = im.copy(); im.paste(colour, (0, 0, wide, im.height))
            return im
        assert parse_steps('stripe(3)') == chain(stripe(3)) and crappify_photo(stripe(3), photo()).getpixel((2, 5)) == (255, 0, 0)
        assert repr(stripe(3, colour='blue')) == "stripe(3, colour='blue')" and stripe.__doc__ == 'A red stripe' and code_key(stripe(3)) != code_key(stripe(4))
        assert list(inspect.signature(stripe).parameters) == ['wide', 'colour'] and stripe.__module__ == __name__
    finally: steps.pop('stripe', None)


def test_explain():
    "Only the learner's own line; a CourseError speaks for itself"
    def f(im, rng): return 1/0
    try: crappify_photo(chain(f), photo())
    except Exception as e: assert explain(e) == f'ZeroDivisionError: division by zero; line {f.__code__.co_firstlineno}: def f(im, rng): return 1/0'
    assert explain(CourseError('so it is')) == 'so it is' and isinstance(old_family, Step)
