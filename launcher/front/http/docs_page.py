"""The page at ``/docs``: the OpenAPI document as self-contained HTML, with a form to try each route.

Routes must not be listed here; they come from the document.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

Json = dict[str, Any]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h2{margin-top:2.5rem;border-top:1px solid #d0d7de;padding-top:1rem}
h2 b{font:600 .8rem monospace;background:#0a5;color:#fff;border-radius:4px;padding:.2rem .5rem;margin-right:.5rem}
h2 b.get{background:#06c} code,pre,textarea{font:14px/1.4 monospace} table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;border-bottom:1px solid #d0d7de;padding:.3rem .6rem .3rem 0}
textarea{width:100%;box-sizing:border-box} pre{background:#f6f8fa;padding:.8rem;overflow:auto;max-height:24rem}
@media(prefers-color-scheme:dark){body{color:#dde;background:#15181c}pre,textarea{background:#22262b;color:#dde}}
"""

_SCRIPT = """
for (const form of document.forms) form.onsubmit = async event => {
  event.preventDefault();
  const out = form.querySelector("pre"), body = form.querySelector("textarea");
  out.hidden = false; out.textContent = "…";
  try {
    const response = await fetch(form.dataset.path, body
      ? {method: "POST", headers: {"content-type": "application/json"}, body: body.value} : {});
    const text = await response.text();
    out.textContent = response.status + "\\n" + (text.length > 5000 ? text.slice(0, 5000) + " …" : text);
  } catch (error) { out.textContent = error; }
};
"""


def docs_page(document: Json) -> str:
    """The HTML of the page, for one of our OpenAPI documents."""
    info, schemas = document["info"], document["components"]["schemas"]
    operations = [
        _operation(path, method, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    types = [_type_section(name, schema) for name, schema in sorted(schemas.items())]
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{title}</h1>'
        f'<p>{escape(info["description"])} <a href="/openapi.json">OpenAPI document</a></p>'
        f"{''.join(operations)}<h2>Types</h2>{''.join(types)}<script>{_SCRIPT}</script></html>\n"
    )


def _operation(path: str, method: str, operation: Json, schemas: Json) -> str:
    rows = [
        f"<tr><td><code>{status}</code><td>{escape(response['description'])}<td>{_response(response)}"
        for status, response in operation["responses"].items()
    ]
    return (
        f'<h2><b class="{method}">{method.upper()}</b>{escape(path)}</h2><p>{escape(operation["summary"])}</p>'
        f"{_headers(operation)}{_request(path, operation, schemas)}"
        f"<table><tr><th>Status<th>Meaning<th>Body{''.join(rows)}</table>"
    )


def _headers(operation: Json) -> str:
    rows = [
        f"<tr><td><code>{escape(parameter['name'])}</code><td>{_type_name(parameter['schema'])}"
        f"<td>{escape(parameter['description'])}"
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    ]
    return f"<table><tr><th>Header<th>Type<th>{''.join(rows)}</table>" if rows else ""


def _response(response: Json) -> str:
    ((media_type, content),) = response["content"].items()
    return _type_name(content["schema"]) if media_type == "application/json" else f"<code>{media_type}</code>"


def _request(path: str, operation: Json, schemas: Json) -> str:
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        example = json.dumps(content["example"], indent=2)
        curl = f"curl http://HOST:PORT{path} -H 'content-type: application/json' -d '{json.dumps(content['example'])}'"
        lines = example.count("\n") + 1
        return (
            f"{_fields(schemas[content['schema']['$ref'].rsplit('/', 1)[1]])}<pre>{escape(curl)}</pre>"
            f'<form data-path="{escape(path)}"><textarea rows="{lines}">{escape(example)}</textarea>'
            "<button>Send</button><pre hidden></pre></form>"
        )
    if "parameters" in operation:
        return ""
    return f'<form data-path="{escape(path)}"><button>Send</button><pre hidden></pre></form>'


def _type_section(name: str, schema: Json) -> str:
    about = escape(schema.get("description", "")).replace("\n", " ")
    return f'<h3 id="{name}">{name}</h3><p>{about}</p>{_fields(schema)}'


def _fields(schema: Json) -> str:
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{_type_name(field)}"
        f"<td>{'required' if name in required else ''}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>Field<th>Type<th><th>{''.join(rows)}</table>" if rows else ""


def _type_name(schema: Json) -> str:
    """The name of a type, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type_name(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"list of ({_type_name(schema['items'])})"
    return escape(str(schema.get("type", "any")))
