"A thousand damaged picture files, through everything that reads pictures: a picture or a line each, whoever reads, and the files stay as they are"
import io, random
import numpy as np, pytest, torch
from PIL import Image, ImageCms
from course_lib.apps.page import read_photo
from course_lib.core import CourseError
from course_lib.crappify import crappify_folder
from course_lib.pictures import open_mask, why_unreadable
from course_lib.restore import restore_files
from course_lib.style import open_picture
from course_lib.tensors import PILPhoto, image_cache

pytestmark = pytest.mark.filterwarnings('ignore') # what Pillow says about broken notes


def whole_files():
    "Small pictures in every format that somebody may bring, with notes, palettes, several frames"
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((24, 20))
    exif, icc = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    exif[0x0112] = 6
    def put(kind, im=im, **kw):
        im.save(f := io.BytesIO(), kind, **kw)
        return f.getvalue()
    film = dict(save_all=True, append_images=[im.rotate(90), im])
    res = dict(jpg=put('JPEG', exif=exif, icc_profile=icc), jpeg=put('JPEG', progressive=True), png=put('PNG', exif=exif, icc_profile=icc),
        PNG=put('PNG', im.quantize(8), transparency=0), Png=put('PNG', Image.fromarray(np.full((20, 24), 9999, np.uint16))), gif=put('GIF', **film),
        webp=put('WEBP', exif=exif), tif=put('TIFF', exif=exif), tiff=put('TIFF', compression='tiff_lzw'), bmp=put('BMP'), tga=put('TGA'),
        ppm=put('PPM'), JPG=put('MPO', **film))
    return {**res, **{k.lower(): put(k) for k in ('AVIF', 'JPEG2000') if k in Image.SAVE}}


def mutated(data, r):
    "Bits turned, bytes gone, put in and written over, lengths that cannot be, the end cut off: in the head more often than elsewhere"
    data = bytearray(data)
    for _ in range(r.randint(1, 4)):
        if not data: break
        at, how = r.randrange(min(len(data), r.choice((64, len(data))))), r.randrange(6)
        if how == 0: data[at] ^= 1 << r.randrange(8)
        elif how == 1: data[at:at+4] = r.choice((b'\xff'*4, b'\0'*4, b'\x7f\xff\xff\xff'))
        elif how == 2: del data[at:at+r.randint(1, 9)]
        elif how == 3: data[at:at] = r.randbytes(r.randint(1, 9))
        elif how == 4 and r.random() < .3: del data[at:]
        else: data[at] = r.randrange(256)
    return bytes(data)


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "The files, and which of them are a picture to `open_photo`'s callers: name → why not, or None"
    d, r, whole = tmp_path_factory.mktemp('mutated'), random.Random(0), list(whole_files().items())
    for i in range(1000):
        end, data = whole[i % len(whole)]
        (d/f'{i:03}.{end}').write_bytes(mutated(data, r))
    why = {o.name: None if (e := caught(PILPhoto.create, o)) is None else str(e) for o in sorted(d.iterdir())}
    assert 200 < sum(o is None for o in why.values()) < 800 and len(why) == 1000
    return d, why, {o.name: o.read_bytes() for o in d.iterdir()}


def caught(f, *args):
    "The `CourseError` of a call, which is one line, or None; any other exception goes on"
    try: f(*args)
    except CourseError as e:
        assert str(e).isprintable() and len(str(e)) < 400
        return e


def test_data(many):
    "fastai's photograph and the cache of decoded ones: a picture, or a line that begins with the file's name; masks as well"
    d, why, _ = many
    assert all(v is None or v.startswith(f'{d/k}: not a picture that can be read') or 'million. Make it smaller' in v for k,v in why.items())
    for k,v in [*why.items()][::10]:
        e = caught(image_cache, [d/k], PILPhoto.create, (20, 24))
        assert (e is None) == (v is None) and (e is None or str(e).startswith(str(d/k)))
    for k,v in why.items():
        try: open_mask(d/k)
        except Exception as e: assert why_unreadable(e).isprintable()


def test_style_and_page(many):
    "They take and refuse what the lessons take and refuse"
    d, why, before = many
    other = {k for k,v in why.items() if any((caught(f, *args) is None) != (v is None) for f,*args in ((open_picture, d/k, 64), (read_photo, before[k])))}
    assert not {o for o in other if 'too many' not in str(caught(read_photo, before[o]))}


@pytest.mark.parametrize('run', ['crappify', 'restore'])
def test_folders(many, tmp_path, run):
    "What can be read is made and is a picture, all else is told, and a second run makes nothing"
    d, why, before = many
    net = torch.nn.Conv2d(3, 3, 1)
    net.step = 1
    go = lambda: crappify_folder('downscale(12)', d, tmp_path/'out', workers=1) if run == 'crappify' else restore_files([d], net, tmp_path/'out', shown=False)
    rep = go()
    told = {o.rpartition('/')[2] for o,_ in rep.left_out}
    made = {o.stem if '.' in o.stem else o.name for o in (tmp_path/'out').iterdir() if o.name[0] != '.'}
    assert rep.made == len(made) and told | made == set(why) and not told & made and made == {k for k,v in why.items() if v is None}
    for o in (tmp_path/'out').glob('[!.]*'): Image.open(o).load()
    assert (go().made, go().kept) == (0, rep.made)
    assert {o.name: o.read_bytes() for o in d.iterdir()} == before
