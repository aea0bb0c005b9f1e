"Full datasets are whole or refused: a small one of three files, and everything that can be wrong with it"
import hashlib, http.server, io, os, socket, tarfile, threading
import pytest
from fastai.vision.all import AttrDict, Config
from course_lib import data
from course_lib.core import CourseError
from course_lib.data import full_data

layout = {'train/*.txt': 2, 'valid/*.txt': 1}
good = ['toy/train/1.txt', 'toy/train/2.txt', 'toy/valid/3.txt']


def tgz(names):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as t:
        for o in names:
            text = os.urandom(3000)
            info = tarfile.TarInfo(o)
            info.size = len(text)
            t.addfile(info, io.BytesIO(text))
    return f.getvalue()


@pytest.fixture
def home(tmp_path, monkeypatch):
    "fastai's folders, empty, and no proxy between us and our own server"
    cfg = Config(tmp_path/'fastai', 'config.ini', create=dict(data='data', archive='archive'))
    monkeypatch.setattr(data, 'fastai_cfg', lambda: cfg)
    monkeypatch.setenv('no_proxy', '*')
    for o in ('data', 'archive'): (tmp_path/'fastai'/o).mkdir()
    return tmp_path/'fastai'


@pytest.fixture
def toy(home, monkeypatch):
    "Put a dataset with this address into the registry"
    def _f(url, **known):
        card = {**dict(url=url, folder='toy', count=3, bytes=9_000_000, layout=layout, licence='none'), **known}
        monkeypatch.setattr(data, 'registry', lambda: {'toy': AttrDict(full=card)})
    return _f


@pytest.fixture
def serve():
    "Serve some bytes, and say that there are `size` of them; gives the address"
    servers = []
    def _f(body, size=None):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header('Content-Length', str(size or len(body)))
                self.end_headers()
                self.wfile.write(body)
            def log_message(self, *args): pass
        servers.append(http.server.HTTPServer(('127.0.0.1', 0), Handler))
        threading.Thread(target=servers[-1].handle_request, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}/toy.tgz'
    yield _f
    for o in servers: o.server_close()


def closed_port(): # an address where nobody listens
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return f'http://127.0.0.1:{s.getsockname()[1]}'


def left(home): return sorted(p.relative_to(home).as_posix() for p in home.rglob('*') if p.is_file() and not p.name.endswith(('.lock', 'config.ini')))

def folders(home): return sorted(p.name for o in ('data', 'archive') for p in (home/o).iterdir() if p.is_dir())

def refused(home, *words, carried=False, **kwargs):
    with pytest.raises(CourseError) as e: full_data('toy', **kwargs)
    for o in ('toy', *words): assert str(o) in str(e.value)
    assert '\n' not in str(e.value)
    assert left(home) == ['archive/toy.tgz']*carried and folders(home) == []


def unpacked(home):
    assert full_data('toy') == home/'data'/'toy'
    assert folders(home) == ['toy']
    assert [o for o in left(home) if o.startswith('data')] == ['data/'+o for o in good]


def test_nobody_answers_at_the_address(home, toy):
    "The error names dataset, address, size, and where an archive may be put"
    url = closed_port()+'/toy.tgz'
    toy(url)
    refused(home, url, '9 MB', home/'archive', 'under the name toy.tgz', 'profile = sample')


def test_silent_server(home, toy):
    "A server that takes the connection and never speaks is given up"
    s = socket.create_server(('127.0.0.1', 0))
    toy(f'http://127.0.0.1:{s.getsockname()[1]}/toy.tgz')
    end = threading.Timer(10, s.close) # so that a broken time limit fails here, and does not hang
    end.start()
    refused(home, 'timed out', timeout=.5)
    end.cancel(); s.close()


def test_command_line_without_network(course, tmp_path):
    "`course data` says it in one line for the real MNIST"
    away = closed_port()
    res = course('data', 'mnist', '--profile', 'full', http_proxy=away, https_proxy=away, no_proxy='')
    line = res.stdout.strip().splitlines()[-1]
    for o in ('mnist: not at hand', 'mnist_png.tgz', '16 MB', str(tmp_path/'fastai'/'archive')): assert o in line
    assert res.returncode == 1 and 'Traceback' not in res.stderr and folders(tmp_path/'fastai') == []


def test_fetched(home, toy, serve):
    toy(serve(tgz(good)))
    unpacked(home)


def test_cut_connection(home, toy, serve):
    "A server that promises more than it sends"
    arch = tgz(good)
    toy(serve(arch[:-2000], size=len(arch)))
    refused(home, 'fetching it failed')


def test_cut_archive(home, toy, serve):
    "A server that has only a part of the archive itself"
    toy(serve(tgz(good)[:-2000]))
    refused(home, 'fetching it failed')


def test_no_archive_at_all(home, toy, serve):
    "A page that says sorry, where an archive was expected"
    toy(serve(b'<html>please log in</html>'))
    refused(home, 'fetching it failed')


def test_fetched_with_wrong_structure(home, toy, serve):
    toy(serve(tgz(['toy/a.txt', 'toy/b.txt'])))
    refused(home, 'train/*.txt: 0 files, expected 2')


def test_fetched_too_few(home, toy, serve):
    toy(serve(tgz(good[1:])))
    refused(home, 'train/*.txt: 1 files, expected 2')


def test_fetched_another_archive(home, toy, serve):
    "A known checksum is checked on what comes from the network too"
    arch = tgz(good)
    toy(serve(arch), bytes=len(arch), md5='0'*32)
    refused(home, 'checksum')


def carry(home, arch): (home/'archive'/'toy.tgz').write_bytes(arch)


def known(arch): return dict(bytes=len(arch), md5=hashlib.md5(arch[:2**20]).hexdigest())


@pytest.fixture
def carried(home, toy):
    "Carry one archive, where another one is expected"
    def _f(arch, expected=None):
        carry(home, arch)
        toy(closed_port()+'/toy.tgz', **(known(expected) if expected else {}))
    return _f


def test_carried(home, carried):
    "An archive in the archive folder is unpacked, without a network, and stays"
    arch = tgz(good)
    carried(arch, arch)
    unpacked(home)
    assert (home/'archive'/'toy.tgz').read_bytes() == arch


def test_carried_without_checksum(home, carried):
    carried(tgz(good))
    unpacked(home)


def test_carried_and_truncated(home, carried):
    arch = tgz(good)
    carried(arch[:-2000], arch)
    refused(home, f'{len(arch)-2000:,} bytes', f'expected {len(arch):,}', 'truncated', carried=True)


def test_carried_truncated_without_checksum(home, carried):
    carried(tgz(good)[:-2000])
    refused(home, 'toy.tgz could not be unpacked', carried=True)


def test_carried_and_damaged(home, carried):
    arch = tgz(good)
    bad = bytearray(arch)
    bad[-100] ^= 1
    carried(bytes(bad), arch)
    refused(home, 'checksum', known(arch)['md5'], carried=True)


def test_carried_with_wrong_structure(home, carried):
    "The archive is named, since the folder it was unpacked into is gone"
    carried(tgz(['toy/a.txt', 'toy/b.txt']))
    refused(home, 'train/*.txt: 0 files, expected 2', home/'archive'/'toy.tgz', carried=True)


@pytest.fixture
def copy(home, toy):
    "A copy that lies in fastai's data folder already"
    def _f(names):
        toy(closed_port()+'/toy.tgz')
        for o in names:
            (home/'data'/o).parent.mkdir(parents=True, exist_ok=True)
            (home/'data'/o).touch()
    return _f


def test_copy_is_used(home, copy, capsys):
    copy(good)
    assert full_data('toy') == home/'data'/'toy'
    assert capsys.readouterr().out == ''


def test_part_is_used_and_said(home, copy, capsys):
    copy(good[1:])
    assert full_data('toy') == home/'data'/'toy'
    out = capsys.readouterr().out
    assert '2 of 3 files' in out and 'reduced' in out


@pytest.mark.parametrize('names', [[*good, 'toy/train/4.txt'], good[:2], ['toy/readme.txt']], ids=['too many', 'a part is missing', 'another structure'])
def test_wrong_copy(home, copy, names):
    "Refused by name, and left as it is"
    copy(names)
    with pytest.raises(CourseError, match='Move it away') as e: full_data('toy')
    assert str(home/'data'/'toy') in str(e.value)
    assert left(home) == sorted('data/'+o for o in names)


def test_no_full_version():
    with pytest.raises(CourseError, match='photos.*sample'): full_data('photos')


def test_unknown_dataset():
    with pytest.raises(CourseError, match='mnist'): data.dataset('nosuch')
