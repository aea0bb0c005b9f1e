"Decoded pictures are never out of date, and batches taken from them are fastai's own"
import os, subprocess, sys
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
import pytest, torch
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, IndexSplitter, PILImageBW, Resize, TensorImageBW, TfmdDL, get_image_files,
    parent_label)
from PIL import Image
from conftest import patience
from course_lib.core import CourseError
from course_lib.files import code_key
from course_lib.data import get_data
from course_lib.tensors import RandomPadCrop, TensorDL, image_cache, random_crop


# ---- pictures decoded once

def draw(f, grey, size=(6, 5)): Image.new('L', size, grey).save(f) # a BMP: its size does not depend on what it shows


@pytest.fixture
def pics(tmp_path):
    files = [tmp_path/f'{i}.bmp' for i in range(4)]
    for i,f in enumerate(files): draw(f, 10*i)
    return files


@pytest.fixture
def cache(tmp_path):
    "`image_cache` that counts the pictures it opens"
    def _open(f): _f.opened.append(f); return PILImageBW.create(f)
    def _f(files, **kwargs): return image_cache(files, _open, home=tmp_path/'cache', **kwargs)
    _f.opened = []
    return _f


def greys(x): return x[:, 0, 0, 0].tolist()

def later(f): # a new time of change, whatever the clock's steps
    s = f.stat()
    os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns+1_000_000_000))


def test_decoded_once(cache, pics):
    x = cache(pics)
    assert x.shape == (4, 1, 5, 6) and x.dtype == torch.uint8 and greys(x) == [0, 10, 20, 30]
    n = len(cache.opened)
    assert greys(cache(pics)) == [0, 10, 20, 30] and len(cache.opened) == n


def test_cache_is_not_written_through(cache, pics):
    x = cache(pics)
    x[0] = 99
    assert greys(cache(pics)) == [0, 10, 20, 30]


def test_changed_file(cache, pics):
    "Same name, same size, another time"
    cache(pics)
    size = pics[2].stat().st_size
    draw(pics[2], 200); later(pics[2])
    assert pics[2].stat().st_size == size
    assert greys(cache(pics)) == [0, 10, 200, 30]


def test_added_and_removed_file(cache, pics, tmp_path):
    cache(pics)
    draw(tmp_path/'4.bmp', 40)
    assert greys(cache([*pics, tmp_path/'4.bmp'])) == [0, 10, 20, 30, 40]
    pics[1].unlink()
    with pytest.raises(CourseError, match='1.bmp'): cache(pics)
    assert greys(cache([pics[0], *pics[2:]])) == [0, 20, 30]


def test_other_order(cache, pics):
    cache(pics)
    assert greys(cache(pics[::-1])) == [30, 20, 10, 0]


def test_unequal_sizes(cache, pics):
    draw(pics[3], 30, size=(7, 5))
    with pytest.raises(CourseError, match='3.bmp.*sz='): cache(pics)
    assert cache(pics, sz=(5, 6)).shape == (4, 1, 5, 6)


def test_broken_picture(cache, pics):
    "Named, and nothing half-made is taken for a cache afterwards"
    good = pics[2].read_bytes()
    pics[2].write_bytes(b'no picture')
    with pytest.raises(CourseError, match='2.bmp'): cache(pics)
    pics[2].write_bytes(good)
    assert greys(cache(pics)) == [0, 10, 20, 30]


def test_no_pictures(cache):
    with pytest.raises(CourseError, match='empty'): cache([])


two = '''
import os, sys, time
from pathlib import Path
from PIL import Image
from course_lib.tensors import image_cache
home = Path(sys.argv[1])
def open_slowly(f):
    with open(home/'opened', 'a') as o: o.write('x')
    time.sleep(.1)
    return Image.open(f)
(home/f'ready-{os.getpid()}').touch()
while len(list(home.glob('ready-*'))) < 2: time.sleep(.01)
print(image_cache(sorted(home.glob('*.bmp')), open_slowly, home=home/'cache')[:, 0, 0, 0].tolist())
'''

def test_two_processes_at_once(pics, tmp_path):
    "Both see the whole, and it was decoded once (the first picture twice, for its shape)"
    procs = [subprocess.Popen([sys.executable, '-c', two, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try: assert [p.communicate(timeout=patience)[0].splitlines()[-1] for p in procs] == ['[0, 10, 20, 30]']*2
    finally:
        for p in procs: p.kill()
    assert len((tmp_path/'opened').read_text()) == 5


def test_edited_opener(pics, tmp_path):
    "Every lambda has the same name: the code counts, a default, what it closes over, and a function that it calls"
    opened = lambda f: greys(image_cache(pics, f, home=tmp_path/'cache'))
    plus = lambda im, n: im.point(lambda v: v+n)
    def closing(n): return lambda f: plus(PILImageBW.create(f), n)
    def default(f, n=3): return plus(PILImageBW.create(f), n)
    assert opened(lambda f: PILImageBW.create(f)) == [0, 10, 20, 30]
    assert opened(lambda f: plus(PILImageBW.create(f), 1)) == [1, 11, 21, 31]
    assert opened(closing(2)) == [2, 12, 22, 32]
    assert opened(default) == [3, 13, 23, 33]
    default.__defaults__ = 4,
    assert opened(default) == [4, 14, 24, 34]
    assert opened(partial(default, n=5)) == [5, 15, 25, 35]
    plus = lambda im, n: im.point(lambda v: v+n+100)
    assert opened(default) == [104, 114, 124, 134]


edited = '''
import sys
from pathlib import Path
from PIL import Image
from fastai.vision.all import PILImage
from course_lib.tensors import image_cache
import helper
class Base(PILImage):
    @classmethod
    def create(cls, f): (Path(sys.argv[1])/'opened').open('a').write('x'); return cls(Image.open(f).convert('RGB').point(lambda v: v+1))
class Photo(Base):
    @classmethod
    def create(cls, f): return helper.change(super().create(f))
files = sorted(Path(sys.argv[1]).glob('*.bmp'))
print([int(o) for o in image_cache(files, Photo.create, home=Path(sys.argv[1])/'cache')[:, 0, 0, 0]])
'''
helper = 'add = 0\ndef change(im): return im.point(lambda v: v+add)\n'

def test_edited_class_in_another_process(pics, tmp_path, python):
    "A method of its base, and a constant beside a function of another file; without an edit nothing is opened again"
    def run(code, help):
        (tmp_path/'helper.py').write_text(help)
        res = python(code, tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]), PYTHONDONTWRITEBYTECODE='1')
        return res.stdout.strip().splitlines()[-1]
    opened = lambda: len((tmp_path/'opened').read_text())
    assert run(edited, helper) == '[1, 11, 21, 31]'
    n = opened()
    assert run(edited, helper) == '[1, 11, 21, 31]' and opened() == n
    assert run(edited.replace('v+1', 'v+2'), helper) == '[2, 12, 22, 32]'
    assert run(edited.replace('v+1', 'v+2'), helper.replace('add = 0', 'add = 5')) == '[7, 17, 27, 37]'


def test_openers_of_the_lessons_have_one_key_in_every_process(python):
    "And so have functions, methods, partials and classes of libraries: else caches would be built for every run"
    code = ("from functools import partial; from course_lib.files import code_key; from course_lib import gan, pairs, wgan; from fastai.vision.all import *\n"
            "print([code_key(o) for o in (pairs.SquarePhoto.create, wgan.open_square, PILMask.create, PILImage.create, "
            "partial(PILImage.create, mode='L'), gan.InputUnet)])")
    one, two = (python(code, PYTHONHASHSEED=o).stdout.splitlines()[-1] for o in '12')
    assert one == two and len(set(eval(one))) == 6


@dataclass(frozen=True)
class Blur:
    sigma:float = 2

def test_dataclasses_can_be_looked_into():
    "What a decorator has made of a class is no reason for a new key; its values and its methods are"
    assert code_key(lambda f: Blur(2)) == code_key(lambda f: Blur(2)) and code_key(Blur()) == code_key(Blur(2)) != code_key(Blur(3))
    one, two = (dataclass(type('Noise', (), {'__annotations__': {'n': int}, 'n': k, '__module__': __name__})) for k in (1, 2))
    assert code_key(one) == code_key(one) != code_key(two)


def test_what_cannot_be_looked_into_is_always_new():
    gen = (i for i in range(3))
    assert code_key(lambda f: next(gen)) != code_key(lambda f: next(gen))


@pytest.mark.parametrize('name', ['x.npy', 'stats.npy', 'code'])
@pytest.mark.parametrize('keep', [0, 1, .5, 'other'])
def test_damaged_cache_is_built_again(cache, pics, tmp_path, name, keep):
    "Cut off to nothing, to a byte, to a half, or another thing"
    cache(pics)
    f, = (tmp_path/'cache').glob(f'*/{name}')
    whole = f.read_bytes()
    f.write_bytes(b'PK\3\4 something else' if keep == 'other' else whole[:keep if isinstance(keep, int) else len(whole)//2])
    n = len(cache.opened)
    assert greys(cache(pics)) == [0, 10, 20, 30] and len(cache.opened) > n
    assert f.read_bytes() == whole
    n = len(cache.opened)
    assert greys(cache(pics)) == [0, 10, 20, 30] and len(cache.opened) == n


def test_no_room_for_a_cache(cache, pics, tmp_path, monkeypatch):
    "One line before anything is written: a mapped file on a full disk would end the process"
    monkeypatch.setattr('course_lib.data.shutil.disk_usage', lambda _: SimpleNamespace(free=10))
    with pytest.raises(CourseError, match='COURSE_DATA') as e: cache(pics)
    assert '\n' not in str(e.value) and not [o for o in (tmp_path/'cache').iterdir() if o.is_dir()]


# ---- batches taken from tensors

@pytest.fixture
def digits():
    "DataLoaders on the sample's held-out digits: 240 to train on, 120 to validate"
    path = get_data('mnist', 'sample')
    def _f(dl_type, **kwargs):
        block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=lambda p: sorted(get_image_files(p/'testing')),
            get_y=parent_label, splitter=IndexSplitter(range(0, 360, 3)), batch_tfms=kwargs.pop('batch_tfms', None), item_tfms=kwargs.pop('item_tfms', None))
        return block.dataloaders(path, bs=64, dl_type=dl_type, device=torch.device('cpu'), num_workers=0, **kwargs)
    return _f


def test_same_batches_as_fastai(digits):
    "TensorDL gives what fastai's loader gives: values, types, order, and a shorter last batch"
    ours, stock = (list(digits(o).valid) for o in (TensorDL, TfmdDL))
    assert [len(x) for x,_ in ours] == [64, 56]
    for (x,y), (x2,y2) in zip(ours, stock, strict=True):
        assert type(x) is type(x2) is TensorImageBW and type(y) is type(y2)
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_an_epoch_sees_every_item_once(digits):
    "Shuffled anew each epoch, and without the incomplete batch in training"
    dl = digits(TensorDL).train
    assert [len(x) for x,_ in dl] == [64]*3
    dl = dl.new(drop_last=False)
    one, two = (torch.cat([x.flatten(1) for x,_ in dl]) for _ in range(2))
    rows = lambda x: sorted(map(bytes, (x*255).round().byte().numpy()))
    assert rows(one) == rows(two) == rows(dl.tensors()[0].flatten(1)/255.)
    assert not torch.equal(one, two)


def test_labels_stay_with_their_pictures(digits):
    dl = digits(TensorDL).train
    x, y = dl.tensors()
    label = {bytes(o.numpy()): int(c) for o,c in zip(x, y)}
    xb, yb = dl.one_batch()
    assert [label[bytes(o.numpy())] for o in (xb*255).round().byte()] == yb.tolist()


def test_each_picture_its_own_crop():
    "In one batch of equal pictures, the paddings differ"
    x = torch.rand(1, 1, 8, 8).expand(64, 1, 8, 8)
    y = random_crop(x, 2)
    assert y.shape == x.shape and len({bytes(o.numpy()) for o in y}) > 10
    assert torch.equal(random_crop(x, 2, *[torch.full((64,), 2)]*2), x)


def test_crops_in_training_only(digits):
    padded, plain = (digits(TensorDL, batch_tfms=o) for o in ([RandomPadCrop(3)], None))
    assert all(torch.equal(a[0], b[0]) for a,b in zip(padded.valid, plain.valid, strict=True))
    x, _ = padded.train.tensors()
    known = {bytes(o.numpy()) for o in x}
    xb = (padded.train.one_batch()[0]*255).round().byte()
    assert any(bytes(o.numpy()) not in known for o in xb)


def test_item_transforms_are_refused(digits):
    with pytest.raises(CourseError, match='Resize.*batch_tfms'): digits(TensorDL, item_tfms=Resize(14))


def test_new_size(digits):
    "Another loader on the same pictures has its own size, few or many of them, and the old one keeps its"
    dl = digits(TensorDL).valid
    shape = lambda o: tuple(o.one_batch()[0].shape[-2:])
    assert shape(dl) == (28, 28)
    small = dl.new(sz=(14, 14))
    assert shape(small) == (14, 14) and shape(dl) == (28, 28) and shape(small.new()) == (14, 14)
    assert shape(small.new(sz=(7, 21))) == (7, 21) and shape(small.new(sz=None)) == (28, 28) and shape(small) == (14, 14)
    few = digits(TensorDL).test_dl(dl.items[:5])
    assert [shape(o) for o in (few.new(sz=(14, 14)), few.new(sz=(14, 14)).new(sz=(7, 21)), few)] == [(14, 14), (7, 21), (28, 28)]
    assert dl.new()._tensors is dl._tensors # not decoded again
