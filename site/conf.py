"Sphinx's settings for the course's pages: notebooks as they were executed, no address outside, formulas as MathML"
import sys
from pathlib import Path
from docutils import nodes
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))
project, author, copyright = 'A deep-learning course that runs', 'The course_lib maintainers', 'The course_lib maintainers, Apache 2.0'
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_code_prompt_show, nb_code_prompt_hide = 'imports', 'imports' # nothing else is folded
nb_ipywidgets_js = {} # the panels need a kernel: in a page they are text
nb_mime_priority_overrides = [('html', o, i) for i,o in enumerate(('image/jpeg', 'image/png', 'text/html', 'text/markdown'))]
nb_merge_streams = True
nb_render_markdown_format = 'myst' # tables and formulas in outputs, too
myst_enable_extensions = ['dollarmath', 'html_image']
myst_heading_anchors = 4

myst_heading_slug_func = 'conf.slug' # by name: it goes to other processes
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type', 'misc.highlighting_failure', 'toc.not_included', 'config.cache']
html_theme, html_title = 'sphinx_book_theme', project
html_theme_options = dict(show_toc_level=2, use_download_button=False, use_fullscreen_button=True, home_page_in_toc=True)
html_context = dict(default_mode='auto')
html_math_renderer, html_copy_source, html_show_sourcelink = 'mathml', False, False
html_css_files, html_static_path = ['course.css'], ['.']


def slug(title): return title.replace(' ', '-') # as JupyterLab does


def visit_math(self, node):
    try: html = convert(node.astext(), display='block' if isinstance(node, nodes.math_block) else 'inline')
    except Exception: html = f'<code>{self.encode(node.astext())}</code>'
    self.body.append(f'<p class="math">{html}</p>' if isinstance(node, nodes.math_block) else html)
    raise nodes.SkipNode


def setup(app): app.add_html_math_renderer('mathml', (visit_math, None), (visit_math, None))
