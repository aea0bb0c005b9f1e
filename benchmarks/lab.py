"""The crappify lab: milliseconds from a slider's message to the new picture's bytes, for every step of a crappifier.

A real Jupyter kernel holds the panel with a photograph of 512×512 pixels. The script plays the browser: it sends the message that a
moved slider sends, and waits for the message that carries the new picture. Every step is measured alone in the chain, its first
slider moved from end to end; then a chain of eight steps, with the first and with the last of them moved. Median and worst.

    python benchmarks/lab.py [--repeats 25] [--keep]

Writes _runs/bench/lab.json (with --keep also results/benchmarks/); run on a quiet machine.
"""
import json, os, statistics, time
from contextlib import contextmanager
from importlib import import_module
from queue import Empty
from tempfile import TemporaryDirectory
from fastcore.script import call_parse

setup = '''
import json
from course_lib.apps.lab import *
from course_lib.crappify import *
from course_lib.old_prints import *
from course_lib.steps import *
from course_lib.samples.photos import photo_sources
panel = CrappifyLab([photo_sources()['astronaut'][0]]).panel
def ids(i):
    w = [*panel.cards[i].controls.values()][0]
    return json.dumps(dict(slider=w.model_id, picture=panel.view.after.model_id, value=w.value, ends=[w.min, w.max], step=w.step))
'''
long = 'gaussian_blur fold discolour dust scratches film_grain vignette jpeg'


@contextmanager
def kernel():
    "A kernel, and a client to speak with it"
    from jupyter_client.manager import KernelManager
    os.environ['JUPYTER_PREFER_ENV_PATH'] = '1'
    with TemporaryDirectory() as d:
        km = KernelManager(transport='ipc', ip=f'{d}/k')
        km.start_kernel()
        kc = km.client()
        kc.start_channels()
        try:
            kc.wait_for_ready(timeout=60)
            yield kc
        finally:
            kc.stop_channels()
            km.shutdown_kernel(now=True)


def ask(kc, code, expr=None):
    "Run code in the kernel; the value of an expression that gives JSON"
    res = kc.execute_interactive(code, user_expressions={'x': expr} if expr else {}, timeout=60, output_hook=lambda m: None)['content']
    if res['status'] != 'ok': raise RuntimeError('\n'.join(res['traceback']))
    return json.loads(eval(res['user_expressions']['x']['data']['text/plain'])) if expr else None


def places(o, n):
    "`n` values all along the slider, no two neighbours alike; both handles of a range together"
    (lo, hi), step = o['ends'], o['step']
    k = min(n, round((hi-lo)/step)+1)
    grid = [lo + step*round((hi-lo)/step*i/(k-1)) for i in range(k)]
    vals = [(grid+grid[-2:0:-1])[i % (2*k-2)] for i in range(n)]
    return [[v, v] for v in vals] if isinstance(o['value'], list) else vals


def milliseconds(kc, o, value):
    "Send what a moved slider sends; wait until the picture's bytes come; None where the picture stays the same"
    content = dict(comm_id=o['slider'], data=dict(method='update', state=dict(value=value), buffer_paths=[]))
    msg = kc.session.msg('comm_msg', content)
    t0 = time.perf_counter()
    kc.shell_channel.send(msg)
    while True:
        m = kc.get_iopub_msg(timeout=30)
        c = m['content']
        if m['msg_type'] == 'comm_msg' and c['comm_id'] == o['picture'] and ['value'] in c['data']['buffer_paths']: return (time.perf_counter()-t0)*1000
        if c.get('execution_state') == 'idle' and m['parent_header'].get('msg_id') == msg['header']['msg_id']: return None


def quiet(kc):
    "Let all messages that are under way arrive"
    try:
        while True: kc.get_iopub_msg(timeout=.05)
    except Empty: pass


def measure(kc, text, i, repeats):
    "Milliseconds for a chain whose step number i is changed"
    o, got = ask(kc, f'panel.load(parse_steps({text!r}))', f'ids({i})'), []
    for v in places(o, repeats+2):
        quiet(kc)
        got.append(milliseconds(kc, o, v))
    got = [o for o in got[2:] if o]
    return dict(median=round(statistics.median(got), 1), worst=round(max(got), 1))


@call_parse
def main(
    repeats:int=25, # how often each slider is moved
    keep:bool=False # also write results/benchmarks
):
    "Measure the panel's answer for every step"
    import_module('course_lib.old_prints') # its steps as well
    from common import about, keep_result
    from course_lib.steps import steps
    todo = {**{k: (k, 0) for k,v in steps.items() if v.params}, 'eight steps, the first changed': (long, 0), 'eight steps, the last changed': (long, 7)}
    head = about(photograph='512×512', repeats=repeats)
    with kernel() as kc:
        ask(kc, setup)
        res = {k: measure(kc, *v, repeats) for k,v in todo.items()}
    for k,v in res.items(): print(f"{k:<32} {v['median']:7.1f} ms   worst {v['worst']:7.1f} ms")
    keep_result('lab', dict(head, milliseconds=res), keep)
