"The files that say what is needed agree, and the wheel works where there is no clone"
import tomllib, zipfile
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

root = Path(__file__).resolve().parent.parent
project = tomllib.loads((root/'pyproject.toml').read_text())['project']


def by_name(reqs): return {canonicalize_name(o.name): o.specifier for o in map(Requirement, reqs)}

def wanted(): return by_name(project['dependencies'] + project['optional-dependencies']['dev'])

def locked(): return [o for o in (root/'requirements.lock').read_text().splitlines() if o.strip() and not o.startswith('#')]


def test_conda_agrees():
    "environment.yml asks for what pyproject.toml asks for, in the same ranges"
    import yaml
    deps = yaml.safe_load((root/'environment.yml').read_text())['dependencies']
    pip = next(o['pip'] for o in deps if isinstance(o, dict))
    conda = by_name(o for o in deps if isinstance(o, str))
    assert by_name(o for o in pip if not o.startswith('-e')) | {k: v for k,v in conda.items() if k not in ('python', 'pip')} == wanted()
    assert conda['python'] == SpecifierSet(project['requires-python'])


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
