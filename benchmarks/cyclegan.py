"""One training step of the CycleGAN at full width (ngf = ndf = 64, nine blocks), batch 1: a plain loop and ours, side by side.

The plain loop is straightforward PyTorch: six passes through the generators, critics frozen in the generators' step, Adam as it
comes, memory as it comes, 32-bit numbers. Ours is `cycle_step`, in 16-bit numbers where the device has them (--half no: without).
Both start from the same weights and see the same pictures; the losses of the first steps are compared. Only the first step's have to
agree, up to 16 bits: Adam's first moves magnify any difference in rounding, also that between two orders of the same sums. Then
steps are timed in turn and the medians compared. Beside that: the share of a step that is spent in convolutions (torch's profiler),
and the convolutions' speed against the fastest that this machine was seen to do.

    python benchmarks/cyclegan.py [--repeats 7] [--sz 128] [--half no] [--keep]

128 pixels on a CPU, 256 on CUDA. Writes _runs/bench/cyclegan-DEVICE.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import copy, statistics, time
import torch, torch.nn.functional as F
from fastcore.script import call_parse
from torch import nn


class Ours:
    "The lesson's step"
    def __init__(self, gan): self.gan = gan
    def step(self, a, b):
        from course_lib.cyclegan import cycle_step
        return cycle_step(self.gan, a, b)


class Plain:
    "The textbook's loop"
    def __init__(self, ours):
        self.cfg = ours.cfg
        self.G, self.F, self.D_A, self.D_B = (plain_copy(o) for o in (ours.G, ours.F, ours.D_A, ours.D_B))
        self.critics = [*self.D_A.parameters(), *self.D_B.parameters()]
        adam = lambda ps, lr: torch.optim.Adam(ps, lr, betas=(.5, .999))
        self.opt_g, self.opt_d = adam([*self.G.parameters(), *self.F.parameters()], self.cfg.lr), adam(self.critics, self.cfg.lr_critic)
        self.pools = copy.deepcopy(ours.pools)

    def step(self, a, b):
        gan, l1, lam, idt = nn.MSELoss(), nn.L1Loss(), self.cfg.lam, self.cfg.idt
        target = lambda pred, real: torch.full_like(pred, float(real))
        for p in self.critics: p.requires_grad_(False)
        fake_b, fake_a = self.G(a), self.F(b)
        on_b, on_a = self.D_B(fake_b), self.D_A(fake_a)
        res = dict(G_A=gan(on_a, target(on_a, 1)), G_B=gan(on_b, target(on_b, 1)), cycle_A=lam*l1(self.F(fake_b), a), cycle_B=lam*l1(self.G(fake_a), b),
            same_A=lam*idt*l1(self.F(a), a), same_B=lam*idt*l1(self.G(b), b))
        self.opt_g.zero_grad()
        sum(res.values()).backward()
        self.opt_g.step()
        for p in self.critics: p.requires_grad_(True)
        self.opt_d.zero_grad()
        for name,net,real,fake,pool in (('D_A', self.D_A, a, fake_a, self.pools[0]), ('D_B', self.D_B, b, fake_b, self.pools[1])):
            on_real, on_fake = net(real), net(pool(fake))
            res[name] = (gan(on_real, target(on_real, 1)) + gan(on_fake, target(on_fake, 0)))/2
            res[name].backward()
        self.opt_d.step()
        return {k: v.detach() for k,v in res.items()}


def plain_copy(net):
    "The same network with PyTorch's own instance norm, its memory as PyTorch lays it out"
    from course_lib.cyclegan import InstanceNorm
    net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    for m in list(net.modules()):
        for k,o in list(m.named_children()):
            if isinstance(o, InstanceNorm): setattr(m, k, nn.InstanceNorm2d(o.nf))
    for p in net.parameters(): p.data = p.data.contiguous()
    return net


def sync(dev):
    if dev.type == 'cuda': torch.cuda.synchronize()


def seconds(f, dev):
    sync(dev)
    t0 = time.perf_counter()
    f()
    sync(dev)
    return time.perf_counter()-t0


def profiled(f, dev):
    "Seconds in convolutions and in all, of the operations of one call"
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA]*(dev.type == 'cuda')) as p:
        f()
        sync(dev)
    own = lambda o: (o.self_device_time_total if dev.type == 'cuda' else o.self_cpu_time_total)/1e6
    kernels = ('conv', 'winograd', 'xmma', 'cutlass', 'gemm', 'sm90', 'sm80', 'bmm') # what the time is booked under
    rows = [o for o in p.key_averages()]
    return sum(own(o) for o in rows if any(k in o.key.lower() for k in kernels)), sum(own(o) for o in rows)


def flops(gan, sz):
    "Multiplications and additions in the convolutions of a step, counted on shapes: a backward pass is two of a forward one"
    from torch.utils.flop_counter import FlopCounterMode
    def forward(net):
        net, x = copy.deepcopy(net).to('meta'), torch.zeros(1, 3, sz, sz, device='meta')
        with FlopCounterMode(display=False) as c: net(x)
        return c.get_total_flops()
    g, d = forward(gan.G), forward(gan.D_A)
    return 6*3*g + 2*2*d + 4*3*d # six passes of the generators; the critics: one on each fake for its gradient alone, two each to learn


def ceiling(dev, dtype):
    "The fastest convolution seen here, in operations a second: the blocks' 3×3 at 256 channels, of several batches, and other shapes"
    best = 0.
    for n,c,h in ((1, 256, 32), (2, 256, 32), (4, 256, 64), (8, 512, 32)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(n, c, h, h, device=dev, dtype=dtype).to(memory_format=layout)
            w = torch.randn(c, c, 3, 3, device=dev, dtype=dtype).to(memory_format=layout)
            f = lambda: [F.conv2d(x, w, padding=1) for _ in range(3)]
            f()
            best = max(best, 3*2*n*c*c*9*h*h/min(seconds(f, dev) for _ in range(5)))
    return best


def agreement(plain, ours, pairs):
    "Largest relative difference of any of the eight losses over some steps, and the losses of the first step"
    got = [({k: float(v) for k,v in plain.step(a, b).items()}, {k: float(v) for k,v in ours.step(a, b).items()}) for a,b in pairs]
    off = [max(abs(p[k]-o[k])/max(abs(p[k]), .1) for k in p) for p,o in got]
    return [round(o, 6) for o in off], got[0]


@call_parse
def main(
    repeats:int=7, # how often each step is timed
    sz:int=0,      # side of the pictures (default: 128 on a CPU, 256 on CUDA)
    ngf:int=64,    # channels of the generators and the critics
    blocks:int=9,  # residual blocks
    steps:int=3,   # steps whose losses are compared
    half:str='auto', # 16-bit numbers: no or auto
    keep:bool=False # also write results/benchmarks
):
    "Compare the plain loop with `cycle_step`"
    from common import about, keep_result, spread
    from course_lib.core import course_device, lesson_settings, seed_everything
    from course_lib.cyclegan import CycleGAN
    dev = course_device()
    sz = sz or (256 if dev.type == 'cuda' else 128)
    seed_everything(0)
    cfg = lesson_settings('07', 'full', sz=sz, ngf=ngf, ndf=ngf, blocks=blocks, half=half)
    head, gan = about(dev, sz=sz, ngf=ngf, blocks=blocks, half=half, repeats=repeats), CycleGAN(cfg)
    plain, ours, picture = Plain(gan), Ours(gan), lambda: F.interpolate(torch.rand(1, 3, 16, 16, device=dev)*2-1, sz, mode='bicubic').clip(-1, 1)
    pairs = [(picture(), picture()) for _ in range(steps)]
    off, (first_plain, first_ours) = agreement(plain, ours, pairs)
    print(f'the losses differ by up to {off} (relative) in steps 1 to {steps}', flush=True)
    ways, got = dict(plain=plain, ours=ours), dict(plain=[], ours=[])
    for r in range(repeats+1): # the first is a warm-up
        for k,o in ways.items():
            t = seconds(lambda: o.step(*pairs[r % steps]), dev)
            if r: got[k].append(t)
    med, work = {k: statistics.median(v) for k,v in got.items()}, flops(plain, sz)
    top = dict(plain=ceiling(dev, torch.float32), ours=ceiling(dev, gan.low or torch.float32))
    res = dict(seconds={k: [round(o, 4) for o in v] for k,v in got.items()}, ratio=round(med['plain']/med['ours'], 3),
        losses_differ=off, losses=dict(plain=first_plain, ours=first_ours), gflop_a_step=round(work/1e9, 1), ways={})
    for k,o in ways.items():
        conv, whole = profiled(lambda: o.step(*pairs[0]), dev)
        res['ways'][k] = dict(milliseconds=round(1000*med[k], 2), share_in_convolutions=round(conv/whole, 3), gflops=round(work/med[k]/1e9, 1),
            ceiling_gflops=round(top[k]/1e9, 1), of_the_ceiling=round(work/med[k]/top[k], 3))
        print(f'  {k:<6} {spread(got[k], digits=3)} ' + ' '.join(f'{a} {b}' for a,b in res['ways'][k].items()), flush=True)
    print(f"  {res['ratio']:.2f} times the steps per second of the plain loop")
    keep_result(f'cyclegan-{dev.type}', dict(head, results=res), keep)
