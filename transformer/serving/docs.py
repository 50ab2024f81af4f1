"""The interface as a plain page: Swagger's and Redoc's would load scripts from elsewhere."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>The interface</title>
<style>body { font: 1rem/1.5 sans-serif; max-width: 45rem; margin: auto; padding: 1rem }
pre { overflow: auto; padding: .5rem; border: 1px solid #8886 }</style>
<h1>The interface</h1>
<p>For programs: <a href="openapi.json">openapi.json</a>. An error is an <a href="#Error">Error</a>.
"""


def page(schema: dict[str, Any]) -> str:
    """An OpenAPI schema as HTML."""
    return HEAD + "\n".join([*_operations(schema["paths"]), *_types(schema["components"])])


def _operations(paths: dict[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, about in methods.items():
            yield f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(about['description'])}</p>"
            for word, part in (("Takes", "requestBody"), ("Answers", "responses")):
                content = about.get(part, {}).get("200", about.get(part, {})).get("content", {})
                kinds = [_kind(kind["schema"]) for kind in content.values()]
                yield f"<p>{word} {kinds[0]}.</p>" if kinds else ""


def _types(components: dict[str, Any]) -> Iterator[str]:
    for name, schema in components["schemas"].items():
        fields = [
            f"{key}: {_kind(field)}"
            + (f" = {escape(json.dumps(field['default']))}" if "default" in field else "")
            for key, field in schema["properties"].items()
        ]
        about = escape(schema["description"])
        yield f'<h2 id="{name}">{name}</h2><p>{about}</p><pre>{chr(10).join(fields)}</pre>'


def _kind(schema: dict[str, Any]) -> str:
    """A type in a few words, with a link where it is explained."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " | ".join(map(_kind, schema["anyOf"]))
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        return " | ".join(escape(json.dumps(value)) for value in values)
    if "prefixItems" in schema:
        return f"[{', '.join(map(_kind, schema['prefixItems']))}]"
    if "items" in schema:
        return f"[{_kind(schema['items'])}, …]"
    return escape(str(schema.get("type", "anything")))
