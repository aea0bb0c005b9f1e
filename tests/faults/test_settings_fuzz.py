"Whatever stands in settings.ini: settings within their bounds, or one line that names the file"
import math, re
from configparser import ConfigParser
from pathlib import Path
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from course_lib.core import CourseError, course_file, lesson_settings, lessons, read_settings, settings_files

often = settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
shipped = ConfigParser(interpolation=None)
shipped.read(course_file('settings.ini'), encoding='utf-8')
names = {'course', *(f'{o}{end}' for o in lessons() for end in ('', '.sample', '.full'))}
kinds = {k: v.split('|')[0].split() for k,v in shipped.items('keys')}


def within(key, v):
    "Is this a value that [keys] allows? Read anew, and not by the reader that is tried"
    kind, *args = kinds[key]
    if kind == 'text': return isinstance(v, str)
    if kind == 'one': return v in args[1:]
    return type(v) is dict(int=int, float=float)[kind] and math.isfinite(v) and float(args[0]) <= v <= float(args[1])


def tried(data):
    "A settings.ini with these bytes, which is one of ours: what it gives is in order, or it is refused in a line; gives that line, or nothing"
    f = Path('settings.ini')
    f.write_bytes(data)
    try:
        if len(settings_files()) == 1: return # another project's
        got = read_settings()
        assert set(lesson_settings('01', 'sample')) == set(lesson_settings('01', 'full')) and not (set(got) - names), set(got) - names
        assert not (bad := {(s, k): v for s,sec in got.items() for k,v in sec.items() if not within(k, v)}), bad
    except CourseError as e:
        assert len(str(e).splitlines()) == 1 and str(e).startswith(str(f.absolute())) and str(e).isprintable()
        return str(e)
    finally: f.unlink()


words = st.sampled_from([*lessons(), *kinds, 'course', 'keys', 'sample', 'full', 'auto', 'DEFAULT'])
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from(['1_0', '١٢', '0x10', '1e999', '-0', '+3', '1.', 'nan', 'inf', '1;2', '9'*5000])).map(str)
junk = st.text(st.one_of(st.characters(), st.sampled_from('[]=:;#%\n\r \t.\0\x85\u2028\ufeff')), max_size=20)
any_text = st.one_of(words, numbers, junk)
sections = st.tuples(st.sampled_from([*lessons()]), st.sampled_from(['', '.', '.sample', '.full', '.fast', '.sample.full'])).map(''.join)
lines = st.one_of(st.tuples(st.one_of(words, junk), st.sampled_from(['=', ' = ', ':', '', '\n ']), any_text).map(''.join),
                  st.tuples(st.sampled_from(['seed', 'bs', 'lr', 'epochs', 'dataset']), numbers).map(' = '.join),
                  st.one_of(sections, any_text).map('[{}]'.format), any_text)


@often
@given(st.lists(lines, max_size=8), st.sampled_from(['\n', '\r\n', '\r', '\n  ']), st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16']))
def test_text(some, end, encoding): tried(('[course]' + end + end.join(some)).encode(encoding, 'surrogatepass'))


@often
@given(st.lists(st.tuples(st.integers(0, course_file('settings.ini').stat().st_size), st.binary(max_size=3), st.integers(0, 40)), min_size=1, max_size=6))
def test_the_shipped_file_damaged(changes):
    "Bytes put in, taken out and written over in the file that is shipped"
    data = course_file('settings.ini').read_bytes()
    for at, new, gone in changes: data = data[:at] + new + data[at+gone:]
    tried(data)


@pytest.mark.parametrize('text, said', [
    ('[course]\r\nseed = 7\r\n[01_mnist_resnet]\r\nbs = 3\r\n', None), ('[course]\rseed = 7\r', None),
    ('[course]\nseed = 1\n  2\n', r'seed = 1\\n2: expected a whole number'), ('[course]\n[01_mnist_resnet.]\nbs = 3\n', r'\[01_mnist_resnet.\] is no section'),
    ('[course]\nseed = \x1b[2J', r'\\x1b\[2J'), ('[course]\nbs\x0bx = 3', 'is not a setting')])
def test_ends_of_lines(text, said):
    "Windows' and old Macs' are read; a value over two lines, and what a terminal would obey, are told in one"
    line = tried(text.encode())
    assert line is None and said is None or re.search(said, line), line


def test_no_file_of_that_name(tmp_path):
    "A folder, or a link to nowhere, in its place: passed over"
    before = read_settings()
    (tmp_path/'settings.ini').mkdir()
    assert read_settings() == before
    (tmp_path/'settings.ini').rmdir()
    (tmp_path/'settings.ini').symlink_to('nowhere')
    assert read_settings() == before
