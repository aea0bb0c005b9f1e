"""The lecture's crappifier, written plainly and run with fastai's `parallel`, and `crappify_folder`: images per second, side by side.

Two folders of JPEG files are made from the photographs of the sample: 1,000 of 500×375 pixels, and 48 of 4000×3000 with film
grain, both of quality 90. Each way writes 96-pixel JPEGs into a fresh folder, with one and with two workers, in turn, several
times; medians are compared. Then: how far our pictures are from the plain ones, before and after the JPEG; a chain of many
steps with one and with two workers; and the peak memory of a process that crappifies 1,000 and 10,000 files.

    python benchmarks/crappify.py [--repeats 5] [--where /dev/shm] [--keep]

Writes _runs/bench/crappify.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import os, random, shutil, statistics, subprocess, sys, tempfile, time
from functools import partial
from pathlib import Path
import numpy as np
from fastcore.parallel import parallel
from fastcore.script import call_parse
from PIL import Image, ImageDraw


def plainly(f, src, dst):
    "What the lecture does to one file, in today's words"
    dest = dst/f.relative_to(src)
    dest.parent.mkdir(parents=True, exist_ok=True)
    im = Image.open(f)
    to_96 = 96/min(im.size)
    im = im.resize((int(im.width*to_96), int(im.height*to_96)), resample=Image.Resampling.BILINEAR).convert('RGB')
    q = random.randint(10, 70)
    ImageDraw.Draw(im).text([random.randint(0, o//2) for o in im.size], str(q), fill=(255, 255, 255))
    im.save(dest, quality=q)


def with_parallel(src, dst, workers): parallel(partial(plainly, src=src, dst=dst), sorted(src.glob('*.jpg')), n_workers=workers)

def ours(src, dst, workers, fn='lecture'):
    from course_lib.crappify import crappify_folder
    crappify_folder(fn, src, dst, workers=workers, shown=False)


def make_photos(folder, n, size, grain):
    "Crops of the sample's photographs, enlarged to `size` and a little more"
    from course_lib.samples.photos import photo_sources
    ims, rng = [Image.open(f).convert('RGB') for f,_ in photo_sources().values()], np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        im, (w, h) = ims[i%len(ims)], size
        s = max(w/im.width, h/im.height)*rng.uniform(1, 1.6)
        im = im.resize([max(a, round(b*s)) for a,b in zip(size, im.size)], Image.Resampling.BICUBIC)
        x, y = (int(rng.integers(a-b+1)) for a,b in zip(im.size, size))
        im = im.crop((x, y, x+w, y+h))
        if grain: im = Image.fromarray((np.asarray(im, np.float32) + rng.normal(0, grain, (h, w, 1))).clip(0, 255).astype(np.uint8))
        im.save(folder/f'{i:05d}.jpg', quality=90)
    return folder


def seconds(way, src, tmp, workers):
    "Into a folder that was not there before; nothing is deleted in between, for file systems are slow to reuse what was just deleted"
    dst = Path(tempfile.mkdtemp(dir=tmp))/'out'
    t0 = time.perf_counter()
    way(src, dst, workers)
    return time.perf_counter()-t0


def compare(ways, src, tmp, repeats):
    "Median seconds of each (way, workers), taken in turn after a short warm-up"
    from common import spread
    got, n = {f'{k}, {w} worker{"s" if w > 1 else ""}': [] for w in (1, 2) for k in ways}, len(list(src.glob('*')))
    for r in range(repeats+1):
        for key,(w,k) in zip(got, [(w, k) for w in (1, 2) for k in ways]):
            t = seconds(ways[k], src, tmp, w)
            if r: got[key].append(t)
    for k,v in got.items(): print(f'  {k:<28} {spread(v)} {n/statistics.median(v):10,.1f} images/s', flush=True)
    return {k: statistics.median(v) for k,v in got.items()}, {k: [round(o, 3) for o in v] for k,v in got.items()}


def errors(src):
    "RMS difference, of 255, between our small pictures and the plain ones: as they are, and after a JPEG of quality 40"
    from course_lib.pictures import open_photo
    from course_lib.steps import downscale, jpeg
    rng, rms, res = np.random.default_rng(0), lambda a, b: float(np.sqrt(np.mean((np.asarray(a, float)-np.asarray(b, float))**2))), []
    for f in sorted(src.glob('*'))[:200]:
        plain, small = downscale(96)(Image.open(f), rng), downscale(96)(open_photo(f, 96)[0], rng)
        res.append((rms(plain, small), rms(jpeg(40)(plain, rng), jpeg(40)(small, rng)), rms(jpeg(40)(plain, rng), plain)))
    a, b, c = zip(*res)
    found = dict(before_jpeg_mean=np.mean(a), before_jpeg_max=max(a), after_jpeg_mean=np.mean(b), jpeg_alone_mean=np.mean(c))
    return {k: round(float(v), 2) for k,v in found.items()}


memory_of = '''
import re, sys
from course_lib.crappify import crappify_folder
rep = crappify_folder('lecture', sys.argv[1], sys.argv[2], workers=2, shown=False)
print(rep.made, re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) # Linux: the most that was ever in memory
'''

def memory(src, tmp, n):
    "Peak memory in MB of a process that crappifies n files (hard links to those there are)"
    many, files = tmp/f'many-{n}', sorted(src.glob('*.jpg'))
    many.mkdir()
    for i in range(n): os.link(files[i%len(files)], many/f'{i:05d}.jpg')
    made, kb = subprocess.run([sys.executable, '-c', memory_of, many, tmp/f'out-{n}'], capture_output=True, text=True, check=True).stdout.split()
    assert int(made) == n
    for o in (many, tmp/f'out-{n}'): shutil.rmtree(o)
    return round(int(kb)/1024, 1)


@call_parse
def main(
    repeats:int=5,   # how often each measurement is taken
    where:str=None,  # folder to work in (default: the system's folder for temporary files)
    n:int=1000,      # photographs of 500×375
    n_large:int=48,  # photographs of 4000×3000
    keep:bool=False  # also write results/benchmarks
):
    "Compare the lecture's crappifier, run with `parallel`, with `crappify_folder`"
    from common import about, keep_result
    from course_lib.crappify import old_family
    head = about(repeats=repeats)
    tmp = Path(tempfile.mkdtemp(dir=where))
    try:
        folders = {'500×375': make_photos(tmp/'small', n, (500, 375), 0), '4000×3000': make_photos(tmp/'large', n_large, (4000, 3000), 4)}
        res = {}
        for size,src in folders.items():
            print(f'\n{size}: {len(list(src.glob("*"))):,} files, median of {repeats}')
            med, each = compare(dict(lecture=with_parallel, ours=ours), src, tmp, repeats)
            ratio = {w: round(med[f'lecture, {w}']/med[f'ours, {w}'], 2) for w in ('1 worker', '2 workers')}
            scale = {k: round(med[f'{k}, 1 worker']/med[f'{k}, 2 workers'], 2) for k in ('lecture', 'ours')}
            res[size] = dict(files=len(list(src.glob('*'))), kB=round(statistics.mean(o.stat().st_size for o in src.glob('*'))/1000, 1), seconds=each,
                             ratio=ratio, two_workers_over_one=scale, rms=errors(src))
            print(f'  ours over the lecture: {ratio}; two workers over one: {scale}; RMS: {res[size]["rms"]}', flush=True)
        few = tmp/'few'; few.mkdir()
        for o in sorted(folders['500×375'].glob('*'))[:100]: os.link(o, few/o.name)
        print('\na chain of many steps (old_family), 100 files of 500×375')
        med, each = compare({'old_family': partial(ours, fn=old_family)}, few, tmp, min(repeats, 3))
        res['old_family'] = dict(seconds=each, two_workers_over_one=round(med['old_family, 1 worker']/med['old_family, 2 workers'], 2))
        res['peak MB'] = {f'{o:,} files': memory(folders['500×375'], tmp, o) for o in (1000, 10_000)}
        print(f"\npeak memory: {res['peak MB']}")
    finally: shutil.rmtree(tmp, ignore_errors=True)
    keep_result('crappify', dict(head, results=res), keep)
