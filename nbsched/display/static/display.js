// Draws what the kernel says, and tells it what was clicked. Knows no job, counts
// nothing, words nothing: all of that is done in Python, where it is tested.
//
// A display is static HTML in the cell's output, which is what a saved notebook keeps.
// While the kernel lives this module finds that HTML in the page, by its token, and puts
// the live view in its place. Where outputs are kept apart from this module (VS Code,
// Colab) the kernel shows a widget view instead, and `render` draws the same in there.

const SELECTOR = "[data-nbsched]";

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function set(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

// Reuse children by key, so that focus, selection and open text survive an update.
function keyed(parent, items, keyOf, create, update) {
  const old = new Map();
  let at = null;
  for (const child of parent.children) {
    if (child.dataset.key === undefined) continue;
    at = at || child;
    old.set(child.dataset.key, child);
  }
  for (const item of items) {
    const key = String(keyOf(item));
    let node = old.get(key);
    if (node) old.delete(key);
    else {
      node = create(item);
      node.dataset.key = key;
    }
    update(node, item);
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
  }
  for (const node of old.values()) node.remove();
}

function button(className, act) {
  const node = make("button", className);
  node.type = "button";
  node.addEventListener("click", () => {
    if (node.getAttribute("aria-disabled") !== "true") act(node);
  });
  return node;
}

// A button that cannot be used now keeps the focus: `aria-disabled`, not `disabled`.
function updateButton(node, spec) {
  node.hidden = !spec;
  if (!spec) return;
  say(node, spec.label);
  set(node, "aria-label", spec.spoken || null);
  set(node, "title", spec.title || null);
  set(node, "aria-disabled", spec.enabled ? null : "true");
  set(node, "aria-busy", spec.busy ? "true" : null);
}

function bar(className) {
  const node = make("div", className);
  node.setAttribute("role", "progressbar");
  node.setAttribute("aria-valuemin", "0");
  return node;
}

function updateBar(node, spec) {
  set(node, "aria-label", spec.label);
  set(node, "aria-valuemax", spec.max);
  set(node, "aria-valuenow", spec.max === null ? null : spec.now);
  set(node, "aria-valuetext", spec.spoken);
  set(node, "title", spec.spoken);
  keyed(node, spec.parts, (part) => part.kind, () => make("span"), (span, part) => {
    span.className = `part ${part.fill}`;
    span.style.flexGrow = part.count;
  });
}

// JupyterLab and VS Code say which theme they are in; other pages follow the system.
function isDark() {
  const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
  if (jpThemeLight !== undefined) return jpThemeLight === "false";
  if (vscodeThemeKind) return vscodeThemeKind.includes("dark") || vscodeThemeKind === "vscode-high-contrast";
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

function sign(state) {
  return `sign ${state}`;
}

class View {
  constructor(model, host) {
    this.model = model;
    const shadow = host.attachShadow({ mode: "open" });
    const style = make("style");
    style.textContent = model.get("_style");
    this.root = make("section", "nbsched");
    this.root.setAttribute("role", "group");
    shadow.append(style, this.root);
    this.parts = {};
    this.update();
  }

  send(message) {
    this.model.send(message);
  }

  update() {
    const state = this.model.get("state");
    if (!state || !state.kind) return;
    if (this.kind !== state.kind) {
      this.root.replaceChildren();
      this.parts = {};
      this.kind = state.kind;
    }
    set(this.root, "aria-label", state.label);
    set(this.root, "data-state", state.state);
    this.root.classList.toggle("dark", isDark());
    if (state.kind === "job") this.job(state);
    else if (state.kind === "task") this.task(state);
    else if (state.kind === "cluster") this.cluster(state);
  }

  // Nothing can be clicked any more.
  freeze() {
    for (const node of this.root.querySelectorAll("button")) {
      if (node.classList.contains("link")) set(node, "aria-disabled", "true");
      else node.remove();
    }
  }

  part(name, create) {
    if (!this.parts[name]) {
      this.parts[name] = create();
      this.root.append(this.parts[name]);
    }
    return this.parts[name];
  }

  head(state) {
    const head = this.part("head", () => {
      const node = make("div", "head");
      node.append(make("strong", "name"), make("code", "id"), make("span", "state"));
      node.append(make("span", "percent"));
      return node;
    });
    const [name, id, word, percent] = head.children;
    say(name, state.name);
    say(id, state.id);
    say(word, state.word);
    word.className = `state ${state.state}`;
    say(percent, state.percent || "");
    percent.hidden = !state.percent;
    const spoken = this.part("spoken", () => {
      const node = make("div", "unseen");
      node.setAttribute("aria-live", "polite");
      return node;
    });
    say(spoken, state.announce || "");
  }

  // ---------------------------------------------------------------- a job

  job(state) {
    this.head(state);
    updateBar(this.part("bar", () => bar("bar")), state.bar);
    this.counts(state);
    this.notes(state);
    this.tools(state);
    this.table(state);
  }

  counts(state) {
    const foot = this.part("counts", () => {
      const node = make("div", "foot");
      node.append(make("span", "counts"), make("span", "facts"));
      return node;
    });
    const [counts, facts] = foot.children;
    const create = () => {
      const node = make("span", "count");
      node.append(make("i", "swatch"), make("span"));
      return node;
    };
    keyed(counts, state.counts, (count) => count.kind, create, (node, count) => {
      node.firstChild.className = `swatch part ${count.fill}`;
      say(node.lastChild, count.text);
    });
    say(facts, state.facts);
  }

  notes(state) {
    const note = this.part("note", () => {
      const node = make("div", "note");
      node.setAttribute("role", "status");
      return node;
    });
    say(note, state.note ? `⚠ ${state.note}` : "");
  }

  tools(state) {
    const tools = this.part("tools", () => {
      const node = make("div", "tools");
      const tabs = make("div", "tabs");
      const cancel = button("act", () => this.send({ do: "cancel" }));
      const retry = button("act", () => this.send({ do: "retry" }));
      node.append(tabs, retry, cancel);
      return node;
    });
    const [tabs, retry, cancel] = tools.children;
    const create = (tab) => button("tab", () => this.send({ do: "show", tab: tab.key }));
    keyed(tabs, state.tabs || [], (tab) => tab.key, create, (node, tab) => {
      say(node, tab.label);
      node.setAttribute("aria-expanded", String(tab.key === state.tab));
    });
    updateButton(retry, state.retry);
    updateButton(cancel, state.cancel);
    tools.hidden = !state.retry && !state.cancel && !(state.tabs || []).length;
  }

  table(state) {
    const area = this.part("table", () => this.makeTable());
    area.hidden = !state.tab;
    if (!state.tab) return;
    const [scroll, pager] = area.children;
    const table = scroll.firstChild;
    set(table, "aria-label", state.tableLabel);
    table.classList.toggle("no-items", !state.items);
    const create = (row) => this.makeRow(row);
    keyed(table, state.rows, (row) => row.index, create, (node, row) => {
      this.updateRow(node, row);
    });
    const empty = area.querySelector(".empty");
    empty.hidden = state.rows.length > 0;
    say(empty, state.empty);
    pager.hidden = state.pages < 2;
    const [previous, where, next] = pager.children;
    updateButton(previous, { label: "‹", spoken: "previous page", enabled: state.page > 0 });
    say(where, state.where);
    const more = state.page < state.pages - 1;
    updateButton(next, { label: "›", spoken: "next page", enabled: more });
  }

  makeTable() {
    const area = make("div", "tasks");
    const scroll = make("div", "scroll");
    const table = make("table");
    const head = table.createTHead().insertRow();
    for (const word of ["Task", "Item", "State", "Try", "Worker", "Time", "Error"]) {
      head.append(make("th", `c-${word.toLowerCase()}`, word));
    }
    const act = make("th", "c-do");
    act.append(make("span", "unseen", "Action"));
    head.append(act);
    for (const cell of head.cells) cell.scope = "col";
    scroll.append(table, make("div", "empty"));
    const pager = make("div", "pager");
    pager.append(
      button("act small", () => this.send({ do: "page", by: -1 })),
      make("span"),
      button("act small", () => this.send({ do: "page", by: 1 })),
    );
    area.append(scroll, pager);
    return area;
  }

  makeRow(row) {
    const body = make("tbody");
    const node = body.insertRow();
    for (const name of ["index", "item", "state", "try", "worker", "time", "error", "do"]) {
      node.append(make(name === "index" ? "th" : "td", `c-${name}`));
    }
    node.cells[0].scope = "row";
    node.cells[2].append(make("span"));
    const error = node.cells[6];
    error.append(button("link", () => this.send({ do: "open", index: row.index })));
    const text = make("td", "c-more");
    text.colSpan = 8;
    const more = make("pre", "traceback");
    more.tabIndex = 0;
    text.append(more);
    body.insertRow().append(text);
    node.cells[7].append(
      button("act small", (b) => this.send({ do: b.dataset.do, index: row.index })),
    );
    return body;
  }

  updateRow(body, row) {
    const [node, detail] = body.rows;
    const [index, item, state, attempt, worker, time, error, act] = node.cells;
    set(body, "data-state", row.state);
    set(body, "data-task", row.index);
    say(index, String(row.index));
    say(item, row.item);
    set(item, "title", row.item);
    say(state.firstChild, row.word);
    state.firstChild.className = sign(row.state);
    say(attempt, row.attempt);
    say(worker, row.worker);
    set(worker, "title", row.worker);
    say(time, row.elapsed);
    const toggle = error.firstChild;
    const text = detail.firstChild.firstChild;
    toggle.hidden = !row.error && !row.hasMore;
    say(toggle, row.error || row.moreLabel || "");
    set(toggle, "title", row.error);
    set(toggle, "aria-label", row.error ? `Traceback of task ${row.index}: ${row.error}` : null);
    toggle.setAttribute("aria-expanded", String(row.open));
    detail.hidden = !row.open;
    say(text, row.more || "");
    const doer = act.firstChild;
    updateButton(doer, row.act);
    if (row.act) doer.dataset.do = row.act.do;
  }

  // ---------------------------------------------------------------- a single future

  task(state) {
    this.head(state);
    const foot = this.part("task", () => {
      const node = make("div", "foot");
      const acts = make("span", "acts");
      acts.append(
        button("act small", () => this.send({ do: "retry" })),
        button("act small", () => this.send({ do: "cancel" })),
      );
      node.append(make("span", "facts left"), acts);
      return node;
    });
    say(foot.firstChild, state.facts);
    const [retry, cancel] = foot.lastChild.children;
    updateButton(retry, state.retry);
    updateButton(cancel, state.cancel);
    this.notes(state);
    const outcome = this.part("outcome", () => {
      const node = make("div", "outcome");
      node.append(button("link", () => this.send({ do: "open" })), make("pre", "traceback"));
      node.append(make("code", "value"));
      return node;
    });
    const [toggle, text, value] = outcome.children;
    toggle.hidden = !state.error;
    say(toggle, state.error || "");
    toggle.setAttribute("aria-expanded", String(Boolean(state.open)));
    text.hidden = !state.open;
    say(text, state.more || "");
    value.hidden = !state.value;
    say(value, state.value || "");
    outcome.hidden = !state.error && !state.value;
  }

  // ---------------------------------------------------------------- a cluster

  cluster(state) {
    this.head(state);
    this.notes(state);
    const members = this.part("members", () => {
      const node = make("div", "grid members");
      node.setAttribute("role", "list");
      return node;
    });
    keyed(members, state.members, (m) => m.key, () => this.makeMember(), (node, m) => {
      updateBar(node.children[2], m.cpus);
      say(node.children[0], m.name);
      say(node.children[1], m.role);
      say(node.children[3], m.use);
      say(node.children[4], m.memory);
    });
    const title = this.part("jobs-title", () => make("div", "subtitle"));
    say(title, state.jobsTitle);
    const jobs = this.part("jobs", () => {
      const node = make("div", "grid jobs");
      node.setAttribute("role", "list");
      return node;
    });
    keyed(jobs, state.jobs, (job) => job.id, (job) => this.makeJob(job), (node, job) => {
      const [name, id, line, words, act] = node.children;
      say(name, job.name);
      say(id, job.id);
      updateBar(line, job.bar);
      say(words, job.words);
      words.className = `words ${job.state}`;
      updateButton(act.firstChild, job.cancel);
    });
  }

  makeMember() {
    const node = make("div", "line");
    node.setAttribute("role", "listitem");
    node.append(make("span", "host"), make("span", "role"), bar("bar thin"));
    node.append(make("span", "words"), make("span", "memory"));
    return node;
  }

  makeJob(job) {
    const node = make("div", "line");
    node.setAttribute("role", "listitem");
    const act = make("span", "acts");
    act.append(button("act small", () => this.send({ do: "cancel", job: job.id })));
    node.append(make("strong", "name"), make("code", "id"), bar("bar thin"));
    node.append(make("span", "words"), act);
    return node;
  }
}

// ------------------------------------------------------------------ in the page

// Every live display of this page, by token; one observer for all of them.
const displays = new Map();
let observer = null;
let themes = null;

function watch() {
  if (observer || displays.size === 0) return;
  observer = new MutationObserver((records) => {
    for (const record of records) {
      for (const node of record.addedNodes) {
        if (node.nodeType === Node.ELEMENT_NODE) adopt(node);
      }
    }
  });
  observer.observe(document.body, { childList: true, subtree: true });
  themes = new MutationObserver(() => displays.forEach((display) => display.update()));
  const attributeFilter = ["data-jp-theme-light", "data-vscode-theme-kind"];
  themes.observe(document.body, { attributes: true, attributeFilter });
}

function adopt(node) {
  const found = [...node.querySelectorAll(SELECTOR)];
  if (node.matches(SELECTOR)) found.push(node);
  for (const element of found) {
    const [token, stage] = element.dataset.nbsched.split(":");
    displays.get(token)?.meet(element, Number(stage));
  }
}

class Display {
  constructor(model) {
    this.model = model;
    this.views = new Map();
    this.onChange = () => this.update();
    this.onLife = () => this.rest();
    model.on("change:state", this.onChange);
    // The kernel is restarted: nobody hears a click any more.
    model.on("comm_live_update", this.onLife);
  }

  // HTML of a later end than the state's is the news: the state that goes with it follows.
  // HTML of the same end says all, if there is nothing to click.
  wants(stage) {
    const state = this.model.get("state");
    return stage < state.stage || (stage === state.stage && !state.idle);
  }

  meet(element, stage) {
    if (!this.resting && !this.views.has(element) && this.wants(stage)) this.mount(element, stage);
  }

  mount(element, stage) {
    const host = make("div", "nbsched-live");
    const saved = [...element.children];
    for (const child of saved) child.style.display = "none";
    element.append(host);
    this.views.set(element, { view: new View(this.model, host), host, saved, stage });
  }

  // For good, whatever state of the old kernel is still on its way: what the file keeps says
  // how to go on.
  rest() {
    this.resting = true;
    this.listenNoMore();
    for (const element of [...this.views.keys()]) this.unmount(element);
  }

  update() {
    // What an update has replaced in the page is not drawn any more. A cell that is only
    // scrolled out of sight comes back through the observer, and is drawn then.
    for (const [element, entry] of this.views) {
      if (element.isConnected && this.wants(entry.stage)) entry.view.update();
      else this.unmount(element);
    }
    const { stage } = this.model.get("state");
    if (stage !== this.stage) {
      this.stage = stage;
      adopt(document.body);
    }
  }

  unmount(element) {
    const entry = this.views.get(element);
    entry.host.remove();
    for (const child of entry.saved) child.style.removeProperty("display");
    this.views.delete(element);
  }

  // The model is gone. Where the HTML is older than the last state, that stays to be read.
  end() {
    this.listenNoMore();
    const { stage } = this.model.get("state");
    for (const [element, entry] of this.views) {
      if (entry.stage < stage) entry.view.freeze();
      else this.unmount(element);
    }
  }

  listenNoMore() {
    this.model.off("change:state", this.onChange);
    this.model.off("comm_live_update", this.onLife);
  }
}

export default {
  initialize({ model }) {
    const token = model.get("token");
    const display = new Display(model);
    displays.set(token, display);
    watch();
    adopt(document.body);
    model.send({ do: "hello" });
    return () => {
      display.end();
      if (displays.get(token) === display) displays.delete(token);
      if (displays.size === 0 && observer) {
        observer.disconnect();
        themes.disconnect();
        observer = themes = null;
      }
    };
  },

  render({ model, el }) {
    const host = make("div", "nbsched-live");
    el.append(host);
    const view = new View(model, host);
    const onChange = () => view.update();
    model.on("change:state", onChange);
    return () => model.off("change:state", onChange);
  },
};
