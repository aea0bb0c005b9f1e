"""The pictures of the README and of the lessons' boxes that are outputs of a lesson: taken from the committed notebook, the first picture of a cell.

    python benchmarks/pictures.py [NAME ...]
"""
import base64, json, sys
from course_lib.core import CourseError, clone_root
from course_lib.files import write_atomic

taken = {'07_zebras.jpg': ('07_cyclegan', '07a00004')} # file in results/pictures → notebook, id of the cell


def picture_of(notebook, cell):
    "The first picture among a cell's outputs, as bytes"
    nb = json.loads((clone_root()/'nbs'/f'{notebook}.ipynb').read_text(encoding='utf-8'))
    for c in nb['cells']:
        for o in c.get('outputs', []) if c['id'] == cell else []:
            for kind in ('image/jpeg', 'image/png'):
                if kind in o.get('data', {}): return base64.b64decode(''.join(o['data'][kind]))
    raise CourseError(f'{notebook}: cell {cell} has no picture. Run the notebook and save it')


if __name__ == '__main__':
    for name in sys.argv[1:] or taken: print(write_atomic(clone_root()/'results'/'pictures'/name, picture_of(*taken[name])))
