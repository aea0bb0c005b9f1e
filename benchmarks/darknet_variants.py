"""Darknet's residual block in four forms, timed: bottleneck halved, kept, doubled, and a third convolution.

For each form: parameters, multiplications of a forward pass, the seconds of a whole training step (forward, backward, update) on one
batch that lies on the device, and what the forward pass keeps in memory. The forms are measured in turn, several times over, after
a warm-up; medians are compared with the bottleneck's. `ratio` is time against time, `ratio_counted` multiplications against
multiplications: where the two differ, counting would have misled.

    python benchmarks/darknet_variants.py [--profile full] [--bs 128] [--repeats 7] [--keep]

Writes _runs/bench/darknet_variants-DEVICE.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import statistics, time
from fastcore.script import call_parse


def stepper(cfg, bs, kwargs):
    "A function that makes one training step, and the model"
    import torch, torch.nn.functional as F
    from course_lib.core import course_device, seed_everything
    from course_lib.darknet import darknet_of
    seed_everything(1)
    dev = course_device()
    model = darknet_of(cfg, **kwargs).to(dev, memory_format=torch.channels_last)
    opt = torch.optim.SGD(model.parameters(), lr=.01, momentum=.9)
    xb = torch.rand(bs, 3, 32, 32, device=dev).contiguous(memory_format=torch.channels_last)
    yb = torch.randint(10, (bs,), device=dev)
    def step():
        opt.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
    return step, model, xb


def seconds(step, n):
    import torch
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    t0 = time.perf_counter()
    for _ in range(n): step()
    wait()
    return (time.perf_counter() - t0)/n


@call_parse
def main(
    profile:str='',     # whose network: full (the lecture's) or sample (default: full on a card, sample on a CPU)
    bs:int=0,           # pictures in a batch (0: the profile's)
    steps:int=5,        # steps in one measurement
    repeats:int=7,      # how often each measurement is taken
    keep:bool=False     # also write results/benchmarks
):
    "Time the forms of the block side by side"
    from torch.utils.flop_counter import FlopCounterMode
    from common import about, keep_result, spread
    from course_lib.core import course_device, lesson_settings
    from course_lib.darknet import block_variants
    from course_lib.models import picture_bytes
    from course_lib.resnet import n_params
    dev = course_device()
    profile = profile or ('sample' if dev.type == 'cpu' else 'full')
    cfg = lesson_settings('10', profile)
    bs = bs or cfg.bs
    head = about(dev, profile=profile, bs=bs, repeats=repeats)
    made, got = {k: stepper(cfg, bs, v) for k,v in block_variants.items()}, {k: [] for k in block_variants}
    for step,*_ in made.values(): seconds(step, 2)
    for r in range(repeats):
        for k in list(made)[::(-1)**r]: got[k].append(seconds(made[k][0], steps))
    rows = {}
    for k,(_, model, xb) in made.items():
        with FlopCounterMode(display=False) as counter: model(xb[:1].repeat(2,1,1,1))
        rows[k] = dict(parameters=n_params(model), multiplications=counter.get_total_flops()//4, step_seconds=round(statistics.median(got[k]), 5),
            images_per_second=round(bs/statistics.median(got[k])), kept_mib=round(bs*picture_bytes(model, (32, 32))/2**20, 1),
            all_seconds=[round(o, 5) for o in got[k]])
    first = next(iter(rows.values()))
    for k,o in rows.items():
        o['ratio'], o['ratio_counted'] = (round(o[c]/first[c], 2) for c in ('step_seconds', 'multiplications'))
        took = spread([1000*s for s in got[k]], 'ms', 1)
        print(f"  {k:<30} {o['parameters']:>12,} parameters {o['multiplications']/1e6:9.1f} M multiplications {took} a step"
              f"   {o['ratio']:.2f} times the time, {o['ratio_counted']:.2f} times the multiplications, {o['kept_mib']:,.0f} MiB kept")
    keep_result(f'darknet_variants-{dev.type}', dict(head, results=rows), keep)
