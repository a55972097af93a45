// The page of `zoo serve`. Whatever comes from the service is set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const TOKEN = "zoo-token"; // in the tab's storage
const PAUSE = 150; // milliseconds after a key, before a search

const state = { image: null, file: null, search: null, pause: 0, shown: [] };

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function say(message) {
  $("error").textContent = message || "";
  $("error").hidden = !message;
}

// Requests.

let asking = null;

function askForToken(note) {
  asking ??= new Promise((resolve) => {
    if (note) $("ask-note").textContent = note;
    $("ask").addEventListener(
      "close",
      () => {
        sessionStorage.setItem(TOKEN, $("token").value.trim());
        $("token").value = "";
        asking = null;
        resolve();
      },
      { once: true },
    );
    $("ask").showModal();
  });
  return asking;
}

async function send(path, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.status === 401 && attempt < 5) {
      await askForToken(token ? "That token is not the right one. Try again." : "");
      continue;
    }
    if (response.ok) return response;
    let message = `The service answered ${response.status}.`;
    try {
      message = (await response.json()).error.message;
    } catch {
      // not JSON: of a proxy, perhaps
    }
    throw new Error(message);
  }
}

async function post(path, fields, signal) {
  const headers = { "Content-Type": "application/json" };
  return (await send(path, { method: "POST", headers, body: JSON.stringify(fields), signal })).json();
}

function readAsDataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

// Search.

async function search() {
  const query = $("query").value.trim();
  const address = new URL(location.href);
  if (query) address.searchParams.set("q", query);
  else address.searchParams.delete("q");
  history.replaceState(null, "", address);
  state.search?.abort();
  say("");
  if (!query && !state.image) {
    show([]);
    $("status").textContent = "";
    return;
  }
  const running = (state.search = new AbortController());
  const fields = state.image ? { image: state.image } : { query };
  fields.k = $("count").valueAsNumber || 24;
  if (!Number.isNaN($("least").valueAsNumber)) fields.min_score = $("least").valueAsNumber;
  const where = {};
  for (const select of $("filters").querySelectorAll("select")) {
    if (select.value) where[select.dataset.key] = JSON.parse(select.value);
  }
  if (Object.keys(where).length) fields.where = where;
  const start = performance.now();
  try {
    const { results } = await post("/v1/search", fields, running.signal);
    const milliseconds = Math.round(performance.now() - start);
    show(results);
    const images = results.length === 1 ? "1 image" : `${results.length} images`;
    $("status").textContent = results.length ? `${images} in ${milliseconds} ms, best first` : "No image matches.";
  } catch (error) {
    if (error.name === "AbortError") return;
    show([]);
    $("status").textContent = "";
    say(error.message);
  }
}

function searchSoon() {
  clearTimeout(state.pause);
  state.pause = setTimeout(search, PAUSE);
}

function show(results) {
  for (const url of state.shown) URL.revokeObjectURL(url);
  state.shown = [];
  const current = state.shown;
  $("results").replaceChildren(
    ...results.map((result) => {
      const image = element("img", { alt: "", loading: "lazy" });
      loadThumbnail(image, result.thumbnail, current);
      const button = element(
        "button",
        { type: "button", title: "Search for images like this one" },
        image,
        element("span", { className: "score", textContent: result.score.toFixed(3) }),
        element("span", { className: "name", textContent: result.id }),
      );
      button.addEventListener("click", () => searchLike(result));
      return element("li", {}, button);
    }),
  );
}

async function loadThumbnail(image, path, shown) {
  try {
    const url = URL.createObjectURL(await (await send(path)).blob());
    if (shown !== state.shown) return URL.revokeObjectURL(url);
    shown.push(url);
    image.src = url;
  } catch {
    image.alt = "no thumbnail";
  }
}

async function searchLike(result) {
  try {
    const blob = await (await send(result.thumbnail)).blob();
    await setSearchImage(new File([blob], result.id, { type: blob.type }));
  } catch (error) {
    say(error.message);
  }
}

async function setSearchImage(file) {
  state.image = file ? await readAsDataUri(file) : null;
  $("search-image").hidden = $("search-clear").hidden = !file;
  $("search-image").src = state.image || "data:,";
  if (file) $("query").value = "";
  else $("search-file").value = "";
  await search();
}

async function setFilters() {
  const { filters, images } = await (await send("/v1/index")).json();
  for (const [number, [key, values]] of Object.entries(filters).entries()) {
    const id = `filter-${number}`;
    const select = element("select", { id }, element("option", { value: "", textContent: "any" }));
    select.dataset.key = key;
    select.append(...values.map((value) => element("option", { value: JSON.stringify(value), textContent: value })));
    select.addEventListener("change", search);
    $("filters").append(element("div", {}, element("label", { htmlFor: id, textContent: key }), select));
  }
  return images;
}

// Classify.

async function setFile(file) {
  state.file = file;
  const uri = await readAsDataUri(file);
  $("classify-image").src = uri;
  $("classify-image").hidden = false;
  await classify();
}

async function classify() {
  say("");
  if (!state.file) return say("Choose an image first.");
  const fields = { image: await readAsDataUri(state.file), top: 20 };
  if (!$("label-fields").hidden) {
    fields.labels = $("labels").value.split(/[\n,]/).map((label) => label.trim()).filter(Boolean);
    fields.templates = [$("template").value];
    if (!fields.labels.length) return say("Type some labels.");
  }
  $("classify-status").textContent = "Classifying…";
  try {
    const { classes } = await post("/v1/classify", fields);
    $("classes").replaceChildren(...classes.map(row));
    $("classify-status").textContent = `Most probable: ${classes[0].label}`;
  } catch (error) {
    $("classes").replaceChildren();
    $("classify-status").textContent = "";
    say(error.message);
  }
}

function row({ label, probability }) {
  const bar = element("div", { className: "bar" });
  bar.style.width = `${100 * Math.min(1, Math.max(0, probability))}%`;
  return element(
    "li",
    {},
    element("span", { className: "label", textContent: label }),
    element("div", { className: "track" }, bar),
    element("span", { className: "value", textContent: `${(100 * probability).toFixed(1)} %` }),
  );
}

// Tabs, files that are dropped or pasted.

const TABS = ["search", "classify"];

function choose(name, focus) {
  for (const tab of TABS) {
    const chosen = tab === name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(chosen));
    $(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
    $(tab).hidden = !chosen;
  }
  if (focus) $(`tab-${name}`).focus();
  say("");
}

function setTabs() {
  for (const [place, tab] of TABS.entries()) {
    $(`tab-${tab}`).addEventListener("click", () => choose(tab));
    $(`tab-${tab}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(TABS[(place + step + TABS.length) % TABS.length], true);
    });
  }
}

function take(file, use) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return say(`${file.name} is not an image.`);
  Promise.resolve(use(file)).catch((error) => say(error.message));
}

function setDrop(name, use) {
  const area = $(name);
  $(`${name}-file`).addEventListener("change", (event) => take(event.target.files[0], use));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    area.addEventListener(kind, (event) => {
      event.preventDefault();
      $(`${name}-drop`).classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0], use);
    });
  }
}

async function start() {
  setTabs();
  setDrop("search", setSearchImage);
  setDrop("classify", setFile);
  document.addEventListener("paste", (event) => {
    take(event.clipboardData.files[0], $("search").hidden ? setFile : setSearchImage);
  });
  $("query").addEventListener("input", () => {
    if (state.image) {
      state.image = null;
      $("search-image").hidden = $("search-clear").hidden = true;
    }
    searchSoon();
  });
  for (const id of ["count", "least"]) $(id).addEventListener("input", searchSoon);
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  $("search-clear").addEventListener("click", () => setSearchImage(null));
  $("classify-form").addEventListener("submit", (event) => {
    event.preventDefault();
    classify();
  });
  $("query").value = new URL(location.href).searchParams.get("q") || "";
  try {
    const [model] = (await (await send("/v1/models")).json()).data;
    $("facts").textContent = model.id;
    $("label-fields").hidden = model.kind !== "clip";
    const images = await setFilters().catch(() => null);
    if (images === null) {
      $("tab-search").disabled = true;
      choose("classify");
    } else {
      $("facts").textContent = `${model.id}, ${images.toLocaleString()} images`;
      await search();
    }
  } catch (error) {
    say(error.message);
  }
}

start();
