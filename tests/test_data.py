"Full datasets are whole or refused, and decoded pictures are never out of date"
import hashlib, http.server, io, os, socket, subprocess, sys, tarfile, threading, time
from pathlib import Path
import numpy as np, pytest, torch
from fastai.vision.all import (AttrDict, CategoryBlock, Config, DataBlock, ImageBlock, IndexSplitter, PILImageBW, Resize, TensorImageBW,
    TfmdDL, get_image_files, parent_label)
from PIL import Image
from course_lib import data
from course_lib.core import CourseError
from course_lib.data import RandomPadCrop, TensorDL, full_data, get_data, image_cache, random_crop


# ---- full datasets: a small one of three files, and everything that can be wrong with it

layout = {'train/*.txt': 2, 'valid/*.txt': 1}
good = ['toy/train/1.txt', 'toy/train/2.txt', 'toy/valid/3.txt']


def tgz(names):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as t:
        for o in names:
            text = os.urandom(3000)
            info = tarfile.TarInfo(o)
            info.size = len(text)
            t.addfile(info, io.BytesIO(text))
    return f.getvalue()


@pytest.fixture
def home(tmp_path, monkeypatch):
    "fastai's folders, empty, and no proxy between us and our own server"
    cfg = Config(tmp_path/'fastai', 'config.ini', create=dict(data='data', archive='archive'))
    monkeypatch.setattr(data, 'fastai_cfg', lambda: cfg)
    monkeypatch.setenv('no_proxy', '*')
    for o in ('data', 'archive'): (tmp_path/'fastai'/o).mkdir()
    return tmp_path/'fastai'


@pytest.fixture
def toy(home, monkeypatch):
    "Put a dataset with this address into the registry"
    def _f(url, **known):
        card = {**dict(url=url, folder='toy', count=3, bytes=9_000_000, layout=layout, licence='none'), **known}
        monkeypatch.setattr(data, 'registry', lambda: {'toy': AttrDict(full=card)})
    return _f


@pytest.fixture
def serve():
    "Serve some bytes, and say that there are `size` of them; gives the address"
    servers = []
    def _f(body, size=None):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header('Content-Length', str(size or len(body)))
                self.end_headers()
                self.wfile.write(body)
            def log_message(self, *args): pass
        servers.append(http.server.HTTPServer(('127.0.0.1', 0), Handler))
        threading.Thread(target=servers[-1].handle_request, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}/toy.tgz'
    yield _f
    for o in servers: o.server_close()


def closed_port(): # an address where nobody listens
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return f'http://127.0.0.1:{s.getsockname()[1]}'


def left(home): return sorted(p.relative_to(home).as_posix() for p in home.rglob('*') if p.is_file() and not p.name.endswith(('.lock', 'config.ini')))

def folders(home): return sorted(p.name for o in ('data', 'archive') for p in (home/o).iterdir() if p.is_dir())

def refused(home, *words, carried=False, **kwargs):
    with pytest.raises(CourseError) as e: full_data('toy', **kwargs)
    for o in ('toy', *words): assert str(o) in str(e.value)
    assert '\n' not in str(e.value)
    assert left(home) == ['archive/toy.tgz']*carried and folders(home) == []


def unpacked(home):
    assert full_data('toy') == home/'data'/'toy'
    assert folders(home) == ['toy']
    assert [o for o in left(home) if o.startswith('data')] == ['data/'+o for o in good]


def test_nobody_answers_at_the_address(home, toy):
    "The error names dataset, address, size, and where an archive may be put"
    url = closed_port()+'/toy.tgz'
    toy(url)
    refused(home, url, '9 MB', home/'archive', 'under the name toy.tgz', 'profile = sample')


def test_silent_server(home, toy):
    "A server that takes the connection and never speaks is given up"
    s = socket.create_server(('127.0.0.1', 0))
    toy(f'http://127.0.0.1:{s.getsockname()[1]}/toy.tgz')
    end = threading.Timer(10, s.close) # so that a broken time limit fails here, and does not hang
    end.start()
    refused(home, 'timed out', timeout=.5)
    end.cancel(); s.close()


def test_command_line_without_network(course, tmp_path):
    "`course data` says it in one line for the real MNIST"
    away = closed_port()
    res = course('data', 'mnist', '--profile', 'full', http_proxy=away, https_proxy=away, no_proxy='')
    line = res.stdout.strip().splitlines()[-1]
    for o in ('mnist: not at hand', 'mnist_png.tgz', '16 MB', str(tmp_path/'fastai'/'archive')): assert o in line
    assert res.returncode == 1 and 'Traceback' not in res.stderr and folders(tmp_path/'fastai') == []


def test_fetched(home, toy, serve):
    toy(serve(tgz(good)))
    unpacked(home)


def test_cut_connection(home, toy, serve):
    "A server that promises more than it sends"
    arch = tgz(good)
    toy(serve(arch[:-2000], size=len(arch)))
    refused(home, 'fetching it failed')


def test_cut_archive(home, toy, serve):
    "A server that has only a part of the archive itself"
    toy(serve(tgz(good)[:-2000]))
    refused(home, 'fetching it failed')


def test_no_archive_at_all(home, toy, serve):
    "A page that says sorry, where an archive was expected"
    toy(serve(b'<html>please log in</html>'))
    refused(home, 'fetching it failed')


def test_fetched_with_wrong_structure(home, toy, serve):
    toy(serve(tgz(['toy/a.txt', 'toy/b.txt'])))
    refused(home, 'train/*.txt: 0 files, expected 2')


def test_fetched_too_few(home, toy, serve):
    toy(serve(tgz(good[1:])))
    refused(home, 'train/*.txt: 1 files, expected 2')


def test_fetched_another_archive(home, toy, serve):
    "A known checksum is checked on what comes from the network too"
    arch = tgz(good)
    toy(serve(arch), bytes=len(arch), md5='0'*32)
    refused(home, 'checksum')


def carry(home, arch): (home/'archive'/'toy.tgz').write_bytes(arch)


def known(arch): return dict(bytes=len(arch), md5=hashlib.md5(arch[:2**20]).hexdigest())


@pytest.fixture
def carried(home, toy):
    "Carry one archive, where another one is expected"
    def _f(arch, expected=None):
        carry(home, arch)
        toy(closed_port()+'/toy.tgz', **(known(expected) if expected else {}))
    return _f


def test_carried(home, carried):
    "An archive in the archive folder is unpacked, without a network, and stays"
    arch = tgz(good)
    carried(arch, arch)
    unpacked(home)
    assert (home/'archive'/'toy.tgz').read_bytes() == arch


def test_carried_without_checksum(home, carried):
    carried(tgz(good))
    unpacked(home)


def test_carried_and_truncated(home, carried):
    arch = tgz(good)
    carried(arch[:-2000], arch)
    refused(home, f'{len(arch)-2000:,} bytes', f'expected {len(arch):,}', 'truncated', carried=True)


def test_carried_truncated_without_checksum(home, carried):
    carried(tgz(good)[:-2000])
    refused(home, 'toy.tgz could not be unpacked', carried=True)


def test_carried_and_damaged(home, carried):
    arch = tgz(good)
    bad = bytearray(arch)
    bad[-100] ^= 1
    carried(bytes(bad), arch)
    refused(home, 'checksum', known(arch)['md5'], carried=True)


def test_carried_with_wrong_structure(home, carried):
    "The archive is named, since the folder it was unpacked into is gone"
    carried(tgz(['toy/a.txt', 'toy/b.txt']))
    refused(home, 'train/*.txt: 0 files, expected 2', home/'archive'/'toy.tgz', carried=True)


@pytest.fixture
def copy(home, toy):
    "A copy that lies in fastai's data folder already"
    def _f(names):
        toy(closed_port()+'/toy.tgz')
        for o in names:
            (home/'data'/o).parent.mkdir(parents=True, exist_ok=True)
            (home/'data'/o).touch()
    return _f


def test_copy_is_used(home, copy, capsys):
    copy(good)
    assert full_data('toy') == home/'data'/'toy'
    assert capsys.readouterr().out == ''


def test_part_is_used_and_said(home, copy, capsys):
    copy(good[1:])
    assert full_data('toy') == home/'data'/'toy'
    out = capsys.readouterr().out
    assert '2 of 3 files' in out and 'reduced' in out


@pytest.mark.parametrize('names', [[*good, 'toy/train/4.txt'], good[:2], ['toy/readme.txt']], ids=['too many', 'a part is missing', 'another structure'])
def test_wrong_copy(home, copy, names):
    "Refused by name, and left as it is"
    copy(names)
    with pytest.raises(CourseError, match='Move it away') as e: full_data('toy')
    assert str(home/'data'/'toy') in str(e.value)
    assert left(home) == sorted('data/'+o for o in names)


def test_no_full_version():
    with pytest.raises(CourseError, match='photos.*sample'): full_data('photos')


def test_unknown_dataset():
    with pytest.raises(CourseError, match='mnist'): data.dataset('nosuch')


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
from course_lib.data import image_cache
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
    try: assert [p.communicate(timeout=120)[0].splitlines()[-1] for p in procs] == ['[0, 10, 20, 30]']*2
    finally:
        for p in procs: p.kill()
    assert len((tmp_path/'opened').read_text()) == 5


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
