"The site's settings; `make docs` builds it from the notebooks and the reports."
project = "primenb"
copyright = "2026 The primenb authors"
html_title = "primenb"
html_theme = "furo"
html_copy_source = False
extensions = ["myst_nb", "sphinx-mathjax-offline"]  # formulas without a network
root_doc = "index"
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the source"
nb_code_prompt_hide = "Hide the source"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
