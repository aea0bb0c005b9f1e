"A CUDA card that is not there: torch's FakeTensorMode, with what it lacks for a training step and for a figure"
import importlib, pkgutil
from collections import Counter, defaultdict
import numpy as np, torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
import course_lib

aten, cuda = torch.ops.aten, torch.device('cuda', 0)
found = [o.name.partition('.')[2] for o in pkgutil.walk_packages(course_lib.__path__, 'course_lib.') if not o.ispkg]
modules = {o: importlib.import_module(f'course_lib.{o}') for o in found if not o.startswith('_')}


class Card(FakeTensorMode):
    "Fake tensors have no numbers: where a result's size or the program's way depends on them, some are made up"
    def __init__(self): super().__init__(allow_non_fake_inputs=True)
    def dispatch(self, func, types, args=(), kwargs={}):
        x = args[0] if args else None
        if func is aten._local_scalar_dense.default: return True if x.dtype is torch.bool else .5 if x.is_floating_point() else 1
        if func is aten.nonzero.default: return x.new_zeros((x.numel(), x.ndim), dtype=torch.long)
        if func is aten.bincount.default: return x.new_zeros(kwargs['minlength'] if 'minlength' in kwargs else args[2])
        if func is aten.equal.default: return True
        if func is aten._unique2.default: return x.flatten(), x.new_zeros(0), x.new_zeros(0)
        return super().dispatch(func, types, args, kwargs)


def backward(outs, grads, keep=None, create=False, inputs=(), *args, **kwargs):
    "The graph, walked in Python: torch's own engine asks the driver for streams, and there is none"
    edge, waits, got, seen = torch.autograd.graph.get_gradient_edge, Counter(), defaultdict(dict), set()
    def put(n, i, g):
        if g is None: return
        want = n._input_metadata[i]
        if g.device != want.device: raise RuntimeError(f'a gradient is on the device {g.device}, and what it belongs to on {want.device}')
        g = g.sum_to_size(want.shape).to(want.dtype)
        got[n][i] = got[n][i] + g if i in got[n] else g
    for o,g in zip(outs, grads): put(*edge(o)[:2], g)
    stack, wanted = list(got), [edge(o)[:2] for o in inputs]
    while stack:
        if (n := stack.pop()) in seen: continue
        seen.add(n)
        for m,_ in n.next_functions:
            if m is not None: waits[m] += 1; stack.append(m)
    todo = [n for n in got if not waits[n]]
    with torch.set_grad_enabled(create):
        while todo:
            n = todo.pop()
            gs = [got[n].get(i) for i in range(len(n._input_metadata))]
            if hasattr(n, 'variable'):
                if not inputs and gs[0] is not None: n.variable.grad = gs[0].clone() if n.variable.grad is None else n.variable.grad + gs[0]
                continue
            res = n.apply(*gs) if hasattr(n, '_forward_cls') else n(*gs)
            for (m,i),g in zip(n.next_functions, res if isinstance(res, tuple) else [res]):
                if m is None: continue
                put(m, i, g)
                waits[m] -= 1
                if not waits[m]: todo.append(m)
    return tuple(got[n].get(i) for n,i in wanted)


def swap(a, b):
    "`Module.to` keeps its parameters; torch refuses this for fake ones, since its mode holds weak references to them"
    a.__class__, b.__class__, a.__dict__, b.__dict__ = b.__class__, a.__class__, b.__dict__, a.__dict__
    torch._C._swap_tensor_impl(a, b)


def stand_in(monkeypatch):
    "Put the card in the place of the default device; what follows belongs into a `with Card():`"
    numpy, as_subclass, deepcopy = torch.Tensor.numpy, torch.Tensor.as_subclass, torch.Tensor.__deepcopy__
    def to_numpy(x, **kwargs):
        if not isinstance(x, FakeTensor): return numpy(x, **kwargs)
        if x.device.type != 'cpu': raise TypeError(f"can't convert {x.device} device type tensor to numpy")
        if x.requires_grad: raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return np.zeros(x.shape, str(x.dtype).split('.')[1])
    monkeypatch.setattr(torch.Tensor, 'numpy', to_numpy)
    monkeypatch.setattr(torch.Tensor, 'as_subclass', lambda x, typ: x if isinstance(x, FakeTensor) else as_subclass(x, typ)) # fastai's classes
    monkeypatch.setattr(torch.utils, 'swap_tensors', swap)
    monkeypatch.setattr(torch.Tensor, '__deepcopy__', lambda x, memo: x.detach().clone() if isinstance(x, FakeTensor) else deepcopy(x, memo))
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', False) # it would ask the driver
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    for o in (torch.autograd, torch.autograd.graph): monkeypatch.setattr(o, '_engine_run_backward', backward)
    for o in modules.values():
        if hasattr(o, 'course_device'): monkeypatch.setattr(o, 'course_device', lambda: cuda)
