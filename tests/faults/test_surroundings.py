"A machine that is not as expected: no home, no display, no UTF-8, no network, odd names of folders, files from Windows"
import json, os, socket
import numpy as np, pytest
from PIL import Image
from nbformat import v4, write
from course_lib import cli, runner
from course_lib.core import CourseError, tell_path
from course_lib.crappify import crappifiers_home, load_crappifier
from course_lib.data import data_to_have, describe_data, full_data
from course_lib.models import imagenet_weights
from course_lib.rnn import read_numbers

odd = "a b#c%20 ü漢\n'x"

commands = '''
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from course_lib import cli, runner
runner.clone_root = lambda: Path('mine').resolve()
for o in json.loads(sys.argv[1]):
    sys.argv = ['course', *o]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors='backslashreplace') for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        try: code = cli.course()
        except SystemExit as e: code = e.code
    texts = []
    for f in (out, err):
        f.flush()
        texts.append(f.buffer.getvalue().decode(errors='backslashreplace'))
    print('RESULT', json.dumps([code, *texts]))
'''

def test_bare_machine(python, tmp_path, monkeypatch):
    """Neither HOME nor display nor UTF-8, in a folder with blanks, #, %, letters of other alphabets and a line end in its name: every command does its work,
    and names the folder on one line"""
    here = tmp_path/odd
    (here/'in'/'ä').mkdir(parents=True)
    for i,o in enumerate(('in/one.png', 'in/ä/two 漢#.jpg', 'painting.png')):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(here/o)
    (here/'mine'/'nbs').mkdir(parents=True)
    cells = ['import matplotlib.pyplot as plt; plt.plot([1, 2]);', 'import os; print(os.environ.get("HOME"), os.environ.get("DISPLAY"), "ü漢")']
    write(v4.new_notebook(cells=list(map(v4.new_code_cell, cells))), here/'mine'/'nbs'/'01_any.ipynb')
    gone = 'HOME', 'DISPLAY', 'TERM', 'LANG', 'FASTAI_HOME', 'TORCH_HOME', 'MPLBACKEND', 'XDG_DATA_HOME'
    for o in [o for o in os.environ if o in gone or o.startswith('LC_')]: monkeypatch.delenv(o)
    todo = [('crappify', 'in', 'crappy', '--workers', '1', '--steps', 'downscale(20)'), ('restore', 'in', '--out', 'restored'),
            ('data', 'human_numbers'), ('results',), ('run', '01'),
            ('style', 'in/one.png', '--style', 'painting.png', '--size', '40', '--evals', '2', '--judge', 'course'),
            ('style', 'in/no.png', '--style', 'painting.png')]
    places = dict(COURSE_DATA=str(here/'data'), COURSE_RUNS=str(here/'runs'))
    res = python(commands, json.dumps(todo), cwd=here, **places, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    got = [json.loads(o[7:]) for o in res.stdout.splitlines() if o.startswith('RESULT ')]
    assert len(got) == len(todo), res.stdout + res.stderr
    for args, (code, out, err) in zip(todo, got):
        assert 'Traceback' not in err and (code in (None, 0)) == (args[1:2] != ('in/no.png',)), (args, code, out, err)
        assert "\n'x" not in out and "\n'x" not in str(code), (args, out, code)
    assert 'in/no.png' in got[-1][0] and '\n' not in got[-1][0]
    names = lambda d: {o.relative_to(here/d).as_posix() for o in (here/d).rglob('[!.]*') if o.is_file() and '.crappify' not in o.parts}
    assert names('crappy') == names('restored') == {'one.png', 'ä/two 漢#.jpg'}
    assert names('data') == {'sample/human_numbers/train.txt', 'sample/human_numbers/valid.txt'}
    assert names('runs') == {'01_any.ipynb', '01_any.html'} and (here/'one-painting.png').exists() and not [*here.glob('*so-far*')]
    html = (here/'runs'/'01_any.html').read_text(encoding='utf-8')
    assert 'None None ü漢' in html and 'data:image/png;base64' in html


def test_paths_are_one_line(tmp_path):
    assert tell_path(tmp_path/odd).endswith("a b#c%20 ü漢\\n'x") and len(str(CourseError(f'{tmp_path/odd}: wrong')).splitlines()) == 1


# ---- no network

@pytest.fixture
def no_network(monkeypatch):
    "Nobody can be reached, and whoever tries is noted"
    tried = []
    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError('Network is unreachable')
    for o in ('connect', 'connect_ex'): monkeypatch.setattr(socket.socket, o, refuse)
    for o in ('getaddrinfo', 'create_connection'): monkeypatch.setattr(socket, o, refuse)
    return tried


def test_sample_asks_nobody(no_network):
    "Data of the profile sample is made without a network, and nobody is asked (two samples, since all of them take a minute)"
    assert all(describe_data(o, 'sample')['files'] for o in ('human_numbers', 'mnist')) and no_network == []


def test_full_without_a_network(no_network, monkeypatch, tmp_path):
    "Each dataset and each network's weights: one line, at once, that says what to carry where"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    names = data_to_have('full')
    for o in names:
        with pytest.raises(CourseError, match='not at hand.*carry the archive to') as e: full_data(o)
        assert '\n' not in str(e.value) and str(tmp_path/'fastai'/'archive') in str(e.value)
    with pytest.raises(CourseError, match='unreachable.*looked for as'): imagenet_weights('resnet18', 'yes')
    assert len(no_network) >= len(names)+1
    assert not [o for d in ('fastai/data', 'torch') for o in (tmp_path/d).rglob('*') if o.is_file() and not o.name.endswith('lock')]


# ---- files that an editor of Windows has written

def test_windows_notebook(tmp_path, monkeypatch):
    "Windows' line ends around and in the cells"
    path = tmp_path/'mine'/'nbs'/'01_any.ipynb'
    path.parent.mkdir(parents=True)
    write(v4.new_notebook(cells=[v4.new_code_cell('x = 1\nif x:\n    print("seen")')]), path)
    path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n').replace(b'x = 1\\n', b'x = 1\\r\\n'))
    monkeypatch.setattr(runner, 'clone_root', lambda: tmp_path/'mine')
    seen = []
    monkeypatch.setattr(runner, 'execute', lambda nb, *args: seen.extend(exec(c.source, dict(print=seen.append)) or [] for c in nb.cells))
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 0 and seen[0] == 'seen'


@pytest.mark.parametrize('head', [b'', b'\xef\xbb\xbf'], ids=['plain', 'with a mark'])
def test_windows_text(tmp_path, monkeypatch, head):
    "A crappifier of one's own and the lists of lesson 09, with Windows' line ends and with a byte order mark"
    monkeypatch.setenv('COURSE_DATA', str(tmp_path))
    crappifiers_home().mkdir(parents=True)
    (crappifiers_home()/'mine.py').write_bytes(head + b'from course_lib.steps import *\r\nmine = greyscale()\r\n')
    assert 'greyscale' in repr(load_crappifier('mine'))
    for o in ('train', 'valid'): (tmp_path/f'{o}.txt').write_bytes(head + b'one \r\ntwo \r\nthree \r\n')
    assert read_numbers(tmp_path, 'train') == read_numbers(tmp_path, 'valid') == ['one', 'two', 'three']
