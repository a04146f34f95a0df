"""The admin of the Django that runs in the test process, and a door and a window for a browser."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.auth import get_user_model, login
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.middleware.csrf import get_token
from django.urls import path
from django.utils.html import format_html, format_html_join

#: Shows a page in a frame of a width of its own, and says in attributes of the body how wide its contents are, and what sticks out.
_WINDOW = """<!doctype html><body style="margin:0"><iframe src="{}" style="border:0;width:{}px;height:{}px"></iframe><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const inside = frame.contentDocument, root = inside.documentElement;
  document.body.dataset.width = root.scrollWidth;
  document.body.dataset.height = root.scrollHeight;
  document.body.dataset.evil = String(frame.contentWindow.evil);
  document.body.dataset.title = inside.title;
  const main = inside.querySelector(".guardrails"), edge = main ? main.getBoundingClientRect().right + 1 : Infinity;
  const over = main ? [...main.querySelectorAll(":scope *")].filter((each) => each.getBoundingClientRect().right > edge) : [];
  document.body.dataset.over = over.filter((each) => !each.closest(".module")).map((each) => each.tagName).join();
}});
</script></body>"""


def enter(request: HttpRequest) -> HttpResponse:
    """Log the user in that ``?name=`` says, and show the page that ``?page=`` says in a frame of ``?width=``."""
    login(request, get_user_model().objects.get(username=request.GET["name"]), backend="django.contrib.auth.backends.ModelBackend")
    page = request.GET["page"]
    if "post" in request.GET:
        page = "/submit/?" + urlencode({"page": page, "post": request.GET["post"]})
    if "width" not in request.GET:
        return HttpResponseRedirect(page)
    size: Any = (int(request.GET["width"]), int(request.GET["height"]))
    return HttpResponse(format_html(_WINDOW, page, *size))


def submit(request: HttpRequest) -> HttpResponse:
    """Send a form with the fields that ``?post=`` says, as JSON, to the page that ``?page=`` says."""
    fields = json.loads(request.GET["post"]) | {"csrfmiddlewaretoken": get_token(request)}
    inputs = format_html_join("", '<input type="hidden" name="{}" value="{}">', fields.items())
    form = '<!doctype html><form method="post" action="{}">{}</form><script>document.querySelector("form").submit()</script>'
    return HttpResponse(format_html(form, request.GET["page"], inputs))


urlpatterns = [path("admin/", admin.site.urls), path("enter/", enter), path("submit/", submit)]
