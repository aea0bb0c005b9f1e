"What the tests share: folders of their own, the command line in a process, a clone to write into, a small dataset to fetch"
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
gpu = os.environ.get('COURSE_TEST_GPU') == '1'
collect_ignore = [] if gpu else ['gpu']
patience = 900 # seconds that a process may take on a slow machine beside other work, before it counts as hanging


def write_nb(path, *cells): # sources of code
    "A notebook of a heading and some cells"
    from nbformat import v4, write
    path.parent.mkdir(parents=True, exist_ok=True)
    write(v4.new_notebook(cells=[v4.new_markdown_cell('# A lesson'), *map(v4.new_code_cell, cells)]), path)


@pytest.fixture(scope='session')
def data_folder(tmp_path_factory):
    "With a copy of the samples that the clone has, which need not be drawn once more"
    d, made = tmp_path_factory.mktemp('data'), root/'data'/'sample'
    if made.exists(): shutil.copytree(made, d/'sample')
    return d


@pytest.fixture(autouse=True)
def own_folders(tmp_path, data_folder, monkeypatch):
    "Work in an empty folder, keep data and runs out of the clone and out of the home, and let no setting of the shell in"
    for o in ('COURSE_PROFILE', 'COURSE_DEVICE'): monkeypatch.delenv(o, raising=False)
    if not gpu: monkeypatch.setenv('COURSE_DEVICE', 'cpu')
    monkeypatch.setenv('COURSE_DATA', str(data_folder))
    monkeypatch.setenv('COURSE_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'fastai'))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def python(tmp_path):
    "Run code in a Python of its own: `python(code, *args, **env)`"
    def _f(code, *args, cwd=None, **env):
        cmd = [sys.executable, '-c', code, *map(str, args)]
        return subprocess.run(cmd, cwd=cwd or tmp_path, env={**os.environ, **env}, capture_output=True, text=True, errors='replace', timeout=patience)
    return _f


@pytest.fixture
def course(python):
    "The command line in a process of its own: `course('data', 'mnist')`"
    def _f(*args, **env): return python('from course_lib.cli import course; course()', *args, **env)
    return _f


@pytest.fixture
def one_line():
    "Check that a command failed with one line on stderr, and give the line"
    def _f(res):
        assert res.returncode != 0
        lines = res.stderr.strip().splitlines()
        assert len(lines) == 1 and 'Traceback' not in lines[0], res.stderr
        return lines[0]
    return _f


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A clone to write into, with this one's settings and tables and without its results"
    from course_lib import cli, core, results, runner
    new = tmp_path/'clone'
    for o in ('nbs', 'data', 'results'): (new/o).mkdir(parents=True)
    for o in ('settings.ini', 'data/datasets.toml', 'data/lessons.toml'): shutil.copy(root/o, new/o)
    for o in (core, results, cli, runner): monkeypatch.setattr(o, 'clone_root', lambda: new)
    monkeypatch.setattr(results, '_started', {}) # no lesson has begun
    return new


def mount(*args): return shutil.which('mount') and not subprocess.run(['mount', *map(str, args)], capture_output=True).returncode


@pytest.fixture
def small_disk(tmp_path):
    "A disk that holds so many kB, where the system lets us make one: `small_disk(48)` gives its folder, and called again gives it that much room"
    d = tmp_path/'disk'
    d.mkdir()
    def _f(kB):
        new = ['-o', f'remount,size={kB}k'] if os.path.ismount(d) else ['-t', 'tmpfs', '-o', f'size={kB}k', 'none']
        if not mount(*new, d): pytest.skip('no disk can be mounted here')
        return d
    yield _f
    if os.path.ismount(d): subprocess.run(['umount', '-l', d], check=True)


@pytest.fixture
def read_only():
    "From now on nobody may write to a folder of the test, root included: it lies on a disk of its own, into which it is copied (so nothing else can be lost)"
    done = []
    def _f(folder):
        was = folder.rename(folder.with_name(f'{folder.name}-was'))
        folder.mkdir()
        if not mount('-t', 'tmpfs', 'none', folder): pytest.skip('no disk can be mounted here')
        done.append(folder)
        shutil.copytree(was, folder, dirs_exist_ok=True)
        assert mount('-o', 'remount,ro', folder)
        return folder
    yield _f
    for o in done: subprocess.run(['umount', '-l', o], check=True)
