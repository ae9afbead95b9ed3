"""Build the pages of the site from the repository's files.

MkDocs reads one folder. README.md, the guides and the studies link to each other across folders, so the pages keep
their paths in the repository: ``docs/runs.md`` becomes ``docs/runs/``, README.md the home page. The pages of the API
are generated from the public names.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "docs/*.md",
    "docs/*.ipynb",
    "docs/*.png",
    "docs/*/*.md",
    "docs/*/*.svg",
    "docs/site/site.css",
    "experiments/README.md",
    "experiments/*/README.md",
    "experiments/*/*.png",
    "experiments/*/study.yaml",
)
# pages of the API: name, title, introduction, module, names; None stands for all of the module's `__all__`
API: tuple[tuple[str, str, str, str, tuple[str, ...] | None], ...] = (
    (
        "training",
        "Train with a policy",
        "What a training needs: a policy in a `Trainer` or a loop, a target, a result.",
        "lrbench_pl",
        (
            "LRPolicyCallback",
            "LRPolicyComposer",
            "LRPolicyScheduler",
            "LRPolicyError",
            "TargetCheck",
            "Verdict",
            "sweep",
            "policy_callback",
            "write_result",
        ),
    ),
    (
        "huggingface",
        "Hugging Face Trainer",
        "Needs transformers and accelerate.",
        "lrbench_pl.huggingface",
        ("TargetCallback",),
    ),
    (
        "analysis",
        "Analyse results",
        "From folders of results to tables, rankings and pages. Tables are polars data frames.",
        "lrbench_pl",
        ("load_runs", "rank", "curves", "report", "write_report", "RunResult"),
    ),
    (
        "statistics",
        "Statistics",
        "The estimates, intervals and tests behind a ranking. {docstring}",
        "lrbench_pl.analysis.statistics",
        None,
    ),
    (
        "figures",
        "Figures",
        "For a notebook. {docstring}",
        "lrbench_pl.analysis.plots",
        None,
    ),
    (
        "policies",
        "Policies",
        "Needs the standard library alone. [The policies](../docs/policies.md) has the ready ones.",
        "lrbench_pl.policies",
        None,
    ),
)
_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod|exc):<code>~?([\w.]+)</code>")


def on_config(config: MkDocsConfig) -> None:
    """Add the pages to the navigation that no one should have to list: gallery, studies and API."""
    sections = {title: pages for entry in config.nav if isinstance(entry, dict) for title, pages in entry.items()}
    gallery = "docs/gallery/README.md"
    order = re.findall(r"\]\((\w+\.md)\)", (ROOT / gallery).read_text(encoding="utf-8"))
    sections["Policies"].append({"Gallery": [gallery, *(f"docs/gallery/{page}" for page in order)]})
    sections["Studies"].append("experiments/README.md")
    studies = sorted(ROOT.glob("experiments/*/README.md"))
    sections["Studies"] += [{path.parent.name: path.relative_to(ROOT).as_posix()} for path in studies]
    sections["Python API"] += [f"api/{page}.md" for page, *_ in API]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of ``docs`` by those of the repository, at their paths in it, and add the API."""
    from mkdocs.structure.files import File

    for file in [file for file in files if str(file.abs_src_path).startswith(config.docs_dir)]:  # not the theme's
        files.remove(file)
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".ipynb":
            files.append(File.generated(config, f"{name}.md", content=notebook(path)))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, content in api().items():
        files.append(File.generated(config, f"api/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to a notebook lead to its page."""
    return markdown.replace(".ipynb)", ".ipynb.md)")


def notebook(path: Path) -> str:
    """Return a notebook with its output as Markdown."""
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter()
    exporter.display_data_priority = ["text/plain"]
    exporter.register_preprocessor("nbconvert.preprocessors.coalescestreams.CoalesceStreamsPreprocessor", enabled=True)
    text, _ = exporter.from_filename(str(path))
    return str(text)


def api() -> dict[str, str]:
    """Return the pages of the API by name: an overview, and one page for each entry of ``API``.

    Raises:
        ValueError: If a public name of the package is on no page.
    """
    listed = {name for *_, module, names in API if module == "lrbench_pl" for name in names or ()}
    if missing := set(public("lrbench_pl")) - listed - {"__version__", "policies"}:
        raise ValueError(f"docs/site/hooks.py: no page of the API has {', '.join(sorted(missing))}")
    overview = ["# Python API", "", "Everything that `lrbench_pl` exports, and the modules for notebooks.", ""]
    pages = {}
    for page, title, introduction, module, names in API:
        introduction = introduction.format(docstring=ast.get_docstring(_parsed(module)))
        shown = names or [name for name in public(module) if not name.isupper()]
        overview += [f"## [{title}]({page}.md)", "", introduction, ""]
        overview += [f"- [`{name}`][{module}.{name}]" for name in shown] + [""]
        pages[page] = "\n".join([f"# {title}", "", introduction, "", *(f"::: {module}.{name}\n" for name in shown)])
    return {"README": "\n".join(overview), **pages}


def public(module: str) -> list[str]:
    """Return the names in ``__all__`` of a module, which is read without being imported."""
    for node in _parsed(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{module}: expected __all__")


def _parsed(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the Sphinx roles of docstrings into links, where the name has an entry of its own."""
    return _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)
