"The table of faults in tests/README.md: every test that it names is there, and every test of this folder is in it"
import ast, re
from conftest import root

tests = root/'tests'
named = re.findall(r'`([\w/]+\.py)::(\w+)`', (tests/'README.md').read_text(encoding='utf-8'))


def names_in(f):
    tree = ast.parse((tests/f).read_text(encoding='utf-8'))
    return {o.name for o in ast.walk(tree) if isinstance(o, ast.FunctionDef) and o.name.startswith('test')}


def test_named_tests_exist():
    assert len(named) > 80
    assert not [f'{f}::{o}' for f,o in named if not (tests/f).exists() or o not in names_in(f)]


def test_every_fault_is_in_the_table():
    here = {(f'faults/{f.name}', o) for f in (tests/'faults').glob('test_*.py') if f.stem != 'test_table' for o in names_in(f'faults/{f.name}')}
    assert not here - set(named)
