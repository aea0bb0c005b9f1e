"kill -9 in the middle of long work: what is there is whole, the next call goes on or begins anew, and the end is as if nothing had happened"
import io, os, signal, sys, tarfile, threading, time, traceback
from http.server import BaseHTTPRequestHandler, HTTPServer
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import AttrDict
from torch import nn
from conftest import patience
from course_lib import data, kept_weights
from course_lib.apps.style_files import style_file
from course_lib.checkpoints import Resumable
from course_lib.core import lesson_settings, runs_home
from course_lib.data import full_data
from course_lib.kept_weights import keep_training, load_network
from course_lib.restore import restore_files
from course_lib.tensors import PILPhoto, image_cache

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='processes are forked here')


def wait_for(what, seconds=patience):
    end = time.time()+seconds
    while not (res := what()) and time.time() < end: time.sleep(.005)
    return res


def killed(work, when):
    "Let a process of its own work, and kill it as soon as `when()` is true; it must not have come to its end"
    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)
            work()
        except BaseException: traceback.print_exc()
        finally: os._exit(0)
    saw = wait_for(lambda: when() or os.waitpid(pid, os.WNOHANG)[0])
    assert saw is True, 'it ended before it could be killed'
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def noise(size=(48, 40), seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))

def files(d): return {o.relative_to(d).as_posix(): o.read_bytes() for o in d.rglob('*') if o.is_file() and not o.name.endswith(('lock', '.jsonl'))}

def slowly(f, seconds=.05):
    def _f(*args, **kwargs):
        time.sleep(seconds)
        return f(*args, **kwargs)
    return _f


# ---- datasets

@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A dataset of three files, whose server stops in the middle of the first answer, and goes on in the second"
    with tarfile.open(fileobj=(f := io.BytesIO()), mode='w:gz') as t:
        for o in ('train/1', 'train/2', 'valid/3'):
            info = tarfile.TarInfo(f'toy/{o}.txt')
            info.size = 50_000
            t.addfile(info, io.BytesIO(os.urandom(50_000)))
    body, asked, end = f.getvalue(), [], threading.Event()
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(1)
            self.send_response(200)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body[:100_000])
            self.wfile.flush()
            if len(asked) == 1: end.wait(patience)
            else: self.wfile.write(body[100_000:])
        def log_message(self, *args): pass
    server = HTTPServer(('127.0.0.1', 0), Handler)
    server.handle_error = lambda *args: None # whoever asked is dead
    threading.Thread(target=server.serve_forever, args=(.05,), daemon=True).start()
    full = AttrDict(url=f'http://127.0.0.1:{server.server_port}/toy.tgz', folder='toy', count=3, bytes=200_000, layout={'*/*.txt': 3})
    monkeypatch.setattr(data, 'registry', lambda: {'toy': AttrDict(full=full)})
    monkeypatch.setenv('no_proxy', '*')
    yield AttrDict(home=tmp_path/'fastai', body=body, end=end)
    end.set()
    server.shutdown()
    server.server_close()


def whole(toy):
    assert full_data('toy') == toy.home/'data'/'toy' and len(files(toy.home/'data')) == 3
    assert {o.name for o in (toy.home/'data').iterdir()} <= {'toy', '.toy.lock'}
    assert {k: v for k,v in files(toy.home/'archive').items() if not k.endswith('sha256')} == {'toy.tgz': toy.body}


def test_download(toy):
    "Half of an archive is not taken for one that somebody has carried there"
    killed(lambda: full_data('toy'), lambda: any(o.stat().st_size > 20_000 for o in (toy.home/'archive').glob('*')))
    assert not (toy.home/'archive'/'toy.tgz').exists() and not (toy.home/'data'/'toy').exists()
    toy.end.set()
    whole(toy)


def test_unpacking(toy, monkeypatch):
    "The archive stays, and half a dataset is not taken for one"
    (toy.home/'archive').mkdir(parents=True)
    (toy.home/'archive'/'toy.tgz').write_bytes(toy.body)
    def work():
        tarfile.TarFile.extract = slowly(tarfile.TarFile.extract, .3)
        full_data('toy')
    killed(work, lambda: len([*toy.home.rglob('*.txt')]) == 2)
    assert not (toy.home/'data'/'toy').exists()
    whole(toy)


def test_decoding(tmp_path):
    "Half a cache is not taken for one"
    for i in range(8): noise(seed=i).save(tmp_path/f'{i}.png')
    names = sorted(tmp_path.glob('*.png'))
    killed(lambda: image_cache(names, slow_photo, home=tmp_path/'cache', workers=1), lambda: bool([*tmp_path.glob('cache/*/x.npy')]))
    x = image_cache(names, slow_photo, home=tmp_path/'cache')
    assert all((x[i].numpy() == np.asarray(noise(seed=i)).transpose(2, 0, 1)).all() for i in range(8))
    assert len([o for o in (tmp_path/'cache').iterdir() if o.is_dir()]) == 1

def slow_photo(f):
    time.sleep(.05)
    return PILPhoto.create(f)


# ---- pictures

class Slow(nn.Module):
    step = 1
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(.9))
    def forward(self, x):
        time.sleep(.03)
        return x*self.w


def test_restore(tmp_path):
    (tmp_path/'in').mkdir()
    for i in range(12): noise(seed=i).save(tmp_path/'in'/f'{i}.png')
    go = lambda out: restore_files([tmp_path/'in'], Slow(), tmp_path/out, shown=False)
    killed(lambda: go('a'), lambda: len([*tmp_path.glob('a/*.png')]) == 3)
    there = files(tmp_path/'a')
    rep = go('a')
    assert rep.kept >= len(there)-1 and rep.made + rep.kept == 12 and go('b').made == 12
    assert files(tmp_path/'a').items() >= files(tmp_path/'b').items() and len([*tmp_path.glob('a/[!.]*')]) == 12


def test_style(tmp_path):
    "It goes on where the last picture so far was written, and leaves nothing behind"
    for i,o in enumerate('ab'): noise(seed=i).save(tmp_path/f'{o}.png')
    (tmp_path/'out').mkdir()
    said = []
    def paint(tell): style_file(tmp_path/'a.png', tmp_path/'b.png', tmp_path/'out'/'c.png', size=40, evals=10, arch='course', tell=tell, every=2)
    killed(lambda: paint(lambda s: time.sleep(.05)), lambda: (tmp_path/'out'/'c-so-far.jpg').exists())
    assert Image.open(tmp_path/'out'/'c-so-far.jpg').size == (40, 33) and not (tmp_path/'out'/'c.png').exists()
    paint(said.append)
    assert any('goes on at size 1' in o for o in said) and [*files(tmp_path/'out')] == ['c.png']


# ---- trainings

def a_training(file, pause=0.):
    "Twelve steps whose data is drawn by torch"
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    opt = torch.optim.Adam(net.parameters(), .1)
    run = Resumable(file, dict(net=net, opt=opt), dict(seed=5), 12, 3)
    for _ in run:
        net(torch.randn(8, 4)).square().mean().backward()
        opt.step(); opt.zero_grad()
        time.sleep(pause)
    return net


@pytest.mark.parametrize('n', [0, 1, 3])
def test_resumable(tmp_path, n):
    "Killed after the n-th checkpoint, whenever that is, and gone on with: the very weights of a run that was never stopped"
    step = lambda: torch.load(tmp_path/'a.pth', weights_only=True)['place']['step'] if (tmp_path/'a.pth').exists() else 0
    began = time.time()
    killed(lambda: a_training(tmp_path/'a.pth', .03), (lambda: time.time() > began+.05) if n == 0 else lambda: step() >= 3*n)
    assert step() == 3*n
    a, b = a_training(tmp_path/'a.pth'), a_training(tmp_path/'b.pth')
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values())) and sorted(o.name for o in tmp_path.glob('*pth')) == ['a.pth', 'b.pth']


@pytest.fixture
def tiny_keep(tmp_path, monkeypatch):
    "`course train 04 --keep` with the lesson's own code, on the sample and with a few steps; gives the settings' change"
    from course_lib import gan
    changed = dict(crop=32, bs=2, steps_start=4, steps=4, files_drawn='*/*/*.png')
    one = AttrDict(lesson='04', profile='sample', settings=changed, kind='superres_generator', title='A try', data='the sample', limits='none')
    monkeypatch.setattr(kept_weights, 'kept_trainings', lambda: {'04_pixels': one})
    monkeypatch.setattr(kept_weights, 'kept_settings', lambda name: AttrDict({**lesson_settings('04', 'sample'), **changed}))
    monkeypatch.setattr(kept_weights, 'kept_file', lambda name: tmp_path/'weights'/f'{name}.safetensors')
    monkeypatch.setattr(gan, 'measure_pixels', lambda net, cfg: dict(mean=net(torch.zeros(1, 3, 32, 32)).mean().item()))
    monkeypatch.setattr(Resumable.__init__, '__defaults__', (2,))
    return tmp_path/'weights'


def test_keep(tiny_keep, tmp_path, monkeypatch):
    "Killed in its first part and in its second, `course train --keep` goes on both times, and ends with the weights of a run that was never stopped"
    from course_lib import gan
    real, file = gan.square_batch, tiny_keep/'04_pixels.safetensors'
    def slow():
        gan.square_batch = slowly(real, .1)
        keep_training('04_pixels')
    for part in ('start', 'pixels'):
        killed(slow, lambda: (runs_home()/f'04_{part}.pth').exists())
        assert not tiny_keep.exists()
    keep_training('04_pixels')
    a = load_network(file)[0]
    assert file.with_suffix('.md').exists() and len([*tiny_keep.iterdir()]) == 2
    monkeypatch.setenv('COURSE_RUNS', str(tmp_path/'other'))
    keep_training('04_pixels')
    assert all(map(torch.equal, a.state_dict().values(), load_network(file)[0].state_dict().values()))
