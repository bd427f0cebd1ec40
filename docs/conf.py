"The site's settings; `make docs` builds it from the notebooks and the reports."
import importlib

project = "primenb"
copyright = "2026 The primenb authors"
html_title = "primenb"
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_favicon = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
extensions = ["myst_nb"]
root_doc = "index"
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the source"
nb_code_prompt_hide = "Hide the source"
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "dollarmath"]
myst_heading_anchors = 3
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
html_domain_indices = False


def setup(app):
    "Formulas without a network; the extension does not say that pages may be read at the same time, but they may."
    importlib.import_module("sphinx-mathjax-offline").setup(app)
