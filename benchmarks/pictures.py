"""The pictures of the README and of the lessons' boxes: outputs of the committed notebooks, the first picture of a cell;
and the README's gallery, cut from those to one form.

    python benchmarks/pictures.py [NAME ...]
"""
import base64, io, json, re, sys
from PIL import Image, ImageOps
from course_lib.core import CourseError, clone_root
from course_lib.files import write_atomic

taken = { # file in results/pictures → notebook, id of the cell
    '01_gradients.png': ('01_mnist_resnet', '856fca3c'), '02_streets.jpg': ('02_unet_segmentation', 'cac55cac'),
    '02b_upsampling.png': ('02b_upsampling', 'ffa64239'), '03_old_family.jpg': ('03_crappify', '9d80beaf'),
    '04_restored.jpg': ('04_gan_superres', '04b00003'), '05_restored.jpg': ('05_feature_loss_superres', '05b00003'),
    '05_colour.jpg': ('05_feature_loss_superres', '6c0d0051'), '06_bedrooms.jpg': ('06_wgan_bedrooms', '06b00003'),
    '07_zebras.jpg': ('07_cyclegan', '07a00004'), '08b_painted.jpg': ('08b_painterly_harmonization', 'd358e3a7'),
    '09b_pointer.png': ('09b_looking_back', 'a2328b6e')}
gallery = { # file → the part shown: left, top, right, bottom
    '01_loss_surface.png': (0, 0, 1, 1), '02_streets.jpg': (0, 0, .75, .66), '03_old_family.jpg': (0, 0, .5, 1),
    '04_restored.jpg': (0, 0, 1, .657), '05_restored.jpg': (0, 0, 1, .657), '05b_restored.jpg': (0, 0, 1, .657),
    '06_bedrooms.jpg': (0, .06, .6, 1), '07_zebras.jpg': (0, 0, .5, .5), '08_style.jpg': (0, 0, 1, 1),
    '09b_pointer.png': (0, 0, 1, 1), '10_answers.png': (0, 0, .6, .2), '12_loops.png': (0, 0, 1, 1),
    '02b_upsampling.png': (0, 0, 1, 1), '08b_painted.jpg': (0, 0, 1, 1), '11_schedules.png': (0, 0, 1, 1)} # the last three in 00 alone


def picture_of(notebook, cell):
    "The first picture among a cell's outputs, as bytes"
    nb = json.loads((clone_root()/'nbs'/f'{notebook}.ipynb').read_text(encoding='utf-8'))
    for c in nb['cells']:
        for o in c.get('outputs', []) if c['id'] == cell else []:
            data = o.get('data', {})
            for kind in ('image/jpeg', 'image/png'):
                if kind in data: return base64.b64decode(''.join(data[kind]))
            if m := re.search('base64,([^"]+)', ''.join(data.get('text/markdown', ''))): return base64.b64decode(m[1]) # in folded text
    raise CourseError(f'{notebook}: cell {cell} has no picture. Run the notebook and save it')


def painted_cat():
    "The head of lesson 08, as bytes: photograph, painting, and both, in 120 evaluations at 128 pixels and 60 at 256 (a minute)"
    import torch
    from course_lib.core import lesson_settings, seed_everything
    from course_lib.data import get_data
    from course_lib.show import to_array
    from course_lib.style import loss_network, match_colours, open_picture, part_of, picture_batch, style_files, transfer
    cfg, out = lesson_settings('08_style_transfer', 'sample'), io.BytesIO()
    seed_everything(cfg.seed)
    named = {o.stem: open_picture(o, 1024) for o in style_files(get_data(cfg.dataset, 'sample'), cfg)}
    brush = part_of(named[f'style_{cfg.style_name}'], cfg.style_part)
    photo, painting = (picture_batch(o, (256, 256), 'cpu') for o in (named[f'content_{cfg.content_name}'], brush))
    image = lambda x: Image.fromarray((to_array(x[0])*255).round().astype('uint8'))
    net, _ = loss_network(cfg.arch, cfg.pretrained, photo, torch.device('cpu'))
    start = image(match_colours(photo, painting).clamp(0, 1))
    done = transfer(net, start, brush, 256, 120, cfg.content_block, cfg.style_weight, 128)
    gap = torch.ones_like(photo)[..., :8]
    image(torch.cat([photo, gap, painting, gap, done], -1)).save(out, 'JPEG', quality=90)
    return out.getvalue()


def thumb(file, part, size=(480, 300)):
    "A part of a picture, fitted into one form on white, as bytes"
    im, out = Image.open(file).convert('RGB'), io.BytesIO()
    im = im.crop([round(a*b) for a,b in zip(part, (*im.size, *im.size))])
    ImageOps.pad(im, size, Image.Resampling.LANCZOS, color='white').save(out, 'JPEG', quality=88)
    return out.getvalue()


if __name__ == '__main__':
    folder, names = clone_root()/'results'/'pictures', sys.argv[1:] or {**taken, **gallery}
    for name in names:
        if name in taken: print(write_atomic(folder/name, picture_of(*taken[name])))
        if name == '08_style.jpg': print(write_atomic(folder/name, painted_cat()))
        if name in gallery:
            print(write_atomic(folder/'small'/f'{name[:name.index("_")]}.jpg', thumb(folder/name, gallery[name])))
