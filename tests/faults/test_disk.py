"A real disk that is full, folders that nobody may write to: a line that says where; what was there stays, nothing is half there, and with room it goes on"
import errno, io, json, os, shutil, tarfile
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import AttrDict, Learner, DataLoaders
from torch import nn
from conftest import root
from course_lib import cli, data
from course_lib.apps.style_files import style_file
from course_lib.checkpoints import save_checkpoint
from course_lib.core import CourseError, lesson_settings
from course_lib.data import full_data
from course_lib.files import MadeHere
from course_lib.kept_weights import network_kind, save_weights
from course_lib.models import save_learner
from course_lib.restore import restore_files
from course_lib.results import record, save_answer
from course_lib.samples import make as making
from course_lib.tensors import PILPhoto, image_cache


def noise(size=(48, 40), seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def files(d): return {o.relative_to(d).as_posix(): o.read_bytes() for o in d.rglob('*') if o.is_file() and not o.name.endswith(('lock', '.jsonl'))}

def folders(d): return [o.name for o in d.rglob('*') if o.is_dir()]


def full_disk(f, *args, **kwargs):
    "What is said where a disk is full: a `CourseError`, or the system's own error with the name of the file, which the command line makes a line of"
    with pytest.raises((CourseError, OSError)) as e: f(*args, **kwargs)
    e = e.value
    if isinstance(e, CourseError): return str(e)
    assert e.errno == errno.ENOSPC and e.filename, e
    def again(): raise e
    line = cli._outcome('train', again, (), {})
    assert '\n' not in line and 'the disk is full. Make room there' in line
    return line


@network_kind
def one_layer(cfg): return nn.Linear(cfg['n'], cfg['n'])


def learner(n, path): return Learner(DataLoaders([], []), nn.Linear(n, n), loss_func=nn.MSELoss(), path=path)


def a_learner(d, n):
    learn = learner(n, d)
    learn.create_opt()
    save_learner(learn, 'a')


def results(d, n):
    cfg, rows = lesson_settings('01', 'sample'), [{f'accuracy{i}': 1.} for i in range(n*n//20)]
    save_answer('01', 'one', rows, cfg, n, [1], 1., d/'01.json')


writers = {
    'checkpoint': lambda d, n: save_checkpoint(d/'a.pth', dict(net=nn.Linear(n, n)), {}, step=n), 'learner': a_learner,
    'weights': lambda d, n: save_weights(d/'a.safetensors', one_layer(dict(n=n)), dict(n=n), 'one_layer'),
    'answers': results, 'a file of ours': lambda d, n: MadeHere(d).put('a', bytes(4*n*n))}

@pytest.mark.parametrize('what', writers)
def test_what_was_there_stays(small_disk, what):
    "The file of before is there, whole, and none beside it; with room it is the new one"
    d, write = small_disk(64), writers[what]
    write(d, 30)
    before = files(d)
    full_disk(write, d, 300)
    assert files(d) == before
    small_disk(2000)
    write(d, 300)
    assert files(d).keys() == before.keys() and files(d) != before


def test_record(clone, small_disk, monkeypatch):
    "The figures of the run before stay"
    d = small_disk(16)
    monkeypatch.setenv('COURSE_RUNS', str(d))
    record('01', lesson_settings('01', 'sample'), 1797, accuracy=.5)
    before = files(d)
    (d/'filler').write_bytes(bytes(4096))
    line = full_disk(record, '01', lesson_settings('01', 'sample'), 1797, **{f'accuracy{i}': 1. for i in range(500)})
    assert next(iter(before)) in line and files(d) == {**before, 'filler': bytes(4096)}


def test_sample(small_disk, monkeypatch):
    "Nothing that could be taken for a sample; with room it is made"
    monkeypatch.setattr(making, 'makers', {})
    @making.sample_maker('toy')
    def make_toy(path):
        for i in range(5): (path/f'{i}.bin').write_bytes(bytes(20_000))
    d = small_disk(64)
    assert 'Make room there, or set COURSE_DATA' in full_disk(making.make_sample, 'toy', d)
    assert files(d) == {} and folders(d) == []
    small_disk(400)
    assert len(files(making.make_sample('toy', d))) == 6


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A dataset of three files that can be fetched from this disk, to another one"
    with tarfile.open(tmp_path/'toy.tgz', 'w:gz') as t:
        for o in ('train/1', 'train/2', 'valid/3'):
            info = tarfile.TarInfo(f'toy/{o}.txt')
            info.size = 20_000
            t.addfile(info, io.BytesIO(os.urandom(20_000)))
    card = AttrDict(full=dict(url=f'file://{tmp_path}/toy.tgz', folder='toy', count=3, bytes=70_000, layout={'*/*.txt': 3}))
    card.full = AttrDict(card.full)
    monkeypatch.setattr(data, 'registry', lambda: {'toy': card})
    def _f(home):
        for o in ('data', 'archive'): (home/o).mkdir(exist_ok=True)
        monkeypatch.setenv('FASTAI_HOME', str(home))
    return _f


@pytest.mark.parametrize('kB', [32, 90], ids=['no room for the archive', 'no room for what is in it'])
def test_dataset(small_disk, toy, kB):
    "Neither an archive nor a dataset is there afterwards; with room both are"
    d = small_disk(kB)
    toy(d)
    assert 'No space left' in full_disk(full_data, 'toy')
    assert files(d) == {} and set(folders(d)) == {'data', 'archive'}
    small_disk(400)
    assert len(files(full_data('toy'))) == 3 and (d/'archive'/'toy.tgz').exists()


def test_restore(small_disk, tmp_path):
    "What was finished is kept, and the rest is made later"
    (tmp_path/'in').mkdir()
    for i in range(6): noise(seed=i).save(tmp_path/'in'/f'{i}.png')
    net, d = nn.Conv2d(3, 3, 1), small_disk(36)
    net.step = 1
    line = full_disk(restore_files, [tmp_path/'in'], net, d, shown=False)
    assert 'the disk is full' in line and 0 < len(there := files(d)) < 6
    small_disk(400)
    rep = restore_files([tmp_path/'in'], net, d, shown=False)
    assert (rep.made, rep.kept) == (6-len(there), len(there)) and there.items() <= files(d).items()


def test_style(small_disk, tmp_path):
    "The picture so far needs room; with more of it the work is done"
    for i,o in enumerate('ab'): noise(seed=i).save(tmp_path/f'{o}.png')
    paint = lambda: style_file(tmp_path/'a.png', tmp_path/'b.png', d/'out.png', size=48, evals=4, arch='course', tell=lambda s: None, every=1)
    d = small_disk(12)
    assert 'the disk is full' in full_disk(paint)
    assert [o for o in files(d) if o == 'out.png'] == []
    small_disk(200)
    paint()
    assert [*files(d)] == ['out.png'] and Image.open(d/'out.png').size == (48, 40)


# ---- nobody may write

def test_data_that_is_only_read(tmp_path, read_only, monkeypatch):
    "A data folder that was filled by somebody else serves: samples, decoded pictures; what is missing is a line"
    monkeypatch.setenv('COURSE_DATA', str(tmp_path/'home'))
    monkeypatch.setattr(making, 'makers', {})
    @making.sample_maker('toy')
    def make_toy(path): noise().save(path/'a.png')
    read = lambda *args: image_cache([making.make_sample('toy')/'a.png'], PILPhoto.create, *args)
    want = read().clone()
    read_only(tmp_path/'home')
    assert torch.equal(read(), want) and want.shape == (1, 3, 40, 48)
    @making.sample_maker('other')
    def make_other(path): (path/'a').touch()
    with pytest.raises(CourseError, match='other: the sample cannot be made.*Read-only'): making.make_sample('other')
    with pytest.raises(CourseError, match='cannot be kept there.*Read-only'): read((8, 8))


read_only_clone = '''
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from course_lib.cli import course
print(course.__code__.co_filename)
for o in json.loads(sys.argv[1]):
    sys.argv = ['course', *o]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: code = course()
        except SystemExit as e: code = e.code
    print('RESULT', json.dumps([code, out.getvalue(), err.getvalue()]))
'''

def test_clone_that_is_only_read(python, read_only, tmp_path, monkeypatch):
    "What can be told is told; what would write says what to set before it works for hours; nothing is a traceback"
    for o in ('course_lib', 'nbs', 'results'): shutil.copytree(root/o, tmp_path/'clone'/o, ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path/'clone'/'data').mkdir()
    for o in ('settings.ini', 'README.md', 'data/datasets.toml', 'data/lessons.toml'): shutil.copy(root/o, tmp_path/'clone'/o)
    ro = read_only(tmp_path/'clone')
    for o in ('COURSE_DATA', 'COURSE_RUNS'): monkeypatch.delenv(o)
    says = {('results',): None, ('doctor',): None, ('run', '01'): '--out or COURSE_RUNS', ('train', '09'): 'COURSE_RUNS',
            ('train', '04', '--keep'): 'cannot be written', ('results', '--readme'): 'README.md',
            ('data', 'human_numbers'): 1, ('data', 'mnist', '--profile', 'full'): 1, ('answers', '01'): 'cannot be made'}
    res = python(read_only_clone, json.dumps(list(says)), PYTHONPATH=str(ro), FASTAI_HOME=str(ro/'fastai'), PYTHONDONTWRITEBYTECODE='1')
    assert str(ro) in res.stdout.splitlines()[0]
    got = [json.loads(o[7:]) for o in res.stdout.splitlines() if o.startswith('RESULT ')]
    assert len(got) == len(says), res.stderr
    for (args, want), (code, out, err) in zip(says.items(), got):
        assert 'Traceback' not in err, err
        if isinstance(want, str): assert isinstance(code, str) and want in code and 'Read-only' in code and '\n' not in code, (args, code)
        else: assert code == want, (args, code, out, err)
        if args[0] == 'data': assert 'Read-only' in out and ('COURSE_DATA' in out or 'FASTAI_HOME' in out)
