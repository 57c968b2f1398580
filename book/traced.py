"""Each number in the text leads to the records that it was computed from: the section Records of the page that did."""

from __future__ import annotations

import posixpath
from typing import Any

from docutils import nodes
from myst_nb.ext.glue.roles import PasteTextRole
from sphinx.application import Sphinx


class Traced(PasteTextRole):
    """The role `glue:text` with a link around its text; its syntax is unchanged."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        found, messages = super().run()
        env = self.document.settings.env
        page, other, _ = self.text.partition("::")
        page = posixpath.normpath(posixpath.join(posixpath.dirname(env.docname), page)) if other else env.docname
        where = env.app.builder.get_relative_uri(env.docname, page.removesuffix(".ipynb")) + "#records"
        link = nodes.reference("", "", *found, internal=True, refuri=where, classes=["traced"])
        return [link] if found else [], messages


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role_to_domain("glue", "text", Traced(), override=True)
    return {"parallel_read_safe": True}
