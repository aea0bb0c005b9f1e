"Restoring photographs: weights that say what they are, any size, tiles, files of every kind, and the command line"
import json, os, struct, sys, tracemalloc
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from course_lib.core import CourseError
from course_lib.kept_weights import kept, load_network, network_kinds, read_weights, save_weights
from course_lib.metrics import psnr
from course_lib.pictures import open_photo
from course_lib.crappify import parse_steps
from course_lib.restore import (Restorer, box_file, box_trials, faded_print, held_out_photos, old_batch, old_damage, photo_restorer, restore_files,
    restore_photo, restoring_networks, tile_starts, tile_weights, torn_squares, try_restorer)
from course_lib.samples.photos import photo_sources

small = dict(widths=[8,16,16], n=1, mid=1)


@pytest.fixture
def model():
    "An untrained network: the identity"
    torch.manual_seed(0)
    return photo_restorer(small).eval()


@pytest.fixture(scope='module')
def cat(): return open_photo(photo_sources()['cat'][0])[0]


@pytest.fixture
def saved(model, tmp_path): return save(tmp_path/'m.safetensors', model, figures=dict(psnr=1.5))


def save(path, model, **kwargs): return save_weights(path, model, small, 'photo_restorer', **kwargs)


def parts_of(path):
    "The header and the numbers of a safetensors file"
    data = path.read_bytes()
    n = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:8+n]), data[8+n:]


def written(path, head, body):
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + body)
    return path


# weights

def test_there_and_back(saved, model):
    "Numbers, settings and figures come back, and nothing is half-written"
    back, about = load_network(saved)
    assert all(torch.equal(a, b.cpu()) for a,b in zip(model.state_dict().values(), back.state_dict().values()))
    assert (about.kind, about.settings, about.figures) == ('photo_restorer', small, dict(psnr=1.5))
    assert set(about.versions) >= {'python', 'torch'} and [o.name for o in saved.parent.iterdir()] == [saved.name]
    assert not back.training and not any(p.requires_grad for p in back.parameters())


def test_half(model, tmp_path):
    "Half the size, the same to three digits, and 32 bits again when loaded"
    files = [save(tmp_path/f'{o}.safetensors', model, bits=o) for o in (32, 16)]
    assert files[1].stat().st_size < .65*files[0].stat().st_size
    for a,b in zip(model.parameters(), load_network(files[1])[0].parameters()):
        assert b.dtype == torch.float32 and torch.allclose(a, b.cpu(), rtol=2e-3, atol=1e-6)


def test_never_unpickles(tmp_path):
    "A pickle is refused, and its code does not run"
    class Bomb:
        def __reduce__(self): return Path.touch, (tmp_path/'ran',)
    torch.save(dict(w=Bomb()), tmp_path/'m.safetensors')
    with pytest.raises(CourseError, match='no weights in the safetensors format'): load_network(tmp_path/'m.safetensors')
    assert not (tmp_path/'ran').exists()


@pytest.mark.parametrize('n', [0, 5, 100, -1])
def test_cut_off(saved, n):
    saved.write_bytes(saved.read_bytes()[:n])
    with pytest.raises(CourseError, match='cut off'): read_weights(saved)


def test_a_flipped_bit(saved):
    data = bytearray(saved.read_bytes())
    data[-1000] ^= 1
    saved.write_bytes(data)
    with pytest.raises(CourseError, match='damaged'): read_weights(saved)


def test_of_another_program(saved, tmp_path):
    "A safetensors file without our words in it"
    head, body = parts_of(saved)
    head['__metadata__'] = {'format': 'pt'}
    with pytest.raises(CourseError, match='which network'): load_network(written(tmp_path/'o.safetensors', head, body))


@pytest.mark.parametrize('change, said', [(dict(kind='resnet'), "'resnet' is no kind"), (dict(settings={**small, 'widths': [8,16,24]}), r'is \(.*expected'),
    (dict(settings={**small, 'mid': 4}), r'and \d+ more')])
def test_says_what_differs(saved, tmp_path, change, said):
    "Another network than the one that the settings make: the first differences, and the versions where those differ too"
    head, body = parts_of(saved)
    about = json.loads(head['__metadata__']['course_lib'])
    head['__metadata__']['course_lib'] = json.dumps({**about, **change, 'versions': {**about['versions'], 'torch': '1.0'}})
    with pytest.raises(CourseError, match=said) as e: load_network(written(tmp_path/'o.safetensors', head, body))
    if 'settings' in change: assert 'torch 1.0 then' in str(e.value)


def test_failed_save_leaves_the_old(saved, model, monkeypatch):
    "When the disk is full, the file from before is there, whole"
    old = saved.read_bytes()
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(OSError): save(saved, model)
    assert saved.read_bytes() == old and [o.name for o in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize('lesson,kind', [('04', 'superres_generator'), ('05', 'restorer')])
def test_networks_of_the_lessons(tmp_path, lesson, kind):
    "What lessons 04 and 05 train can be kept too, and restores"
    from course_lib.core import lesson_settings
    cfg = lesson_settings(lesson, 'sample', size=64)
    net = network_kinds[kind](cfg).eval()
    back, about = load_network(save_weights(tmp_path/'g.safetensors', net, cfg, kind))
    im = Image.effect_mandelbrot((90,70), (-2,-1.5,1,1.5), 60).convert('RGB')
    assert about.settings['norm'] == 'weight' and network_kinds[kind] in restoring_networks
    assert psnr(restore_photo(back, im), restore_photo(net, im)) > 60


# any size

@pytest.mark.parametrize('size', [(1,1), (1,50), (33,7), (160,96), (97,131)])
def test_sizes(model, cat, size):
    "Any size comes back as itself, to the byte that rounding leaves"
    im = cat.crop((100,100,100+size[0],100+size[1]))
    out = restore_photo(model, im)
    assert out.size == size and abs(np.asarray(out).astype(int)-np.asarray(im)).max() <= 1


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'CMYK', 'P', '1', 'I;16', 'F'])
def test_modes(model, mode):
    "Whatever Pillow can hold, at its own brightness"
    grey = Image.fromarray(np.linspace(40, 200, 64*48).reshape(48,64).astype(np.uint8))
    im = Image.fromarray(np.asarray(grey).astype(np.uint16)*257) if mode == 'I;16' else grey.convert(mode)
    out = restore_photo(model, im)
    assert (out.size, out.mode) == ((64,48), 'RGB')
    if mode != '1': assert abs(np.asarray(out).astype(int).mean(-1)-np.asarray(grey)).mean() < 6


def test_upright(model, cat):
    "A photograph that says it lies on its side is set upright"
    im = cat.crop((0,0,80,48))
    im.getexif()[0x0112] = 6
    assert restore_photo(model, im).size == (48,80)


def test_enlarge(model, cat):
    im = cat.crop((0,0,40,30))
    assert restore_photo(model, im, enlarge=2.5).size == (100,75)


@pytest.mark.parametrize('tile, overlap', [(102, 32), (128, 30), (128, 96), (128, 0)])
def test_bad_tiles(model, cat, tile, overlap):
    with pytest.raises(CourseError, match='expected multiples of 4'): restore_photo(model, cat, most=1, tile=tile, overlap=overlap)


@pytest.mark.parametrize('n', [16, 640, 656, 1168, 4000])
def test_tiles_cover(n):
    "Every pixel is in a tile that counts, tiles begin on the grid, and weights sum to one"
    starts, weights, total = tile_starts(n, 640, 128), tile_weights(n, 640, 128), np.zeros(n)
    for s,w in zip(starts, weights):
        assert s % 16 == 0 and s+len(w) <= n
        total[s:s+len(w)] += w
    np.testing.assert_allclose(total, 1, atol=1e-6)
    for s,w in zip(starts[1:], weights[1:]): assert not w[:48].any() # what has seen too little


def test_tiled_is_whole(cat):
    "The box's network, in tiles and as a whole"
    box = load_network(box_file())[0]
    a, b = (np.asarray(restore_photo(box, cat, most=o, tile=256)).astype(int) for o in (1e9, 1))
    assert abs(a-b).max() <= 1 and abs(a-np.asarray(cat)).max() > 1


def test_tiles_take_the_same_memory(model, monkeypatch):
    "The network stubbed out: 12, 24 and 48 megapixels of one width grow by their own bytes and by nothing else; the photograph stays as it is"
    from course_lib import restore
    monkeypatch.setattr(restore, '_through', lambda model, a: 1-a/np.float32(255))
    peaks, grey = [], Image.linear_gradient('L')
    for h in (3000, 6000, 12000):
        im = grey.resize((4000, h)).convert('RGB')
        tracemalloc.start() # what NumPy takes; Pillow's two pictures are not in it
        out = restore_photo(model, im)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        rows = lambda o, y: np.asarray(o.crop((0, y, 4000, y+1))).astype(int)
        for y in (0, 511, 512, 640, h//2, h-1): assert abs(rows(im, y)+rows(out, y)-255).max() <= 1
    assert max(peaks) < 1.05*min(peaks) and max(peaks) < 150e6, peaks


@pytest.mark.skipif(sys.platform == 'win32', reason='no resource module')
def test_twelve_megapixels(python, tmp_path):
    "A large photograph takes a bounded piece of memory, network included"
    code = '''
import resource, sys, numpy as np, torch
from PIL import Image
from course_lib.restore import Restorer, restore_photo
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10) # a Mac counts bytes
net = Restorer((4, 8, 8), 1, 1)
im = Image.radial_gradient('L').resize((4000,3000)).convert('RGB')
restore_photo(net, im.crop((0,0,64,64)))
before = peak()
out = restore_photo(net, im)
print(out.size[0], out.size[1], int(peak()-before), int(abs(np.asarray(out.reduce(4)).astype(int)-np.asarray(im.reduce(4))).max()))'''
    res = python(code)
    assert res.returncode == 0, res.stderr
    w, h, more, error = map(int, res.stdout.split())
    assert (w, h) == (4000, 3000) and error <= 1
    assert more < 700, f'{more} MB'


# files

@pytest.fixture
def album(tmp_path, cat):
    "A folder with photographs of many kinds, two that are broken, and a text"
    d = tmp_path/'album'
    (d/'sub').mkdir(parents=True)
    im = cat.crop((120,60,200,120))
    im.save(d/'a.jpg', quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6
    im.save(d/'sub'/'turned.jpg', quality=95, exif=turned)
    im.convert('RGBA').save(d/'clear.png')
    im.convert('CMYK').save(d/'print.tif')
    (d/'cut.jpg').write_bytes((d/'a.jpg').read_bytes()[:900])
    (d/'text.jpg').write_text('not a photograph')
    (d/'.hidden.jpg').write_bytes((d/'a.jpg').read_bytes())
    return d


def state(d): return {str(p.relative_to(d)): p.read_bytes() for p in d.rglob('*') if p.is_file() and p.name != '.course_made.jsonl'}


def test_folder(album, model, tmp_path):
    "All that can be read is there under its own name, the rest is told, the album is untouched"
    before = state(album)
    rep = restore_files([album], model, tmp_path/'out')
    assert sorted(state(tmp_path/'out')) == ['a.jpg', 'clear.png', 'print.tif.png', 'sub/turned.jpg']
    assert (rep.made, rep.kept, sorted(o for o,_ in rep.left_out)) == (4, 0, ['cut.jpg', 'text.jpg'])
    assert Image.open(tmp_path/'out'/'sub'/'turned.jpg').size == (60,80)
    assert state(album) == before


def test_goes_on(album, model, tmp_path):
    "What is there is kept, what is missing or empty is made, and all of it anew when that is asked for"
    restore_files([album], model, tmp_path/'out')
    whole = state(tmp_path/'out')
    (tmp_path/'out'/'a.jpg').write_bytes(b'')
    (tmp_path/'out'/'clear.png').unlink()
    rep = restore_files([album], model, tmp_path/'out')
    assert (rep.made, rep.kept) == (2, 2) and state(tmp_path/'out') == whole
    assert restore_files([album], model, tmp_path/'out', again=True).made == 4


@pytest.mark.parametrize('again', [False, True])
@pytest.mark.parametrize('how', ['before', 'changed', 'link', 'folder'])
def test_what_is_not_ours_stays(album, model, tmp_path, how, again):
    "A file that was there before, a result that was edited since, a link, a folder of the same name: reported and left, and the rest is made"
    out = tmp_path/'out'
    out.mkdir()
    if how == 'changed': restore_files([album], model, out)
    if how == 'link': (out/'a.jpg').symlink_to(tmp_path/'nowhere')
    elif how == 'folder': (out/'a.jpg').mkdir()
    else: (out/'a.jpg').write_bytes(b'mine')
    rep = restore_files([album], model, out, again=again)
    assert (rep.made, rep.kept) == ((0, 3) if how == 'changed' and not again else (3, 0))
    assert [w for f,w in rep.left_out if f == str(album/'a.jpg')] == ['where its result would go lies a file that was not made here, or was changed since']
    if how == 'link': assert (out/'a.jpg').is_symlink()
    elif how == 'folder': assert (out/'a.jpg').is_dir()
    else: assert (out/'a.jpg').read_bytes() == b'mine'


@pytest.mark.parametrize('what', ['settings', 'weights', 'photograph'])
def test_made_anew_when_anything_differs(album, model, tmp_path, what):
    "Other settings, other weights, or a photograph that was edited, even with the size and the time that it had"
    out = tmp_path/'out'
    restore_files([album], model, out)
    before, kwargs = state(out), {}
    if what == 'settings': kwargs = dict(enlarge=2)
    if what == 'weights':
        with torch.no_grad(): model.head.bias.add_(.5)
    if what == 'photograph':
        st, data = (album/'a.jpg').stat(), (album/'a.jpg').read_bytes()
        Image.new('RGB', (80,60), 'teal').save(album/'a.jpg')
        new = (album/'a.jpg').read_bytes()
        (album/'a.jpg').write_bytes(new + b'\0'*(len(data)-len(new)))
        os.utime(album/'a.jpg', ns=(st.st_atime_ns, st.st_mtime_ns))
        assert (album/'a.jpg').stat().st_size == len(data)
    changed = {'a.jpg'} if what == 'photograph' else set(before)
    rep = restore_files([album], model, out, **kwargs)
    assert (rep.made, rep.kept) == (len(changed), 4-len(changed))
    assert {k for k,v in state(out).items() if v != before[k]} == changed
    assert restore_files([album], model, out, **kwargs).kept == 4


def test_files_that_cannot_be_made(album, model, tmp_path):
    "A name that would be too long, a pipe, a result too wide for its format: a line each, and the rest goes on"
    (album/f"{'n'*251}.tif").write_bytes((album/'print.tif').read_bytes())
    os.mkfifo(album/'pipe.jpg')
    (album/'sick.jpg').symlink_to('/proc/self/mem') # whose bytes cannot be read
    (tmp_path/'out').mkdir(); (tmp_path/'out'/'cats').write_text('a file where a folder should be')
    (album/'cats').mkdir(); (album/'cats'/'young.jpg').write_bytes((album/'a.jpg').read_bytes())
    Image.new('RGB', (16500, 2)).save(album/'wide.jpg')
    rep = restore_files([album], model, tmp_path/'out', enlarge=4)
    why = {Path(f).name[:8]: w for f,w in rep.left_out}
    assert rep.made == 4 and why['n'*8] == 'the name of its result would be too long' and why['pipe.jpg'] == 'not a plain file'
    assert 'cannot be written as .jpg' in why['wide.jpg'], why
    assert 'File exists' in why['young.jp'] and ('cannot be read' in why['sick.jpg'] or 'not a plain file' in why['sick.jpg'])


def test_no_place_to_write(album, model, tmp_path):
    "One line that names the setting"
    (tmp_path/'file').write_text('')
    with pytest.raises(CourseError, match='cannot be written to .*--out'): restore_files([album], model, tmp_path/'file'/'out')


@pytest.mark.parametrize('way', ['itself', 'a link', 'a folder of links'])
def test_never_over_the_input(album, model, tmp_path, way):
    "Not by its own name, not through a link, not with insistence"
    out = album
    if way == 'a link': out = tmp_path/'link'; out.symlink_to(album)
    if way == 'a folder of links':
        out = tmp_path/'links'
        out.mkdir()
        for o in ('a.jpg', 'clear.png'): (out/o).symlink_to(album/o)
    before = state(album)
    rep = restore_files([album/'a.jpg', album/'clear.png'], model, out, again=True)
    assert rep.made == 0 and len(rep.left_out) == 2 and state(album) == before


def test_out_inside_the_album(album, model):
    "Results inside the folder are not restored again"
    for made in (4, 0): assert restore_files([album], model, album/'better').made == made
    assert not (album/'better'/'better').exists()


def test_two_of_one_name(album, model, tmp_path):
    "Two photographs of one name: the first is made, the second is told"
    (tmp_path/'b').mkdir()
    (tmp_path/'b'/'a.jpg').write_bytes((album/'a.jpg').read_bytes())
    rep = restore_files([album/'a.jpg', tmp_path/'b'/'a.jpg'], model, tmp_path/'out')
    assert rep.made == 1 and 'another one is called a.jpg' in rep.left_out[0][1]


def test_missing(model, tmp_path):
    with pytest.raises(CourseError, match='no such file'): restore_files([tmp_path/'no.jpg'], model, tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_disk_full(album, model, tmp_path, monkeypatch):
    "Said in one line; no file is half there"
    import os
    real, n = os.replace, []
    def full(a, b):
        n.append(a)
        if len(n) > 1: raise OSError(28, 'No space left on device')
        real(a, b)
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(CourseError, match='the disk is full.*--out'): restore_files([album], model, tmp_path/'out')
    assert sorted(o.name for o in (tmp_path/'out').iterdir()) == ['.course_made.jsonl', 'a.jpg']
    monkeypatch.setattr('os.replace', real)
    rep = restore_files([album], model, tmp_path/'out')
    assert (rep.made, rep.kept) == (3, 1)


# the model in the box

def test_the_box():
    "Small, with a card that names its own figures, and the targets that it was made for, on photographs that nobody had chosen on"
    tensors, about = read_weights(box_file())
    card = box_file().with_suffix('.md').read_text(encoding='utf-8')
    assert box_file().stat().st_size < 4e6 and about.sha256[:16] in card and about.figures['made'] in card
    gains = {'half the width (bicubic)': 1.3, 'JPEG of quality 25': .7, 'noise (20 of 255)': 6.5, 'a white number (16 px)': 8}
    unseen = about.figures['unseen photographs']
    assert unseen['nothing'][1] > 40
    for name,least in gains.items():
        a, b = unseen[name]
        assert b > a + least and f'| {name} | {a:.2f} | {b:.2f} |' in card, name


@pytest.mark.parametrize('name', ['half the width', 'noise (20 of 255)', 'a number of 16 pixels'])
def test_the_box_measured_again(name):
    "The weights that are kept do what their card says: measured anew on the held-out photographs"
    model, about = load_network(box_file())
    assert try_restorer(model, parse_steps(box_trials[name])) == pytest.approx(about.figures['held-out photographs'][name], abs=.15)


def test_other_weights_would_be_noticed():
    "The test above can fail: with a head that has not been trained nothing is gained"
    model, _ = load_network(box_file())
    for p in model.head.parameters(): torch.nn.init.zeros_(p)
    before, after = try_restorer(model, parse_steps(box_trials['noise (20 of 255)']))
    assert after == pytest.approx(before, abs=.05)


@pytest.mark.parametrize('name', ['cat', 'coffee', 'portrait'])
def test_leaves_good_ones_alone(name):
    "A held-out photograph that nothing is wrong with is hardly changed"
    im = open_photo(photo_sources()[name][0])[0].crop((100,100,356,356))
    assert psnr(restore_photo(load_network(box_file())[0], im), im) > 40


def test_both_ranges():
    "Normalised pictures and those from 0 to 1 take the same way; untrained, it is the identity; everything in it is local"
    net, x = Restorer((8, 16), 1, 1), torch.rand(2,3,8,12)
    from course_lib.models import imagenet_norm
    assert torch.equal(net.unit(x), x) and torch.allclose(net(imagenet_norm(x)), imagenet_norm(x), atol=1e-5)
    torch.nn.init.normal_(net.head.weight, std=.01)
    assert torch.allclose(imagenet_norm(net(imagenet_norm(x)), back=True), net.unit(x).clip(0, 1), atol=1e-5)


# old family photographs

def test_old_pairs():
    "A damage is a square's own, and the same again for the same seed; crops are taken from both at the same place, and mirrored together"
    from fastcore.basics import AttrDict
    x = np.stack([np.asarray(o.crop((0,0,64,64))).transpose(2,0,1) for o in held_out_photos()[:1]*2])
    for damage in (faded_print, old_damage):
        y = torn_squares(x, damage, 5)
        assert y.shape == x.shape and y.dtype == np.uint8 and (y == torn_squares(x, damage, 5)).all()
        assert (y[0] != x[0]).any() and (y[0] != y[1]).any()
    both = torch.from_numpy(np.stack([255-x, x], 1))
    a, b = old_batch(both, AttrDict(bs=4, crop=32))
    from course_lib.models import imagenet_norm
    assert a.shape == b.shape == (4,3,32,32)
    assert torch.allclose(imagenet_norm(a, back=True), 1-imagenet_norm(b, back=True), atol=1e-4)


def test_old_prints():
    "The kept network leaves a good photograph at about the card's PSNR (of squares, less 4 dB), mends a fold, and leaves black and white nearly so"
    model, about = kept('05b_old')
    before, after = try_restorer(model, parse_steps('chain()'))
    assert before == 90 and after > about.figures['psnr_nothing'] - 4
    before, after = try_restorer(model, parse_steps('fold'))
    assert after > before + 2
    grey = held_out_photos()[0].convert('L').convert('RGB')
    assert np.ptp(np.asarray(restore_photo(model, grey)).astype(int), axis=2).mean() < 1


# the command line

def test_course_restore_old(course, album, tmp_path):
    "One file in, one out, by the other network than without --old"
    for name,more in (('old', ['--old']), ('box', [])):
        res = course('restore', album/'clear.png', *more, '--out', tmp_path/name)
        assert res.returncode == 0 and '1 made' in res.stdout, res.stderr
    a, b = ((tmp_path/o/'clear.png').read_bytes() for o in ('old', 'box'))
    assert [o.name for o in (tmp_path/'old').glob('[!.]*')] == ['clear.png'] and a != b


def test_course_restore(course, album, tmp_path):
    "The model that comes with the course; a bad file in the table, and the shell hears of it; then nothing is left to do"
    for said,code in (('4 made, 0 kept from before, 2 left out', 1), ('0 made, 4 kept from before, 2 left out', 1)):
        res = course('restore', album, '--out', tmp_path/'out')
        assert res.returncode == code and said in res.stdout and 'Traceback' not in res.stderr, res.stdout+res.stderr
    table = [o.split() for o in res.stdout.splitlines() if o.rstrip().endswith(('cut.jpg', 'text.jpg'))]
    assert [o[-1] for o in table] == ['cut.jpg', 'text.jpg']


def test_course_restore_with_a_model(course, album, saved, tmp_path):
    res = course('restore', album/'a.jpg', '--model', saved, '--out', tmp_path/'out', '--enlarge', '2')
    assert res.returncode == 0, res.stderr
    assert Image.open(tmp_path/'out'/'a.jpg').size == (160,120)
    assert '1 made' in course('restore', album/'a.jpg', '--model', saved, '--out', tmp_path/'out').stdout
    assert Image.open(tmp_path/'out'/'a.jpg').size == (80,60)


@pytest.mark.parametrize('args, said', [((), 'no photograph was named'), (('no.jpg',), 'no such file'), (('.', '--model', 'no.safetensors'), 'no such file'),
    (('.', '--enlarge', '99'), 'from 1 to 8')])
def test_course_restore_errors(course, one_line, args, said): assert said in one_line(course('restore', *args))


def test_no_weights_of_nan(model, tmp_path):
    "A network that training has spoilt is not written over a good one"
    save(tmp_path/'m.safetensors', model)
    good = (tmp_path/'m.safetensors').read_bytes()
    next(model.parameters()).data.fill_(torch.inf)
    with pytest.raises(CourseError, match='m.safetensors: the training has failed'): save(tmp_path/'m.safetensors', model)
    assert (tmp_path/'m.safetensors').read_bytes() == good


@pytest.mark.parametrize('said', ['CUDA out of memory. Tried to allocate', 'MPS backend out of memory (MPS allocated: 9.0 GB)'])
def test_no_room_on_the_device(tmp_path, model, cat, said):
    "A picture that does not fit is left out, whatever the device calls it; another error is none of that"
    cat.save(tmp_path/'cat.png')
    def full(x): raise RuntimeError(said)
    model.forward = full
    rep = restore_files([tmp_path/'cat.png'], model, tmp_path/'out', shown=False)
    assert "does not fit into the device's memory" in str(rep.notes) and not list(tmp_path.rglob('out/*.png'))
    said = 'shapes differ'
    with pytest.raises(RuntimeError, match='shapes differ'): restore_files([tmp_path/'cat.png'], model, tmp_path/'out', shown=False)


def test_text_in_the_album(tmp_path, capsys):
    "What seems to be no picture is told under its own name, and is no fault that the shell hears of"
    from course_lib import cli
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'diary.txt').write_text('words')
    assert cli.restore(str(tmp_path/'in'), out=str(tmp_path/'out')) == 0
    said = capsys.readouterr().out
    assert 'diary.txt' in said and 'diary.txt.png' not in said
