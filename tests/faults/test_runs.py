"`course run` beside another one, killed, and with a notebook that is edited meanwhile"
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
from nbformat import v4
from conftest import patience, write_nb
from course_lib import cli, runner


@pytest.fixture
def nbs(tmp_path, monkeypatch):
    "Lessons of our own, which say who has run them: `nbs(name=[cells])`"
    def _f(**lessons):
        for k,v in lessons.items(): write_nb(tmp_path/'mine'/'nbs'/f'{k[1:]}.ipynb', *v)
        monkeypatch.setattr(runner, 'clone_root', lambda: tmp_path/'mine')
        return tmp_path/'mine'/'nbs'
    return _f


def without_kernels(monkeypatch, each):
    "Lessons run without a kernel, and pages are short: `each(nb)` gives what a lesson prints"
    def execute(nb, folder, env, told, minutes):
        text = each(nb)
        for i,c in enumerate(c for c in nb.cells if c.cell_type == 'code'): c.outputs, c.execution_count = [v4.new_output('stream', text=text)], i+1
    def page_of(nb, name, folder):
        time.sleep(.1)
        return f'<html>{nb.cells[1].outputs[0].text}</html>'
    monkeypatch.setattr(runner, 'execute', execute)
    monkeypatch.setattr(runner, 'page_of', page_of)


def said_by(path): return {''.join(o['text']) for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', [])}


@pytest.mark.skipif(sys.platform != 'linux', reason='processes are forked here')
def test_two_runs_at_once(nbs, tmp_path, monkeypatch):
    "Into one folder: both say that all went well, and each copy and its page are whole and of one run"
    names = [f'{i:02}_any' for i in range(1, 5)]
    nbs(**{f'_{o}': ['1', '2'] for o in names})
    without_kernels(monkeypatch, lambda nb: f'by {os.getpid()}')
    start, pids = time.time()+.3, []
    for _ in range(2):
        if not (pid := os.fork()):
            code = 99
            try:
                time.sleep(max(0, start-time.time()))
                code = cli.run(profile='sample', out=str(tmp_path/'out'), jobs=2)
            finally: os._exit(code)
        pids.append(pid)
    assert [os.waitpid(o, 0)[1] for o in pids] == [0, 0]
    for o in names:
        who, = said_by(tmp_path/'out'/f'{o}.ipynb')
        assert who.removeprefix('by ') in map(str, pids) and who in (tmp_path/'out'/f'{o}.html').read_text()
    assert {o.name for o in (tmp_path/'out').glob('[!.]*')} == {f'{o}.{end}' for o in names for end in ('ipynb', 'html')}


def test_another_run_writes_meanwhile(nbs, tmp_path, monkeypatch):
    "A second run comes and goes between a lesson's end and its page: both go well, and nothing is given a number"
    nbs(_01_any=['print(1)'])
    without_kernels(monkeypatch, lambda nb: f'{len(codes)}')
    codes, page_of = [], runner.page_of
    def nested(*args):
        if not codes:
            codes.append(None)
            codes[0] = cli.run(profile='sample', out=str(tmp_path/'out'))
        return page_of(*args)
    monkeypatch.setattr(runner, 'page_of', nested)
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 0 and codes == [0]
    assert {o.name for o in (tmp_path/'out').glob('[!.]*')} == {'01_any.ipynb', '01_any.html'} and said_by(tmp_path/'out'/'01_any.ipynb') == {'0'}


@pytest.mark.parametrize('save', [False, True])
def test_edited_while_it_runs(nbs, tmp_path, monkeypatch, capsys, save):
    "The edit stays, also where outputs are written back, and that is said; the copy holds what was run"
    path = nbs(_01_any=['print(1)'], _02_other=['print(2)'])
    def each(nb):
        if '1' in nb.cells[1].source: write_nb(path/'01_any.ipynb', 'print(1)', 'print("edited")')
        return 'done'
    without_kernels(monkeypatch, each)
    cli.run(profile='sample', out=str(tmp_path/'out'), save=save)
    assert 'edited' in (path/'01_any.ipynb').read_text() and said_by(path/'01_any.ipynb') == set()
    assert 'edited' not in (tmp_path/'out'/'01_any.ipynb').read_text() and said_by(tmp_path/'out'/'01_any.ipynb') == {'done'}
    assert said_by(path/'02_other.ipynb') == ({'done'} if save else set())
    assert ('01_any was edited while it ran' in capsys.readouterr().out) == save


def test_removed_while_it_runs(nbs, tmp_path, monkeypatch):
    "The copy is there all the same, and the next lesson runs"
    path = nbs(_01_any=['print(1)'], _02_other=['print(2)'])
    def each(nb):
        if '1' in nb.cells[1].source: (path/'01_any.ipynb').unlink()
        return 'done'
    without_kernels(monkeypatch, each)
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 0
    assert said_by(tmp_path/'out'/'01_any.ipynb') == said_by(tmp_path/'out'/'02_other.ipynb') == {'done'}


@pytest.mark.parametrize('text', ['', '{"cells": [', '[]', '{"nbformat": 4}', '\ufeff{}', 'words'])
def test_notebook_that_is_none(nbs, tmp_path, monkeypatch, capsys, text):
    "Half saved, or something else: a line that names it, and the next lesson runs"
    path = nbs(_01_any=['print(1)'], _02_other=['print(2)'])
    without_kernels(monkeypatch, lambda nb: 'done')
    (path/'01_any.ipynb').write_text(text)
    assert cli.run(profile='sample', out=str(tmp_path/'out')) == 1
    out = capsys.readouterr().out
    assert '01_any  failed' in out and '02_other  ok' in out and 'Traceback' not in out
    assert said_by(tmp_path/'out'/'02_other.ipynb') == {'done'} and (path/'01_any.ipynb').read_text() == text


lesson_run = '''
import sys
from pathlib import Path
from course_lib import cli, runner
root = Path(sys.argv.pop(1))
runner.clone_root = lambda: root
cli.course()
'''

def alive(pid):
    stat = Path(f'/proc/{pid}/stat')
    return stat.exists() and ') Z ' not in stat.read_text()


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='the system does not tell of its processes')
def test_killed(nbs, tmp_path):
    "The kernel ends by itself, what was finished is whole, no half file is there, and the next run does it all"
    path, f = nbs(_01_first=['print(1)'], _02_long=['import os, time', 'x = 1']), tmp_path/'pid'
    write_nb(path/'02_long.ipynb', f'import os, time; open({str(f)!r}, "w").write(f"{{os.getpid()}}!"); time.sleep({2*patience})')
    args = tmp_path/'mine', 'run', '--jobs', '1', '--out', tmp_path/'out'
    p = subprocess.Popen([sys.executable, '-c', lesson_run, *args], stdout=subprocess.PIPE, text=True, start_new_session=True)
    def until(what):
        end = time.time()+patience
        while not what() and time.time() < end: time.sleep(.1)
        assert what()
    try:
        until(lambda: f.exists() and f.read_text().endswith('!') and (tmp_path/'out'/'01_first.html').exists() or p.poll() is not None)
        os.kill(p.pid, signal.SIGKILL)
        p.communicate()
        until(lambda: not alive(int(f.read_text()[:-1])))
    finally:
        if f.exists() and alive(int(f.read_text().rstrip('!'))): os.kill(int(f.read_text().rstrip('!')), signal.SIGKILL)
    assert said_by(tmp_path/'out'/'01_first.ipynb') == {'1\n'} and {o.name for o in (tmp_path/'out').glob('[!.]*')} == {'01_first.ipynb', '01_first.html'}
