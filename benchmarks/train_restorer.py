"""Train a network that restores photographs: fewer pixels, JPEG, noise, blur, writing. Everything is made on the device, so that nothing waits
for a CPU: squares are cut out of all photographs at once, damaged as a batch (JPEG with its own cosine transform and tables, within 43 to 50 dB
of Pillow's), and the network is a residual U-Net without norms, which begins as the identity.

    python benchmarks/train_restorer.py --data FOLDER [--seconds 150] [--out _runs/restorer] [--start FILE]

FOLDER holds photographs, with folders inside it; every twentieth is held out to choose on, and every twentieth to report on (5, 25, … and 15, 35, …
of the sorted list). The course's own photographs join the training, those that it holds out excepted. Writes OUT.safetensors (16 bits, with settings and
figures) and the card OUT.md. A run goes on from the weights of --start, at a lower rate.
"""
import copy, json, math, time
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from fastcore.script import call_parse
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from course_lib.restore import Restorer, box_trials, try_restorer


class Squares:
    "Random squares of all photographs, which lie on the device as one strip of bytes; mirrored and turned a batch at a time"
    def __init__(self, pics, dev, cut):
        self.dev, self.cut, self.r = dev, cut, torch.arange(cut, device=dev)
        self.flat = torch.cat([torch.from_numpy(np.array(a)).reshape(-1, 3) for a in pics]).to(dev)
        self.h, self.w = (torch.tensor(o, device=dev) for o in zip(*(a.shape[:2] for a in pics)))
        self.at, self.p = (self.h*self.w).cumsum(0) - self.h*self.w, (self.h*self.w).float().sqrt()
    def draw(self, n): # (n, 3, cut, cut), 0 to 1
        k = torch.multinomial(self.p, n, replacement=True)
        y, x = ((torch.rand(n, device=self.dev)*(o[k]-self.cut+1)).long() for o in (self.h, self.w))
        i = self.at[k][:,None,None] + (y[:,None,None]+self.r[:,None])*self.w[k][:,None,None] + x[:,None,None]+self.r
        res = self.flat[i].permute(0, 3, 1, 2).float()/255
        for d in (2, 3): res = res.flip(d) if torch.rand(()) < .5 else res
        return res.mT.contiguous() if torch.rand(()) < .5 else res


luma = [[16,11,10,16,24,40,51,61], [12,12,14,19,26,58,60,55], [14,13,16,24,40,57,69,56], [14,17,22,29,51,87,80,62], [18,22,37,56,68,109,103,77],
    [24,35,55,64,81,104,113,92], [49,64,78,87,103,121,120,101], [72,92,95,98,112,100,103,99]]
chroma = [[17,18,24,47,99,99,99,99], [18,21,26,66,99,99,99,99], [24,26,56,99,99,99,99,99], [47,66,99,99,99,99,99,99], *[[99]*8]*4] # ITU-T T.81, annex K
cosines = torch.tensor([[math.sqrt((1 if i == 0 else 2)/8)*math.cos((2*j+1)*i*math.pi/16) for j in range(8)] for i in range(8)])
to_ycc = torch.tensor([[.299,.587,.114], [-.168736,-.331264,.5], [.5,-.418688,-.081312]])


def quantised(x, table): # (n, h, w) around 0; (n, 8, 8)
    (n, h, w), d, q = x.shape, cosines.to(x.device), table[:,None,None]
    b = x.reshape(n, h//8, 8, w//8, 8).permute(0, 1, 3, 2, 4)
    return (d.T @ (((d @ b @ d.T)/q).round()*q) @ d).permute(0, 1, 3, 2, 4).reshape(n, h, w)


def jpeg(x, quality):
    "(n, 3, h, w) from 0 to 1, sides multiples of 16, through JPEG with a quality (n,) each, colours at half the resolution"
    m, scale = to_ycc.to(x.device), torch.where(quality < 50, 5000/quality, 200-2*quality)
    table = lambda t: ((torch.tensor(t, device=x.device)*scale[:,None,None]+50)/100).floor().clamp(1, 255)
    ycc = torch.einsum('ij,njhw->nihw', m, (x*255).round())
    y = quantised(ycc[:,0]-128, table(luma))+128
    c = torch.stack([quantised(o, table(chroma)) for o in F.avg_pool2d(ycc[:,1:], 2).round().unbind(1)], 1)
    c = F.interpolate(c, scale_factor=2, mode='bilinear', align_corners=False)
    return torch.einsum('ij,njhw->nihw', torch.linalg.inv(m), torch.cat([y[:,None], c], 1).round()).round().clamp(0, 255)/255


def resized(x, sz): return F.interpolate(x, size=sz, mode='bicubic', antialias=True, align_corners=False)


def written(n=600):
    "Masks (n, 40, 96) of numbers, dates and words in several sizes; half of the numbers as they are tested"
    from matplotlib import font_manager
    rng, fonts = np.random.default_rng(5), [font_manager.findfont(o) for o in ('DejaVu Serif', 'DejaVu Sans Mono', 'DejaVu Sans:bold')]
    plain, res = font_manager.findfont('DejaVu Sans'), []
    for i in range(n):
        size = int(rng.integers(8, 30)) if i%3 else int(rng.integers(14, 18))
        font = ImageFont.truetype(plain if i%2 else fonts[int(rng.integers(3))], size)
        what = [str(rng.integers(10, 100)), str(rng.integers(0, 1000)), f'{rng.integers(1,29):02d}.{rng.integers(1,13):02d}.{rng.integers(50,100)}',
            ''.join(chr(rng.integers(97, 123)) for _ in range(4)).title()]
        im = Image.new('L', (96, 40))
        ImageDraw.Draw(im).text((4, 2), what[i%4 if i%2 else 0], font=font, fill=255)
        res.append(np.array(im))
    return torch.from_numpy(np.stack(res))


class Damage:
    "A batch of squares, each ruined in its own way: more than half by one damage, the others by several, some by none"
    def __init__(self, dev, cut): self.dev, self.cut, self.masks = dev, cut, written().to(dev)
    def rand(self, n, lo=0., hi=1.): return torch.rand(n, device=self.dev)*(hi-lo)+lo
    def some(self, n, p): return (self.rand(n) < p)[:,None,None,None]
    def blur(self, x):
        n, c, k = len(x), self.cut, torch.arange(-5, 6, device=self.dev)
        g = torch.exp(-k**2/(2*self.rand(n, .3, 1.6)[:,None]**2))
        w = (g/g.sum(1, keepdim=True)).repeat_interleave(3, 0)
        y = F.pad(x, (5,)*4, mode='reflect').reshape(1, n*3, c+10, c+10)
        return F.conv2d(F.conv2d(y, w[:,None,None,:], groups=n*3), w[:,None,:,None], groups=n*3).reshape_as(x)
    def smaller(self, x):
        back = lambda k: resized(resized(x, k), self.cut)
        return torch.where(self.some(len(x), .75), back(self.cut//2), back(int(torch.randint(self.cut//3, int(self.cut*.85), ()))))
    def noise(self, x):
        n, s = len(x), self.rand(len(x), 1, 30)
        s = (torch.where(self.rand(n) < .4, torch.full_like(s, 20), s)/255)[:,None,None,None]
        grey = torch.randn_like(x[:,:1])
        soft = F.avg_pool2d(F.pad(grey, (1,)*4, mode='reflect'), 3, 1)*2
        e = torch.where(self.some(n, .75), torch.randn_like(x), torch.where(self.some(n, .5), grey, soft).expand_as(x))
        return x + e*torch.where(self.some(n, .15), s*2*x.clamp_min(0).sqrt(), s) # some with more where it is bright, as shot noise
    def write(self, x):
        n, c, r = len(x), self.cut, torch.arange(self.cut, device=self.dev)
        m = self.masks[torch.randint(len(self.masks), (n,), device=self.dev)].float()/255
        yy, xx = (r[None] - torch.randint(-8, c-20, (n,), device=self.dev)[:,None] for _ in range(2))
        inside = ((yy >= 0) & (yy < 40))[:,:,None] & ((xx >= 0) & (xx < 96))[:,None,:]
        a = (m[torch.arange(n, device=self.dev)[:,None,None], yy.clamp(0, 39)[:,:,None], xx.clamp(0, 95)[:,None,:]]*inside)[:,None]
        full = lambda v: torch.full((n, 3, 1, 1), v, device=self.dev)
        ink = torch.where(self.some(n, .65), full(1.), torch.where(self.some(n, .3), full(0.), torch.rand(n, 3, 1, 1, device=self.dev)))
        return x*(1-a) + ink*a
    def __call__(self, x):
        n = len(x)
        one, pick = self.rand(n) < .55, torch.randint(6, (n,), device=self.dev)
        want = lambda k, p: torch.where(one, pick == k, self.rand(n) < p)[:,None,None,None]
        for k,p,f in ((0, .25, self.blur), (1, .4, self.smaller), (2, .4, self.noise)): x = torch.where(want(k, p), f(x), x)
        x = torch.where(want(3, .35), self.write(x.clamp(0, 1)), x.clamp(0, 1))
        q = self.rand(n, 10, 92).round()
        x = torch.where(want(4, .45), jpeg(x, torch.where(self.rand(n) < .3, torch.full_like(q, 25), q)), x)
        return (x*255).round()/255


def photographs(folder):
    "(arrays to train on: as they are and at half their size; PIL images to choose on, and to report on)"
    from course_lib.pictures import open_rgb
    from course_lib.samples.photos import photo_sources
    files = sorted(o for o in Path(folder).rglob('*') if o.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    held = {'chosen on': files[5::20], 'reported on': files[15::20]}
    train = [open_rgb(o) for o in files if o not in {*held['chosen on'], *held['reported on']}]
    train = [o for im in train for o in (im, im.reduce(2))]
    for f,out in photo_sources().values():
        if not out: train += [o for k in (1, 2, 3) for o in [open_rgb(f).reduce(k)]*6]
    return [np.asarray(o) for o in train if min(o.size) >= 130], {k: [open_rgb(o) for o in v] for k,v in held.items()}


def ruined(name, im, seed):
    "A photograph for a trial"
    again = lambda k: im.resize((im.width//k, im.height//k), Image.Resampling.BICUBIC).resize(im.size, Image.Resampling.BICUBIC)
    rng, im = np.random.default_rng(seed), im.copy()
    if name == 'half the width (bicubic)': return again(2)
    if name == 'JPEG of quality 25':
        from course_lib.crappify import crappify_photo, parse_steps
        return crappify_photo(parse_steps('jpeg(25)'), im, seed, 'a trial')
    if name == 'noise (20 of 255)': return Image.fromarray((np.asarray(im)+rng.normal(0, 20, (im.height, im.width, 3))).round().clip(0, 255).astype(np.uint8))
    if name == 'a white number (16 px)':
        from matplotlib import font_manager
        font, at = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), 16), (rng.integers(im.width-40), rng.integers(im.height-24))
        ImageDraw.Draw(im).text(at, str(rng.integers(10, 100)), font=font, fill='white')
    return im


trials = 'nothing', 'half the width (bicubic)', 'JPEG of quality 25', 'noise (20 of 255)', 'a white number (16 px)'


@torch.no_grad()
def measure(net, ims, dev):
    "Mean PSNR in dB over photographs of up to 384 pixels, before and after; 90 for equal pictures"
    tensor = lambda im: torch.from_numpy(np.array(im)).to(dev).permute(2, 0, 1)[None].float()/255
    psnr = lambda a, b: float(-10*(a-b).square().mean().clamp_min(1e-9).log10())
    res = {}
    for name in trials:
        cropped = [o.crop((0, 0, min(384, o.width)//16*16, min(384, o.height)//16*16)) for o in ims]
        pairs = [(tensor(ruined(name, im, i)), tensor(im)) for i,im in enumerate(cropped)]
        got = [(psnr(x, y), psnr((net.unit(x).clamp(0, 1)*255).round()/255, y)) for x,y in pairs]
        res[name] = [round(float(o), 2) for o in np.mean(got, 0)]
    return res


def card(about, file):
    "What lies beside the weights"
    def dB(x): return '∞' if x >= 90 else f'{x:.2f}'
    def table(name): return '\n'.join(f'| {k} | {dB(a)} | {dB(b)} |' for k,(a,b) in about.figures[name].items())
    head, how = '| damage | before | after |\n| --- | ---: | ---: |', about.settings
    return f"""# The model in the box

A residual U-Net of 1.6 million numbers that restores photographs: `course restore PHOTO…`

- **File**: `{file.name}`, {file.stat().st_size/1e6:.1f} MB, safetensors in 16 bits, sha256 of the numbers `{about.sha256[:16]}…`
- **Trained on** {about.figures['data']}
- **Training**: mean absolute error, Adam, squares of {how['cut']} pixels, {how['bs']} in a batch, rate {how['lr']:g}, seed {how['seed']};
  {about.figures['made']}. Made again by `python benchmarks/train_restorer.py --data FOLDER`.
- **Damage**, made anew for every square: fewer pixels (to a third at least), JPEG of quality 10 to 92, noise of up to 30 of 255, blur of up to 1.6 pixels,
  numbers, dates and words; more than half by one of them, the others by several, some by none.
- **Libraries**: {', '.join(f'{k} {v}' for k,v in about.versions.items())}

## Figures

PSNR in dB, the mean over photographs; ∞ where nothing differs. Ten photographs of the Berkeley set
that training has not seen, and on which nothing was chosen:

{head}
{table('unseen photographs')}

The three photographs that the course holds out (cat, coffee, portrait), at 256 pixels; `try_restorer` in lesson 05b measures them again:

{head}
{table('held-out photographs')}

## Limits

It mends what is listed above, and leaves folds, stains, missing pieces and lost colours as they are. What is blurred beyond two or three pixels stays soft.
Nobody has counted its errors on faces or by groups of people, and a restored picture is a guess: do not use it where a picture is evidence.
The training stopped after a minute, before the rate had come down; a longer one would be better.
The Berkeley photographs are for research and education, not for commerce: so are these weights.
"""


@call_parse
def main(
    data:str='',         # folder of photographs
    seconds:float=150,   # of training
    out:str='_runs/restorer', # without an ending
    start:str='',        # weights to go on from
    bs:int=48,           # squares in a batch
    cut:int=96,          # their side
    lr:float=5e-4,       # the highest rate
    seed:int=0           # of all random numbers
):
    "Train, measure on photographs held out, and write weights and figures"
    from course_lib.core import course_device, device_name
    from course_lib.crappify import parse_steps
    from course_lib.files import write_atomic
    from course_lib.kept_weights import load_network, save_weights
    if not data: raise SystemExit('train_restorer: --data is missing. Expected a folder of photographs')
    dev, out = course_device(), Path(out)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    train, held = photographs(data)
    net, squares, damage = Restorer().to(dev, memory_format=torch.channels_last), Squares(train, dev, cut), Damage(dev, cut)
    if start: net.load_state_dict(load_network(start)[0].state_dict())
    mean, opt = copy.deepcopy(net), torch.optim.AdamW(net.parameters(), lr, betas=(.9, .99), weight_decay=1e-4)
    t1, i = time.time(), 0
    while (done := (time.time()-t1)/seconds) < 1:
        opt.param_groups[0]['lr'] = lr*min(1, i/300)*((.5+.5*math.cos(math.pi*done))*.98+.02)*(.4 if start else 1)
        y = squares.draw(bs)
        x = damage(y).contiguous(memory_format=torch.channels_last)
        with torch.autocast(dev.type, torch.bfloat16): pred = net.unit(x)
        loss = (pred.float()-y).abs().mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step()
        with torch.no_grad(): torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1-min(.999, (i+1)/(i+10)))
        i += 1
        if i % 500 == 0: print(f'{i} steps, {time.time()-t1:.0f} s, loss {loss.item():.4f}', flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    made, tried = f'{i} steps in {time.time()-t1:.0f} seconds on {device_name()}', mean.eval()
    figures = dict(made=made, data=f'{len(train)} photographs and smaller copies, of {data} and of the six that the course trains on',
        **{'photographs to choose on': measure(mean, held['chosen on'], dev), 'unseen photographs': measure(mean, held['reported on'], dev)},
        **{'held-out photographs': {k: try_restorer(tried, parse_steps(v)) for k,v in box_trials.items()}})
    cfg = dict(widths=[32, 64, 128], n=2, mid=4, bs=bs, cut=cut, lr=lr, seed=seed, start=start or None)
    file = save_weights(out.with_suffix('.safetensors'), mean, cfg, 'photo_restorer', figures, bits=16)
    write_atomic(file.with_suffix('.md'), card(load_network(file)[1], file))
    print(json.dumps(figures, indent=1))
