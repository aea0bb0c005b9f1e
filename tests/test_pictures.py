"The one reader of pictures: what files of all kinds look like, what is refused before it is decoded, and that everybody uses it"
import io
import os
import struct
import sys
import threading
import zlib
import numpy as np, pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from course_lib.core import CourseError
from course_lib.crappify import Crappify, crappify_photo, crappify_folder
from course_lib.pictures import file_ids, may_write, open_photo, open_rgb, why_unreadable
from course_lib.samples.photos import photo_sources


def cat(size=(96, 72)): return Image.open(photo_sources()['cat'][0]).convert('RGB').resize(size)

def rms(a, b): return np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float))**2))

def chunk(kind, data, crc=None): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data) if crc is None else crc)

def png(w, h, data=b'', *before):
    "A PNG file that says it is so large, with chunks before its pixels"
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0)) + b''.join(before) + chunk(b'IDAT', data) + chunk(b'IEND', b'')

def bytes_of(im, kind, **kw):
    f = io.BytesIO(); im.save(f, kind, **kw)
    return f.getvalue()

def exif_of(n):
    res = Image.Exif(); res[0x0112] = n
    return res

def swapped():
    "A colour profile in which red and blue have changed places"
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    tags = {data[i:i+4].decode(): i+4 for i in range(132, 132 + 12*int.from_bytes(data[128:132], 'big'), 12)}
    place = lambda k: slice(*(lambda at, n: (at, at+n))(*struct.unpack('>II', data[tags[k]:tags[k]+8])))
    r, b = data[place('rXYZ')], data[place('bXYZ')]
    data[place('rXYZ')], data[place('bXYZ')] = b, r
    return bytes(data)


# Kinds of files: what is written, and what it should look like

def kinds():
    words = PngImagePlugin.PngInfo(); words.add_text('about', 'a cat '*9)
    im, grey = cat(), cat().convert('L')
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16)*257)
    hole = im.convert('RGBA'); hole.putalpha(Image.fromarray(np.where(np.arange(96) < 48, 0, 255).astype(np.uint8)[None].repeat(72, 0)))
    on_white = im.copy(); on_white.paste('white', (0, 0, 48, 72))
    clear_grey = deep.copy(); clear_grey.putpixel((0, 0), 65535)
    floats = np.asarray(grey, np.float32)/255
    odd = floats.copy(); odd[0, :3] = np.nan, 1.07, -.02
    swap = Image.merge('RGB', im.split()[::-1])
    sRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    yield 'plain.png', bytes_of(im, 'PNG'), im, 0
    for n,o in enumerate((None, 0, 3, 1, 5, 4, 6, 2)):
        lying = im if o is None else im.transpose({4: Image.Transpose(2), 2: Image.Transpose(4)}.get(o, Image.Transpose(o)))
        yield f'turned{n+1}.png', bytes_of(lying, 'PNG', exif=exif_of(n+1)), im, 0
        yield f'turned{n+1}.tif', bytes_of(lying, 'TIFF', exif=exif_of(n+1)), im, 0
        yield f'turned{n+1}.jpg', bytes_of(lying, 'JPEG', quality=97, subsampling=0, exif=exif_of(n+1)), im, 3
    yield 'clear.png', bytes_of(hole, 'PNG'), on_white, 0
    yield 'clear.webp', bytes_of(hole, 'WEBP', lossless=True), on_white, 0
    yield 'deep.png', bytes_of(deep, 'PNG'), grey.convert('RGB'), 0
    yield 'deep.tif', bytes_of(deep, 'TIFF'), grey.convert('RGB'), 0
    yield 'whole.tif', bytes_of(Image.fromarray(np.asarray(deep, np.int32)), 'TIFF'), grey.convert('RGB'), 0
    yield 'float.tif', bytes_of(Image.fromarray(floats), 'TIFF'), grey.convert('RGB'), 0
    yield 'bytes as floats.tif', bytes_of(Image.fromarray(floats*255+8), 'TIFF'), grey.point(lambda v: v+8).convert('RGB'), .6
    yield 'overshoot.tif', bytes_of(Image.fromarray(odd), 'TIFF'), grey.convert('RGB'), 4
    yield 'palette.png', bytes_of(im.quantize(256), 'PNG'), im, 9
    yield 'palette.gif', bytes_of(im.quantize(256), 'GIF'), im, 9
    yield 'cmyk.jpg', bytes_of(im.convert('CMYK'), 'JPEG', quality=97, subsampling=0), im, 4
    yield 'fax.tif', bytes_of(im.convert('1'), 'TIFF'), im.convert('1').convert('RGB'), 0
    yield 'other colours.png', bytes_of(swap, 'PNG', icc_profile=swapped()), im, 3
    yield 'other colours, clear.png', bytes_of(Image.merge('RGBA', (*swap.split(), hole.getchannel('A'))), 'PNG', icc_profile=swapped()), on_white, 3
    yield 'grey of other colours.png', bytes_of(grey, 'PNG', icc_profile=swapped()), grey.convert('RGB'), 3
    yield 'usual colours.png', bytes_of(im, 'PNG', icc_profile=sRGB), im, 0
    # broken notes, good pixels
    note = lambda *chunks: (lambda b: b[:33] + b''.join(chunks) + b[33:])(bytes_of(im, 'PNG'))
    yield 'text with a wrong sum.png', note(chunk(b'tEXt', b'a\0b', 7)), im, 0
    yield 'text as a bomb.png', note(chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(99_000_000)))), im, 0
    yield 'profile as a bomb.png', note(chunk(b'iCCP', b'a\0\0' + zlib.compress(bytes(99_000_000)))), im, 0
    yield 'profile of noise.png', note(chunk(b'iCCP', b'a\0\0' + zlib.compress(b'no profile'))), im, 0
    yield 'notes of noise.png', note(chunk(b'eXIf', b'MM\0*\xff\xff\xff\xff')), im, 0
    for n in (8, 12, 20):
        yield f'notes cut after {n}.jpg', bytes_of(im, 'JPEG', quality=97, subsampling=0, exif=b'Exif\0\0' + exif_of(6).tobytes()[6:6+n]), im, 3
    yield 'orientation 99.jpg', bytes_of(im, 'JPEG', quality=97, subsampling=0, exif=exif_of(99)), im, 3
    yield 'profile of noise.jpg', bytes_of(im, 'JPEG', quality=97, subsampling=0, icc_profile=b'no profile'), im, 3
    yield 'notes of noise.webp', bytes_of(im, 'WEBP', lossless=True, exif=b'Exif\0\0MM\0*\xff\xff\xff\xff'), im, 0
    yield 'notes of noise.avif', bytes_of(im, 'AVIF', quality=95, exif=exif_of(1).tobytes()).replace(b'II*\0', b'XXXX').replace(b'MM\0*', b'XXXX'), im, 9
    noted = bytes_of(im, 'PNG', pnginfo=words)
    at = noted.index(b'tEXt')-4
    for n in (0, 5, 900, 2**31-1): yield f'note of a length that is not its own ({n}).png', noted[:at] + n.to_bytes(4, 'big') + noted[at+4:], im, 0

all_kinds = list(kinds())
each_kind = pytest.mark.parametrize('name, data, want, far', all_kinds, ids=[o[0] for o in all_kinds])


@each_kind
def test_looks_as_it_should(tmp_path, name, data, want, far):
    "From its path, its bytes, an open file and Pillow's own picture; broken notes do not cost good pixels"
    (tmp_path/name).write_bytes(data)
    sources = [tmp_path/name, str(tmp_path/name), data, bytearray(data), io.BytesIO(data)]
    try: sources.append(Image.open(io.BytesIO(data)))
    except Exception: assert any(o in name for o in ('sum', 'bomb', 'length', 'avif'))
    for src in sources:
        im, _ = open_photo(src)
        assert type(im) is Image.Image and im.mode == 'RGB' and im.size == want.size and rms(im, want) <= far
        assert not {'exif', 'icc_profile', 'transparency'} & set(im.info), 'what is done once must not be done again'


def everybody(f, size):
    "The same file by every opener of the course"
    from course_lib.crappify import _photos
    from course_lib.cyclegan import side_pictures
    from course_lib.tensors import PILPhoto
    from course_lib.apps.lab import CrappifyLab
    from course_lib.apps.page import read_photo
    from course_lib.pairs import SquarePhoto
    from course_lib.style import open_picture
    from course_lib.wgan import open_square
    def same(im, rng): return im
    square = f.parent.parent/'trainA'; square.mkdir(); (square/f.name).write_bytes(f.read_bytes())
    lab = CrappifyLab(f.parent)
    yield 'open_rgb', open_rgb(f)
    yield 'PILPhoto', PILPhoto.create(f)
    yield 'SquarePhoto', SquarePhoto.create(f)
    yield 'open_square', open_square(f)
    yield 'open_picture', open_picture(f)
    yield 'page', read_photo(f.read_bytes())
    yield 'page, a picture', read_photo(Image.open(f))
    yield 'panel', lab.photo
    yield 'preview, before', _photos(f)[0]
    yield 'preview, a picture', _photos(Image.open(f))[0]
    yield 'preview, after', crappify_photo(same, Image.open(f))
    yield 'Crappify', Crappify(same)(f)
    yield 'Crappify, a picture', Crappify(same)(Image.open(f))
    yield 'cyclegan', side_pictures(f.parent.parent, 'train', 'A', size)[1][0].permute(1, 2, 0).numpy()
    crappify_folder(same, f.parent, f.parent.parent/'out', workers=1)
    yield 'crappify_folder', Image.open(f.parent.parent/'out'/f.name)


def square_kinds():
    im = cat((64, 64))
    deep = Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*257)
    swap = Image.merge('RGB', im.split()[::-1])
    hole = im.convert('RGBA'); hole.paste((0, 0, 0, 0), (0, 0, 32, 64))
    on_white = im.copy(); on_white.paste('white', (0, 0, 32, 64))
    return dict(plain=(im, {}, im), turned=(im.transpose(Image.Transpose.ROTATE_90), dict(exif=exif_of(6)), im),
                deep=(deep, {}, im.convert('L').convert('RGB')),
        clear=(hole, {}, on_white), colours=(swap, dict(icc_profile=swapped()), im))


@pytest.mark.parametrize('kind', square_kinds())
def test_everybody_reads_alike(tmp_path, kind):
    im, kw, want = square_kinds()[kind]
    (tmp_path/'src').mkdir(); im.save(tmp_path/'src'/'a.png', **kw)
    for who,got in everybody(tmp_path/'src'/'a.png', 64): assert np.asarray(got).shape == (64, 64, 3) and rms(got, want) < 3, who


@pytest.mark.parametrize('kind', ['plain', 'turned', 'transparent', 'deep'])
def test_pair_fits(tmp_path, kind):
    "The target of a pair is read as its input was: a little smaller, and no more than that is lost"
    from course_lib.pairs import enlarged, pair_files, photo_scores
    im = Image.open(photo_sources()['cat'][0]).convert('RGB').crop((0, 0, 300, 298))
    if kind == 'transparent': im = im.convert('RGBA'); im.putalpha(Image.linear_gradient('L').resize(im.size))
    if kind == 'deep': im = Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16)*257)
    (tmp_path/'hr').mkdir()
    im.save(tmp_path/'hr'/'a.png', **(dict(exif=exif_of(6)) if kind == 'turned' else {}))
    crappify_folder('downscale(280)', tmp_path/'hr', tmp_path/'lr', workers=1)
    pairs = pair_files(tmp_path/'hr', tmp_path/'lr', '*.png')
    assert photo_scores(enlarged(pairs.values(), 256, Image.Resampling.BICUBIC), enlarged(pairs, 256))['psnr'] > 35


# Too large, and other ways of being no picture

def test_size_before_pixels(tmp_path, monkeypatch):
    "Nothing is decoded of what is refused; by no limit of Pillow's, which all threads share"
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
    for data in (png(10_000, 10_000), bytes_of(Image.new('L', (1, 1)), 'JPEG').replace(b'\x08\0\x01\0\x01', struct.pack('>BHH', 8, 20_000, 20_000))):
        with pytest.raises(Image.DecompressionBombError, match='pixels are too many') as e: open_photo(data)
        assert why_unreadable(e.value) == 'too many pixels (a bomb?)'
    (tmp_path/'a.png').write_bytes(png(300, 300))
    with pytest.raises(CourseError, match='a.png: 300×300 pixels are too many'): open_rgb(tmp_path/'a.png', most=80_000)


def test_pillows_limit_is_left_alone(monkeypatch, recwarn):
    "Another limit of Pillow's does not matter, and a large JPEG is decoded at a fraction"
    data = bytes_of(Image.new('L', (4000, 3000), 99), 'JPEG')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    assert open_photo(data)[0].size == (4000, 3000) and open_photo(data, smallest=96, most=10**6)[0].size == (500, 375)
    assert open_photo(data, longest=1000, most=10**6)[0].size == (1000, 750)
    assert Image.MAX_IMAGE_PIXELS == 1000 and not recwarn.list


def test_in_threads():
    "Many at once, large ones and bombs among them: each its own answer"
    small, bomb, got = bytes_of(cat(), 'PNG'), png(30_000, 30_000), []
    def work():
        for _ in range(20):
            got.append(open_photo(small)[0].size)
            try: open_photo(bomb)
            except Image.DecompressionBombError: got.append('bomb')
    threads = [threading.Thread(target=work) for _ in range(6)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(got) == 240 and set(got) == {(96, 72), 'bomb'}


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_upload_costs_no_memory(python, tmp_path):
    "88 million pixels in a third of a megabyte: the page refuses them without unpacking them"
    z = zlib.compressobj(9)
    (tmp_path/'bomb.png').write_bytes(png(9400, 9400, b''.join(z.compress(bytes(9401)) for _ in range(9400)) + z.flush()))
    res = python('''
import re, sys
from course_lib.apps.page import read_photo
peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])
before = peak()
try: read_photo(open(sys.argv[1], 'rb').read())
except Exception as e: print(type(e).__name__, e)
print(peak() - before)''', tmp_path/'bomb.png')
    said, kb = res.stdout.strip().splitlines()
    assert said.startswith('CourseError') and '24 megapixels' in said and int(kb) < 30_000, res.stdout + res.stderr


@pytest.mark.parametrize('data, said', [(b'', 'not a picture'), (b'buy milk', 'not a picture'), (png(0, 5), 'not a picture|no pixels'),
    (bytes_of(cat(), 'PNG')[:300], 'cut off'), (bytes_of(cat(), 'JPEG')[:600], 'cut off')])
def test_no_picture(tmp_path, data, said):
    (tmp_path/'x.png').write_bytes(data)
    with pytest.raises(CourseError, match=f'x.png: not a picture that can be read .*({said})') as e: open_rgb(tmp_path/'x.png')
    assert '\n' not in str(e.value)


def test_a_picture_is_left_alone():
    im = Image.open(io.BytesIO(bytes_of(cat(), 'PNG', exif=exif_of(6))))
    got = open_rgb(im)
    got.paste('red', (0, 0, 9, 9))
    assert got.size == (72, 96) and im.size == (96, 72) and rms(im, cat()) == 0
    plain = cat(); open_rgb(plain).paste('red', (0, 0, 9, 9))
    assert rms(plain, cat()) == 0


# What may be written

def test_may_write(tmp_path):
    a, b = tmp_path/'a.jpg', tmp_path/'b.jpg'
    a.write_text('a photograph'); b.write_text('something')
    os.link(a, tmp_path/'hard.jpg'); (tmp_path/'soft.jpg').symlink_to(a); (tmp_path/'lost.jpg').symlink_to(tmp_path/'nowhere')
    (tmp_path/'folder').symlink_to(tmp_path)
    ids = file_ids([a, tmp_path/'nowhere'])
    assert len(ids) == 1 and may_write(tmp_path/'new.jpg', ids, False) is None and may_write(b, ids, True) is None
    for o in ('a.jpg', 'hard.jpg', 'soft.jpg', 'folder/a.jpg', 'folder/folder/hard.jpg'):
        for ours in (False, True): assert 'a photograph that is read' in may_write(tmp_path/o, ids, ours)
    for o in ('b.jpg', 'lost.jpg', 'folder'): assert 'not made here' in may_write(tmp_path/o, ids, False)
