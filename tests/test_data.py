"Full datasets are whole or refused: a small one of three files, and everything that can be wrong with it"
import gzip, hashlib, http.server, io, os, re, shutil, socket, tarfile, tempfile, threading, zipfile
from pathlib import Path
import pytest
from fastai.vision.all import AttrDict, URLs
from course_lib import data
from course_lib.core import CourseError, registry
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
    monkeypatch.setenv('no_proxy', '*')
    for o in ('data', 'archive'): (tmp_path/'fastai'/o).mkdir(parents=True)
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


# ---- archives that should not be unpacked

def member(name, text=b'x', **kwargs):
    info = tarfile.TarInfo(name)
    info.size = len(text)
    for k,v in kwargs.items(): setattr(info, k, v)
    return info, io.BytesIO(text)

def tar_of(*members):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as t:
        for o in (*map(member, good), *members): t.addfile(*o)
    return f.getvalue()

def large_note(kind):
    "A name, or notes, of 9 MB before a member, which tarfile reads whole"
    head, text = tarfile.TarInfo('note'), b'9000000 comment='.ljust(8_999_999, b'a') + b'\n'
    head.type, head.size = kind, len(text)
    head = head.create_ustar_header(head.get_info(), 'utf-8', 'replace')
    return gzip.compress(head + text + bytes(-len(text) % 512) + gzip.decompress(tar_of()))

def zip_of(*members):
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, text, mode in (*((o, b'x', 0) for o in good), *members):
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            z.writestr(info, text)
    return f.getvalue()

link, hard, fifo, device = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE
evil = {
    'tgz, upwards': tar_of(member('../../evil.txt')), 'tgz, up in the middle': tar_of(member('toy/train/../../../../evil.txt')),
    'tgz, absolute': tar_of(member('/tmp/evil.txt')), 'tgz, a drive': tar_of(member('C:/evil.txt')), 'tgz, backslashes': tar_of(member('..\\..\\evil.txt')),
    'tgz, link out': tar_of(member('toy/up', b'', type=link, linkname='../../..'), member('toy/up/evil.txt')),
    'tgz, absolute link': tar_of(member('toy/root', b'', type=link, linkname='/tmp'), member('toy/root/evil.txt')),
    'tgz, hard link out': tar_of(member('toy/up', b'', type=hard, linkname='../../../secret')),
    'tgz, pipe': tar_of(member('toy/pipe', b'', type=fifo)), 'tgz, device': tar_of(member('toy/null', b'', type=device, devmajor=1, devminor=3)),
    'tgz, large note': large_note(tarfile.XHDTYPE), 'tgz, large note for all': large_note(tarfile.XGLTYPE),
    'tgz, large name': large_note(tarfile.GNUTYPE_LONGNAME),
    'tgz, bomb': tar_of(*[member(f'toy/{i}', bytes(60_000_000)) for i in range(5)]), 'tgz, many': tar_of(*[member(f'toy/{i}', b'') for i in range(1_100)]),
    'zip, upwards': zip_of(('../../evil.txt', b'x', 0)), 'zip, absolute': zip_of(('/tmp/evil.txt', b'x', 0)),
    'zip, backslashes': zip_of(('..\\evil.txt', b'x', 0)),
    'zip, bomb': zip_of(*[(f'toy/{i}', bytes(60_000_000), 0) for i in range(5)]), 'zip, many': zip_of(*[(f'toy/{i}', b'', 0) for i in range(1_100)])}

@pytest.mark.parametrize('kind', evil)
def test_evil_archive(home, toy, kind, tmp_path):
    "Refused with one line that names the archive; nothing is left, inside or outside"
    arch = f"toy.{kind.split(',')[0]}"
    (home/'archive'/arch).write_bytes(evil[kind])
    (tmp_path/'secret').write_text('secret')
    toy(f'{closed_port()}/{arch}', archive=arch, bytes=9_000_000)
    with pytest.raises(CourseError, match='is refused') as e: full_data('toy')
    assert str(home/'archive'/arch) in str(e.value) and '\n' not in str(e.value)
    assert left(home) == [f'archive/{arch}'] and folders(home) == []
    assert not [o for o in (tmp_path.parent, tmp_path, home, home/'data', Path('/tmp')) if (o/'evil.txt').exists() or (o/'..\\evil.txt').exists()]
    assert (tmp_path/'secret').read_text() == 'secret'


def test_harmless_archives(home, toy):
    "The same ways of making them without the evil member, a link that stays inside, and a zip with macOS's folder beside"
    good_ones = dict(tgz=tar_of(member('toy/again', b'', type=link, linkname='valid/3.txt'), member('./toy/more.txt')),
                     zip=zip_of(('__MACOSX/toy/._train', b'', 0), ('toy/link', b'train/1.txt', 0o120777), ('toy/empty/', b'', 0o040755),
                                ('toy/up', b'../../..', 0o120777), ('toy/null', b'', 0o020666)))
    for end, arch in good_ones.items():
        (home/'archive'/f'toy.{end}').write_bytes(arch)
        toy(f'{closed_port()}/toy.{end}')
        full_data('toy')
        assert {'train', 'valid'} <= {o.name for o in (home/'data'/'toy').iterdir()}
        for o in [home/'data'/'toy'/o for o in ('up', 'null') if end == 'zip']: assert o.is_file() and not o.is_symlink() # no links and no devices from a zip
        shutil.rmtree(home/'data'/'toy')


def test_unpacked_beside_its_destination(home, carried, monkeypatch):
    "Nothing goes through the system's temporary folder, which may be small"
    carried(tgz(good))
    for o in ('TemporaryDirectory', 'mkdtemp', 'mkstemp', 'NamedTemporaryFile'):
        monkeypatch.setattr(tempfile, o, lambda *a, **k: pytest.fail('a temporary folder'))
    unpacked(home)


def test_whole_checksum(home, toy):
    "A byte changed behind the first megabyte, which fastai's checksum does not see"
    arch = bytearray(tgz([*good, *[f'toy/more/{i}' for i in range(400)]]))
    assert len(arch) > 2**20+10_000
    known_all = {**known(bytes(arch)), 'sha256': hashlib.sha256(arch).hexdigest()}
    toy(closed_port()+'/toy.tgz', **known_all)
    arch[-5000] ^= 1
    carry(home, bytes(arch))
    refused(home, 'checksum', known_all['sha256'], carried=True)
    arch[-5000] ^= 1
    carry(home, bytes(arch))
    full_data('toy')


def test_trusted_on_first_use(home, carried):
    "An archive that has served is known by its checksum from then on, and another one under its name is refused"
    arch = tgz(good)
    carried(arch)
    unpacked(home)
    note = home/'archive'/'toy.tgz.sha256'
    assert note.read_text() == f'{hashlib.sha256(arch).hexdigest()}  toy.tgz\n'
    shutil.rmtree(home/'data'/'toy')
    carried(tgz(good))
    with pytest.raises(CourseError, match='toy.tgz.sha256'): full_data('toy')
    note.unlink()
    unpacked(home)


def test_nothing_is_noted_of_an_archive_that_did_not_serve(home, carried):
    carried(tgz(good[1:]))
    refused(home, 'train/*.txt', carried=True)


# ---- folders that are there and are no dataset

def test_empty_folder_is_filled(home, toy, serve):
    "As if there were none; a link to an empty folder is filled where it leads"
    (home/'data'/'toy').mkdir()
    assert data.at_hand('mnist', 'full') is None
    toy(serve(tgz(good)))
    assert data.at_hand('toy', 'full') is None
    unpacked(home)
    assert data.at_hand('toy', 'full') == home/'data'/'toy'


def test_linked_folder(home, toy, serve, tmp_path):
    (tmp_path/'disk').mkdir()
    (home/'data'/'toy').symlink_to(tmp_path/'disk')
    toy(serve(tgz(good)))
    assert full_data('toy') == home/'data'/'toy' and (home/'data'/'toy').is_symlink()
    assert sorted(o.name for o in (tmp_path/'disk').iterdir()) == ['train', 'valid']
    assert not [o for o in tmp_path.iterdir() if o.name.startswith('.') and o.is_dir()]


def test_link_to_nowhere(home, toy):
    "A disk that is not mounted is no reason to fetch gigabytes"
    (home/'data'/'toy').symlink_to('/nowhere/toy')
    toy(closed_port()+'/toy.tgz')
    with pytest.raises(CourseError, match='link to /nowhere/toy') as e: full_data('toy')
    assert '\n' not in str(e.value) and data.at_hand('toy', 'full') is None


def test_half_a_folder_is_not_at_hand(home, copy):
    "Where a pattern matches nothing, `course doctor` does not say that the set is here"
    copy(good[:2])
    assert data.at_hand('toy', 'full') is None


def test_a_list_made_too_early(home, toy):
    "A list that was written when the folder was empty is written again"
    toy(closed_port()+'/toy.tgz', listed='**/*.jpg', layout={'files.csv': 3})
    (home/'data'/'toy'/'a').mkdir(parents=True)
    with pytest.raises(CourseError, match='0 files'): full_data('toy')
    for i in range(3): (home/'data'/'toy'/'a'/f'{i}.jpg').touch()
    assert data.at_hand('toy', 'full') and full_data('toy') == home/'data'/'toy'
    assert (home/'data'/'toy'/'files.csv').read_text().split() == ['a/0.jpg', 'a/1.jpg', 'a/2.jpg']


def test_no_folder_to_put_it_in(home, toy):
    "A file in the place of fastai's data folder"
    shutil.rmtree(home/'data'); (home/'data').write_text('')
    toy(closed_port()+'/toy.tgz')
    with pytest.raises(CourseError, match='FASTAI_HOME') as e: full_data('toy')
    assert '\n' not in str(e.value)


# ---- what the registry says

def test_what_states_no_licence_is_not_fetched(home, course):
    "Its line says where a copy goes; one that lies there is used"
    with pytest.raises(CourseError, match='licence.*Bring a copy') as e: full_data('daisy2sunflower')
    dest = home/'data'/'daisy2sunflower'
    assert str(dest) in str(e.value) and 'trainA' in str(e.value) and '\n' not in str(e.value)
    assert 'bring your own copy' in course('doctor').stdout
    for k in registry()['daisy2sunflower']['full']['layout']: (dest/k).parent.mkdir(parents=True); (dest/k.replace('*', '1')).touch()
    assert full_data('daisy2sunflower') == dest


def test_every_address_is_pinned():
    "An archive of a repository is one commit's; what fastai does not know has a checksum or is said to be estimated"
    for name,card in registry().items():
        full = card.get('full', {})
        if 'url' not in full: continue
        if 'github.com' in full['url']: assert re.search(r'/archive/[0-9a-f]{40}\.zip$', full['url']), name
        assert full.get('sha256') or full.get('estimated') or hasattr(URLs, full['url']), name
