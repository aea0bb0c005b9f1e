"Samples are made once and whole, whoever asks and whatever goes wrong, and the same on every machine"
import signal, subprocess, sys, time
from collections import Counter
import pytest
from PIL import Image
from conftest import patience
from course_lib.core import CourseError
from course_lib.data import check_layout, registry
from course_lib.samples import make_sample, pixels_digest, sample, samples

names = [k for k,v in registry().items() if 'sample' in v]

maker = '''
import os, sys, time
from pathlib import Path
from course_lib.samples import *
home = Path(sys.argv[1])
@sample('toy')
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
half_way = maker.replace("str(i))", "str(i))\n        if i == 2 and len(sys.argv) > 2: (home/'half').touch(); time.sleep(60)") + "make_sample('toy', home/'sample')\n"


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
    monkeypatch.setattr('course_lib.samples.samples', {})
    make = {'a': _make_a, 'b': _make_b}[text]
    return sample('toy', **kwargs)(make)

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
    sample('toy')(broken)
    with pytest.raises(ZeroDivisionError): make_sample('toy', tmp_path)
    assert (tmp_path/'toy'/'x.txt').read_text() == 'a'
    assert [o.name for o in tmp_path.iterdir() if o.is_dir()] == ['toy']


def test_unknown():
    with pytest.raises(CourseError, match='mnist'): make_sample('nosuch')


@pytest.fixture(scope='module', params=names)
def fresh(request, tmp_path_factory): return request.param, make_sample(request.param, tmp_path_factory.mktemp('fresh'))


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


def test_every_sample_has_a_maker(): assert set(names) == set(samples)


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
