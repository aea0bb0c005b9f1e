"Files: at once or not at all, whoever else writes; and never over what is somebody's own"
import json, os, stat, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
import pytest
from conftest import patience
from course_lib.core import CourseError, lesson_settings, runs_home, tell_path
from course_lib.files import MadeHere, file_lock, atomic_path, check_folder, write_atomic
from course_lib.results import (answers_files, expected_minutes, load_answers, load_results, record,
    save_answer)


def names(d): return sorted(o.name for o in d.iterdir())


def test_threads(tmp_path):
    "Many threads write one file: each succeeds, and what is there is whole"
    texts = [str(i)*5000 for i in range(10)]
    with ThreadPoolExecutor(8) as ex: list(ex.map(partial(write_atomic, tmp_path/'a.txt'), texts*30))
    assert (tmp_path/'a.txt').read_text() in texts and names(tmp_path) == ['a.txt']


@pytest.mark.parametrize('name', ['a.txt', 'n'*255, 'n'*251 + '.txt', 'n.' + 'e'*253, '.hidden'])
def test_names(tmp_path, name):
    "Up to the longest that there are; with the rights that a new file gets"
    assert write_atomic(tmp_path/name, b'\0\xff').read_bytes() == b'\0\xff' and names(tmp_path) == [name]
    (tmp_path/'new').touch()
    assert stat.S_IMODE((tmp_path/name).stat().st_mode) == stat.S_IMODE((tmp_path/'new').stat().st_mode)


def test_failure_leaves_the_old(tmp_path):
    write_atomic(tmp_path/'a.txt', 'old')
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path/'a.txt') as p:
        p.write_text('half')
        1/0
    with pytest.raises(OSError): write_atomic(tmp_path/('n'*256), 'x')
    assert (tmp_path/'a.txt').read_text() == 'old' and names(tmp_path) == ['a.txt']


def test_on_the_disk_before_it_is_there(tmp_path, monkeypatch):
    "The bytes are flushed to the disk before the name points at them"
    did, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr('os.fsync', lambda fd: (did.append((os.fstat(fd).st_ino, 'flushed')), fsync(fd)))
    monkeypatch.setattr('os.replace', lambda a, b: (did.append((os.stat(a).st_ino, 'moved')), replace(a, b)))
    ino = write_atomic(tmp_path/'a.txt', 'x').stat().st_ino
    assert did == [(ino, 'flushed'), (ino, 'moved')]


def test_strips_beside_a_picture_of_mine(tmp_path):
    "Lesson 07's strips take no name beside their own"
    import torch
    from course_lib.cyclegan import save_strips
    (tmp_path/'001.new.png').write_text('mine')
    save_strips([torch.zeros(3, 4, 4)]*6, tmp_path/'001.png')
    assert names(tmp_path) == ['001.new.png', '001.png'] and (tmp_path/'001.new.png').read_text() == 'mine'


def test_made_here(tmp_path):
    "A file is ours as long as it is what we wrote; our list survives being cut off, and being copied"
    made = MadeHere(tmp_path)
    for name in ('a', 'sub/b'): made.put(name, b'1', f'from {name}')
    made.put('a', b'2', 'from c')
    with open(made.file, 'a') as f: f.write('\n["a", "12')
    MadeHere(tmp_path).put('d', b'4')
    made = MadeHere(tmp_path)
    assert [made.key(o) for o in ('a', 'sub/b', 'd', 'e')] == ['from c', 'from sub/b', '', None]
    (tmp_path/'a').write_bytes(b'mine')
    assert not made.ours('a') and made.key('a') is None
    with pytest.raises(CourseError, match='a: is there already'): made.put('a', b'3')
    for o in ('a', 'd', 'e'): made.remove(o)
    assert (tmp_path/'a').read_bytes() == b'mine' and not (tmp_path/'d').exists()
    (tmp_path/'a').write_bytes(b'')
    assert made.ours('a') and made.put('a', b'5').read_bytes() == b'5'


def test_killed_between_list_and_file(tmp_path, monkeypatch):
    "The list is written first: a run that is killed before the file is there leaves the old one ours"
    made = MadeHere(tmp_path)
    made.put('a', b'1', 'one')
    with monkeypatch.context() as m:
        m.setattr('os.replace', lambda *args: 1/0)
        with pytest.raises(ZeroDivisionError): made.put('a', b'2', 'two')
    assert MadeHere(tmp_path).key('a') == 'one' and MadeHere(tmp_path).put('a', b'2', 'two')


def test_predictions(tmp_path):
    "What a generator makes goes into a new folder: not over the photographs themselves, nor over anything that is there"
    import torch
    from PIL import Image
    from fastai.data.load import DataLoader
    from course_lib import gan
    photos, out = [tmp_path/'in'/f'{o}.png' for o in 'ab'], tmp_path/'out'
    photos[0].parent.mkdir()
    for o in photos: Image.new('RGB', (8, 8), 'teal').save(o)
    before = [o.read_bytes() for o in photos]
    model, dl = torch.nn.Identity(), DataLoader([(torch.zeros(3, 8, 8), 0)]*2, bs=2)
    assert [Image.open(o).size for o in gan.save_preds(model, dl, photos, tmp_path/'in', out)] == [(8, 8)]*2
    (tmp_path/'link').symlink_to(tmp_path/'in')
    for o in ('in', 'link', 'out'):
        with pytest.raises(CourseError, match='would write over a file'): gan.save_preds(model, dl, photos, tmp_path/'in', tmp_path/o)
    assert [o.read_bytes() for o in photos] == before
    alike = [photos[0], photos[0].with_suffix('.jpg')]
    with pytest.raises(CourseError, match='more than their endings'): gan.save_preds(model, dl, alike, tmp_path/'in', tmp_path/'new')


def test_lock_that_is_not_given_back(tmp_path):
    "A process that hangs does not make the others hang for ever"
    code = f'import filelock, time; l = filelock.FileLock({str(tmp_path/"lock")!r}); l.acquire(); print("held", flush=True); time.sleep(1000)'
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == 'held\n'
        with pytest.raises(CourseError, match='lock: another process has held this file for 0.5 seconds'), file_lock(tmp_path/'lock', .5): pass
    finally:
        p.kill()
        p.wait()
    with file_lock(tmp_path/'lock', patience): pass


damaged = pytest.mark.parametrize('text', ['', '{"lesson": "01_mnist_re', '[1, 2]', '{"mine": 1}', '\ufeff'])

@damaged
def test_damaged_result(clone, capsys, text):
    "A result that is empty, cut off or somebody else's is named and left out; the others count"
    from course_lib.cli import results
    record('01', lesson_settings('01', 'sample'), 1797, acc_cnn=.9)
    bad = runs_home()/'results'/'01_mnist_resnet-sample-mps.json'
    bad.write_text(text)
    assert [o['figures'] for o in load_results('01')] == [{'acc_cnn': .9}]
    assert expected_minutes('01', 'sample') == 'no run of this profile is known yet'
    results()
    assert f'left out: {tell_path(bad)}: empty, cut off' in capsys.readouterr().out and bad.read_text() == text


@damaged
def test_keep_beside_a_damaged_result(clone, capsys, text):
    "`--keep` names it and keeps the others; what lies in the clone under a result's name and is none is left"
    from course_lib.cli import results
    for o in ('01', '09'): record(o, lesson_settings(o, 'sample'), 1, acc_cnn=.9)
    bad = runs_home()/'results'/'01_mnist_resnet-sample-mps.json'
    bad.write_text(text)
    mine = clone/'results'/next((runs_home()/'results').glob('09*')).name
    write_atomic(mine, '{"mine": 1}')
    for o in (runs_home()/'results').glob('0*-own-*'): o.write_text(o.read_text().replace('"kind": "own"', '"kind": "reduced"'))
    results(keep=True)
    said = capsys.readouterr().out
    assert f'not kept: {tell_path(bad)}: empty, cut off' in said and f'not kept: {tell_path(mine)}' in said and 'kept results/01' in said
    assert bad.read_text() == text and mine.read_text() == '{"mine": 1}'


def test_result_over_another_file(clone):
    "What is no result is not written over; an empty file is"
    save = partial(record, '01', lesson_settings('01', 'sample'), 1797, acc_cnn=.9)
    save()
    f, = (runs_home()/'results').glob('*.json')
    write_atomic(f, '{"mine": 1}')
    with pytest.raises(CourseError, match=f.name): save()
    assert f.read_text() == '{"mine": 1}'
    f.write_text('')
    save()
    assert save() and json.loads(f.read_text())['lesson'] == '01_mnist_resnet'


def test_damaged_answers(clone, capsys):
    "The lesson goes on without them; nothing is written over them; `course answers` says so before the work"
    from course_lib import cli
    f = answers_files('01')[0]
    write_atomic(f, '{"one": {"rows"')
    assert load_answers('01') == {} and f'left out: {tell_path(f)}' in capsys.readouterr().out
    cfg = lesson_settings('01', 'sample')
    with pytest.raises(CourseError, match='01.json'): save_answer('01', 'two', [{'accuracy': 1.}], cfg, 1797, [1], 1.)
    with pytest.raises(CourseError, match='01.json'): cli.answers('01', profile='sample')
    assert f.read_text() == '{"one": {"rows"'


def test_no_home(python, tmp_path):
    "No HOME, and a user whom the system does not know: the package is imported and works"
    code = '''
import os, pwd
del os.environ['HOME']
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
from course_lib.core import tell_path, data_home
import course_lib.data
del os.environ['COURSE_DATA']
print(tell_path('/nowhere'), data_home())'''
    res = python(code, TMPDIR=str(tmp_path))
    assert res.returncode == 0 and res.stdout.startswith('/nowhere '), res.stderr


def test_program_that_is_not_there(monkeypatch):
    "The processor's name on a system without /proc, with and without `sysctl`; no shell is asked"
    from course_lib import core
    real = Path.read_text
    def no_proc(f, *args, **kwargs):
        if str(f).startswith('/proc'): raise FileNotFoundError(f)
        return real(f, *args, **kwargs)
    monkeypatch.setattr(Path, 'read_text', no_proc)
    monkeypatch.setattr('platform.processor', lambda: 'a processor')
    def no_such(cmd, **kwargs):
        assert isinstance(cmd, list) and not kwargs.get('shell')
        raise FileNotFoundError(cmd[0])
    with monkeypatch.context() as m:
        m.setattr('subprocess.run', no_such)
        assert core._cpu_name() == 'a processor'
    monkeypatch.setattr('subprocess.run', lambda cmd, **kwargs: subprocess.CompletedProcess(cmd, 0, 'Apple M9\n', ''))
    assert core._cpu_name() == 'Apple M9'


def test_check_folder(tmp_path):
    (tmp_path/'file').write_text('mine')
    for o in ('file', 'file/below'):
        with pytest.raises(CourseError, match='choose another place with --out'): check_folder(tmp_path/o, '--out')
    check_folder(tmp_path/'new'/'one', '--out')
    assert names(tmp_path/'new'/'one') == []
