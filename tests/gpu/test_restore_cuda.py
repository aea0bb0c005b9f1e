"Restoring and the feature loss on CUDA: the same as on the CPU"
import pytest, torch
if not torch.cuda.is_available(): pytest.skip('torch sees no CUDA device here', allow_module_level=True)

import numpy as np, torch.nn.functional as F
from course_lib.core import lesson_settings
from course_lib.pictures import open_photo
from course_lib.feature_loss import FeatureLoss, make_loss
from course_lib.kept_weights import load_network
from course_lib.models import half_dtype
from course_lib.restore import box_file, restore_photo
from course_lib.samples.photos import photo_sources


def test_restores_as_on_the_cpu():
    "In tiles and as a whole, to two of 255"
    im, (box, _) = open_photo(photo_sources()['cat'][0])[0], load_network(box_file())
    assert next(box.parameters()).is_cuda
    a, b = (np.asarray(restore_photo(box, im, most=o, tile=256)).astype(int) for o in (1e9, 1))
    c = np.asarray(restore_photo(box.cpu(), im, most=1e9)).astype(int)
    assert abs(a-b).max() <= 2 and abs(a-c).max() <= 2


def test_the_loss_network_in_sixteen_bits():
    "On CUDA the loss network works in 16 bits: the loss within 3 %, and a slope in the same direction"
    x, y = torch.randn(2,4,3,128,128, device='cuda')
    loss, _ = make_loss(lesson_settings('05', 'sample'), y)
    assert loss.low is half_dtype(x.device) is not None
    slopes, values = [], []
    for f in (loss, FeatureLoss(loss.net, loss.weights, loss.gram, base='mse')):
        p = x.clone().requires_grad_()
        values.append(f(p, y))
        slopes.append(torch.autograd.grad(values[-1], p)[0].flatten())
    assert abs(values[0]/values[1]-1) < .03 and F.cosine_similarity(*slopes, dim=0) > .97
