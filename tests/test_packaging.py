"The files that say what is needed agree, and the wheel works where there is no clone"
import json, subprocess, sys, tomllib, zipfile
from importlib import metadata
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parent.parent
project = tomllib.loads((root/'pyproject.toml').read_text())['project']


extras = project['optional-dependencies']
on_conda = {'pytorch': 'torch'} # by another name


def by_name(reqs): return {canonicalize_name(o.name): o.specifier for o in map(Requirement, reqs)}

def of_extras(): return {k: v for o in extras.values() for k,v in by_name(o).items() if k != 'course-lib'} # which stands for other extras

def wanted(): return by_name(project['dependencies']) | of_extras()

def locked(): return [o for o in (root/'requirements.lock').read_text().splitlines() if o.strip() and not o.startswith('#')]


def test_conda_agrees():
    "environment.yml asks for what pyproject.toml asks for, in the same ranges, and what the modules of the lessons need is conda-forge's"
    import yaml
    env = yaml.safe_load((root/'environment.yml').read_text())
    pip = by_name(o for o in next(o['pip'] for o in env['dependencies'] if isinstance(o, dict)) if not o.startswith('-e'))
    conda = {on_conda.get(k, k): v for k,v in by_name(o for o in env['dependencies'] if isinstance(o, str)).items()}
    assert env['channels'] == ['conda-forge'] and conda['python'] == SpecifierSet(project['requires-python'])
    assert pip | {k: v for k,v in conda.items() if k not in ('python', 'pip')} == wanted()
    assert not set(pip) & (set(conda) | set(by_name(project['dependencies'])))


def deptry(*args): return subprocess.run([sys.executable, '-m', 'deptry', '--no-ansi', *args], cwd=root, capture_output=True, text=True)

def test_imports_are_declared():
    "What the package, the notebooks, the benchmarks and the tests import stands in pyproject.toml, and what stands there is needed"
    res = deptry('.')
    assert res.returncode == 0, res.stderr


def test_package_needs_no_tool():
    "The package itself imports nothing that only its makers have, but what writes notebooks for them"
    res = deptry('course_lib', '--optional-dependencies-dev-groups', 'dev', '--ignore', 'DEP002', '--per-rule-ignores', 'DEP004=nbdev')
    assert res.returncode == 0, res.stderr


def test_extras_hold_no_other():
    "`dev` has all extras, and an extra names no requirement of the package itself again"
    def inside(k):
        ours = [r for r in map(Requirement, extras[k]) if canonicalize_name(r.name) == 'course-lib']
        return {o for r in ours for o in r.extras | {x for e in r.extras for x in inside(e)}}
    assert inside('dev') == set(extras) - {'dev'}
    assert not set(of_extras()) & set(by_name(project['dependencies']))


@pytest.fixture(scope='session')
def gone():
    "The modules that are here and would not be after `pip install course_lib`"
    todo, have = list(project['dependencies']), {'course-lib'}
    while todo:
        r = Requirement(todo.pop())
        if (name := canonicalize_name(r.name)) in have: continue
        have.add(name)
        todo += [o for o in metadata.requires(name) or [] if not (m := Requirement(o).marker) or any(m.evaluate({'extra': e}) for e in r.extras or [''])]
    res = {k for k,v in metadata.packages_distributions().items() if not {canonicalize_name(o) for o in v} & have}
    assert {'IPython', 'ipykernel', 'ipywidgets', 'jupyterlab', 'jupyter_client', 'nbclient', 'nbconvert', 'nbformat', 'voila', 'nbdev'} <= res
    return ' '.join(res)


no_extras = """
import sys
from importlib.machinery import PathFinder
gone, finders = set(sys.argv.pop(1).split()), sys.meta_path[:]
class Installed:
    find_distributions = staticmethod(PathFinder.find_distributions)
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in gone: return next((o for f in finders if (o := f.find_spec(name, path, target))), None)
sys.meta_path[:] = [Installed()]
"""

without_jupyter = no_extras + """
import importlib, json, pkgutil, course_lib
from course_lib.core import lessons
from course_lib.results import header
failed = {}
for o in pkgutil.walk_packages(course_lib.__path__, 'course_lib.'):
    try: importlib.import_module(o.name)
    except ModuleNotFoundError as e: failed[o.name] = e.name
for o in lessons(): header(o)
print('RESULT', json.dumps([failed, [f'course_lib.{o.module}' for o in lessons().values()]]))
"""

def test_without_jupyter(python, gone):
    "With the requirements of the package alone every module can be imported but those that are made of widgets, which are no lesson's"
    res = python(without_jupyter, gone, PYTHONPATH=str(root))
    assert res.returncode == 0, res.stderr
    failed, of_lessons = json.loads(res.stdout.split('RESULT ')[1])
    assert set(failed.values()) <= {'ipywidgets'} and not set(failed) & set(of_lessons), failed


def test_commands_without_jupyter(python, gone, one_line):
    "The commands that run no notebook work, and the one that does says what it needs"
    call = no_extras + 'from course_lib.cli import course; course()'
    alone = lambda *args: python(call, gone, *args, PYTHONPATH=str(root))
    for args in (['--help'], ['results'], ['data', 'mnist'], ['doctor']):
        res = alone(*args)
        assert res.returncode == 0, res.stderr
    assert "pip install 'course_lib[run]'" in one_line(alone('run', '01'))


def test_lock_agrees():
    "Every requirement is pinned in the lock, to a version within its range"
    pins = {}
    for o in map(Requirement, locked()): pins.setdefault(canonicalize_name(o.name), []).append(o.specifier)
    for name,spec in wanted().items():
        assert name in pins, f'{name} is not in requirements.lock'
        for o in pins[name]: assert str(o).startswith('==') and spec.contains(str(o)[2:]), f'{name}{o} is outside {spec}'


def test_lock_is_names_and_versions():
    "The lock holds pins only: no addresses, no local folders, no options"
    assert locked()
    for o in locked():
        r = Requirement(o)
        assert r.url is None and str(r.specifier).startswith('==') and '://' not in o


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "A folder with the unpacked wheel"
    wheel = pytest.importorskip('hatchling.builders.wheel', reason='hatchling is not installed, so no wheel can be built')
    dist, site = tmp_path_factory.mktemp('dist'), tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(next(iter(wheel.WheelBuilder(str(root)).build(directory=str(dist), versions=['standard'])))) as z: z.extractall(site)
    return site


@pytest.fixture
def installed(site, python, tmp_path, monkeypatch):
    "Run code with the wheel's course_lib, in a working folder of its own"
    for o in ('COURSE_DATA', 'COURSE_RUNS'): monkeypatch.delenv(o)
    check = f"import course_lib; assert course_lib.__file__.startswith({str(site)!r}), course_lib.__file__\n"
    work = tmp_path/'work'
    work.mkdir()
    def _f(code, *args): return python(check+code, *args, cwd=work, PYTHONPATH=str(site), XDG_DATA_HOME=str(tmp_path/'share'), HOME=str(tmp_path))
    return _f


def said(res):
    assert res.returncode == 0, res.stderr
    return res.stdout.split()


def test_wheel_carries_its_tables(site):
    "The wheel holds every module, and one copy of each table, the clone's"
    for name,src in (('settings.ini', 'settings.ini'), ('datasets.toml', 'data/datasets.toml'), ('lessons.toml', 'data/lessons.toml')):
        assert (site/'course_lib'/name).read_bytes() == (root/src).read_bytes()
    mods = lambda home: {p.relative_to(home) for p in (home/'course_lib').rglob('*.py')}
    assert mods(root) == mods(site) and Path('course_lib/samples/make.py') in mods(site)
    assert 'course = course_lib.cli:course' in next(site.glob('*.dist-info/entry_points.txt')).read_text()


settings = "from course_lib.core import *; c = lesson_settings('01'); print(clone_root(), c.profile, c.epochs, c.bs)"

def test_settings_from_wheel(installed): assert said(installed(settings)) == ['None', 'sample', '3', '64']


def test_own_settings_are_merged(installed, tmp_path):
    "A settings.ini in the working folder changes the keys that it names, and no others"
    (tmp_path/'work'/'settings.ini').write_text('[course]\nprofile = full\n[01_mnist_resnet.full]\nbs = 100\n')
    assert said(installed(settings)) == ['None', 'full', '3', '100']


def test_foreign_settings_are_passed_over(installed, tmp_path):
    "Another project's settings.ini is not ours; one of ours above it is"
    (tmp_path/'work'/'settings.ini').write_text('[DEFAULT]\nlib_name = other\nprofile = nonsense\n')
    assert said(installed(settings)) == ['None', 'sample', '3', '64']
    (tmp_path/'settings.ini').write_text('[course]\n[01_mnist_resnet]\nepochs = 7\n')
    assert said(installed(settings)) == ['None', 'sample', '7', '64']


def test_data_in_the_users_folder(installed, tmp_path):
    "Samples are made in the user's data folder, not beside the package"
    path, = said(installed("from course_lib.data import get_data; print(get_data('mnist', 'sample'))"))
    assert Path(path) == tmp_path/'share'/'course_lib'/'data'/'sample'/'mnist'
    assert len(list(Path(path).glob('testing/*/*.png'))) == 360


def test_run_needs_a_clone(installed, one_line):
    "What needs the notebooks says so"
    line = one_line(installed('from course_lib.cli import course; course()', 'run', '01'))
    assert 'clone' in line.lower() and 'notebooks' in line
