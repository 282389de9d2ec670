"""The page at GET /, looked at and clicked in Chromium."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from browser import CHROMIUM, Tab, tab
from online_service import CLIENT, all_models, post, service, serving

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ODD = "<img src=x onerror=\"document.title='run'\"> & 'Ada' 😀 \\ ${HOME} `id`"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def run(page: Tab, model: str, url: str | None = None, **fields: str) -> None:
    """Open the form of a model, fill it in, and press Run."""
    page.open(f"{url or service()}/#{model}")
    page.wait("document.querySelector('main form') !== null")
    for name, text in fields.items():
        page.type(f"#{name}", text)
    page.click("main form button")
    page.wait("document.querySelector('#Python, .result .wrong') !== null")


def rows(page: Tab) -> list[tuple[str, float, float]]:
    """The name, the number and the width in percent of each bar."""
    names, numbers = page.texts(".row > span:first-child"), page.texts(".row .number")
    widths = page.value(
        "[...document.querySelectorAll('.row .fill')].map(each => each.style.width)"
    )
    return [
        (name, float(number), float(width.rstrip("%")))
        for name, number, width in zip(names, numbers, widths, strict=True)
    ]


def answered(path: str, body: Any) -> Any:
    return post(path, body).json()


@pytest.mark.parametrize("accept", [{}, {"accept": "*/*"}, {"accept": "application/json"}])
def test_other_clients_of_the_root_get_its_health(accept: dict[str, str]) -> None:
    reply = CLIENT.get(service() + "/", headers=accept)
    assert (reply.status_code, reply.json(), reply.headers["vary"]) == (
        200,
        {"status": "ok"},
        "accept",
    )


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_allows_its_own_script_alone(path: str) -> None:
    reply = CLIENT.get(service() + path, headers=BROWSER)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in reply.text.replace("http://${", "").replace("https://${", "")
    head = CLIENT.head(service() + path, headers=BROWSER)
    assert (head.status_code, head.content, head.headers["content-type"]) == (
        200,
        b"",
        "text/html; charset=utf-8",
    )


def test_labels_are_bars(page: Tab) -> None:
    run(page, "intent", text=ODD)
    (labels,) = answered("/models/intent", {"inputs": [ODD], "parameters": {"top_k": 10}})
    assert [row[:2] for row in rows(page)] == [
        (each["label"], round(each["score"], 3)) for each in labels
    ]
    assert rows(page)[0][2] == pytest.approx(100 * labels[0]["score"], abs=0.01)
    assert page.texts("nav button[aria-pressed=true]") == ["intent classify"]
    assert page.value("document.querySelector('img')") is None


def test_entities_are_marked_in_the_text(page: Tab) -> None:
    text = "😀 <b>Call</b> Peter Miller on +44 20 7946 0123."
    run(page, "pii", text=text)
    entities = answered(
        "/models/pii", {"inputs": text, "parameters": {"aggregation_strategy": "simple"}}
    )
    assert len(entities) >= 1
    expected = [
        f"{text[each['start'] : each['end']].strip()}{each['entity_group']}" for each in entities
    ]
    assert (
        page.value("[...document.querySelectorAll('mark')].map(each => each.textContent)")
        == expected
    )
    page.value("document.querySelectorAll('mark small').forEach(each => each.remove())")
    assert page.value("document.querySelector('.text').textContent") == text


def test_the_answer_is_marked_in_its_text(page: Tab) -> None:
    context = "😀 My name is Merve and I live in Istanbul."
    run(page, "reader", question="Where do I live?", context=context)
    inputs = {"question": "Where do I live?", "context": context}
    answers = answered("/models/reader", {"inputs": inputs, "parameters": {"top_k": 3}})
    assert page.value("document.querySelector('mark').textContent") == answers[0]["answer"].strip()
    assert [row[1] for row in rows(page)] == [round(each["score"], 3) for each in answers]


def test_fills_of_one_mask_and_of_two(page: Tab) -> None:
    for text, masks in (("Where is my [MASK]?", 1), ("Where [MASK] my [MASK]?", 2)):
        run(page, "mask", text=text)
        fills = answered("/models/mask", {"inputs": text, "parameters": {"top_k": 5}})
        flat = fills if masks == 1 else [each for mask in fills for each in mask]
        assert [row[1] for row in rows(page)] == [round(each["score"], 3) for each in flat]
        assert len(rows(page)) == 5 * masks
    assert page.texts(".result h2")[:2] == ["Mask 1", "Mask 2"]


def test_the_nearest_sentences_come_first(page: Tab) -> None:
    run(
        page,
        "sentence",
        text="Where is my order?",
        others="I am hungry\n\n  Track my order \nWhere is it?",
    )
    sentences = ["I am hungry", "Track my order", "Where is it?"]
    cosines = answered(
        "/similarity", {"inputs": {"source_sentence": "Where is my order?", "sentences": sentences}}
    )
    best = sorted(zip(sentences, cosines, strict=True), key=lambda each: -each[1])
    assert [row[:2] for row in rows(page)] == [(text, round(cosine, 3)) for text, cosine in best]


def test_ranked_texts(page: Tab) -> None:
    run(page, "ranker", query="parcel", texts="one\ntwo\nthree")
    ranked = answered("/rerank", {"query": "parcel", "texts": ["one", "two", "three"]})
    expected = [
        (["one", "two", "three"][each["index"]], round(each["score"], 3)) for each in ranked
    ]
    assert [row[:2] for row in rows(page)] == expected


def test_the_lines_of_curl_and_python_give_the_same(page: Tab) -> None:
    run(page, "intent", text=ODD)
    expected = answered("/models/intent", {"inputs": [ODD], "parameters": {"top_k": 10}})
    curl, python = page.texts("#curl")[0], page.texts("#Python")[0]
    for command in (
        ["bash", "-c", curl],
        [sys.executable, "-c", python.replace("print(", "import json; print(json.dumps(") + ")"],
    ):
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert json.loads(shown) == expected


def test_a_key_is_asked_for(page: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODERNBERT_API_KEY", "sesame")
    with serving(all_models()) as url:
        page.open(url)
        page.wait("document.querySelector('#state').textContent !== ''")
        assert page.texts("#state") == ["This service needs its key."]
        assert page.texts("nav button") == []
        page.type("#key-input", "sesame")
        page.click("#key button")
        page.wait("document.querySelector('nav button') !== null")
        page.click("nav button[value=sentence]")
        page.click("main form button")
        page.wait("document.querySelector('#Python') !== null")
        assert len(rows(page)) == 3
        curl = page.texts("#curl")[0]
        assert "sesame" not in curl + page.texts("#Python")[0]
        shown = subprocess.run(
            ["bash", "-c", curl], capture_output=True, text=True, env=os.environ, timeout=60
        ).stdout
        assert len(json.loads(shown)) == 3


def test_a_refusal_is_shown(page: Tab) -> None:
    run(page, "mask", text="no place to fill")
    (shown,) = page.texts(".result .wrong")
    assert shown.startswith("422: inputs[0]: ")


def test_light_and_dark(page: Tab) -> None:
    page.open(service())
    backs = []
    for theme in ("light", "dark"):
        page.colours(theme)
        backs.append(page.value("getComputedStyle(document.body).backgroundColor"))
    assert backs == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


def test_nothing_comes_from_elsewhere(page: Tab) -> None:
    page.complaints.clear()
    page.requested.clear()
    for path in ("/#sentence", "/docs"):
        page.open(service() + path)
        page.wait("document.querySelector('main button') !== null")
    assert page.complaints == []
    assert {"/".join(url.split("/")[:3]) for url in page.requested} == {service()}
