"use strict";
// The page for browsers: what a task asks for, how its answer looks, and the requests that do the same elsewhere.

const key = document.querySelector("#key-input"), state = document.querySelector("#state");
const nav = document.querySelector("nav"), main = document.querySelector("main");
const SENTENCES = ["You can track your order here.", "Our shops open at nine.", "I want my money back."].join("\n");

// A task has fields [name, label, example, lines], the path and body of a request, and what shows its answer.
const TASKS = {
  classify: {
    fields: [["text", "Text", "Please freeze my bank account.", 3]],
    body: given => ({ inputs: [given.text], parameters: { top_k: 10 } }),
    show: (to, [labels]) => bars(to, labels.map(each => [each.label, each.score])),
  },
  tag: {
    fields: [["text", "Text", "Please call Peter Miller on +44 20 7946 0123.", 4]],
    body: given => ({ inputs: given.text, parameters: { aggregation_strategy: "simple" } }),
    show: (to, entities, given) => {
      marked(to, given.text, entities.map(each => [each.start, each.end, each.entity_group]));
      bars(to, entities.map(each => [`${each.word} (${each.entity_group})`, each.score]));
    },
  },
  answer: {
    fields: [
      ["question", "Question", "Where does Merve live?", 1],
      ["context", "Text with the answer", "My name is Merve and I live in Istanbul.", 5],
    ],
    body: given => ({ inputs: { question: given.question, context: given.context }, parameters: { top_k: 3 } }),
    show: (to, answers, given) => {
      const list = [answers].flat();
      marked(to, given.context, list[0] ? [[list[0].start, list[0].end, ""]] : []);
      bars(to, list.map(each => [each.answer, each.score]));
    },
  },
  fill: {
    fields: [["text", "Text with [MASK]", "Where is my [MASK]?", 3]],
    body: given => ({ inputs: given.text, parameters: { top_k: 5 } }),
    show: (to, fills) => {
      const masks = Array.isArray(fills[0]) ? fills : [fills];
      masks.forEach((mask, number) => {
        if (masks.length > 1) element(to, "h2", `Mask ${number + 1}`);
        bars(to, mask.map(each => [each.token_str, each.score]));
      });
      if (masks.length === 1 && masks[0].length) element(to, "p", masks[0][0].sequence.trim(), { className: "text" });
    },
  },
  embed: {
    fields: [["text", "Sentence", "Where is my parcel?", 1], ["others", "Sentences to compare, one a line", SENTENCES, 5]],
    body: given => ({ inputs: { source_sentence: given.text, sentences: lines(given.others) } }),
    show: (to, cosines, given) => bars(to, sorted(lines(given.others).map((line, i) => [line, cosines[i]]))),
  },
  rerank: {
    path: "/rerank",
    fields: [["query", "Query", "Where is my parcel?", 1], ["texts", "Texts to rank, one a line", SENTENCES, 5]],
    body: given => ({ query: given.query, texts: lines(given.texts) }),
    show: (to, ranked, given) => bars(to, ranked.map(each => [lines(given.texts)[each.index], each.score])),
  },
};

function element(parent, name, text, properties) {
  const child = parent.appendChild(document.createElement(name));
  if (text !== undefined) child.textContent = text;
  return Object.assign(child, properties);
}

function lines(text) {
  return text.split("\n").map(line => line.trim()).filter(line => line);
}

function sorted(rows) {
  return rows.sort((one, other) => other[1] - one[1]);
}

function bars(parent, rows) {
  for (const [name, score] of rows) {
    const row = element(parent, "div", undefined, { className: "row" });
    element(row, "span", name);
    const track = element(row, "div", undefined, { className: "track" });
    const width = 100 * Math.min(Math.max(score, 0), 1);
    element(track, "div", undefined, { className: "fill" }).style.width = `${width}%`;
    element(row, "span", score.toFixed(3), { className: "number" });
  }
  if (!rows.length) element(parent, "p", "Nothing found.", { className: "soft" });
}

function marked(parent, text, spans) {
  const characters = Array.from(text); // the service counts code points, not the halves of pairs
  const shown = element(parent, "p", "", { className: "text" });
  let at = 0;
  for (let [start, end, label] of spans.sort((one, other) => one[0] - other[0])) {
    if (start < at) continue;
    while (start < end && characters[start] === " ") start++; // tokens begin with the space before their word
    shown.append(characters.slice(at, start).join(""));
    const mark = element(shown, "mark", characters.slice(start, end).join(""));
    if (label) element(mark, "small", label);
    at = end;
  }
  shown.append(characters.slice(at).join(""));
}

function address(path) {
  return new URL(path, new URL(".", location)).href;
}

function headers() {
  return key.value ? { authorization: `Bearer ${key.value}` } : {};
}

async function message(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text), error = body.error ?? body.message ?? body.detail;
    return `${response.status}: ${error.message ?? error}`;
  } catch {
    return `${response.status}: ${text.slice(0, 1000)}`;
  }
}

function quoted(text) { // for a shell
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function curl(url, body) {
  const secret = key.value ? ` -H "authorization: Bearer $MODERNBERT_API_KEY"` : "";
  return `curl -s ${quoted(url)} -H 'content-type: application/json'${secret} -d ${quoted(JSON.stringify(body))}`;
}

function python(url, body) { // JSON of texts and whole numbers is Python, too
  const secret = key.value ? `, headers={"authorization": "Bearer " + os.environ["MODERNBERT_API_KEY"]}` : "";
  const line = `print(requests.post(${JSON.stringify(url)}, json=${JSON.stringify(body)}${secret}).json())`;
  return `${key.value ? "import os\n" : ""}import requests\n${line}`;
}

async function ask(url, task, given, result) {
  const body = task.body(given);
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify(body),
  });
  result.replaceChildren();
  if (response.ok) {
    const answer = await response.json(), sent = name => response.headers.get(name);
    task.show(result, answer, given);
    element(result, "p", `${sent("x-compute-tokens")} tokens in ${sent("x-total-time")} ms`, { className: "soft" });
    if (sent("x-truncated")) element(result, "p", "The end of a text was cut off.", { className: "soft" });
  } else {
    element(result, "p", await message(response), { className: "wrong" });
  }
  for (const [title, text] of [["curl", curl(url, body)], ["Python", python(url, body)]]) {
    element(result, "h2", title);
    element(result, "pre", text, { id: title });
  }
}

function show(model) {
  location.hash = model.id;
  for (const button of nav.children) button.ariaPressed = String(button.value === model.id);
  main.replaceChildren();
  const task = Object.hasOwn(TASKS, model.task) ? TASKS[model.task] : undefined;
  if (!task) {
    element(main, "p", `This page has no form for the task ${model.task}; the docs have its routes.`);
    return;
  }
  const form = element(main, "form"), inputs = {};
  for (const [name, label, example, rows] of task.fields) {
    element(form, "label", label, { htmlFor: name });
    const kind = rows > 1 ? "textarea" : "input";
    inputs[name] = element(form, kind, undefined, { id: name, className: "wide", value: example, required: true });
    if (rows > 1) inputs[name].rows = rows;
  }
  const button = element(form, "button", "Run");
  const result = element(main, "section", undefined, { className: "result", ariaLive: "polite" });
  form.onsubmit = async event => {
    event.preventDefault();
    button.disabled = true;
    const given = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, input.value]));
    try {
      await ask(address(`models/${model.id}${task.path ?? ""}`), task, given, result);
    } catch (error) {
      result.replaceChildren();
      element(result, "p", String(error), { className: "wrong" });
    }
    button.disabled = false;
  };
  form.onkeydown = event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
}

async function load(event) {
  event?.preventDefault();
  nav.replaceChildren();
  main.replaceChildren();
  state.className = "";
  state.textContent = "";
  const response = await fetch(address("v1/models"), { headers: headers() });
  if (!response.ok) {
    state.className = "wrong";
    state.textContent = response.status === 401 ? "This service needs its key." : await message(response);
    return;
  }
  const models = (await response.json()).data.filter(model => model.root === model.id); // the others are aliases
  for (const model of models) {
    const button = element(nav, "button", model.id, { value: model.id });
    element(button, "small", ` ${model.task}`);
    button.onclick = () => show(model);
  }
  const chosen = decodeURIComponent(location.hash.slice(1));
  show(models.find(model => model.id === chosen) ?? models[0]);
}

document.querySelector("#key").onsubmit = load;
load();
