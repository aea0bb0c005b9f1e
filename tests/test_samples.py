"Samples are made once and whole, whoever asks and whatever goes wrong, and the same on every machine"
import ast, inspect, os, shutil, signal, subprocess, sys, time
from collections import Counter
import pytest
from PIL import Image
from conftest import patience
from course_lib.core import CourseError, data_home, lesson_settings, lessons, registry
from course_lib.data import check_layout, count_files, get_data
from course_lib.samples import make as making
from course_lib.samples.make import find_maker, known_files, make_sample, pixels_digest, sample_maker, sample_stamp

names = [k for k,v in registry().items() if 'sample' in v]

maker = '''
import os, sys, time
from pathlib import Path
from course_lib.samples.make import *
home = Path(sys.argv[1])
@sample_maker('toy')
def make_toy(path):
    with open(home/'builds', 'a') as f: f.write('built\\n')
    for i in range(5):
        (path/f'{i}.txt').write_text(str(i))
        time.sleep(.1)
'''
together = maker + '''
(home/f'ready-{os.getpid()}').touch()
while len(list(home.glob('ready-*'))) < 4: time.sleep(.01)
path = make_sample('toy', home/'sample')
print(sorted(o.name for o in path.glob('*.txt')))
'''
stop = "str(i))\n        if i == 2 and len(sys.argv) > 2: (home/'half').touch(); time.sleep(60)"
half_way = maker.replace("str(i))", stop) + "make_sample('toy', home/'sample')\n"


@pytest.fixture
def start(tmp_path):
    "Start a script in a process of its own, and end it with the test"
    procs = []
    def _f(code, *args):
        f = tmp_path/f'script{len(procs)}.py' # one each: a process must not read what another is just being written
        f.write_text(code)
        procs.append(subprocess.Popen([sys.executable, f, *map(str, args)], stdout=subprocess.PIPE, text=True))
        return procs[-1]
    yield _f
    for p in procs: p.kill(); p.wait()


def wait_for(path, seconds=patience):
    end = time.time()+seconds
    while not path.exists():
        assert time.time() < end, f'{path.name} did not come'
        time.sleep(.02)


def builds(home): return len((home/'builds').read_text().splitlines())


def test_four_at_once(tmp_path, start):
    "Four processes that start together build once, and all see the whole"
    procs = [start(together, tmp_path) for _ in range(4)]
    saw = [p.communicate(timeout=patience)[0].strip() for p in procs]
    assert saw == [str([f'{i}.txt' for i in range(5)])]*4
    assert builds(tmp_path) == 1


def test_killed_half_way(tmp_path, start):
    "What a killed build leaves is not taken for finished, and the next call makes it whole and cleans up"
    p = start(half_way, tmp_path, 'stop')
    wait_for(tmp_path/'half')
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (tmp_path/'sample'/'toy').exists()
    assert start(half_way, tmp_path).wait(60) == 0
    assert len(list((tmp_path/'sample'/'toy').glob('*.txt'))) == 5 and builds(tmp_path) == 2
    assert [o.name for o in (tmp_path/'sample').iterdir() if o.is_dir()] == ['toy']


def register(monkeypatch, text, **kwargs):
    monkeypatch.setattr(making, 'makers', {})
    make = {'a': _make_a, 'b': _make_b}[text]
    return sample_maker('toy', **kwargs)(make)

def _make_a(path): (path/'x.txt').write_text('a')
def _make_b(path): (path/'x.txt').write_text('b')


def test_changed_maker(tmp_path, monkeypatch):
    "Another maker, or another version of it, builds anew; the same one does not"
    built = lambda: make_sample('toy', tmp_path)/'x.txt'
    register(monkeypatch, 'a')
    assert built().read_text() == 'a'
    stat = built().stat()
    assert (built().stat().st_ino, built().stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    register(monkeypatch, 'b')
    assert built().read_text() == 'b'
    old = built().stat().st_mtime_ns
    register(monkeypatch, 'b', version=2)
    assert built().stat().st_mtime_ns > old


def test_damaged(tmp_path):
    "A sample that has lost a file is made again"
    path = make_sample('human_numbers', tmp_path)
    (path/'valid.txt').unlink()
    assert (make_sample('human_numbers', tmp_path)/'valid.txt').exists()


def test_failing_maker(tmp_path, monkeypatch):
    "A maker that fails leaves nothing, and the old sample stays"
    register(monkeypatch, 'a')
    make_sample('toy', tmp_path)
    def broken(path): (path/'x.txt').write_text('half'); 1/0
    sample_maker('toy')(broken)
    with pytest.raises(ZeroDivisionError): make_sample('toy', tmp_path)
    assert (tmp_path/'toy'/'x.txt').read_text() == 'a'
    assert [o.name for o in tmp_path.iterdir() if o.is_dir()] == ['toy']


def test_unknown():
    with pytest.raises(CourseError, match='mnist'): make_sample('nosuch')


@pytest.fixture(params=names)
def fresh(request): return request.param, make_sample(request.param) # the clone's, where this code has made it there


def test_same_on_every_machine(fresh):
    "Counts and pixels are those that the registry knows"
    name, path = fresh
    card = registry()[name]['sample']
    assert check_layout(name, path, card['layout']) == card['count'] == sum(card['layout'].values())
    assert pixels_digest(path) == card['sha256']


def test_digest_sees_a_pixel(tmp_path):
    "One pixel changed, or a file renamed, is another checksum"
    path = make_sample('mnist', tmp_path)
    before, f = pixels_digest(path), path/'testing'/'8'/next((path/'testing'/'8').glob('*.png')).name
    im = Image.open(f).copy()
    im.putpixel((14, 14), 255-im.getpixel((14, 14))); im.save(f)
    after = pixels_digest(path)
    f.rename(f.with_name('renamed.png'))
    assert len({before, after, pixels_digest(path)}) == 3


def test_every_sample_has_a_maker():
    "The module that the registry names makes the sample of that name"
    assert [find_maker(o).kind.rpartition('-')[0] for o in names] == names


def test_makers_are_imported_when_asked_for(python, tmp_path):
    "Neither the data's module nor one sample's maker imports what draws the others"
    code = "import sys; from course_lib.{}; print(*sorted(o.split('.')[2] for o in sys.modules if o.startswith('course_lib.samples.')))"
    drawn = lambda what: set(python(code.format(what)).stdout.split())
    assert drawn('data import get_data') == {'make'}
    got = drawn(f"samples.make import make_sample; from pathlib import Path; make_sample('human_numbers', Path({str(tmp_path)!r}))")
    assert got == {'make', 'numbers'}


def test_digits(data_folder):
    "Grey pictures of 28×28; none is in both parts"
    path = make_sample('mnist')
    ims = {part: [Image.open(f) for f in sorted((path/part).glob('*/*.png'))] for part in ('training', 'testing')}
    assert {(o.mode, o.size) for v in ims.values() for o in v} == {('L', (28, 28))}
    train, valid = ({o.tobytes() for o in ims[k]} for k in ('training', 'testing'))
    assert not train & valid


def test_photos():
    "No photograph is on both sides, by name or by its patches"
    path = make_sample('photos')
    train, valid = {o.name for o in (path/'train').iterdir()}, {o.stem for o in (path/'valid').iterdir()}
    assert len(train) == 6 and len(valid) == 3 and not train & valid
    corners = Counter(Image.open(f).convert('RGB').tobytes() for f in path.glob('*/*/*.png'))
    assert max(corners.values()) == 1


def test_human_numbers():
    "The lecture's 13,017 validation tokens, a separator for each line"
    lines = (make_sample('human_numbers')/'valid.txt').read_text().splitlines()
    assert sum(len(o.split())+1 for o in lines) == 13_017
    assert lines[0].strip() == 'eight thousand one' and lines[-1].strip() == 'nine thousand nine hundred ninety nine'
    assert len((make_sample('human_numbers')/'train.txt').read_text().splitlines()) == 7_999


# ---- a reader's files

def a_sample(monkeypatch, tmp_path, text='a', **kwargs):
    register(monkeypatch, text, **kwargs)
    return make_sample('toy', tmp_path)


def test_readers_files_stay(tmp_path, monkeypatch, capsys):
    "A file and a folder that the course did not make outlive a new version, are told once, and are not taken for the sample's"
    path = a_sample(monkeypatch, tmp_path)
    (path/'mine').mkdir()
    for o in ('mine.jpg', 'mine/too.jpg'): (path/o).write_text('my own')
    stat = (path/'x.txt').stat()
    assert a_sample(monkeypatch, tmp_path) == path and (path/'x.txt').stat().st_mtime_ns == stat.st_mtime_ns # not made anew for it
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and 'mine.jpg and 1 more' in said and 'folder of your own' in said
    a_sample(monkeypatch, tmp_path, 'b', version=2)
    assert (path/'x.txt').read_text() == 'b' and all((path/o).read_text() == 'my own' for o in ('mine.jpg', 'mine/too.jpg'))
    assert capsys.readouterr().out == ''
    assert known_files(sorted(path.rglob('*.*'))) == [path/'x.txt'] and known_files([tmp_path/'else.txt']) == [tmp_path/'else.txt']


def test_lost_file_beside_a_readers(tmp_path, monkeypatch):
    "A lost file is made again although the number of files is right"
    path = a_sample(monkeypatch, tmp_path)
    (path/'x.txt').unlink()
    (path/'mine.jpg').write_text('my own')
    a_sample(monkeypatch, tmp_path)
    assert (path/'x.txt').read_text() == 'a' and (path/'mine.jpg').read_text() == 'my own'


def test_changed_file_is_kept_aside(tmp_path, monkeypatch, capsys):
    "A picture of ours with another in its place is somebody's work"
    path = a_sample(monkeypatch, tmp_path)
    for i in (1, 2):
        (path/'x.txt').write_text(f'my own {i}')
        a_sample(monkeypatch, tmp_path, 'b', version=i+1)
        assert (path/'x.txt').read_text() == 'b' and (path/f'x.txt.yours{i}').read_text() == f'my own {i}'
        assert f'x.txt.yours{i}' in capsys.readouterr().out


def test_file_of_an_older_version_goes(tmp_path, monkeypatch):
    "What the course made and makes no more is removed, unless somebody changed it"
    def two(path): (path/'old').mkdir(); [(path/'old'/o).write_text('old') for o in ('1.txt', '2.txt')]
    monkeypatch.setattr(making, 'makers', {})
    sample_maker('toy')(two)
    path = make_sample('toy', tmp_path)
    (path/'old'/'2.txt').write_text('my own')
    a_sample(monkeypatch, tmp_path)
    assert sorted(o.relative_to(path).as_posix() for o in path.rglob('*.txt')) == ['old/2.txt', 'x.txt']


def test_linked_sample(tmp_path, monkeypatch):
    "A sample folder that is a link, to a folder that is there or not yet, is filled where it lies"
    (tmp_path/'disk').mkdir(); (tmp_path/'home').mkdir()
    (tmp_path/'home'/'toy').symlink_to(tmp_path/'disk'/'toy')
    for version in (1, 2):
        register(monkeypatch, 'a', version=version)
        assert (make_sample('toy', tmp_path/'home')/'x.txt').read_text() == 'a'
        assert (tmp_path/'home'/'toy').is_symlink() and (tmp_path/'disk'/'toy'/'x.txt').exists()


def test_no_folder_to_make_it_in(tmp_path, monkeypatch):
    "A file where the folder should be: one line that says what to do"
    register(monkeypatch, 'a')
    (tmp_path/'toy').write_text('a file')
    with pytest.raises(CourseError, match='COURSE_DATA') as e: make_sample('toy', tmp_path)
    assert '\n' not in str(e.value) and (tmp_path/'toy').read_text() == 'a file'


kit = '''
from functools import partial
size = 3
'''
toys = '''
from course_lib.samples.make import make_sample, sample_maker
from ..kit import size
@sample_maker('toy')
def make_toy(path):
    (path/'x.txt').write_text('x'*size)
'''
use = "import sys; from pathlib import Path; import toys.draw.maker; from course_lib.samples.make import make_sample; make_sample('toy', Path(sys.argv[1]))"

def test_stamp_covers_what_the_maker_draws_with(tmp_path, python):
    "A number in a module that the maker imports, here from the folder above: another sample"
    (tmp_path/'toys'/'draw').mkdir(parents=True)
    for name,code in (('__init__', ''), ('kit', kit), ('draw/__init__', ''), ('draw/maker', toys)): (tmp_path/'toys'/f'{name}.py').write_text(code)
    env = dict(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]), PYTHONDONTWRITEBYTECODE='1')
    made = lambda: python(use, tmp_path/'home', **env).check_returncode() or (tmp_path/'home'/'toy'/'x.txt')
    assert made().read_text() == 'xxx'
    before = made().stat().st_mtime_ns
    assert made().stat().st_mtime_ns == before
    (tmp_path/'toys'/'kit.py').write_text(kit.replace('3', '5'))
    assert made().read_text() == 'xxxxx'


@pytest.mark.parametrize('module', sorted({v['sample']['maker'] for v in registry().values() if 'sample' in v}))
def test_stamp_covers_the_whole_module(module):
    "Every function, class and table of the module that draws, however far from its makers"
    makers = [find_maker(k) for k,v in registry().items() if 'sample' in v and v['sample']['maker'] == module]
    module = sys.modules[makers[0].__module__]
    top = [o for o in ast.parse(inspect.getsource(module)).body if not isinstance(o, (ast.FunctionDef, ast.ClassDef))]
    at_import = {n.id for o in top for n in ast.walk(o) if isinstance(n, ast.Name)}
    for k,v in vars(module).items():
        if k.startswith('__') or getattr(v, '__module__', module.__name__) != module.__name__: continue
        if inspect.isfunction(v) and k in at_import: continue # what it gave is in a table
        before, v = [*map(sample_stamp, makers)], inspect.unwrap(v)
        if inspect.isfunction(v): old = v.__kwdefaults__; v.__kwdefaults__ = {'more': 1}; undo = lambda: setattr(v, '__kwdefaults__', old)
        elif isinstance(v, type): v.more = 1; undo = lambda: delattr(v, 'more')
        elif isinstance(v, list): v.append(1); undo = v.pop
        elif isinstance(v, dict): v['more'] = 1; undo = lambda: v.pop('more')
        else: continue
        try: assert [*map(sample_stamp, makers)] != before, k
        finally: undo()
        assert [*map(sample_stamp, makers)] == before


# ---- the lessons' readers beside a reader's files

def lessons_items():
    "What each lesson reads of its sample: lesson → files, in some order"
    from course_lib import cyclegan, darknet, pairs, resnet, scenes, style, wgan
    cfg = {o: lesson_settings(o, 'sample') for o in lessons()}
    ten, one = (f(get_data(d, 'sample'), 16) for f,d in ((darknet.cifar_dls, 'cifar10'), (resnet.mnist_dls, 'mnist')))
    unpaired = cyclegan.UnalignedDataset(get_data('horse2zebra', 'sample'), 'train', 48, 48)
    res = {'01': [o for d in one for o in d.items], '10': [o for d in ten for o in d.items], '07': unpaired.files_a+unpaired.files_b,
           '02': sum(scenes.scene_files(get_data('camvid12', 'sample')).values(), []), '06': wgan.listed_pictures(get_data('bedrooms', 'sample')),
           '08': style.style_files(get_data('style_images', 'sample'), cfg['08_style_transfer'])}
    photos = get_data('photos', 'sample')
    twins = data_home()/'twins'
    for o in photos.glob('*/*/*.png'): (twins/o.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True); (twins/o.relative_to(photos)).touch()
    return {**res, '04': list(pairs.pair_files(photos, twins, cfg['04_gan_superres'].files)), 'patches': len(known_files((photos/'train').rglob('*.png')))}


def test_lessons_read_their_own_files(data_folder, tmp_path, monkeypatch):
    "A photograph in every folder of every sample: no lesson stops, none takes it for its own, and all of them are still there afterwards"
    for name in names: make_sample(name)
    shutil.copytree(data_folder/'sample', tmp_path/'data'/'sample', ignore=lambda *_: ['truth'])
    monkeypatch.setenv('COURSE_DATA', str(tmp_path/'data'))
    before = lessons_items()
    counts = {o: count_files(get_data(o, 'sample'), registry()[o]['sample']['layout']) for o in names}
    mine = []
    for d in [o for name in names for o in [tmp_path/'data'/'sample'/name, *(tmp_path/'data'/'sample'/name).rglob('*')] if o.is_dir()]:
        (d/'mine').mkdir()
        mine += [d/f'{o}.{e}' for o in ('content_mine', 'style_mine', 'mine/1', 'mine') for e in ('jpg', 'png')]
    for o in mine: Image.new('RGB', (70, 50), 'red').save(o)
    assert lessons_items() == before
    assert counts == {o: count_files(get_data(o, 'sample'), registry()[o]['sample']['layout']) for o in names}
    assert all(o.exists() for o in mine)


def test_lesson_08_takes_what_a_setting_names(data_folder, tmp_path):
    "A painting of the reader's beside the sample's own, and one line where there is none of that name"
    from course_lib.style import style_files
    path = shutil.copytree(make_sample('style_images'), tmp_path/'own')
    own = sorted(o.name for o in path.glob('*_*'))
    Image.new('RGB', (70, 50), 'red').save(path/'style_mine.jpg')
    cfg = lesson_settings('08', 'sample')
    assert [o.name for o in style_files(path, cfg)] == own
    assert [o.name for o in style_files(path, lesson_settings('08', 'sample', style_name='mine'))] == sorted([*own, 'style_mine.jpg'])
    with pytest.raises(CourseError, match='style_name = nobody.*night') as e: style_files(path, lesson_settings('08', 'sample', style_name='nobody'))
    assert '\n' not in str(e.value)
